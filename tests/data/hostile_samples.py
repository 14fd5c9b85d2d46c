"""Reads sources with one hostile sample among many, under a limit of memory; prints case -> what became of it as JSON.

    python tests/data/hostile_samples.py FOLDER

`test_bad_samples.py` runs it in a process of its own.
"""

from __future__ import annotations

import io
import json
import resource
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import soundfile
import torch
from PIL import Image

from jepa import load_config
from jepa.config.build import build_data

LIMIT = 3 * 2**30
"""Bytes of data that the process may hold; the samples claim, or would decode to, more."""


def png(width: int, height: int, content: bytes) -> bytes:
    """A PNG of one bit for each pixel whose header claims these sizes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(content)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def npy(shape: tuple[int, ...]) -> bytes:
    """An array file whose header claims a shape that is not there."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue() + b"\0" * 64


def flac_of_many_samples() -> bytes:
    """A FLAC file whose header claims 2^36 samples."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros(8000, "f4"), 8000, format="FLAC")
    content = bytearray(file.getvalue())
    claimed = int.from_bytes(content[18:26], "big") >> 36 << 36 | ((1 << 36) - 1)
    content[18:26] = claimed.to_bytes(8, "big")
    return bytes(content)


def long_silence() -> bytes:
    """A FLAC file of little more than 1 MB that decodes to 5 GB of float32 in 8 channels."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 8000, 8, format="FLAC", subtype="PCM_16") as sound:
        for _ in range(80):
            sound.write(np.zeros((2_000_000, 8), "i2"))
    return file.getvalue()


def wav(*values: float) -> bytes:
    """A WAV file of floats."""
    file = io.BytesIO()
    soundfile.write(file, np.array(values, "f4"), 8000, format="WAV", subtype="FLOAT")
    return file.getvalue()


PICTURES: dict[str, Callable[[], tuple[str, bytes]]] = {
    "empty": lambda: ("png", b""),
    "noise": lambda: ("png", np.random.default_rng(0).bytes(999)),
    "cut short": lambda: ("png", png(16, 16, b"\0" * 48)[:40]),
    "50,000 x 50,000": lambda: ("png", png(50_000, 50_000, b"\0" * 9000)),
    "array of 10^12 values": lambda: ("npy", npy((1000, 1_000_000, 1000))),
    "array of objects": lambda: ("npy", npy((1,)).replace(b"<f4", b"|O ")),
}
SOUNDS: dict[str, Callable[[], tuple[str, bytes]]] = {
    "empty": lambda: ("wav", b""),
    "noise": lambda: ("wav", np.random.default_rng(0).bytes(999)),
    "claims 2^36 samples": lambda: ("flac", flac_of_many_samples()),
    "hours of silence": lambda: ("flac", long_silence()),
    "NaN": lambda: ("wav", wav(0.0, float("nan"), 1.0)),
    "infinite": lambda: ("wav", wav(0.0, float("inf"), 1.0)),
    "1e30": lambda: ("wav", wav(0.0, 1e30, 1.0)),
}


def read_all(*options: str) -> str:
    """Read both splits; return what was found unreadable, "read" if nothing."""
    data = build_data(load_config([*options, "data.num_workers=0", "data.max_bad_share=0.1", "data.batch_size=8"]))
    for split in ("train", "test"):
        for batch in data.evaluation_batches(split, batch_size=8):
            assert not torch.isinf(batch["x"]).any()
    next(iter(data.train_batches(seed=0, start_step=0, stop_step=1)))
    return "; ".join(f"{Path(name).name}: {reason}" for name, reason in data.bad_samples.items()) or "read"


def picture_cases(folder: Path, name: str, ending: str, content: bytes) -> dict[str, str]:
    """The sample as a file of an image folder, a row of a data set of Hugging Face, and a frame of a video."""
    rng = np.random.default_rng(0)
    good = [rng.integers(0, 255, (16, 16, 3), dtype=np.uint8) for _ in range(40)]
    for number, pixels in enumerate(good):
        place = folder / "images" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
    (folder / "images" / "a" / f"bad.{ending}").write_bytes(content)
    found = {f"folder, {name}": read_all("data=image_folder", f"data.root={folder}/images", "data.image_size=16")}
    rows = [{"bytes": (folder / "images" / "ab"[n % 2] / f"{n}.png").read_bytes(), "path": None} for n in range(40)]
    rows[3] = {"bytes": content, "path": None}
    features = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    stored = datasets.Dataset.from_dict({"image": rows}, features=features).cast_column("image", datasets.Image())
    stored.save_to_disk(folder / "rows")
    options = ["data=hf", f"data.path={folder}/rows", "data.column=image", "data.image_size=16", "data.channels=3"]
    if ending != "npy":  # bytes without a name are pictures of the common formats
        found[f"hub, {name}"] = read_all(*options)
    for clip in range(20):
        place = folder / "clips" / "ab"[clip % 2] / str(clip)
        place.mkdir(parents=True)
        for frame in range(2):
            Image.fromarray(good[clip]).save(place / f"{frame}.png")
    if ending == "png":
        (folder / "clips" / "a" / "0" / "1.png").write_bytes(content)
        found[f"frames, {name}"] = read_all(
            "model=video",
            "data=video_folder",
            f"data.root={folder}/clips",
            "data.image_size=16",
            "data.num_frames=2",
            "data.frame_stride=1",
        )
    return found


def sound_cases(folder: Path, name: str, ending: str, content: bytes) -> dict[str, str]:
    """The sample as a file of a folder of sounds."""
    rng = np.random.default_rng(0)
    for number in range(40):
        place = folder / "sounds" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        soundfile.write(place / f"{number}.wav", rng.standard_normal(8000).astype("f4") * 0.1, 8000)
    (folder / "sounds" / "a" / f"bad.{ending}").write_bytes(content)
    options = ["model=audio", "data=audio_folder", f"data.root={folder}/sounds", "data.sample_rate=8000"]
    return {f"sounds, {name}": read_all(*options, "data.seconds=0.8", "data.spectrogram.sample_rate=8000")}


def main(folder: Path) -> None:
    """Read every case and print what became of it."""
    torch.set_num_threads(1)
    samples = {name: make() for name, make in (PICTURES | {f"s {k}": v for k, v in SOUNDS.items()}).items()}
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    found: dict[str, str] = {}
    for number, (name, (ending, content)) in enumerate(samples.items()):
        place = folder / str(number)
        cases = sound_cases if name.startswith("s ") else picture_cases
        found |= cases(place, name.removeprefix("s "), ending, content)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
