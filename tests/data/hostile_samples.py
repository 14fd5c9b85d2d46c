"""Every source with one hostile sample among many, read under a memory limit: prints which samples were bad.

    python hostile_samples.py FOLDER      # one JSON object: "source: fault" -> names of the bad samples

A row of CASES is (source, fault, what the bad sample's name holds; None where the sample is fine).
"""

from __future__ import annotations

import functools
import io
import json
import os
import resource
import shutil
import struct
import sys
import tarfile
import zlib
from pathlib import Path

import av
import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import soundfile
import torch
from PIL import Image

from jepa.data import AudioData, ImageData, SeriesData, TextData, VideoData
from jepa.data.huggingface_data import hugging_face
from jepa.data.sources import (
    audio_folder,
    coco_captions,
    coco_pictures,
    image_folder,
    text_csv,
    text_lines,
    video_folder,
)
from jepa.data.sources.series_tables import series_csv, ucr
from jepa.utils.log_mel import LogMel

HEADROOM = 600 * 2**20
"""Bytes that reading may take beyond what the process has."""

RANDOM = np.random.default_rng(0)
RATE = 8000
PICTURES = {"image_size": 16, "channels": 3, "mean": [0.0], "std": [1.0]}
FRONT_END = {"sample_rate": RATE, "n_fft": 256, "hop_length": 100, "mel_bins": 20}
LOADER = {"batch_size": 8, "max_bad_share": 0.1}


# Hostile files.


def png_bomb() -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(9000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def npy(shape: tuple[int, ...], kind: str) -> bytes:
    """An array file whose header claims a shape that is not there."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(64)


def claims_many_samples(path: Path) -> None:
    soundfile.write(path, np.zeros(RATE, "f4"), RATE, format="FLAC")
    content = bytearray(path.read_bytes())
    fields = int.from_bytes(content[18:26], "big")
    content[18:26] = (fields >> 36 << 36 | (1 << 36) - 1).to_bytes(8, "big")
    path.write_bytes(bytes(content))


def long_silence(path: Path) -> None:
    with soundfile.SoundFile(path, "w", RATE, 1, format="FLAC") as file:
        for _ in range(100):
            file.write(np.zeros(2_000_000, np.int16))  # 800 MB as float32


def claims_rate(path: Path) -> None:
    soundfile.write(path, np.zeros(RATE, "f4"), RATE, format="WAV")
    content = path.read_bytes()
    path.write_bytes(content[:24] + struct.pack("<I", 2**31 - 1) + content[28:])


def holds(value: float):
    def write(path: Path) -> None:
        soundfile.write(path, np.full(RATE, value, "f4"), RATE, format="WAV", subtype="FLOAT")

    return write


def write_clip(path: Path) -> None:
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for number in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def claims_many_frames(path: Path) -> None:
    write_clip(path)
    content = bytearray(path.read_bytes())
    header, stream = content.index(b"avih"), content.index(b"strh")
    content[header + 24 : header + 28] = content[stream + 40 : stream + 44] = struct.pack("<I", 2**31 - 1)
    path.write_bytes(bytes(content))


def of_unknown_codec(path: Path) -> None:
    write_clip(path)
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"ZZZZ"))


def claims_large_frames(path: Path) -> None:
    Image.new("P", (8, 8)).save(path, "GIF")
    content = bytearray(path.read_bytes())
    content[6:10] = struct.pack("<HH", 65535, 65535)
    place = content.index(b",", 13)
    content[place + 5 : place + 9] = struct.pack("<HH", 65535, 65535)
    path.write_bytes(bytes(content))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def not_found_page(path: Path) -> None:
    path.write_text("<html>404</html>" * 99)


def truncated(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:40])


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


LATER: list[Path] = []
"""Files that become pipes once the data is built."""


def a_pipe(path: Path) -> None:
    LATER.append(path)


# Sources: each writes 40 samples to a folder, lets the fault have the one that is called bad, and gives the data.


def sound(root: Path, fault) -> AudioData:
    for number in range(40):
        soundfile.write(root / f"{number}.wav", RANDOM.standard_normal(RATE) / 10, RATE)
    (root / "7.wav").rename(root / "bad.wav")
    fault(root / "bad.wav")
    return AudioData(
        source=audio_folder, root=str(root), sample_rate=RATE, seconds=0.8, spectrogram=LogMel(**FRONT_END), **LOADER
    )


def clips(root: Path, fault) -> VideoData:
    for number in range(40):
        write_clip(root / f"{number}.avi")
    (root / "7.avi").rename(root / "bad.avi")
    fault(root / "bad.avi")
    return VideoData(source=video_folder, root=str(root), num_frames=4, **PICTURES, **LOADER)


def pictures(root: Path, fault) -> ImageData:
    for number in range(40):
        Image.new("RGB", (20, 20), (number,) * 3).save(root / f"{number}.png")
    (root / "7.png").rename(root / "bad.png")
    fault(root / "bad.png")
    return ImageData(source=image_folder, root=str(root), **PICTURES, **LOADER)


def arrays(root: Path, content: bytes) -> ImageData:
    for number in range(40):
        np.save(root / f"{number}.npy", np.full((20, 20, 3), number, np.uint16))
    (root / "bad.npy").write_bytes(content)
    return ImageData(source=image_folder, root=str(root), **PICTURES, **LOADER)


def frames(root: Path, fault) -> VideoData:
    for clip in range(40):
        for number in range(4):
            Path(root / str(clip)).mkdir(exist_ok=True)
            Image.new("RGB", (20, 20), (number,) * 3).save(root / str(clip) / f"{number}.png")
    (root / "7").rename(root / "bad")
    fault(root / "bad" / "1.png")
    return VideoData(source=video_folder, root=str(root), num_frames=4, frame_stride=1, **PICTURES, **LOADER)


def mixed(root: Path, kind: str) -> VideoData:
    for number in range(40):
        write_clip(root / f"{number}.avi")
    (root / "bad").mkdir()
    for number in range(4):
        Image.new("RGB", (32, 32)).save(root / "bad" / f"{number}.png")
    return VideoData(source=video_folder, root=str(root), num_frames=4, fps=5, **PICTURES, **LOADER)


def first_of_channels(root: Path, shape: tuple[int, ...]) -> ImageData:
    np.save(root / "00_bad.npy", np.zeros(shape, np.uint16))
    return pictures(root, lambda path: None)


def coco(root: Path, change) -> ImageData:
    for split in ("train2017", "val2017"):
        (root / split).mkdir(parents=True)
        images = [{"id": number, "file_name": f"{number}.png"} for number in range(40)]
        captions = [{"image_id": number % 40, "caption": "a picture"} for number in range(200)]
        for number in range(40):
            Image.new("RGB", (20, 20), (number,) * 3).save(root / split / f"{number}.png")
        if split == "train2017":
            change(images, captions, root / split)
        (root / "annotations").mkdir(exist_ok=True)
        content = json.dumps({"images": images, "annotations": captions})
        (root / "annotations" / f"captions_{split}.json").write_text(content)
    return ImageData(source=coco_pictures, root=str(root), **PICTURES, **LOADER)


def packed_coco(root: Path, change) -> ImageData:
    coco(root / "coco", change)
    LATER.clear()
    with tarfile.open(root / "coco.tar", "w") as archive:
        archive.add(root / "coco", "coco")
    shutil.rmtree(root / "coco")
    return ImageData(source=coco_pictures, root=str(root), **PICTURES, **LOADER)


def captions(root: Path, change) -> TextData:
    coco(root, change)
    return TextData(source=coco_captions, root=str(root), vocab_size=300, **LOADER)


def entry(number: int, **changed):
    """Changes a caption of COCO; None takes the key out."""

    def change(images: list, captions: list, folder: Path) -> None:
        captions[number] = {name: value for name, value in (captions[number] | changed).items() if value is not None}

    return change


def file_name(name):
    def change(images: list, captions: list, folder: Path) -> None:
        images[7] = {"id": 7} if name is None else {"id": 7, "file_name": name}

    return change


def text(root: Path, line: bytes) -> TextData:
    lines = [b"line number %d of many" % number for number in range(40)]
    lines[7] = line
    (root / "lines.txt").write_bytes(b"\n".join(lines))
    source = functools.partial(text_lines, test_fraction=0.1)
    return TextData(source=source, root=str(root / "lines.txt"), vocab_size=300, **LOADER)


def json_lines(root: Path, line: bytes) -> TextData:
    lines = [b'{"text": "line number %d", "label": %d}' % (number, number % 2) for number in range(40)]
    lines[7] = line
    (root / "lines.jsonl").write_bytes(b"\n".join(lines))
    given = {"text_column": "text", "label_column": "label"}
    return TextData(source=text_csv, root=str(root / "lines.jsonl"), vocab_size=300, **given, **LOADER)


def table(root: Path, row: bytes) -> TextData:
    rows = [b'"row number %d, of many",%d' % (number, number % 2) for number in range(40)]
    rows[7] = row
    (root / "rows.csv").write_bytes(b"\n".join([b"text,label", *rows]))
    given = {"text_column": "text", "label_column": "label"}
    return TextData(source=text_csv, root=str(root / "rows.csv"), vocab_size=300, **given, **LOADER)


def hub(root: Path, kind: str, value):
    if kind == "text":
        good, feature, stored = ["a text of a few words"] * 40, {"_type": "Value", "dtype": "string"}, pyarrow.string()
    else:
        file = io.BytesIO()
        if kind == "image":
            Image.new("RGB", (20, 20)).save(file, "PNG")
        else:
            soundfile.write(file, np.zeros(RATE, "f4"), RATE, format="WAV")
        good = [{"bytes": file.getvalue(), "path": None}] * 40
        feature = {"_type": kind.title()}
        stored = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    facts = {"huggingface": json.dumps({"info": {"features": {kind: feature}}})}
    for split, values in (("test", good[:3]), ("train", [*good[:7], value, *good[8:]])):
        rows = pyarrow.table({kind: pyarrow.array(values, type=stored)}).replace_schema_metadata(facts)
        pyarrow.parquet.write_table(rows, root / f"{split}.parquet")
    return hugging_face(
        path=str(root),
        column=kind,
        text=TextData,
        image=functools.partial(ImageData, mean=[0.0], std=[1.0]),
        audio=AudioData,
        image_size=16,
        vocab_size=300,
        sample_rate=RATE,
        seconds=0.8,
        spectrogram=LogMel(**FRONT_END),
        **LOADER,
    )


def hub_sound(root: Path, fault):
    fault(root / "bad")
    content = (root / "bad").read_bytes()
    (root / "bad").unlink()
    return hub(root, "audio", {"bytes": content, "path": None})


def hub_path(root: Path, path: str):
    holds(0.0)(root.parent / "outside.wav")
    Path(root / "link.wav").symlink_to(root.parent / "outside.wav")
    os.mkfifo(root / "pipe.wav")
    return hub(root, "audio", {"bytes": None, "path": path.format(root=root.parent)})


def series(root: Path, value: float) -> SeriesData:
    x = RANDOM.standard_normal((40, 2, 30)).astype(np.float32)
    x[7, 1, 3] = value
    np.savez(root / "Toy.npz", train_x=x, train_y=np.arange(40) % 2, test_x=x[:4] * 0.5, test_y=np.arange(4) % 2)
    return SeriesData(source=ucr, root=str(root), name="Toy", **LOADER)


def labelled_series(root: Path, changed: dict[str, int]) -> SeriesData:
    x, y, ends = RANDOM.standard_normal((40, 2, 30)), np.arange(40) % 2, np.full(40, 30)
    arrays = {f"{side}_{key}": values for side in ("train", "test") for key, values in zip("xy", (x, y))}
    arrays |= {f"{side}_len": ends for side in ("train", "test")}
    for key, value in changed.items():
        arrays[key] = np.where(np.arange(40) == 7, value, arrays[key])
    np.savez(root / "Toy.npz", **arrays)
    return SeriesData(source=ucr, root=str(root), name="Toy", **LOADER)


def timeline(root: Path, value: float) -> SeriesData:
    lines = [f"{n},{value if n == 7 else n}" for n in range(100)]
    (root / "table.csv").write_text("\n".join(["a,b", *lines]))
    return SeriesData(source=series_csv, root=str(root / "table.csv"), window_size=8, **LOADER)


FILES = {"empty": empty, "404": not_found_page, "truncated": truncated, "a folder": a_folder, "a pipe": a_pipe}
SOUNDS = {
    "2^36 samples": claims_many_samples,
    "2 GHz": claims_rate,
    "NaN": holds(np.nan),
    "inf": holds(np.inf),
    "1e30": holds(1e30),
}
HUB_PATHS = ("../outside.wav", "{root}/outside.wav", "link.wav", "absent.wav", "pipe.wav")
MISSING = {"bytes": None, "path": None}
CASES = [
    *((sound, fault, name, "bad.wav") for name, fault in {**SOUNDS, **FILES}.items() if name != "a folder"),
    (sound, long_silence, "silence of 7 hours", None),
    *((clips, fault, name, "bad.avi") for name, fault in FILES.items() if name != "a folder"),
    (clips, claims_large_frames, "65535 x 65535", "bad.avi"),
    (clips, of_unknown_codec, "unknown codec", "bad.avi"),
    (clips, claims_many_frames, "2^31 frames", None),
    *((pictures, fault, name, "bad.png") for name, fault in FILES.items() if name != "a folder"),
    (pictures, lambda path: path.write_bytes(png_bomb()), "50000 x 50000", "bad.png"),
    *((frames, fault, name, "bad") for name, fault in FILES.items() if name != "a folder"),
    (frames, lambda path: path.write_bytes(png_bomb()), "50000 x 50000", "bad"),
    (mixed, "frames", "no rate", "bad"),
    *((first_of_channels, shape, str(shape), "00_bad.npy") for shape in ((5, 20, 20), (2, 20, 20))),
    *((source, file_name("absent.png"), "absent", "absent.png") for source in (coco, packed_coco)),
    (coco, lambda images, captions, folder: a_pipe(folder / "7.png"), "a pipe", "7.png"),
    *((coco, file_name(name), f"name {name!r}", None) for name in (None, 7, "a\0.png", "\ud800.png", ["7.png"])),
    *((captions, entry(7, caption=text), f"caption {text!r}", None) for text in (None, 7, " ", ["a"])),
    *((captions, entry(7, image_id=key), f"picture {key!r}", None) for key in (None, 99, "7", [7], 10**400)),
    (captions, entry(7, caption="half \ud83d of a pair"), "half a pair", "row "),
    *((labelled_series, {key: value}, f"{key} {value}", "number 7") for key, value in (("train_y", -1), ("test_y", 9))),
    *((labelled_series, {"train_len": value}, f"length {value}", "number 7") for value in (0, -5, 31)),
    (labelled_series, {"train_y": 10**10}, "label 10^10", None),
    (arrays, npy((1000, 10**6, 1000), "<f4"), "10^12 values", "bad.npy"),
    (arrays, npy((1,), "|O"), "objects", "bad.npy"),
    (text, b"x" * 400_000_000, "400 MB", "row "),
    (text, b"caf\xe9", "not UTF-8", "row "),
    (json_lines, b'{"text": "' + b"x" * 400_000_000 + b'", "label": 1}', "400 MB", "row 8"),
    (json_lines, b"[" * 900_000, "brackets", "row 8"),
    (json_lines, b'{"text": "caf\xe9", "label": 1}', "not UTF-8", "row 8"),
    (json_lines, b'{"text": "half \\ud83d of a pair", "label": 1}', "half a pair", "row 8"),
    (json_lines, b'{"text": ["a"], "label": 1}', "a list", "row 8"),
    (json_lines, b'{"text": "a", "label": ' + b"9" * 100_000 + b"}", "digits", "row 8"),
    (json_lines, b'{"label": 1}', "no key", None),
    (table, b'"' + b"x" * 400_000_000 + b'",1', "400 MB", "row "),
    (table, b'"' + b"many lines, as long as all of them\n" * 1_000_000 + b'",1', "35 MB in lines", "row "),
    (table, b'"caf\xe9",1', "not UTF-8", "row "),
    (table, b"a\0b", "one column", "row "),
    (table, b'"unterminated,1', "open quote", "row 8"),
    (table, b'"no label",', "no label", "row 8"),
    (table, b",1", "empty", None),  # left out
    (functools.partial(hub, kind="text"), "x" * 50_000_000, "50 MB", "row "),
    (functools.partial(hub, kind="text"), None, "missing", None),
    (functools.partial(hub, kind="image"), {"bytes": png_bomb(), "path": None}, "50000 x 50000", "row 7"),
    (functools.partial(hub, kind="image"), {"bytes": b"no picture", "path": None}, "text", "row 7"),
    (functools.partial(hub, kind="image"), MISSING, "neither", "row 7"),
    *((hub_sound, fault, name, "row 7") for name, fault in SOUNDS.items()),
    *(
        (hub_path, path, path, "row 7")
        for path in ("../outside.wav", "{root}/outside.wav", "link.wav", "absent.wav", "pipe.wav")
    ),
    *((series, value, f"{value:g}", "number 7") for value in (float("inf"), 1e30)),
    (series, float("nan"), "nan", None),
    *((timeline, value, f"{value:g}", None) for value in (float("nan"), float("inf"), 1e30)),
    *((timeline, cell, cell[:9], None) for cell in ("9" * 3600, "9" * 5000 + ".5", "abc", "0x10", "True", "1,2", '"1')),
]


def name_of(source, fault: str) -> str:
    """A case in the output."""
    called = source.func.__name__ + " " + source.keywords["kind"] if hasattr(source, "func") else source.__name__
    return f"{called}: {fault}"


def allowed_memory() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize() + HEADROOM


def read_all(source, fault, root: Path) -> list[str]:
    """The names of the bad samples of a case."""
    data = source(root, fault) if not hasattr(source, "func") else source(root, value=fault)
    while LATER:
        (path := LATER.pop()).unlink()
        os.mkfifo(path)
    rounds = -(-data.spec.num_train // data.batch_size)
    batches = [*data.train_batches(seed=0, start_step=0, stop_step=rounds + 1)]
    batches += [*data.evaluation_batches("train", batch_size=8), *data.evaluation_batches("test", batch_size=8)]
    for batch in batches:
        x = batch["x"].nan_to_num() if data.nan_is_missing else batch["x"]
        assert x.isfinite().all()
        assert x.abs().max() < 1e15
    return sorted(data.bad_samples)


def main(folder: Path) -> None:
    """Print the bad samples of every case."""
    torch.set_num_threads(1)
    datasets.config.HF_DATASETS_CACHE = str(folder / "cache")
    datasets.disable_progress_bars()
    read_all(sound, lambda path: None, make(folder / "warm"))  # imports what is imported on first use
    found = {}
    for source, fault, name, _ in CASES:
        root = make(folder / "case")
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (allowed_memory(), before[1]))
        try:
            found[name_of(source, name)] = read_all(source, fault, root)
        except Exception as error:
            found[name_of(source, name)] = f"{type(error).__name__}: {error}"
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
            shutil.rmtree(root)
    json.dump(found, sys.stdout)


def make(folder: Path) -> Path:
    """The folder, new."""
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    main(Path(sys.argv[1]))
