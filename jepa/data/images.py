"""Image data for training and evaluation, built from a source by `conf/data/*.yaml`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from jepa.data.augment import Augment
from jepa.data.base import StreamData, check_counts, check_loading
from jepa.data.sources.base import Splits, TensorImages
from jepa.data.stream import Request, Samples, read
from jepa.data.transforms import ImageTransform
from jepa.types import Batch
from jepa.utils.random import generator


class ImageData(StreamData):
    """Batches of images: the sample stream for training, and both splits in fixed order for evaluation.

    source: called as source(root=root), or source() without a root; returns `Splits`.
    image_size: side, or [height, width], to which images are cropped and resized.
    channels: 3 or 1 for image files, which are converted to it; tensors of a source may have any number.
    mean, std: of pixel values in [0, 1], one for each channel or one for all.
    augment: how training views are made; None to crop and resize as in evaluation.
    interpolation: `bicubic` or `bilinear`.
    views: augmented views per training sample, which show the whole of it as far as `augment` lets them.
    local_views: small crops per training sample beside these, of `local_size` pixels and made by `local_augment`.
    batch_size: samples per training step, of all ranks and micro-batches together.
    num_workers: processes that read ahead, 0 to read in the main process; prefetch_factor: batches each reads
    ahead.
    pin_memory: True or False; `auto` pins when there is a GPU to copy to.
    max_bad_share: the run stops when more than this share of a split cannot be read.

    Raises ValueError for a wrong setting, before data is read, and DataError for data missing or damaged.
    """

    def __init__(
        self,
        *,
        source: Callable[..., Splits],
        root: str | None = None,
        image_size: int | Sequence[int],
        channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        augment: Augment | None = None,
        interpolation: Literal["bicubic", "bilinear"] = "bicubic",
        views: int = 1,
        local_views: int = 0,
        local_size: int | Sequence[int] | None = None,
        local_augment: Augment | None = None,
        batch_size: int = 256,
        num_workers: int = 0,
        pin_memory: bool | Literal["auto"] = "auto",
        prefetch_factor: int = 2,
        max_bad_share: float = 0.1,
    ) -> None:
        size = _size("image_size", image_size)
        check_counts(channels=channels)
        loading = {
            "views": views,
            "batch_size": batch_size,
            "num_workers": num_workers,
            "pin_memory": pin_memory,
            "prefetch_factor": prefetch_factor,
            "max_bad_share": max_bad_share,
        }
        check_loading(**loading)  # before the source is read
        if interpolation not in ("bicubic", "bilinear"):
            raise ValueError(f"data.interpolation={interpolation} is neither bicubic nor bilinear")
        check_statistics(mean, std, channels)
        if local_views < 0:
            raise ValueError(f"data.local_views={local_views} is negative; 0 makes none")
        if local_views and (local_size is None or local_augment is None):
            raise ValueError(
                f"data.local_views={local_views} needs data.local_size (pixels) and data.local_augment "
                "(as data.augment, such as {_target_: jepa.data.Augment, crop_scale: [0.05, 0.3]})"
            )

        def transform(size: tuple[int, int], augment: Augment | None) -> ImageTransform:
            return ImageTransform(
                size=size, channels=channels, mean=mean, std=std, interpolation=interpolation, augment=augment
            )

        self.transform = transform(size, augment)
        self.local_views = local_views
        self.local_transform = transform(_size("local_size", local_size), local_augment) if local_views else None
        # A shell leaves the ~ of data.root=~/images to us.
        splits = source() if root is None else source(root=os.path.expanduser(root))
        super().__init__(splits, prepare=self.transform, input_shape=(channels, *size), **loading)

    def blank_batch(self, count: int) -> Batch:
        """A training batch of so many samples, all zeros, without labels."""
        blank: Batch = {"views": torch.zeros(count, self.views, *self.spec.input_shape)}
        if self.local_transform is not None:
            shape = (self.spec.input_shape[0], *self.local_transform.size)
            blank["local_views"] = torch.zeros(count, self.local_views, *shape)
        return blank if self._several else {"x": blank["views"].squeeze(1)}

    @property
    def _several(self) -> bool:
        """Whether a training sample comes as `views` rather than `x`."""
        return self.views > 1 or self.local_views > 0

    def _batches(
        self, split: str, *, seed: int | None, views: int | None, bad_limit: float
    ) -> Callable[[Request], Batch]:
        return _ImageBatches(
            samples=self._splits[split],
            transform=self.transform,
            views=views or self.views,
            local_transform=self.local_transform if views is None else None,
            local_views=self.local_views,
            stacked=self._several if views is None else True,
            seed=seed,
            labelled=self.spec.classes is not None,
            bad_limit=bad_limit,
        )


@dataclass(frozen=True)
class _ImageBatches:
    """Reads and transforms the samples of a request, in a worker if there are any. seed: None to evaluate."""

    samples: Samples
    transform: ImageTransform
    views: int
    local_transform: ImageTransform | None
    local_views: int
    stacked: bool
    seed: int | None
    labelled: bool
    bad_limit: float

    def __call__(self, request: Request) -> Batch:
        batch: Batch = {}
        if isinstance(self.samples, TensorImages):
            images = self.samples.images[request.indices]
            labels = None if self.samples.labels is None else self.samples.labels[request.indices]
            batch |= self._views(images, request.counters)
        else:
            bad: dict[str, str] = {}
            labels, parts = [], []
            for counter, index in zip(request.counters, request.indices):
                image, label = read(self.samples, index, bad=bad, limit=self.bad_limit)
                parts.append(self._views(image if isinstance(image, Image.Image) else image[None], [counter]))
                labels.append(label)
            batch |= {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            batch["bad"] = bad
        if self.labelled:
            batch["label"] = torch.as_tensor(labels, dtype=torch.int64)
        return batch

    def _views(self, images: Image.Image | Tensor, counters: Sequence[int]) -> Batch:
        """What becomes of one PIL image, or of uint8 (b, C, h, w), whose counters these are."""
        if self.seed is None:
            return {"x": self.transform.plain(images)}
        views = self._augmented(self.transform, self.views, "augment", images, counters)
        batch: Batch = {"views": views} if self.stacked else {"x": views.squeeze(1)}
        if self.local_transform is not None:
            batch["local_views"] = self._augmented(
                self.local_transform, self.local_views, "augment/local", images, counters
            )
        return batch

    def _augmented(
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


def _size(name: str, size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a side or a pair. Raises ValueError for anything else."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"data.{name}={size} is neither a side nor [height, width], at least 1")
    return pair


def check_statistics(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    """Raise ValueError for means and deviations that do not fit the channels, or deviations not above 0."""
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise ValueError(
                f"data.{name} has {len(values)} values; expected {channels}, one per channel, or a single one"
            )
    if min(std) <= 0:
        raise ValueError(f"data.std={list(std)} has a value that is not positive")
