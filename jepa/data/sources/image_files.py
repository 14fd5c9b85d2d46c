"""Files of pictures, by what is in them: 8-bit ones become PIL images, all others float32 tensors (C, h, w).

Of 8 bits, plain JPEG files become uint8 tensors (C, h, w), as torchvision decodes them faster. Unsigned 16-bit values
are divided by 65535 and booleans are 0 and 1, so that both lie in [0, 1] as 8-bit ones do in the end. Floats and other
integers stay as they are: nothing in such a file says what is white.
"""

from __future__ import annotations

import contextlib
import logging
import lzma
import math
import mmap
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from jepa.data.stream import UnreadableSample
from jepa.utils.lazy_import import lazy_import

tifffile = lazy_import("tifffile")
torchvision_io = lazy_import("torchvision.io")
log = logging.getLogger("jepa")
FRAME_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
"""Of frames: a folder that holds such files may be a video."""
IMAGE_EXTENSIONS = (*FRAME_EXTENSIONS, ".gif", ".npy", ".npz")
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
COLOURS = {"MINISWHITE": 1, "MINISBLACK": 1, "PALETTE": 1, "RGB": 3, "YCBCR": 3, "CIELAB": 3, "SEPARATED": 4}
"""Samples of a pixel, without alpha, of the 8-bit TIFF files that Pillow reads as they are meant."""
DEEP_PNG = {b"\x10\x02": False, b"\x10\x04": True, b"\x10\x06": True}
"""Depth and kind of a PNG file of which Pillow would keep 8 bits -> whether it has alpha."""
UNPACKERS = {8: (zlib.decompressobj, 1032), 32946: (zlib.decompressobj, 1032), 34925: (lzma.LZMADecompressor, 8192)}
"""Compression of a TIFF file -> what unpacks it, and about how many bytes one byte becomes at most."""
_said = mmap.mmap(-1, 1)  # shared with forked workers, so that all say it once


class WithAlpha(Tensor):
    """A picture whose last channel says how opaque it is; what is made of it by torch is one, too."""

    def kept_for(self, channels: int) -> Tensor:
        """The one rule for alpha: it is dropped, but where colours and alpha are asked for as 4 channels."""
        return self.as_subclass(Tensor)[..., : None if self.shape[-3] == channels == 4 else -1, :, :]


def read_image(stream: IO[bytes], name: str) -> Image.Image | Tensor:
    """Return the picture in a file, upright: 8 bits as a PIL image or uint8 (C, h, w), or float32 (C, h, w).

    Of an animation, the first frame. Floats with alpha are `WithAlpha`. Raises UnreadableSample for what is no picture
    or needs more memory than Pillow's largest (`PIL.Image.MAX_IMAGE_PIXELS`), and what the libraries raise for damage.
    """
    stream.seek(0)
    start = stream.read(26)
    stream.seek(0)
    if start.startswith((b"\x93NUMPY", b"PK\3\4")):
        return image_of((_read_npz if start[:2] == b"PK" else _read_npy)(stream, name), name)
    if start.startswith(TIFF_STARTS):
        return _read_tiff(stream, name)
    if start.startswith(b"\x89PNG") and start[24:] in DEEP_PNG:
        return _read_png(stream, start, name)
    return _read_by_pillow(stream, name)


def image_of(values: np.ndarray, name: str) -> Image.Image | Tensor:
    """Return an array's picture, as of a .npy file. Raise UnreadableSample for other shapes, NaN and infinities."""
    return _to_image(_channels_first(values, name), name)


def of_pillow(image: Image.Image, format: str | None, name: str) -> Image.Image | Tensor:
    """Return an image of Pillow as it is, or what is in it where that has more than 8 bits. format: of its file."""
    if 0 in image.size:
        raise UnreadableSample(name, "it has no pixels")
    if image.mode[0] not in "IF":
        return image
    values = np.asarray(image)
    # Pillow before 11 opens 16-bit PNG files as 32 bits; PPM files are scaled to 16.
    return _to_image(values.astype(np.uint16)[None] if format in ("PNG", "PPM") else values[None], name)


def size_of(image: Image.Image | Tensor) -> tuple[int, int]:
    """Return the height and width of a picture."""
    return (image.height, image.width) if isinstance(image, Image.Image) else tuple(image.shape[-2:])


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return an 8-bit PIL image of any mode as RGB, RGBA or L (grey)."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # without this step Pillow warns
    return image if image.mode == mode else image.convert(mode)


def to_rgb_bytes(image: Image.Image | Tensor, name: str) -> np.ndarray:
    """Return a picture of `read_image` as uint8 (h, w, 3). Raises UnreadableSample for one that cannot be so."""
    if isinstance(image, Image.Image):
        return np.asarray(to_mode(image, "RGB"))
    if isinstance(image, WithAlpha):
        image = image.kept_for(3)
    if image.dtype == torch.uint8:
        return image.expand(3, -1, -1).permute(1, 2, 0).numpy()
    if len(image) not in (1, 3):
        raise UnreadableSample(name, f"it has {len(image)} channels, a frame of a video has 1 or 3")
    if image.min() < 0 or image.max() > 1:
        low, high = image.min().item(), image.max().item()
        raise UnreadableSample(name, f"its values go from {low:g} to {high:g}, those of a frame from 0 to 1 or 8-bit")
    return (image * 255).round().byte().expand(3, -1, -1).permute(1, 2, 0).numpy()


def _read_by_pillow(stream: IO[bytes], name: str) -> Image.Image | Tensor:
    try:
        opened = Image.open(stream)
    except UnidentifiedImageError:  # whose message has the address of the stream
        raise UnidentifiedImageError("it is in no format that is known") from None
    with opened as image:
        if image.format in ("GIF", "PNG", "WEBP") and not _said[0]:
            with contextlib.suppress(Exception):  # what is wrong with later frames does not matter
                _say_if(image.is_animated, name)
        if (pixels := _read_plain_jpeg(image, stream)) is not None:
            return pixels
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return of_pillow(image, opened.format, name)


def _read_plain_jpeg(image: Image.Image, stream: IO[bytes]) -> Tensor | None:
    """Pixels of an upright JPEG file in grey or colours, equal to Pillow's, but faster; None for other files."""
    mode = {"L": "GRAY", "RGB": "RGB"}.get(image.mode)
    if image.format != "JPEG" or mode is None or image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        return None
    stream.seek(0)
    content = bytearray(stream.read(2**20 + 16 * image.height * image.width))  # as of a PNG file
    with contextlib.suppress(RuntimeError):
        mode = torchvision_io.ImageReadMode[mode]
        pixels = torchvision_io.decode_jpeg(torch.frombuffer(content, dtype=torch.uint8), mode=mode)
        return pixels if size_of(pixels) == size_of(image) else None
    return None


def _read_png(stream: IO[bytes], start: bytes, name: str) -> Image.Image | Tensor:
    """A PNG file of 16-bit colour, or grey with alpha. start: the first 26 bytes."""
    width, height = struct.unpack(">II", start[16:24])
    _check_size((4, height, width), np.dtype(np.uint16), name)
    most = 2**20 + 16 * height * width  # no encoder makes a picture twice as long
    content = torch.frombuffer(bytearray(stream.read(most)), dtype=torch.uint8)
    values = torchvision_io.decode_png(content, apply_exif_orientation=True).numpy()
    return _to_image(values, name, alpha=DEEP_PNG[start[24:]])


def _read_npy(stream: IO[bytes], name: str) -> np.ndarray:
    """An array, bounded by its header before it is read; never a pickle."""
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise UnreadableSample(name, f"it is a .npy file of version {version}, expected 1.0 or 2.0")
    shape, columns_first, kind = readers[version](stream)
    _check_kind(kind, name)
    _check_size(shape, kind, name)
    content = stream.read(math.prod(shape) * kind.itemsize)
    if len(content) < math.prod(shape) * kind.itemsize:
        raise UnreadableSample(name, f"it ends before its array {shape} of {kind}")
    return np.frombuffer(content, kind).reshape(shape, order="F" if columns_first else "C")


def _read_npz(stream: IO[bytes], name: str) -> np.ndarray:
    with zipfile.ZipFile(stream) as archive:
        names = [entry for entry in archive.namelist() if entry.endswith(".npy")]
        entry = names[0] if len(names) == 1 else "image.npy"
        if entry not in names:
            shown = ", ".join(each.removesuffix(".npy") for each in names[:5]) or "no arrays"
            raise UnreadableSample(name, f"it holds {shown}; expected a single array, or one named image")
        with archive.open(entry) as member:
            return _read_npy(member, name)


def _read_tiff(stream: IO[bytes], name: str) -> Image.Image | Tensor:
    """A TIFF file: axes named C, S, Q or I are channels, of all others but Y and X the first entry is taken."""
    tifffile.logger().setLevel(logging.CRITICAL)  # a file is readable or not
    # No other files, which an OME header may name.
    with tifffile.TiffFile(stream, name=name, _multifile=False) as tiff:
        series = tiff.series[0]
        page = series.keyframe
        if len(series.pages) == 1 and set(series.axes) <= set("YXS") and _is_plain(page):
            _say_if(len(tiff.series) > 1, name)
            return _read_by_pillow(stream, name)
        _check_kind(page.dtype, name)
        channels = "C" * ("C" in series.axes) + "S" * ("S" in series.axes)
        kept = set("YX" + (channels or "QI"))  # pages of colour pictures are several pictures
        shape = [size for axis, size in zip(series.axes, series.shape) if axis in kept]
        _say_if(len(tiff.series) > 1 or math.prod(shape) < series.size, name)
        _check_size(shape, page.dtype, name)
        values = _read_pages(tiff, series, kept, stream, name)
        axes = [axis for axis in series.axes if axis in kept]
        if not channels and len(axes) == 3:  # nothing says which of the axes is that of the channels
            values = _channels_first(values, name)
        else:
            values = np.moveaxis(values, [axes.index("Y"), axes.index("X")], [-2, -1])
            values = values.reshape(-1, *values.shape[-2:])
        if getattr(page.photometric, "name", "") == "MINISWHITE" and values.dtype.kind == "u":
            values = np.iinfo(values.dtype).max - values
        alpha = len(values) == page.samplesperpixel and _has_alpha(page)
        return _to_image(_upright(values, _orientation(page)), name, alpha=alpha)


def _is_plain(page: Any) -> bool:
    """Whether a page of a TIFF file is one of 8 bits in grey or colour, perhaps with alpha, and with nothing else."""
    alone = page.samplesperpixel == COLOURS.get(getattr(page.photometric, "name", ""))
    return page.dtype in (np.uint8, np.bool_) and (alone or _has_alpha(page))


def _has_alpha(page: Any) -> bool:
    colours = COLOURS.get(getattr(page.photometric, "name", ""), math.nan)
    return list(map(int, page.extrasamples)) in ([1], [2]) and page.samplesperpixel == colours + 1


def _read_pages(tiff: Any, series: Any, kept: set[str], stream: IO[bytes], name: str) -> np.ndarray:
    """The entries of a series' axes in `kept`, of the others the first; pages that are not needed are not read."""
    page = series.keyframe
    first = tuple(slice(None) if axis in kept else 0 for axis in series.axes)
    across = len(series.axes) - len(page.axes)  # axes that go over pages
    count = math.prod(series.shape[:across])
    by_page = series.axes.endswith(page.axes) and len(series.pages) == count
    numbers = np.arange(count).reshape(series.shape[:across])[first[:across]] if by_page else None
    _check_packed([page] if numbers is None else [series.pages[number] for number in numbers.ravel()], stream, name)
    try:
        if numbers is None:  # one page describes many
            _check_size(series.shape, page.dtype, name)
            return series.asarray(maxworkers=1)[first]
        values = tiff.asarray(key=numbers.ravel().tolist(), series=0, maxworkers=1)
        values = values.reshape(*numbers.shape, *page.shape)
        return values[(slice(None),) * numbers.ndim + first[across:]]
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        if numbers is None or page.samplesperpixel > 1:
            what = f"{error}: pip install imagecodecs, or store it without compression"
            raise UnreadableSample(name, what) from error
        pages = [series.pages[number].index for number in numbers.ravel()]
        turned = _grey_pages_by_pillow(stream, pages, page.dtype, name)
        stored = _upright(turned, {6: 8, 8: 6}.get(_orientation(page), _orientation(page)))
        return stored.reshape(*numbers.shape, *page.shape)


def _check_packed(pages: Sequence[Any], stream: IO[bytes], name: str) -> None:
    """Raise UnreadableSample for packed parts of pages that take more memory than Pillow's largest picture."""
    most = _most_bytes()
    for page in pages:
        make, ratio = UNPACKERS.get(int(page.compression), (None, 0))
        for offset, size in zip(page.dataoffsets, page.databytecounts):
            if size * ratio <= most:
                continue
            stream.seek(offset)
            unpacker, content, unpacked = make(), stream.read(size), 0
            while not unpacker.eof and (part := unpacker.decompress(content, 2**24)):
                unpacked += len(part)
                content = getattr(unpacker, "unconsumed_tail", b"")
                if unpacked > most:
                    raise UnreadableSample(name, f"a part of it unpacks to more than {most:,} bytes")


def _grey_pages_by_pillow(stream: IO[bytes], numbers: Sequence[int], kind: np.dtype, name: str) -> np.ndarray:
    """Upright pages of one channel, in compressions that Pillow reads (LZW) and tifffile alone does not."""
    found = []
    with Image.open(stream) as image:
        for number in numbers:
            image.seek(number)
            if image.mode not in ("L", "F") and image.mode[0] != "I":
                raise UnreadableSample(name, f"Pillow reads its pages as {image.mode}, not as grey")
            found.append(np.array(image).astype(kind))
    return np.stack(found)


def _orientation(page: Any) -> int:
    tag = page.tags.get("Orientation")
    return 1 if tag is None else int(tag.value)


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(-1, -2)
    if orientation in (2, 3, 6, 7):
        values = values[..., ::-1]
    return values[..., ::-1, :] if orientation in (3, 4, 7, 8) else values


def _channels_first(values: np.ndarray, name: str) -> np.ndarray:
    """(h, w), (C, h, w) or (h, w, C) as (C, h, w): the shorter of the first and last axis is that of the channels."""
    if values.ndim == 2:
        return values[None]
    if values.ndim != 3:
        raise UnreadableSample(name, f"its shape is {values.shape}, expected (h, w), (C, h, w) or (h, w, C)")
    return values if values.shape[0] <= values.shape[-1] else np.moveaxis(values, -1, 0)


def _to_image(values: np.ndarray, name: str, *, alpha: bool = False) -> Image.Image | Tensor:
    """Values (C, h, w) of any type of numbers, scaled by the rule at the top."""
    kind = values.dtype
    _check_kind(kind, name)
    if kind == np.uint8 and len(values) in (1, 3):
        return Image.fromarray(np.ascontiguousarray(values[0] if len(values) == 1 else np.moveaxis(values, 0, -1)))
    pixels = torch.from_numpy(np.array(values, dtype=np.float32, order="C"))
    if kind.kind == "u" and kind.itemsize <= 2:
        pixels /= 2 ** (8 * kind.itemsize) - 1
    if not bool(pixels.isfinite().all()):
        raise UnreadableSample(name, "it holds values that are NaN or infinite")
    return pixels.as_subclass(WithAlpha) if alpha else pixels


def _check_kind(kind: Any, name: str) -> None:
    if kind is None or kind.kind not in "biuf":
        raise UnreadableSample(name, f"its values are {kind}, expected numbers")


def _check_size(shape: Sequence[int], kind: Any, name: str) -> None:
    if math.prod(shape) < 1:
        raise UnreadableSample(name, f"its shape is {tuple(shape)}, without pixels")
    if math.prod(shape) * max(kind.itemsize, 4) > (most := _most_bytes()):
        raise UnreadableSample(name, f"its header claims {tuple(shape)} values of {kind}, more than {most:,} bytes")


def _most_bytes() -> float:
    """Return twice the bytes of the largest grey float32 picture that Pillow opens without a warning; inf if any."""
    return 8 * (Image.MAX_IMAGE_PIXELS or math.inf)


def _say_if(more: bool, name: str) -> None:
    if more and not _said[0]:
        _said[0] = 1
        log.warning("%s holds several pictures; of such files (animations, stacks) the first one is taken", name)
