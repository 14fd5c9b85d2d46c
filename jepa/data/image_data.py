"""Image data for training and evaluation, built from a source by `conf/data/*.yaml`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from jepa.data.data_module import DataModule, Reading, check_counts, read_source
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
    views: augmented views per training sample, which show all of it as far as `augment` lets them.
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

    def make_batch(self, request: Request, reading: Reading) -> Batch:
        """See `DataModule.make_batch`; images in memory are augmented all at once."""
        samples = self.splits[reading.split]
        if not isinstance(samples, TensorImages):
            return super().make_batch(request, reading)
        batch = self._augmented(samples.images[request.indices], request.counters, reading)
        return self.with_labels(batch, None if samples.labels is None else samples.labels[request.indices])

    def make_inputs(self, value: Image.Image | Tensor, counter: int, reading: Reading) -> dict[str, Tensor]:
        """See `DataModule.make_inputs`."""
        images = value if isinstance(value, Image.Image) else value[None]
        return {name: made[0] for name, made in self._augmented(images, [counter], reading).items()}

    def _augmented(self, images: Image.Image | Tensor, counters: Sequence[int], reading: Reading) -> Batch:
        """Inputs of one PIL image, or of uint8 (b, C, h, w), whose counters these are."""

        def views(transform: ImageTransform, count: int, stream: str) -> Tensor:
            """(b, V, C, H, W), each a function of the seed, the stream and the sample's counter."""
            augment = transform.augment
            if augment is None:  # nothing is random
                return transform.plain(images).unsqueeze(1).expand(-1, count, -1, -1, -1)
            randoms = (generator("cpu", reading.seed, stream, counter) for counter in counters)
            return transform.augmented(images, torch.stack([augment.draw(count, random) for random in randoms]))

        if reading.seed is None:
            return {"x": self.transform.plain(images)}
        made = views(self.transform, reading.views or self.views, "augment")
        batch: Batch = {"views": made} if self.gives_views(reading) else {"x": made.squeeze(1)}
        if self.local_transform is not None and reading.views is None:
            batch["local_views"] = views(self.local_transform, self.local_views, "augment/local")
        return batch
