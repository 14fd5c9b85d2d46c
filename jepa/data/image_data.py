"""Image data for training and evaluation, built from a source by `conf/data/*.yaml`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from jepa.data.data_module import DataModule, PreparedBatches, check_counts, read_source
from jepa.data.image_augment import Augment
from jepa.data.image_transform import ImageTransform, height_and_width
from jepa.data.sources.splits import Splits, TensorImages
from jepa.data.stream import Request
from jepa.types import Batch
from jepa.utils.random import generator


@dataclass(kw_only=True, eq=False)
class ImageData(DataModule):
    """Batches of images (B, C, H, W).

    source: called as source(root=root), or source() without a root; returns `Splits`.
    image_size: side, or [height, width], to which images are cropped and resized.
    channels: 3 or 1 for image files, which are converted to it; tensors of a source may have any number.
    mean, std: of pixel values in [0, 1], one for each channel or one for all.
    augment: how training views are made; None to crop and resize as in evaluation.
    views: augmented views per training sample, which show the whole of it as far as `augment` lets them.
    local_views: small crops per training sample beside these, of `local_size` pixels and made by `local_augment`.
    """

    source: Callable[..., Splits]
    root: str | None = None
    image_size: int | Sequence[int]
    channels: int
    mean: Sequence[float]
    std: Sequence[float]
    augment: Augment | None = None
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    local_views: int = 0
    local_size: int | Sequence[int] | None = None
    local_augment: Augment | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(channels=self.channels)
        if self.local_views < 0:
            raise ValueError(f"data.local_views={self.local_views} is negative; 0 makes none")
        if self.local_views and (self.local_size is None or self.local_augment is None):
            raise ValueError(
                f"data.local_views={self.local_views} needs data.local_size (pixels) and data.local_augment "
                "(as data.augment, such as {_target_: jepa.data.Augment, crop_scale: [0.05, 0.3]})"
            )
        self.transform = self._transform(self.image_size, self.augment)
        self.local_transform = None
        if self.local_views:
            self.local_transform = self._transform(height_and_width("local_size", self.local_size), self.local_augment)
        self.setup(
            read_source(self.source, root=self.root),
            prepare=self.transform,
            input_shape=(self.channels, *self.transform.size),
        )

    def _transform(self, size: int | Sequence[int], augment: Augment | None) -> ImageTransform:
        return ImageTransform(
            size=size,
            channels=self.channels,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            augment=augment,
        )

    @property
    def has_several_views(self) -> bool:
        """Whether a training sample comes as `views` rather than `x`."""
        return self.views > 1 or self.local_views > 0

    def blank_batch(self, count: int) -> Batch:
        """A training batch of `count` samples, all zeros, without labels."""
        blank = super().blank_batch(count)
        if self.local_transform is not None:
            blank["local_views"] = torch.zeros(count, self.local_views, self.channels, *self.local_transform.size)
        return blank

    def batch_maker(
        self, split: str, *, seed: int | None, views: int | None = None, bad_limit: float
    ) -> Callable[[Request], Batch]:
        """See `DataModule.batch_maker`."""
        return _ImageBatches(
            **self._maker_settings(split, seed=seed, views=views, bad_limit=bad_limit),
            local_transform=self.local_transform if views is None else None,
            local_views=self.local_views,
        )


@dataclass(frozen=True, kw_only=True)
class _ImageBatches(PreparedBatches):
    """Augments images in memory a batch at a time, files one by one. prepare: an `ImageTransform`."""

    local_transform: ImageTransform | None
    local_views: int

    def __call__(self, request: Request) -> Batch:
        if isinstance(self.samples, TensorImages):
            images, labels = self.samples.images[request.indices], self.samples.labels
            batch = self._augmented(images, request.counters)
            return self.with_labels(batch, labels if labels is None else labels[request.indices])
        return super().__call__(request)

    def _inputs(self, value: Any, counter: int) -> dict[str, Tensor]:
        made = self._augmented(value if isinstance(value, Image.Image) else value[None], [counter])
        return {name: tensor[0] for name, tensor in made.items()}

    def _augmented(self, images: Image.Image | Tensor, counters: Sequence[int]) -> Batch:
        """Inputs of one PIL image, or of uint8 (b, C, h, w), whose counters these are."""
        if self.seed is None:
            return {"x": self.prepare.plain(images)}
        views = self._views(self.prepare, self.views, "augment", images, counters)
        batch: Batch = {"views": views} if self.stacked else {"x": views.squeeze(1)}
        if self.local_transform is not None:
            batch["local_views"] = self._views(
                self.local_transform, self.local_views, "augment/local", images, counters
            )
        return batch

    def _views(
        self,
        transform: ImageTransform,
        views: int,
        stream: str,
        images: Image.Image | Tensor,
        counters: Sequence[int],
    ) -> Tensor:
        """Views (b, V, C, H, W), each a function of the seed, the stream and the sample's counter."""
        augment = transform.augment
        if augment is None:  # nothing is random
            return transform.plain(images).unsqueeze(1).expand(-1, views, -1, -1, -1)
        randoms = (generator("cpu", self.seed, stream, counter) for counter in counters)
        return transform.augmented(images, torch.stack([augment.draw(views, random) for random in randoms]))
