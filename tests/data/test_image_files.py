"""Files of pictures: what each kind becomes, and that a picture is the same by whatever reader."""

from __future__ import annotations

import io
import json
import logging
import lzma
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from data_helpers import folder_data
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from jepa.config.encoder_inputs import Inputs
from jepa.data import Augment, ImageData
from jepa.data.augment import NUMBERS
from jepa.data.image_transform import ImageTransform
from jepa.data.sources import coco_pictures, image_files, image_folder, video_folder
from jepa.data.sources.decoders import decode_image, open_video
from jepa.data.sources.splits import Splits
from jepa.data.stream import UnreadableSample
from jepa.utils.errors import DataError

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (16, 20), np.uint8)
COLOUR = RANDOM.integers(0, 256, (16, 20, 3), np.uint8)
BANDS = RANDOM.integers(0, 2**16, (5, 16, 20), np.uint16)
RAMP = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[274] = orientation
    return tags


def pillow(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(values: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def deep_png(values: np.ndarray, kind: int, width: int = 20) -> bytes:
    """A PNG file of 16 bits; values: (h, w, samples) of the kind of pixels that PNG calls 2, 4 or 6."""
    header = struct.pack(">IIBBBBB", width, len(values), 16, kind, 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    found = b"\x89PNG\r\n\x1a\n"
    for name, content in ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")):
        found += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return found


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def pixels(content: bytes, channels: int) -> Tensor:
    """The values (C, h, w) that a model would get without normalisation."""
    image = decode_image(io.BytesIO(content), "it")
    size = image.size[::-1] if isinstance(image, Image.Image) else tuple(image.shape[-2:])
    plain = ImageTransform(
        size=size, channels=channels, mean=[0.0], std=1.0, interpolation="bilinear", augment=None
    ).plain
    return plain(image if isinstance(image, Image.Image) else image[None])[0]


def values(array: np.ndarray, scale: float = 1.0) -> Tensor:
    """(C, h, w) of (h, w) or (C, h, w)."""
    return torch.from_numpy(np.atleast_3d(array).transpose(2, 0, 1) if array.ndim == 2 else array) / scale


COLOURS = COLOUR.transpose(2, 0, 1)
FLOATS = RANDOM.normal(300, 50, (16, 20)).astype(np.float32)
FRAMES = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
STACK = [Image.fromarray(each) for each in BANDS]
SEPARATE = {"photometric": "minisblack", "planarconfig": "separate"}
ALPHA = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
IMAGEJ = {"imagej": True, "metadata": {"axes": "ZYX"}}
LZW = {"compression": "tiff_lzw"}
OME = {"ome": True, "metadata": {"axes": "TCYX"}}

FILES = {
    "grey": (pillow(GREY, "PNG"), values(GREY, 255)),
    "grey in colour": (pillow(GREY, "PNG"), values(GREY, 255).expand(3, -1, -1)),
    "grey in five": (pillow(GREY, "PNG"), values(GREY, 255).expand(5, -1, -1)),
    "grey tiff": (pillow(GREY, "TIFF", **LZW), values(GREY, 255)),
    "white is 0": (tiff(255 - GREY, photometric="miniswhite"), values(GREY, 255)),
    "colour": (pillow(COLOUR, "PNG"), values(COLOURS, 255)),
    "bmp": (pillow(COLOUR, "BMP"), values(COLOURS, 255)),
    "ppm": (pillow(COLOUR, "PPM"), values(COLOURS, 255)),
    "webp": (pillow(COLOUR, "WEBP", lossless=True), values(COLOURS, 255)),
    "colour tiff": (pillow(COLOUR, "TIFF", **LZW), values(COLOURS, 255)),
    "colour npy": (npy(COLOUR), values(COLOURS, 255)),
    "colour npy, channels first": (npy(COLOURS), values(COLOURS, 255)),
    "palette": (pillow(Image.fromarray(GREY).convert("P"), "GIF"), values(GREY, 255).expand(3, -1, -1)),
    "alpha dropped": (pillow(Image.fromarray(COLOUR).convert("RGBA"), "PNG"), values(COLOURS, 255)),
    "alpha kept": (
        pillow(Image.fromarray(np.dstack([COLOUR, GREY])), "PNG"),
        values(np.concatenate([COLOURS, GREY[None]]), 255),
    ),
    "alpha of grey": (pillow(Image.fromarray(GREY).convert("LA"), "PNG"), values(GREY, 255)),
    "cmyk": (pillow(Image.fromarray(COLOUR).convert("CMYK"), "TIFF"), values(COLOURS, 255)),
    "turned": (pillow(COLOUR, "PNG", exif=exif(6)), values(np.rot90(COLOURS, -1, (1, 2)).copy(), 255)),
    "turned 16-bit": (pillow(RAMP, "PNG", exif=exif(5)), values(RAMP.T.copy(), 65535)),
    "turned tiff": (
        tiff(BANDS, extratags=[(274, "H", 1, 8, True)], **SEPARATE),
        values(np.rot90(BANDS, 1, (1, 2)).copy(), 65535),
    ),
    "turned 16-bit LZW": (pillow(RAMP, "TIFF", tiffinfo={274: 6}, **LZW), values(np.rot90(RAMP, -1).copy(), 65535)),
    "animation": (pillow(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]), values(COLOURS, 255)),
    "16-bit png": (pillow(RAMP, "PNG"), values(RAMP, 65535)),
    "16-bit colour png": (deep_png(BANDS[:3].transpose(1, 2, 0), 2), values(BANDS[:3], 65535)),
    "16-bit colour png, alpha dropped": (deep_png(BANDS[:4].transpose(1, 2, 0), 6), values(BANDS[:3], 65535)),
    "16-bit colour png, alpha kept": (deep_png(BANDS[:4].transpose(1, 2, 0), 6), values(BANDS[:4], 65535)),
    "16-bit colour tiff, alpha kept": (tiff(BANDS[:4].transpose(1, 2, 0), **ALPHA), values(BANDS[:4], 65535)),
    "16-bit colour tiff, alpha dropped": (tiff(BANDS[:4].transpose(1, 2, 0), **ALPHA), values(BANDS[:3], 65535)),
    "alpha in planes": (tiff(BANDS[:4], planarconfig="separate", **ALPHA), values(BANDS[:3], 65535)),
    "8-bit alpha in planes": (
        tiff((BANDS[:4] // 257).astype(np.uint8), planarconfig="separate", **ALPHA),
        values(BANDS[:3] // 257, 255),
    ),
    "grey tiff, alpha dropped": (
        tiff(BANDS[:2].transpose(1, 2, 0), **ALPHA | {"photometric": "minisblack"}, planarconfig="contig"),
        values(BANDS[:1], 65535),
    ),
    "16-bit grey png, alpha dropped": (deep_png(BANDS[:2].transpose(1, 2, 0), 4), values(BANDS[:1], 65535)),
    "16-bit pgm": (pillow(RAMP, "PPM"), values(RAMP, 65535)),
    "16-bit tiff": (tiff(RAMP, byteorder=">"), values(RAMP, 65535)),
    "16-bit colour tiff": (tiff(np.stack([RAMP] * 3, 2), photometric="rgb"), values(np.stack([RAMP] * 3), 65535)),
    "float tiff": (pillow(FLOATS, "TIFF"), values(FLOATS)),
    "signed tiff": (tiff(FLOATS.astype(np.int16) - 300), values(FLOATS.astype(np.int16) - 300)),
    "bands in pages": (tiff(BANDS, photometric="minisblack"), values(BANDS, 65535)),
    "bands in planes": (tiff(BANDS, compression="zlib", predictor=True, **SEPARATE), values(BANDS, 65535)),
    "bands last": (tiff(BANDS.transpose(1, 2, 0), photometric="minisblack"), values(BANDS, 65535)),
    "bands in a pixel": (
        tiff(BANDS.transpose(1, 2, 0), photometric="minisblack", planarconfig="contig"),
        values(BANDS, 65535),
    ),
    "bands of 8 bits": (tiff((BANDS // 257).astype(np.uint8), **SEPARATE), values(BANDS // 257, 255)),
    "bands in LZW pages": (
        pillow(STACK[0], "TIFF", save_all=True, append_images=STACK[1:], **LZW),
        values(BANDS, 65535),
    ),
    "first of a stack": (tiff(BANDS, **IMAGEJ), values(BANDS[0], 65535)),
    "first moment": (tiff(np.stack([BANDS, BANDS[::-1]]), **OME), values(BANDS, 65535)),
    "first page in colour": (tiff(np.stack([COLOUR] * 4), photometric="rgb"), values(COLOURS, 255)),
    "npy": (npy(BANDS.astype(">u2")), values(BANDS, 65535)),
    "npy, by columns": (npy(np.asfortranarray(BANDS.transpose(1, 2, 0))), values(BANDS, 65535)),
    "npy of booleans": (npy(GREY > 100), values(GREY > 100)),
    "npy of floats": (npy(FLOATS.astype(np.float64)), values(FLOATS)),
    "npz": (npz(anything=BANDS), values(BANDS, 65535)),
    "npz of several": (npz(mask=GREY, image=FLOATS), values(FLOATS)),
}


@pytest.mark.parametrize("name", FILES)
def test_what_a_file_becomes(name):
    content, expected = FILES[name]
    found = pixels(content, len(expected))
    atol = 0.02 if name in ("cmyk", "palette") else 1e-6 * float(expected.abs().max())
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=atol)


@pytest.mark.parametrize("image", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"exif": exif(1)}])
def test_plain_jpeg_files_have_the_pixels_of_pillow(image, options):
    content = pillow(image, "JPEG", quality=60, **options)
    found = decode_image(io.BytesIO(content), "a file")
    assert found.dtype == torch.uint8, "torchvision decodes it"
    expected = Image.open(io.BytesIO(content))
    assert torch.equal(found, v2.functional.pil_to_tensor(expected))
    for channels in (1, 3):
        augment = Augment(crop_scale=(0.3, 1.0), horizontal_flip=0.5, rotation=10, blur=0.5)
        each = transform(augment, 8, channels)
        assert torch.equal(each.plain(found), each.plain(expected))
        uniform = torch.rand(1, 4, NUMBERS, generator=torch.Generator().manual_seed(0))
        assert torch.equal(each.augmented(found, uniform), each.augmented(expected, uniform))


def test_pictures_are_resized_as_pillow_does_within_three_levels():
    each = transform(Augment(crop_scale=(0.3, 1.0)), 64)
    smooth = Image.fromarray(COLOUR).resize((150, 120), Image.Resampling.BICUBIC)
    uniform = torch.rand(1, 20, NUMBERS, generator=torch.Generator().manual_seed(0))
    boxes = each.augment.boxes(uniform[0], height=120, width=150, size=(64, 64))
    for view, (left, top, w, h) in zip(each.augmented(smooth, uniform)[0], boxes.tolist()):
        part = smooth.crop((left, top, left + w, top + h)).resize((64, 64), Image.Resampling.BICUBIC)
        difference = (view * 255 - v2.functional.pil_to_tensor(part)).abs()
        assert difference.max() < 3.5
        assert difference.mean() < 0.2


def test_batches_of_bytes_are_those_of_floats(tmp_path):
    """Files of 8 and of 16 bits in a batch, through the loader and made at once; a subclass gets floats."""

    class Doubled(ImageData):
        def make_inputs(self, value, counter, reading):
            return {name: 2 * x for name, x in super().make_inputs(value, counter, reading).items()}

    for number in range(12):
        image = RANDOM.integers(0, 256, (20, 24, 3), np.uint8)
        deep = deep_png(RANDOM.integers(0, 2**16, (16, 20, 3), np.uint16), 2)
        content, ending = [(pillow(image, "JPEG"), "jpg"), (pillow(image, "PNG"), "png"), (deep, "png")][number % 3]
        (tmp_path / f"{number}.{ending}").write_bytes(content)
    settings = {"source": image_folder, "root": str(tmp_path), "image_size": 16, "channels": 3, "batch_size": 6}
    settings |= {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "views": 2, "augment": Augment(crop_scale=(0.3, 1.0))}
    data, doubled = ImageData(**settings), Doubled(**settings)
    expected = data.make_batch(data.order(0).request(0), data.reading("train", seed=0))["views"]
    assert expected.dtype == torch.float32
    for workers in (0, 1):
        data.num_workers = workers
        found = next(data.train_batches(seed=0, start_step=0, stop_step=1))["views"]
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(next(doubled.train_batches(seed=0, start_step=0, stop_step=1))["views"], 2 * expected)
    data.finish_on = torch.device("meta")
    made = next(data.train_batches(seed=0, start_step=0, stop_step=1))["views"]
    assert (made.device.type, made.dtype, made.shape) == ("meta", torch.float32, expected.shape)
    assert next(data.evaluation_batches("test", batch_size=1))["x"].device.type == "cpu", "only training goes to it"


def header(shape: tuple[int, ...], kind: str) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": kind})
    return file.getvalue()


def patched(content: bytes, **tags: int) -> bytes:
    """A TIFF file with other values of tags."""
    changed = bytearray(content)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        for name, value in tags.items():
            tag = file.pages[0].tags[name]
            size = 4 if tag.dtype == tifffile.DATATYPE.LONG else 2
            changed[tag.valueoffset : tag.valueoffset + size] = value.to_bytes(size, "little")
    return bytes(changed)


UNREADABLE = {
    "no picture": (b"404 not found", "no format that is known"),
    "nan": (npy(np.array([[np.nan, 1]])), "NaN or infinite"),
    "infinite": (tiff(np.full((4, 4), np.inf, np.float32)), "NaN or infinite"),
    "beyond float32": (npy(np.full((2, 2), 1e300)), "NaN or infinite"),
    "complex": (npy(np.ones((2, 2), complex)), "its values are complex128, expected numbers"),
    "objects": (npy(np.array([[{}]], dtype=object)), "its values are object, expected numbers"),
    "text": (npy(np.array([["a"]])), "expected numbers"),
    "four axes": (npy(np.ones((2, 3, 4, 5))), r"its shape is \(2, 3, 4, 5\), expected \(h, w\)"),
    "nothing": (npy(np.ones((0, 4))), "without pixels"),
    "claims 200 GB": (header((10**5, 10**5, 10), "<u2"), "header claims"),
    "claims 40 GB as TIFF": (patched(tiff(BANDS, **SEPARATE), ImageWidth=65535, ImageLength=65535), "header claims"),
    "claims 86 GB as 16-bit PNG": (deep_png(np.zeros((2, 20, 3), np.uint16), 2, 2**31 - 1), "header claims"),
    "cut 16-bit PNG": (deep_png(BANDS[:3].transpose(1, 2, 0), 2)[:900], "RuntimeError"),
    "cut npy": (npy(BANDS)[:500], r"it ends before its array \(5, 16, 20\) of uint16"),
    "cut header": (npy(BANDS)[:40], "EOF"),
    "cut tiff": (tiff(BANDS, photometric="minisblack")[:3000], "failed to read"),
    "cut npz": (npz(image=BANDS)[:900], "BadZipFile"),
    "several arrays": (npz(a=GREY, b=GREY), "it holds a, b; expected a single array, or one named image"),
    "codec": (patched(tiff(np.stack([RAMP] * 3, 2), photometric="rgb"), Compression=5), "pip install imagecodecs"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_named(name):
    content, reason = UNREADABLE[name]
    with pytest.raises(UnreadableSample, match=reason) as error:
        decode_image(io.BytesIO(content), "it")
    assert error.value.name == "it"


@pytest.mark.parametrize("compression", ["zlib", "lzma"])
def test_packed_parts_take_no_more_memory_than_a_picture(monkeypatch, compression):
    pack = {"zlib": zlib.compress, "lzma": lzma.compress}[compression]
    bomb = io.BytesIO()
    packed = pack(bytes(4_000_000))
    tifffile.imwrite(bomb, iter([packed] * 5), shape=(5, 16, 20), dtype="u2", compression=compression, **SEPARATE)
    assert len(bomb.getvalue()) < 50_000
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400_000)
    with pytest.raises(UnreadableSample, match="unpacks to more than 3,200,000 bytes"):
        decode_image(bomb, "it")


def test_changed_bytes_are_read_or_named():
    """Any bytes in the headers of TIFF files and arrays: nothing else is raised."""
    contents = [FILES[name][0] for name in ("bands in planes", "first moment", "first of a stack", "npy", "npz")]
    random = np.random.default_rng(1)
    for number in range(400):
        content = bytearray(contents[number % len(contents)])
        for place in random.integers(4, min(len(content), 600), random.integers(1, 6)):
            content[place] = random.integers(256)
        try:
            decode_image(io.BytesIO(bytes(content)), "it")
        except UnreadableSample:
            continue


def test_the_first_of_several_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(image_files, "_said", bytearray(1))
    for name in ("colour", "animation", "first of a stack", "animation"):
        decode_image(io.BytesIO(FILES[name][0]), name)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "animation holds several pictures; of such files (animations, stacks) the first one is taken"
    ]


def by_folder(root: Path, name: str, content: bytes) -> Tensor:
    for each in ("a", "b"):
        (root / each).mkdir()
        for number in range(2):
            (root / each / f"{number}{name}").write_bytes(content)
    return next(folder_data(root, image_size=[32, 32]).evaluation_batches("train", batch_size=1))["x"][0]


def by_hub(root: Path, name: str, content: bytes) -> Tensor:
    datasets = pytest.importorskip("datasets")
    from jepa.data.huggingface_data import read_columns

    rows = datasets.Dataset.from_dict({"image": [{"bytes": content, "path": None}] * 2})
    rows = rows.cast_column("image", datasets.Image())
    _, splits = read_columns(rows, rows, "image", None)
    return batch_of(lambda: splits)


def by_coco(root: Path, name: str, content: bytes) -> Tensor:
    (root / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
        (root / split / f"1{name}").write_bytes(content)
        told = {"images": [{"id": 1, "file_name": f"1{name}"}], "annotations": [{"image_id": 1, "caption": "it"}]}
        (root / "annotations" / f"captions_{split}.json").write_text(json.dumps(told))
    return batch_of(lambda: coco_pictures(root=str(root)))


def by_frames(root: Path, name: str, content: bytes) -> Tensor:
    (root / f"0{name}").write_bytes(content)
    frames = open_video(str(root)).read(lambda count, rate: range(count))
    return transform().plain(frames)[0]


def by_extract(root: Path, name: str, content: bytes) -> Tensor:
    """As `scripts/extract.py` and `jepa.load_encoder` do."""
    path = root / f"0{name}"
    path.write_bytes(content)
    blank = Splits([(Image.new("RGB", (32, 32)), None)], [(Image.new("RGB", (32, 32)), None)])
    data = ImageData(source=lambda: blank, image_size=32, channels=3, mean=[0.0], std=[1.0])
    ((_, x),) = Inputs(data).prepare(str(path))
    return x


def transform(augment: Augment | None = None, size: int = 32, channels: int = 3) -> ImageTransform:
    return ImageTransform(size=size, channels=channels, mean=[0.0], std=[1.0], interpolation="bicubic", augment=augment)


def batch_of(source) -> Tensor:
    data = ImageData(source=source, image_size=32, channels=3, mean=[0.0], std=[1.0])
    return next(data.evaluation_batches("train", batch_size=1))["x"][0]


SQUARE = RANDOM.integers(0, 256, (32, 32, 3), np.uint8)
SAME = {
    "colour": (".png", pillow(SQUARE, "PNG")),
    "turned": (".jpg", pillow(SQUARE, "JPEG", exif=exif(6))),
    "palette": (".png", pillow(Image.fromarray(SQUARE).quantize(16), "PNG")),
    "alpha": (".webp", pillow(Image.fromarray(SQUARE).convert("RGBA"), "WEBP", lossless=True)),
    "cmyk": (".jpg", pillow(Image.fromarray(SQUARE).convert("CMYK"), "JPEG")),
    "16-bit": (".png", pillow(RAMP, "PNG")),
    "16-bit colour": (".tif", tiff(np.stack([RAMP, RAMP.T, RAMP[::-1]], 2), photometric="rgb")),
    "grey float": (".tiff", tiff((RAMP / 65535).astype(np.float32))),
}
READERS = {"hub": by_hub, "coco": by_coco, "frames": by_frames, "extract": by_extract}


@pytest.mark.parametrize("name", SAME)
def test_a_picture_is_the_same_by_every_reader(tmp_path, name):
    (tmp_path / "folder").mkdir()
    expected = by_folder(tmp_path / "folder", *SAME[name])
    assert expected.shape == (3, 32, 32)
    if name.startswith("16-bit"):
        assert abs(expected.mean() * 255 - 127.5) < 1
    for reader, read in READERS.items():
        (tmp_path / reader).mkdir()
        found = read(tmp_path / reader, *SAME[name])
        # Frames are 8-bit.
        atol = 0.51 / 255 if reader == "frames" else 1e-6
        assert (found - expected).abs().max() <= atol, reader


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff(BANDS, photometric="minisblack"), "it has 5 channels, a frame of a video has 1 or 3"),
        (tiff(FLOATS), "those of a frame from 0 to 1 or 8-bit"),
    ],
)
def test_frames_that_are_not_8_bit(tmp_path, content, reason):
    (tmp_path / "0.tif").write_bytes(content)
    with pytest.raises(UnreadableSample, match=reason):
        open_video(str(tmp_path)).read(lambda count, rate: range(count))


def test_class_folders_of_animations_and_arrays_are_no_videos(tmp_path):
    for name in ("a/0.gif", "a/1.gif", "a/notes.npy", "b/0.gif", "b/1.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    splits = video_folder(root=str(tmp_path))
    assert splits.class_names == ("a", "b")
    assert len(splits.train) + len(splits.test) == 4
    assert splits.lines == (f"data.root={tmp_path}: 1 .npy left out",)


def test_files_left_out_are_counted(tmp_path):
    for name in ("train/a/0.png", "train/b/0.TIF", "train/b/deep/1.npy", "val/a/0.gif", "val/b/0.pgm"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(FILES["grey"][0])
    for name in ("train/a/x.svg", "train/a/Y.SVG", "val/b/README", "val/b/.hidden.svg", "train/b/deep/x.txt"):
        (tmp_path / name).touch()
    splits = image_folder(root=str(tmp_path))
    assert (len(splits.train), len(splits.test)) == (3, 2)
    line = f"data.root={tmp_path}: 1 without ending, 2 .svg, 1 .txt left out"
    assert splits.lines == folder_data(tmp_path).lines == (line,)


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_other_numbers_of_channels_are_refused_by_number(channels):
    with pytest.raises(DataError, match=f"have 5 channels and cannot become data.channels={channels}"):
        pixels(FILES["npy"][0], channels)
    with pytest.raises(DataError, match=f"have 3 channels and cannot become data.channels={channels}"):
        pixels(FILES["colour"][0], channels)


def test_floats_keep_their_range_and_are_smoothed():
    image = torch.from_numpy(BANDS.astype(np.float32))[None] - 30000
    uniform = torch.rand(1, 2, NUMBERS, generator=torch.Generator().manual_seed(0))
    augment = Augment(crop_scale=(0.3, 1.0), horizontal_flip=0.5, rotation=20.0, translate=0.1, blur=0.5)
    views = transform(augment, size=8, channels=5).augmented(image, uniform)
    assert views.shape == (1, 2, 5, 8, 8)
    low, high = image.amin((-2, -1)), image.amax((-2, -1))
    assert (views >= low[..., None, None] - 1).all()
    assert (views <= high[..., None, None] + 1).all()
    assert views.std() > 1000
    stripes = torch.tensor([0.0, 1000.0]).repeat(32).expand(1, 1, 64, 64)
    view = transform(Augment(), size=8, channels=1).augmented(stripes, uniform[:, :1])
    torch.testing.assert_close(view, torch.full_like(view, 500.0), rtol=0, atol=25.0)
    torch.testing.assert_close(transform(size=8, channels=1).plain(stripes), view[0])


def test_colour_jitter_is_for_values_from_0_to_1():
    augment = Augment(color_jitter=0.5)
    uniform = torch.rand(1, 1, NUMBERS)
    image = torch.from_numpy(BANDS.astype(np.float32))[None] / 65535
    assert transform(augment, channels=5).augmented(image, uniform).isfinite().all()
    with pytest.raises(DataError, match=r"pixels in \[0, 1\].*values from .*: set data.augment.color_jitter=0"):
        transform(augment, channels=5).augmented(image * 300, uniform)
    with pytest.raises(DataError, match=r"pixels in \[0, 1\].*set data.augment.solarize=0"):
        transform(Augment(solarize=0.5), channels=5).augmented(image * 300, uniform)


def write_bands(root: Path, count: int = 12) -> np.ndarray:
    """Class folders of 5-channel 16-bit TIFF files; their values (n, 5, 16, 16), the last band of which is constant."""
    random = np.random.default_rng(0)
    scales = np.array([1, 2, 3, 4, 0])[:, None, None]
    made = (random.integers(0, 9000, (count, 5, 16, 16)) * scales + 5000).astype(np.uint16)
    for number, each in enumerate(made):
        path = root / "ab"[number % 2] / f"{number:02}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, each, photometric="minisblack")
    return made


def test_auto_takes_mean_and_std_of_the_training_images(tmp_path):
    made = write_bands(tmp_path)
    settings = {"image_size": 16, "channels": 5}
    data = folder_data(tmp_path, mean="auto", std="auto", **settings)
    train = torch.cat([b["x"] for b in folder_data(tmp_path, **settings).evaluation_batches("train", batch_size=50)])
    assert len(train) == len(made) - 2
    mean, std = train.mean((0, 2, 3)), train.std((0, 2, 3), correction=0)
    assert data.mean == pytest.approx(mean.tolist(), rel=1e-4)
    assert data.std[:4] == pytest.approx(std[:4].tolist(), rel=1e-4)
    assert data.std[4] == 1.0, "a band that is the same everywhere is not scaled"
    assert data.spec.found == {"mean": data.mean, "std": data.std}
    assert data.lines == (
        f"auto: data.mean={str(data.mean).replace(' ', '')} data.std={str(data.std).replace(' ', '')}, "
        "of 10 training images",
    )
    x = torch.cat([b["x"] for b in data.evaluation_batches("train", batch_size=50)])
    assert x.mean((0, 2, 3)).tolist() == pytest.approx([0] * 5, abs=1e-3)
    assert x.std((0, 2, 3), correction=0).tolist() == pytest.approx([1, 1, 1, 1, 0], abs=1e-3)
    half = folder_data(tmp_path, mean=0.5, std="auto", num_workers=1, **settings)
    assert half.mean == 0.5
    assert half.std == data.std


def test_an_image_of_other_channels_is_left_out_unless_all_are(tmp_path, caplog):
    write_bands(tmp_path)
    settings = {
        "image_size": 16,
        "channels": 5,
        "max_bad_share": 0.1,
        "source": partial(image_folder, val_fraction=0.4),
    }
    (tmp_path / "b" / "05.tif").write_bytes(FILES["colour"][0])
    data = folder_data(tmp_path, **settings)
    for split in ("train", "test"):
        assert all(batch["x"].shape[1] == 5 for batch in data.evaluation_batches(split, batch_size=4))
    assert list(data.bad_samples) == [str(tmp_path / "b" / "05.tif")]
    assert "have 3 channels and cannot become data.channels=5" in caplog.text
    with pytest.raises(DataError, match=r"have 5 channels and cannot become data\.channels=3"):
        folder_data(tmp_path, **settings | {"channels": 3})


def test_images_that_are_enlarged_are_said(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    Image.fromarray(COLOUR).save(tmp_path / "b.png")
    said = "the first image has 16 x 20 pixels and is enlarged to 64 x 64: data.image_size=20 is faster"
    assert said in folder_data(tmp_path, image_size=64).lines
    assert not [line for line in folder_data(tmp_path, image_size=32).lines if "enlarged" in line]
