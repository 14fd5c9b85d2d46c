"""Clips of videos for training and evaluation, built from a source by `conf/data/*.yaml`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from jepa.data.augment import Augment
from jepa.data.data_module import Reading
from jepa.data.image_transform import ImageTransform
from jepa.data.local_views import LocalViews
from jepa.data.sources.decoders import Video
from jepa.data.sources.splits import Splits
from jepa.data.stream import Samples, UnfitSample
from jepa.utils.errors import check_at_least
from jepa.utils.random import generator


@dataclass(kw_only=True, eq=False)
class VideoData(LocalViews):
    """Batches of clips (B, C, T, H, W).

    source: called as source(root=root), or source() without a root; returns `Splits` of videos.
    csv, csv_path, csv_label, csv_split, allow_outside: a list of the videos, its columns and paths, see `video_folder`.
    image_size, mean, std, augment, interpolation: as in `ImageData`, alike for all frames. channels: 3, or 1 for grey.
    num_frames: frames of a clip, T. frame_stride: every how many frames of the video one is taken; fps: instead, how
        many a second, which needs video files.
    clips: parts of equal length of each video, each a sample of its own, which probes score, too.
    temporal_jitter: a training clip starts anywhere in its part of the video; else, as in evaluation, in the middle.
    local_views, local_size, local_augment: see `LocalViews`; crops of the frames of the first view, all cropped alike.
    short_videos: a video too short for a clip goes on with its last frame ("repeat") or from its beginning ("loop").
    """

    source: Callable[..., Splits]
    root: str | None = None
    csv: str | None = None
    csv_path: str = "path"
    csv_label: str = "label"
    csv_split: str = "split"
    allow_outside: bool = False
    image_size: int | Sequence[int]
    channels: Literal[1, 3] = 3
    num_frames: int = 16
    frame_stride: int = 4
    fps: float | None = None
    clips: int = 1
    temporal_jitter: bool = True
    short_videos: Literal["repeat", "loop"] = "repeat"
    mean: float | Sequence[float]
    std: float | Sequence[float]
    augment: Augment | None = None
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("data", 1, num_frames=self.num_frames, frame_stride=self.frame_stride, clips=self.clips)
        if self.allow_outside and self.csv is None:
            raise ValueError("data.allow_outside=true is for the paths in data.csv, which is not set")
        if self.fps is not None and self.fps <= 0:
            raise ValueError(f"data.fps={self.fps} must be positive; null counts frames by data.frame_stride")
        settings = {name: getattr(self, name) for name in ("channels", "mean", "std", "interpolation")}
        self.transform = ImageTransform(size=self.image_size, augment=self.augment, **settings)
        self.local_transform = self.make_local_transform(partial(ImageTransform, **settings))
        listed = {name: getattr(self, name) for name in ("csv", "csv_path", "csv_label", "csv_split", "allow_outside")}
        splits = self.read_splits(self.source, root=self.root, **(listed if self.csv is not None else {}))
        if self.clips > 1:
            splits = replace(splits, train=Parts(splits.train, self.clips), test=Parts(splits.test, self.clips))
        self.setup(splits, prepare=self.decode_clip, input_shape=(self.channels, self.num_frames, *self.transform.size))

    def decode_clip(self, sample: Video | tuple[Video, int], random: torch.Generator | None) -> Tensor:
        """(C, T, H, W) float32 of a video, or of a part of it; random None: its middle, resized and centre cropped."""
        return self.view(self.frames(sample, random), random)

    def frames(self, sample: Video | tuple[Video, int], random: torch.Generator | None) -> Tensor:
        """The frames (T, C, h, w) of a clip, as the file has them."""
        video, part = sample if isinstance(sample, tuple) else (sample, 0)

        def choose(count: int, rate: float | None) -> Sequence[int]:
            numbers = self.choose_frames(count, rate, part=part, random=random)
            order.extend(sorted(range(len(numbers)), key=numbers.__getitem__))
            return [numbers[i] for i in order]

        order: list[int] = []
        pixels = video.read(choose)  # in rising order, as files are decoded forwards
        if order != sorted(order):
            pixels = pixels[torch.tensor(order).argsort()]
        return pixels

    def view(self, pixels: Tensor, random: torch.Generator | None) -> Tensor:
        """(C, T, H, W) float32 of frames."""
        if random is None or self.augment is None:
            return self.transform.plain(pixels).transpose(0, 1)
        return self.transform.augmented_clip(pixels, self.augment.draw(1, random)).transpose(0, 1)

    def make_inputs(self, value: Any, counter: int, reading: Reading) -> dict[str, Tensor]:
        if self.local_transform is None or reading.seed is None or reading.views is not None:
            return super().make_inputs(value, counter, reading)
        random = generator("cpu", reading.seed, "augment", counter)
        first = self.frames(value, random)
        views = [self.view(first, random)]
        views += [self.decode_clip(value, random) for _ in range(self.views - 1)]
        random = generator("cpu", reading.seed, "augment/local", counter)
        draws = [self.local_augment.draw(1, random) for _ in range(self.local_views)]
        crops = [self.local_transform.augmented_clip(first, draw).transpose(0, 1) for draw in draws]
        return {"views": torch.stack(views), "local_views": torch.stack(crops)}

    def make_truth(self, what: str, index: int, value: Any, reading: Reading) -> Tensor:
        """Of a clip as evaluation takes it: masks (T, H, W) cropped as its frames are, or the motion in its middle."""
        if isinstance(value, tuple):
            raise ValueError(f"data.clips={self.clips}: masks and motion are known of whole videos: set data.clips=1")
        known = super().make_truth(what, index, value, reading)
        numbers = self.choose_frames(len(known), None, part=0, random=None)
        return known[numbers[len(numbers) // 2]] if what == "motion" else self.transform.cropped(known[numbers])

    def choose_frames(self, count: int, rate: float | None, *, part: int, random: torch.Generator | None) -> list[int]:
        """The frames of a clip of a video of `count` frames at `rate` a second. random None: from the middle."""
        step = float(self.frame_stride)
        if self.fps is not None:
            if rate is None:
                needs = "needs videos that say how many frames a second they have, which folders of frames do not"
                raise UnfitSample(f"data.fps={self.fps:g} {needs}: use data.frame_stride with data.fps=null")
            step = rate / self.fps
        low, high = part * count / self.clips, (part + 1) * count / self.clips
        last = (self.num_frames - 1) * step  # from the first frame to the last one
        room = max(0.0, high - low - 1 - last)
        share = 0.5 if random is None or not self.temporal_jitter else torch.rand((), generator=random).item()
        # Halves are rounded up, so that steps of a whole number stay so.
        first = int(min(low + share * room, max(0.0, count - 1 - last)) + 0.5)
        numbers = [int(first + i * step + 0.5) for i in range(self.num_frames)]
        return [number % count if self.short_videos == "loop" else min(number, count - 1) for number in numbers]


class Parts:
    """Each video as several samples, one for each part of it; items are ((video, part), label)."""

    def __init__(self, videos: Samples, clips: int) -> None:
        self.videos, self.clips = videos, clips

    def __len__(self) -> int:
        return len(self.videos) * self.clips

    def describe(self, index: int) -> str:
        return self.videos.describe(index // self.clips)

    def __getitem__(self, index: int) -> tuple[tuple[Video, int], int | None]:
        video, label = self.videos[index // self.clips]
        return (video, index % self.clips), label
