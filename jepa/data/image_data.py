"""Image data for training and evaluation, built from a source by `conf/data/*.yaml`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from torch import Tensor

from jepa.data.augment import NUMBERS, Augment
from jepa.data.data_module import Reading
from jepa.data.image_operations import to_float
from jepa.data.image_transform import ImageTransform, as_list
from jepa.data.local_views import LocalViews
from jepa.data.sources.image_files import size_of
from jepa.data.sources.splits import Splits, TensorImages
from jepa.data.stream import Request, TooManyUnreadable, UnfitSample, blamed, fixed_order
from jepa.types import Batch
from jepa.utils.errors import DataError, check_at_least
from jepa.utils.random import uniform
from jepa.utils.tensors import map_tensors

TRIED = 5  # training images of which one has to have the channels that are asked for
STATISTICS_OF = 1000  # training images of which `auto` takes mean and std
LARGEST_SIDE, MOST_MEMORY = 256, 2**30  # pixels and bytes of what is held by default
READ_AT_ONCE = 64  # pictures
log = logging.getLogger("jepa")


@dataclass(kw_only=True, eq=False)
class ImageData(LocalViews):
    """Batches of images (B, C, H, W).

    source: called as source(root=root), or source() without a root; returns `Splits`.
    image_size: side, or [height, width], to which images are cropped and resized.
    channels: grey is repeated, colour becomes grey for 1, alpha is dropped but for 4; else images must have that many.
    mean, std: of pixel values, one for each channel or one for all. `auto`: those of up to STATISTICS_OF training
        images, always the same ones, cropped as in evaluation; `spec.found` and `lines` have the numbers.
    augment: how training views are made; None to crop and resize as in evaluation.
    local_views, local_size, local_augment: see `LocalViews`.
    in_memory: whether a split's pictures are read once, of 8 bits and one size, up to LARGEST_SIDE, and live as one
        tensor on the device of the training, where views are made without workers. `auto`: where that is possible and
        the tensor not above MOST_MEMORY. Crops differ from those of files by up to one of 255.
    """

    finish_on: ClassVar[torch.device | None] = None
    """A GPU, which the trainer sets: training pictures are copied there as bytes, and become floats there. Not where
    they are parts of other data, whose batches workers may make."""

    source: Callable[..., Splits]
    root: str | None = None
    image_size: int | Sequence[int]
    channels: int
    mean: float | Sequence[float] | Literal["auto"]
    std: float | Sequence[float] | Literal["auto"]
    augment: Augment | None = None
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    in_memory: bool | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("data", 1, channels=self.channels)
        self._make_transforms()
        self._held: dict[str, TensorImages | None] = {}
        self._copies: dict[str, Tensor] = {}  # on the device of the training
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
        self.transform = make(size=self.image_size, augment=self.augment)
        self.local_transform = self.make_local_transform(make)

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

    def hold(self, split: str) -> None:
        """Read a split into memory if it should be there and is not. Raises DataError if it must be, but cannot."""
        if not self.in_memory or split in self._held or isinstance(self.splits[split], TensorImages):
            return
        self._held[split] = None
        try:
            self._held[split] = self._read_all(split)
        except TooManyUnreadable:
            return  # the reading that follows says so
        except DataError:
            if self.in_memory is True:
                raise

    def _read_all(self, split: str) -> TensorImages | None:
        if self.channels == 4 or self._has_own("make_inputs", "make_batch"):
            what = "data.channels=4" if self.channels == 4 else f"{type(self).__name__}, which makes its own inputs"
            raise DataError(f"data.in_memory=true is not for {what}: set data.in_memory=false")
        count, reading = len(self.splits[split]), replace(self.reading(split), whole=())
        for index in range(0, count, -(-count // TRIED)):  # a few first, as most folders have many sizes
            x = self.make_batch(Request([index], [index]), reading)["x"]
            reading = replace(reading, whole=tuple(x.shape[1:]))
        if max(reading.whole[1:]) > LARGEST_SIDE:
            found = f"up to {LARGEST_SIDE} pixels on a side, one is {reading.whole}"
            raise DataError(f"data.in_memory=true is for pictures of {found}: make them smaller, or set it to false")
        if self.in_memory == "auto" and count * x.nbytes > MOST_MEMORY:
            return None
        images, labels = torch.empty(count, *reading.whole, dtype=torch.uint8), torch.empty(count, dtype=torch.int64)
        with closing(super()._load(fixed_order(count, batch_size=READ_AT_ONCE), reading)) as batches:
            for place, batch in zip(torch.arange(count).split(READ_AT_ONCE), batches):
                images[place], labels[place] = batch["x"], batch.get("label", torch.tensor(-1))
        shape = " x ".join(map(str, reading.whole))
        log.info(f"{count:,} {split} pictures of {shape} are held in memory, {images.nbytes / 1e6:.1f} MB")
        return TensorImages(images, labels)

    def _in_memory(self, reading: Reading) -> TensorImages | None:
        if not self.in_memory or reading.truth is not None or self._has_own("make_inputs"):
            return None
        samples = self.splits[reading.split]
        return samples if isinstance(samples, TensorImages) else self._held.get(reading.split)

    def _images(self, held: TensorImages, index: Tensor, reading: Reading) -> Tensor:
        """The pictures of some samples on the device, where all of them are copied to unless it has little memory."""
        images, device = held.images, reading.device
        if device is None:
            return images[index]
        if reading.split not in self._copies:
            fits = device.type != "cuda" or images.nbytes <= torch.cuda.mem_get_info(device)[0] // 10
            self._copies[reading.split] = images.to(device) if fits else images
        images = self._copies[reading.split]
        return images[index.to(images.device, non_blocking=True)].to(device, non_blocking=True)

    def make_batch(self, request: Request, reading: Reading) -> Batch:
        samples = self.splits[reading.split]
        if isinstance(samples, TensorImages) and self._in_memory(reading) is samples:
            return self._held_batch(samples, request, reading)
        batch = super().make_batch(request, reading)
        return batch | {"counter": torch.tensor(request.counters)} if reading.raw else batch

    def _held_batch(self, held: TensorImages, request: Request, reading: Reading) -> Batch:
        index = torch.tensor(request.indices)
        batch = self._inputs(self._images(held, index, reading), request.counters, reading)
        return self.with_labels(batch, None if held.labels is None else held.labels[index])

    def make_inputs(self, value: Image.Image | Tensor, counter: int, reading: Reading) -> dict[str, Tensor]:
        if reading.whole is None:
            return {name: made[0] for name, made in self._inputs(value, [counter], reading).items()}
        pixels = self.transform.whole(value)[0]
        if pixels.dtype != torch.uint8 or reading.whole not in ((), pixels.shape):
            found = f"one is {tuple(pixels.shape)} in {str(pixels.dtype).removeprefix('torch.')}"
            needs = f"one size and 8 bits, but {found}, another {reading.whole or 'unknown'}"
            raise DataError(f"data.in_memory=true needs pictures of {needs}: set data.in_memory=false")
        return {"x": pixels}

    def stack(self, tensors: Sequence[Tensor]) -> Tensor:
        if len({tensor.dtype for tensor in tensors}) > 1:  # of files of 8 bits, and of more
            tensors = [to_float(tensor) for tensor in tensors]
        return super().stack(tensors)

    def finish(self, batch: Batch, counters: Sequence[int], reading: Reading) -> Batch:
        """A raw batch as users see it: pixels as views, in normalised floats."""
        wanted = self._wanted(counters, reading)
        return batch | {name: each.finish(batch[name], numbers, reading.device) for name, each, _, numbers in wanted}

    def _load(self, requests: Iterable[Request], reading: Reading) -> Iterator[Batch]:
        if (held := self._in_memory(reading)) is not None:
            # What calls `make_batch` for data of which this is a part reads files always: batches do not depend on
            # whether an evaluation has read them all before, and tell what is bad.
            is_own = held is self.splits[reading.split]
            make = self.make_batch if is_own else partial(self._held_batch, held)
            pins = self.pins and reading.device is None
            for batch in (make(request, reading) for request in requests):
                yield map_tensors(batch, Tensor.pin_memory) if pins else batch
            return
        # Bytes cross processes, a quarter of the floats. But a subclass that makes batches counts on floats, and floats
        # that are for a GPU have to be pinned, if they are not made there.
        on_cpu = reading.device is None and torch.cuda.is_available()
        raw = not on_cpu and not self._has_own("make_inputs", "make_batch")
        with closing(super()._load(requests, replace(reading, raw=raw))) as batches:
            for batch in batches:
                yield self.finish(batch, batch.pop("counter").tolist(), reading) if raw else batch

    def _has_own(self, *methods: str) -> bool:
        return any(getattr(type(self), name) is not getattr(ImageData, name) for name in methods)

    def make_truth(self, what: str, index: int, value: Any, reading: Reading) -> Tensor:
        """The mask of a picture, cropped as the picture is, in its own resolution."""
        return self.transform.cropped(super().make_truth(what, index, value, reading))

    def _wanted(
        self, counters: Sequence[int], reading: Reading
    ) -> Iterator[tuple[str, ImageTransform, int, Tensor | None]]:
        """Name, transform, number V of views, and the numbers (b, V, NUMBERS) behind them if they are random.

        The numbers are functions of the seed, the kind of views and the sample's counter.
        """

        def kind(name: str, transform: ImageTransform, views: int, stream: str) -> tuple:
            if reading.seed is None or transform.augment is None:
                return name, transform, views, None
            return name, transform, views, uniform(reading.seed, stream, counters, (views, NUMBERS))

        if not self.gives_views(reading):
            yield kind("x", self.transform, 1, "augment")
            return
        yield kind("views", self.transform, reading.views or self.views, "augment")
        if self.local_transform is not None and reading.views is None:
            yield kind("local_views", self.local_transform, self.local_views, "augment/local")

    def _inputs(self, images: Image.Image | Tensor, counters: Sequence[int], reading: Reading) -> Batch:
        """Inputs of one image, or of uint8 tensors (b, C, h, w), whose counters these are."""
        batch: Batch = {}
        for name, transform, views, numbers in self._wanted(counters, reading):
            pixels = transform.pixels(images, numbers).expand(-1, views, -1, -1, -1)
            batch[name] = pixels.squeeze(1) if name == "x" else pixels
        return batch if reading.raw else self.finish(batch, counters, reading)
