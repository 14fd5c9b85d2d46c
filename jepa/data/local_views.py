"""Smaller crops beside the views of a picture or clip."""

# Without `from __future__ import annotations`, as data_module.py.
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from jepa.data.augment import Augment
from jepa.data.data_module import DataModule
from jepa.data.image_transform import ImageTransform, height_and_width
from jepa.types import Batch
from jepa.utils.errors import check_at_least


@dataclass(kw_only=True, eq=False)
class LocalViews(DataModule):
    """Data of pictures (..., H, W).

    local_views: small crops per training sample beside `views`, of `local_size` pixels, made by `local_augment`.
    """

    local_views: int = 0
    local_size: int | Sequence[int] | None = None
    local_augment: Augment | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("data", 0, local_views=self.local_views)
        if self.local_views and (self.local_size is None or self.local_augment is None):
            needs = "data.local_size (pixels) and data.local_augment (as data.augment, such as "
            needs += "{_target_: jepa.data.Augment, crop_scale: [0.05, 0.3]})"
            raise ValueError(f"data.local_views={self.local_views} needs {needs}")

    def make_local_transform(self, make: Callable[..., ImageTransform]) -> ImageTransform | None:
        """Return the transform of the crops, if there are any. make: called with its size and augmentation."""
        if not self.local_views:
            return None
        return make(size=height_and_width("local_size", self.local_size), augment=self.local_augment)

    @property
    def has_several_views(self) -> bool:
        return self.views > 1 or self.local_views > 0

    def blank_batch(self, count: int) -> Batch:
        blank = super().blank_batch(count)
        if self.local_transform is not None:
            shape = (*self.blank.shape[:-2], *self.local_transform.size)
            blank["local_views"] = torch.zeros(count, self.local_views, *shape)
        return blank
