"""Clips of videos for training and evaluation, built from a source by `conf/data/*.yaml`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from jepa.data.augment import Augment, centre_box
from jepa.data.base import PreparedBatches, StreamData, check_counts, check_loading
from jepa.data.images import check_statistics
from jepa.data.sources.base import Splits
from jepa.data.sources.clips import Video
from jepa.data.stream import Request, Samples, read
from jepa.data.transforms import ImageTransform, _floats, _recolour
from jepa.types import Batch
from jepa.utils.errors import DataError


class VideoData(StreamData):
    """Batches of clips (B, C, T, H, W).

    source: called as source(root=root), or source() without a root; returns `Splits` of videos.
    csv: a list of the videos, which the source reads; csv_path, csv_label, csv_split: its columns. See `video_folder`.
    image_size: side, or [height, width], to which frames are cropped and resized. channels: 3, or 1 for grey.
    num_frames: frames of a clip, T. frame_stride: every how many frames of the video one is taken; fps: instead, how
        many a second, which needs video files.
    clips: samples made of each video, of as many parts of equal length. Each is a sample of its own, in training as in
        evaluation, where probes score clips and not videos. For several clips of one video in one sample, as views of
        it, there is `views`.
    temporal_jitter: a training clip starts anywhere in its part of the video; else, as in evaluation, in the middle.
    short_videos: a video too short for a clip goes on with its last frame ("repeat") or from its beginning ("loop").
    mean, std, augment, interpolation: as in `ImageData`; all frames of a clip are cropped, flipped and recoloured
        alike.
    The others are those of `StreamData`.

    Raises ValueError for a wrong setting, before data is read, and DataError for data missing or damaged.
    """

    def __init__(
        self,
        *,
        source: Callable[..., Splits],
        root: str | None = None,
        csv: str | None = None,
        csv_path: str = "path",
        csv_label: str = "label",
        csv_split: str = "split",
        image_size: int | Sequence[int],
        channels: int = 3,
        num_frames: int = 16,
        frame_stride: int = 4,
        fps: float | None = None,
        clips: int = 1,
        temporal_jitter: bool = True,
        short_videos: Literal["repeat", "loop"] = "repeat",
        mean: Sequence[float],
        std: Sequence[float],
        augment: Augment | None = None,
        interpolation: Literal["bicubic", "bilinear"] = "bicubic",
        views: int = 1,
        batch_size: int = 256,
        num_workers: int = 0,
        pin_memory: bool | Literal["auto"] = "auto",
        prefetch_factor: int = 2,
        max_bad_share: float = 0.1,
    ) -> None:
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"data.image_size={image_size} is neither a side nor [height, width], at least 1")
        check_counts(num_frames=num_frames, frame_stride=frame_stride, clips=clips)
        if channels not in (1, 3):
            raise ValueError(f"data.channels={channels}: clips have 3 (colour) or 1 (grey)")
        if fps is not None and fps <= 0:
            raise ValueError(f"data.fps={fps} must be positive; null counts frames by data.frame_stride")
        if short_videos not in ("repeat", "loop"):
            raise ValueError(f"data.short_videos={short_videos!r} is neither repeat nor loop")
        if interpolation not in ("bicubic", "bilinear"):
            raise ValueError(f"data.interpolation={interpolation} is neither bicubic nor bilinear")
        check_statistics(mean, std, channels)
        loading = {
            "views": views,
            "batch_size": batch_size,
            "num_workers": num_workers,
            "pin_memory": pin_memory,
            "prefetch_factor": prefetch_factor,
            "max_bad_share": max_bad_share,
        }
        check_loading(**loading)  # before the source is read
        clip = ClipFrames(
            num_frames=num_frames,
            frame_stride=frame_stride,
            fps=fps,
            clips=clips,
            temporal_jitter=temporal_jitter,
            loop=short_videos == "loop",
        )
        transform = ImageTransform(
            size=size, channels=channels, mean=mean, std=std, interpolation=interpolation, augment=augment
        )
        given = {} if root is None else {"root": os.path.expanduser(root)}
        if csv is not None:
            given |= {"csv": csv, "csv_path": csv_path, "csv_label": csv_label, "csv_split": csv_split}
        splits = source(**given)
        if clips > 1:
            splits = replace(splits, train=Parts(splits.train, clips), test=Parts(splits.test, clips))
        super().__init__(
            splits,
            prepare=PrepareClip(frames=clip, transform=transform),
            input_shape=(channels, num_frames, *size),
            **loading,
        )

    def _batches(
        self, split: str, *, seed: int | None, views: int | None, bad_limit: float
    ) -> Callable[[Request], Batch]:
        made = super()._batches(split, seed=seed, views=views, bad_limit=bad_limit)
        return ClipBatches(**{name: getattr(made, name) for name in made.__dataclass_fields__})


class Parts:
    """Each video as several samples, one for each part of it; items are ((video, part), label)."""

    def __init__(self, videos: Samples, clips: int) -> None:
        self.videos, self.clips = videos, clips

    def __len__(self) -> int:
        return len(self.videos) * self.clips

    def __getitem__(self, index: int) -> tuple[tuple[Video, int], int | None]:
        video, label = self.videos[index // self.clips]
        return (video, index % self.clips), label


@dataclass(frozen=True)
class ClipFrames:
    """Which frames of a video make a clip; `VideoData` describes the fields."""

    num_frames: int
    frame_stride: int
    fps: float | None
    clips: int
    temporal_jitter: bool
    loop: bool

    def choose(self, count: int, rate: float | None, *, part: int, random: torch.Generator | None) -> list[int]:
        """The frames of a clip of a video of `count` frames at `rate` a second. random None: from the middle."""
        step = float(self.frame_stride)
        if self.fps is not None:
            if rate is None:
                raise DataError(
                    f"data.fps={self.fps:g} needs videos that say how many frames a second they have, which folders of "
                    "frames do not: use data.frame_stride with data.fps=null"
                )
            step = rate / self.fps
        low, high = part * count / self.clips, (part + 1) * count / self.clips
        last = (self.num_frames - 1) * step  # from the first frame to the last one
        room = max(0.0, high - low - 1 - last)
        share = 0.5 if random is None or not self.temporal_jitter else torch.rand((), generator=random).item()
        # Halves are rounded up, so that steps of a whole number stay so.
        first = int(min(low + share * room, max(0.0, count - 1 - last)) + 0.5)
        numbers = [int(first + i * step + 0.5) for i in range(self.num_frames)]
        return [number % count for number in numbers] if self.loop else [min(number, count - 1) for number in numbers]


@dataclass(frozen=True)
class PrepareClip:
    """Decodes a clip of a video and makes it the input of a model; uint8 until the last step."""

    frames: ClipFrames
    transform: ImageTransform

    def __call__(self, sample: Video | tuple[Video, int], random: torch.Generator | None) -> Tensor:
        """(C, T, H, W) float32. random None: the middle of the video, resized and centre cropped."""
        video, part = sample if isinstance(sample, tuple) else (sample, 0)

        def choose(count: int, rate: float | None) -> Sequence[int]:
            numbers = self.frames.choose(count, rate, part=part, random=random)
            order.extend(sorted(range(len(numbers)), key=numbers.__getitem__))
            return [numbers[i] for i in order]

        order: list[int] = []
        read = video.read(choose)  # in rising order, as files are decoded forwards
        pixels = torch.empty_like(read)
        pixels[order] = read
        return self._transform(pixels, random).transpose(0, 1)

    def _transform(self, pixels: Tensor, random: torch.Generator | None) -> Tensor:
        """uint8 (T, C, h, w) to normalised (T, C, H, W)."""
        transform = self.transform
        pixels = transform._channels(pixels)
        height, width = F.get_size(pixels)
        if random is None or transform.augment is None:
            pixels = transform._crop(pixels, centre_box(height, width, transform.size))
            return transform._normalise(_floats(pixels))
        uniform = transform.augment.draw(1, random)
        views = transform.augment.views(uniform, height=height, width=width, size=transform.size)
        pixels = transform._crop(pixels, views.box[0])
        if views.flip is not None and views.flip[0]:
            pixels = F.horizontal_flip(pixels)
        if views.angle is not None or views.shift is not None:
            angle = 0.0 if views.angle is None else views.angle[0].item()
            right, down = (0.0, 0.0) if views.shift is None else views.shift[0].tolist()
            move = [right * transform.size[1], down * transform.size[0]]
            # Bilinear whatever is set: torchvision turns tensors in no other way.
            pixels = F.affine(pixels, angle, move, 1.0, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR)
        pixels = _floats(pixels)
        if views.jitter is not None:
            views = replace(views, jitter=views.jitter.expand(len(pixels), -1))
        if views.blur is not None:
            views = replace(views, blur=views.blur.expand(len(pixels)))
        return transform._normalise(_recolour(pixels, views))


class ClipBatches(PreparedBatches):
    """As `PreparedBatches`, but what cannot be read shows only when a clip is decoded, as its frames are random."""

    def __call__(self, request: Request) -> Batch:
        bad: dict[str, str] = {}
        labels, inputs = [], []
        for counter, index in zip(request.counters, request.indices):
            prepared, label = read(_Prepared(self, counter), index, bad=bad, limit=self.bad_limit)
            inputs.append(prepared)
            labels.append(label)
        batch: Batch = {"views" if self.stacked and self.seed is not None else "x": torch.stack(inputs), "bad": bad}
        if self.labelled:
            batch["label"] = torch.as_tensor(labels, dtype=torch.int64)
        return batch


@dataclass(frozen=True)
class _Prepared:
    """The samples as they are prepared for one counter of the stream."""

    batches: ClipBatches
    counter: int

    def __len__(self) -> int:
        return len(self.batches.samples)

    def __getitem__(self, index: int) -> Any:
        video, label = self.batches.samples[index]
        return self.batches._views(video, self.counter), label
