"""Image data for training and evaluation, built from a source by `conf/data/*.yaml`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from jepa.data.augment import Augment
from jepa.data.data_module import DataModule, Reading
from jepa.data.image_transform import ImageTransform, as_list, height_and_width, to_float
from jepa.data.sources.image_files import size_of
from jepa.data.sources.splits import Splits, TensorImages
from jepa.data.stream import Request, UnfitSample, blamed
from jepa.types import Batch
from jepa.utils.errors import check_at_least
from jepa.utils.random import generator

TRIED = 5  # training images of which one has to have the channels that are asked for
STATISTICS_OF = 1000  # training images of which `auto` takes mean and std


@dataclass(kw_only=True, eq=False)
class ImageData(DataModule):
    """Batches of images (B, C, H, W).

    source: called as source(root=root), or source() without a root; returns `Splits`.
    image_size: side, or [height, width], to which images are cropped and resized.
    channels: grey is repeated, colour becomes grey for 1, alpha is dropped but for 4; else images must have that many.
    mean, std: of pixel values, one for each channel or one for all. `auto`: those of up to STATISTICS_OF training
        images, always the same ones, cropped as in evaluation; `spec.found` and `lines` have the numbers.
    augment: how training views are made; None to crop and resize as in evaluation.
    local_views: small crops per training sample beside `views`, of `local_size` pixels, made by `local_augment`.
    """

    source: Callable[..., Splits]
    root: str | None = None
    image_size: int | Sequence[int]
    channels: int
    mean: float | Sequence[float] | Literal["auto"]
    std: float | Sequence[float] | Literal["auto"]
    augment: Augment | None = None
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    local_views: int = 0
    local_size: int | Sequence[int] | None = None
    local_augment: Augment | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("data", 1, channels=self.channels)
        check_at_least("data", 0, local_views=self.local_views)
        if self.local_views and (self.local_size is None or self.local_augment is None):
            needs = "data.local_size (pixels) and data.local_augment (as data.augment, such as "
            needs += "{_target_: jepa.data.Augment, crop_scale: [0.05, 0.3]})"
            raise ValueError(f"data.local_views={self.local_views} needs {needs}")
        self._make_transforms()
        splits, shape = self.read_splits(self.source, root=self.root), (self.channels, *self.transform.size)
        self.setup(splits, prepare=self.transform, input_shape=shape)
        if hasattr(splits.train, "describe"):
            self._try_some()
        if wanted := [name for name in ("mean", "std") if getattr(self, name) == "auto"]:
            self._find_statistics(wanted)

    def _try_some(self) -> None:
        """Raise UnfitSample where all of some images have other channels; say if the first that has not is small."""
        unfit = []
        train = self.splits["train"]
        for index in range(0, len(train), -(-len(train) // TRIED)):
            try:
                value, _ = train[index]
                self.make_inputs(value, 0, Reading("train", seed=None, views=None, bad_limit=0))
            except Exception as error:
                blamed(error, "")
                unfit += [error] if isinstance(error, UnfitSample) else []
                continue
            height, width = size_of(value)
            if 2 * max(height, width) <= max(self.transform.size):
                enlarged = f"the first image has {height} x {width} pixels and is enlarged to "
                enlarged += " x ".join(map(str, self.transform.size))
                self.lines += (f"{enlarged}: data.image_size={max(height, width)} is faster",)
            return
        if unfit:
            raise unfit[0]

    def _make_transforms(self) -> None:
        make = partial(
            ImageTransform,
            channels=self.channels,
            mean=0.0 if self.mean == "auto" else self.mean,  # until it is known
            std=1.0 if self.std == "auto" else self.std,
            interpolation=self.interpolation,
        )
        self.transform, self.local_transform = make(size=self.image_size, augment=self.augment), None
        if self.local_views:
            size = height_and_width("local_size", self.local_size)
            self.local_transform = make(size=size, augment=self.local_augment)

    def _find_statistics(self, wanted: Sequence[str]) -> None:
        """Put numbers in the place of `auto`. Raises DataError where too many of the images cannot be read."""
        scale, offset = (torch.tensor(as_list(each)).view(-1, 1) for each in (self.transform.std, self.transform.mean))
        count, mean, squares = 0, torch.zeros(self.channels).double(), torch.zeros(self.channels).double()
        for batch in self.evaluation_batches("train", batch_size=32, limit=STATISTICS_OF):
            pixels = (batch["x"].transpose(0, 1).flatten(1) * scale + offset).double()  # (C, pixels)
            new = pixels.shape[1]
            change = pixels.mean(dim=1) - mean
            count += new
            mean = mean + change * (new / count)
            squares += pixels.var(dim=1, correction=0) * new + change**2 * (new * (count - new) / count)
        std = (squares / count).sqrt()
        std[std < 1e-6 * mean.abs().clamp(min=1e-6)] = 1.0  # of a channel that is the same everywhere
        known = {"mean": mean, "std": std}
        found = {name: [float(f"{value:.6g}") for value in known[name].tolist()] for name in wanted}
        vars(self).update(found)
        self._make_transforms()
        self.prepare = self.transform
        self.spec = replace(self.spec, found={**self.spec.found, **found})
        numbers = " ".join(f"data.{name}={str(values).replace(' ', '')}" for name, values in found.items())
        self.lines += (f"auto: {numbers}, of {min(STATISTICS_OF, self.spec.num_train):,} training images",)

    @property
    def has_several_views(self) -> bool:
        return self.views > 1 or self.local_views > 0

    def blank_batch(self, count: int) -> Batch:
        blank = super().blank_batch(count)
        if self.local_transform is not None:
            blank["local_views"] = torch.zeros(count, self.local_views, self.channels, *self.local_transform.size)
        return blank

    def make_batch(self, request: Request, reading: Reading) -> Batch:
        samples = self.splits[reading.split]
        if not isinstance(samples, TensorImages):
            return super().make_batch(request, reading)
        batch = self._inputs(samples.images[request.indices], request.counters, reading)
        return self.with_labels(batch, None if samples.labels is None else samples.labels[request.indices])

    def make_inputs(self, value: Image.Image | Tensor, counter: int, reading: Reading) -> dict[str, Tensor]:
        images = value[None] if isinstance(value, Tensor) and value.is_floating_point() else value
        return {name: made[0] for name, made in self._inputs(images, [counter], reading).items()}

    def stack(self, tensors: Sequence[Tensor]) -> Tensor:
        if len({tensor.dtype for tensor in tensors}) > 1:  # of files of 8 bits, and of more
            tensors = [to_float(tensor) for tensor in tensors]
        return super().stack(tensors)

    def finish(self, batch: Batch, device: torch.device | None = None) -> Batch:
        """A raw batch as users see it: pixels as normalised floats."""
        names = [name for name in ("x", "views", "local_views") if name in batch]
        return batch | {name: self.transform.normalise(batch[name], device) for name in names}

    def _load(self, requests: Iterable[Request], reading: Reading) -> Iterator[Batch]:
        # Bytes cross processes, a quarter of the floats. But a subclass that makes batches counts on floats, and floats
        # that are for a GPU have to be pinned, if they are not made there.
        raw = all(getattr(type(self), name) is getattr(ImageData, name) for name in ("make_batch", "make_inputs"))
        raw = raw and (reading.device is not None or not torch.cuda.is_available())
        with closing(super()._load(requests, replace(reading, raw=raw))) as batches:
            for batch in batches:
                yield self.finish(batch, reading.device) if raw else batch

    def make_truth(self, what: str, index: int, value: Any, reading: Reading) -> Tensor:
        """The mask of a picture, cropped as the picture is, in its own resolution."""
        return self.transform.cropped(super().make_truth(what, index, value, reading))

    def _inputs(self, images: Image.Image | Tensor, counters: Sequence[int], reading: Reading) -> Batch:
        """Inputs of one PIL image, or of tensors (b, C, h, w), whose counters these are."""

        def views(transform: ImageTransform, count: int, stream: str) -> Tensor:
            """(b, V, C, H, W), each a function of the seed, the stream and the sample's counter."""
            augment = transform.augment
            if augment is None:  # nothing is random
                return transform.pixels(images).unsqueeze(1).expand(-1, count, -1, -1, -1)
            randoms = (generator("cpu", reading.seed, stream, counter) for counter in counters)
            return transform.pixels(images, torch.stack([augment.draw(count, random) for random in randoms]))

        if reading.seed is None:
            batch: Batch = {"x": self.transform.pixels(images)}
            return batch if reading.raw else self.finish(batch)
        made = views(self.transform, reading.views or self.views, "augment")
        batch = {"views": made} if self.gives_views(reading) else {"x": made.squeeze(1)}
        if self.local_transform is not None and reading.views is None:
            batch["local_views"] = views(self.local_transform, self.local_views, "augment/local")
        return batch if reading.raw else self.finish(batch)
