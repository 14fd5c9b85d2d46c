"""Decoding of pictures and videos, from files or bytes in memory; what is damaged raises `UnreadableSample`."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import re
import stat
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jepa.data.sources.image_files import FRAME_EXTENSIONS, read_image, size_of, to_rgb_bytes
from jepa.data.stream import UnreadableSample
from jepa.utils.errors import UserError
from jepa.utils.lazy_import import lazy_import, require

av = lazy_import("av")
# What Pillow and others raise on damaged files; a SyntaxError stands for a broken PNG. Those of the second line would
# otherwise pass for mistakes of ours (`jepa.data.stream.blamed`).
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
DAMAGE += (TypeError, KeyError, AttributeError, AssertionError, NotImplementedError)

MOST_FRAME_PIXELS = 2**26  # of a frame of a video, 8192 x 8192: more than any camera takes
MOST_CLIP_BYTES = 2**31  # of the frames of a clip before they are made smaller: 48 frames of 5K video
File = str | Path | io.BytesIO
Choose = Callable[[int, float | None], Sequence[int]]
"""(number of frames, frames per second where that is known) -> the frames wanted, in rising order."""


@contextlib.contextmanager
def readable(file: File | None, name: str | None, *errors: type[Exception]) -> Iterator[str]:
    """A context in which DAMAGE and `errors` become UnreadableSample; looks at a path first, as pipes would block."""
    name = name or str(file)
    try:
        if isinstance(file, (str, Path)) and stat.S_IFMT(os.stat(file).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            raise UnreadableSample(name, "it is a pipe or a device, no file")
        yield name
    except (*DAMAGE, *errors) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "error_string", None) or str(error)
        empty = isinstance(file, (str, Path)) and os.path.isfile(file) and not os.path.getsize(file)
        raise UnreadableSample(name, "the file is empty" if empty else f"{type(error).__name__}: {reason}") from error


def decode_image(file: File, name: str | None = None) -> Image.Image | Tensor:
    """The picture in a file, turned upright; see `read_image`. name: of the sample in errors, None for the file's."""
    with readable(file, name) as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a file is readable or not; oddities in its metadata do not matter
        try:
            with contextlib.nullcontext(file) if isinstance(file, io.BytesIO) else open(file, "rb") as stream:
                return read_image(stream, name)
        except (UnreadableSample, UserError, *DAMAGE):
            raise
        except Exception as error:  # libraries that are given any bytes raise anything
            raise UnreadableSample(name, f"{type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class VideoFile:
    """A file that FFmpeg reads; PyAV brings its own FFmpeg along."""

    path: str

    def __post_init__(self) -> None:
        require("av", extra="video", purpose="reading video")

    def read(self, choose: Choose) -> Tensor:
        """The chosen frames, uint8 (T, 3, H, W).

        Decoding starts at the last key frame before the first one wanted. Where a file holds fewer frames than it
        states, its last one takes the place of those missing.
        """
        with readable(self.path, None, av.FFmpegError), av.open(self.path) as container:
            stream = self._pictures(container)

            def bounded(count: int, rate: float | None) -> Sequence[int]:
                numbers = choose(count, rate)
                _check_clip(self.path, stream.width * stream.height, len(numbers))
                return numbers

            rate = float(stream.average_rate or stream.guessed_rate or 0) or None
            seconds = (container.duration or 0) / av.time_base
            if stream.duration is not None and stream.time_base:
                seconds = float(stream.duration * stream.time_base)
            count = stream.frames or int(seconds * (rate or 0))
            if count < 1 or rate is None or not stream.time_base:  # neither number is known
                frames = self._read_counted(bounded, rate)
            else:
                frames = _decode_frames(container, stream, bounded(count, rate), rate)
        if not frames:
            raise UnreadableSample(self.path, "no frame could be decoded")
        return _stack(frames, self.path)

    def _pictures(self, container: av.container.InputContainer) -> av.VideoStream:
        if not container.streams.video:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "an empty shell"
            raise UnreadableSample(self.path, f"it has no pictures, only {kinds}")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise UnreadableSample(self.path, "FFmpeg has no decoder for its pictures")
        _check_clip(self.path, stream.width * stream.height, 1)
        stream.codec_context.options = {"max_pixels": str(MOST_FRAME_PIXELS)}  # sizes may change on the way
        stream.codec_context.thread_count = 1  # workers are the parallelism
        return stream

    def _read_counted(self, choose: Choose, rate: float | None) -> list[np.ndarray]:
        """The chosen frames of a file that does not say how many it has: it is decoded twice."""
        with av.open(self.path) as container:
            count = sum(1 for _ in container.decode(self._pictures(container)))
        wanted = Counter(choose(count, rate)) if count else {}
        with av.open(self.path) as container:
            frames = enumerate(container.decode(self._pictures(container)))
            found = [(_pixels(frame), wanted[number]) for number, frame in frames if number in wanted]
        return [pixels for pixels, times in found for _ in range(times)]


def _decode_frames(
    container: av.container.InputContainer, stream: av.VideoStream, wanted: Sequence[int], rate: float
) -> list[np.ndarray]:
    """Frames by number, in rising order; none where no frame can be decoded."""
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
    return found if last is None else found + [_pixels(last)] * (len(ticks) - len(found))


@dataclass(frozen=True)
class FrameFolder:
    """A folder that holds the frames of one video as image files, in the order of the numbers in their names."""

    path: str

    def read(self, choose: Choose) -> Tensor:
        """The chosen frames, uint8 (T, 3, H, W)."""
        with readable(self.path, None):
            names = sorted(filter(is_frame_file, os.listdir(self.path)), key=by_numbers)
        if not names:
            raise UnreadableSample(self.path, f"the folder holds no frames ({', '.join(FRAME_EXTENSIONS)})")
        numbers = list(choose(len(names), None))

        @functools.cache
        def frame(number: int) -> np.ndarray:
            image = decode_image(path := os.path.join(self.path, names[number]))
            _check_clip(self.path, math.prod(size_of(image)), len(numbers))  # each, as their sizes may differ
            return to_rgb_bytes(image, path)

        return _stack([*map(frame, numbers)], self.path)


@dataclass(frozen=True)
class TensorVideo:
    """A video in memory: frames (T, C, H, W) uint8."""

    frames: Tensor

    def read(self, choose: Choose) -> Tensor:
        return self.frames[list(choose(len(self.frames), None))]


Video = VideoFile | FrameFolder | TensorVideo
"""One video, not read yet; `read` raises UnreadableSample when it is damaged or has no frames."""


def open_video(path: str) -> Video:
    """Return the video in a file, or in a folder of frames; nothing is read yet."""
    return FrameFolder(path) if os.path.isdir(path) else VideoFile(path)


def is_frame_file(name: str) -> bool:
    """Return whether a file's name is one of a picture that may be a frame of a video; hidden files are not."""
    return name.lower().endswith(FRAME_EXTENSIONS) and not name.startswith(".")


def _pixels(frame: av.VideoFrame) -> np.ndarray:
    """RGB (H, W, 3), upright: telephones store how they were held."""
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _check_clip(path: str, pixels: int, count: int) -> None:
    if pixels > MOST_FRAME_PIXELS:
        raise UnreadableSample(path, f"its frames have {pixels:,} pixels, more than {MOST_FRAME_PIXELS:,}")
    if (size := 3 * pixels * count) > MOST_CLIP_BYTES:
        raise UnreadableSample(path, f"a clip of {count} frames of it takes {size / 2**30:.1f} GiB")


def _stack(frames: list[np.ndarray], path: str) -> Tensor:
    if len(shapes := {frame.shape[:2] for frame in frames}) > 1:
        raise UnreadableSample(path, f"its frames differ in size: {sorted(shapes)}")
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def by_numbers(name: str) -> list[tuple[int, str]]:
    """Return the key that sorts names by the numbers in them: 2.jpg before 10.jpg."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
