"""Videos to be read a clip at a time: files, through PyAV, and folders of frames."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jepa.data.sources.folders import DECODE_ERRORS, EXTENSIONS
from jepa.data.stream import UnreadableSample
from jepa.utils.lazy_import import lazy_import, require

av = lazy_import("av")

VIDEO_EXTENSIONS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".gif")

Choose = Callable[[int, float | None], Sequence[int]]
"""(frames there are, frames per second where that is known) to the frames wanted, by number, in rising order."""


class Video(Protocol):
    """One video, not read yet."""

    def read(self, choose: Choose) -> Tensor:
        """The chosen frames, uint8 (T, C, H, W). Raises UnreadableSample when it is damaged or has none."""


class VideoFile:
    """A file that FFmpeg reads; PyAV brings its own FFmpeg along."""

    def __init__(self, path: str) -> None:
        require("av", extra="video", purpose="reading video")
        self.path = path

    def read(self, choose: Choose) -> Tensor:
        """The chosen frames, uint8 (T, 3, H, W).

        Decoding starts at the last key frame before the first one wanted. Where a file holds fewer frames than it
        says, its last one stands for those missing.
        """
        if not os.path.isfile(self.path):
            raise UnreadableSample(self.path, "there is no such file")
        if not os.path.getsize(self.path):
            raise UnreadableSample(self.path, "the file is empty")
        try:
            with av.open(self.path) as container:
                if not container.streams.video:
                    kinds = sorted({stream.type for stream in container.streams})
                    raise UnreadableSample(
                        self.path, f"it has no pictures, only {', '.join(kinds) or 'an empty shell'}"
                    )
                return self._decode(container, choose)
        except (av.FFmpegError, ValueError, EOFError, OSError) as error:
            raise UnreadableSample(self.path, f"{type(error).__name__}: {_reason(error)}") from error

    def _decode(self, container: av.container.InputContainer, choose: Choose) -> Tensor:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # workers are the parallelism
        rate = float(stream.average_rate or stream.guessed_rate or 0) or None
        count = stream.frames or self._estimate(container, stream, rate)
        if count < 1 or rate is None:  # a stream that says nothing of itself: decode it whole
            frames = [_pixels(frame) for frame in container.decode(stream)]
            if not frames:
                raise UnreadableSample(self.path, "no frame could be decoded")
            return _stack([frames[i] for i in choose(len(frames), rate)], self.path)
        wanted = list(choose(count, rate))
        first = stream.start_time or 0
        ticks = [first + round(number / rate / stream.time_base) for number in wanted]
        half = 0.5 / rate / float(stream.time_base)
        if ticks[0] > first:
            with contextlib.suppress(av.FFmpegError):  # formats without an index are decoded from their beginning
                container.seek(ticks[0], stream=stream, backward=True)
        found: list[np.ndarray] = []
        last = None
        for frame in container.decode(stream):
            if frame.pts is None:
                continue
            last = frame
            # The first frame not earlier than wanted, which stands for several where the file has a gap.
            if (passed := sum(frame.pts > tick - half for tick in ticks) - len(found)) > 0:
                found += [_pixels(frame)] * passed
            if len(found) == len(ticks):
                break
        if last is None:
            raise UnreadableSample(self.path, "no frame could be decoded")
        return _stack(found + [_pixels(last)] * (len(ticks) - len(found)), self.path)

    @staticmethod
    def _estimate(container: av.container.InputContainer, stream: av.VideoStream, rate: float | None) -> int:
        if rate is None:
            return 0
        if stream.duration is not None:
            return int(float(stream.duration * stream.time_base) * rate)
        return int((container.duration or 0) / av.time_base * rate)


class FrameFolder:
    """A folder that holds the frames of one video as image files, in the order of the numbers in their names."""

    def __init__(self, path: str) -> None:
        self.path = path

    def read(self, choose: Choose) -> Tensor:
        """The chosen frames, uint8 (T, 3, H, W)."""
        try:
            names = sorted(
                (e.name for e in os.scandir(self.path) if e.name.lower().endswith(EXTENSIONS) and e.name[0] != "."),
                key=_natural,
            )
        except OSError as error:
            raise UnreadableSample(self.path, f"{type(error).__name__}: {error.strerror}") from error
        if not names:
            raise UnreadableSample(self.path, f"the folder holds no frames ({', '.join(EXTENSIONS)})")
        read: dict[int, np.ndarray] = {}
        numbers = list(choose(len(names), None))
        for number in set(numbers):
            path = os.path.join(self.path, names[number])
            try:
                with Image.open(path) as image:
                    read[number] = np.asarray(image.convert("RGB"))
            except DECODE_ERRORS as error:
                raise UnreadableSample(path, f"{type(error).__name__}: {error}") from error
        return _stack([read[number] for number in numbers], self.path)


class TensorVideo:
    """Frames in memory, uint8 (T, C, H, W)."""

    def __init__(self, frames: Tensor) -> None:
        self.frames = frames

    def read(self, choose: Choose) -> Tensor:
        """The chosen frames."""
        return self.frames[list(choose(len(self.frames), None))]


def open_video(path: str) -> Video:
    """A video file, or a folder of frames."""
    return FrameFolder(path) if os.path.isdir(path) else VideoFile(path)


def is_video_file(name: str) -> bool:
    """Whether a name is that of a video file."""
    return name.lower().endswith(VIDEO_EXTENSIONS) and not name.startswith(".")


def is_frame_folder(folder: str | Path) -> bool:
    """Whether a folder directly holds image files."""
    with os.scandir(folder) as entries:
        return any(e.name.lower().endswith(EXTENSIONS) and not e.name.startswith(".") for e in entries)


def _pixels(frame: av.VideoFrame) -> np.ndarray:
    """RGB (H, W, 3), upright: telephones store how they were held."""
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _stack(frames: list[np.ndarray], path: str) -> Tensor:
    shapes = {frame.shape for frame in frames}
    if len(shapes) > 1:
        raise UnreadableSample(path, f"its frames differ in size: {sorted(shape[:2] for shape in shapes)}")
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that puts frame_2 before frame_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
