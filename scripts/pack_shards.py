"""The shards that scripts/pack.py writes, in several processes, and their index."""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import os
import signal
import tarfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from torchvision.transforms.functional import to_pil_image

from jepa.data.sources.decoders import by_numbers, decode_image, is_frame_file, readable
from jepa.data.sources.packed import INDEX, NAMES, VERSION, checksum
from jepa.data.sources.splits import FileSamples
from jepa.data.stream import UnreadableSample
from jepa.utils.errors import DataError, UserError, reason
from jepa.utils.files import write_atomic, write_text
from jepa.utils.read_data import parse_json, printable

SHOWN = 20
"""Samples left out that are listed."""
LONGEST_NAME = 255
"""Bytes that the index keeps."""
MEASURED = 16
"""Samples that tell how many a shard takes."""


@dataclass(frozen=True)
class Shard:
    """Some samples of a split, one after another."""

    split: str
    number: int
    samples: range

    @property
    def name(self) -> str:
        return f"{NAMES[self.split]}-{self.number:06}.tar"

    @property
    def rows(self) -> str:
        """The file that keeps its part of the index until all shards are written."""
        return f".{self.name}.npz"


@dataclass(frozen=True)
class Reencoding:
    """Makes pictures smaller, as conf/pack.yaml says. What has more than 8 bits, or no colours, stays as it is."""

    longest_side: int | None
    shortest_side: int | None
    format: str | None
    quality: int

    def __call__(self, content: bytes, suffix: str, name: str) -> tuple[bytes, str]:
        if self.longest_side is None and self.shortest_side is None and self.format is None:
            return content, suffix
        image = decode_image(io.BytesIO(content), name)
        if not isinstance(image, Image.Image):
            if image.dtype != torch.uint8 or len(image) not in (1, 3):
                return content, suffix
            image = to_pil_image(image)
        scale = (self.longest_side or math.inf) / max(image.size)
        scale = min(scale, (self.shortest_side or math.inf) / min(image.size), 1.0)
        if scale == 1 and self.format is None:
            return content, suffix
        if image.mode in ("P", "PA"):
            image = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
        elif image.mode not in ("L", "LA", "RGB", "RGBA"):
            image = image.convert("L" if image.mode == "1" else "RGB")
        if scale < 1:
            size = tuple(max(1, round(scale * side)) for side in image.size)
            image = image.resize(size, Image.Resampling.BICUBIC)
        written = io.BytesIO()
        with readable(None, name):
            if (self.format or suffix) in ("jpeg", ".jpg", ".jpeg"):
                image = image.convert("L" if image.mode[0] == "L" else "RGB")
                image.save(written, "JPEG", quality=self.quality)
                return written.getvalue(), ".jpg"
            image.save(written, "PNG")
            return written.getvalue(), ".png"


@dataclass(frozen=True)
class Packer:
    """What is packed, and where to. root: folder of the data. max_bad: share of the samples that may be left out."""

    folder: Path
    root: str
    samples: Mapping[str, FileSamples]
    classes: Sequence[str] | None
    reencode: Reencoding | None
    max_bad: float

    def name(self, split: str, index: int) -> str:
        """The name of a sample, relative to the folder of the data."""
        name = os.fsdecode(self.samples[split].paths[index].item())
        return os.path.relpath(name, self.root) if os.path.isabs(name) else name

    def content(self, split: str, index: int) -> tuple[bytes, str]:
        """The bytes of a sample and the ending of its name. Raises UnreadableSample."""
        samples = self.samples[split]
        name = samples.describe(index)
        file = samples.file(index, name)[0]
        with readable(file if isinstance(file, str) else None, name):
            if isinstance(file, str) and os.path.isdir(file):
                return frames_of(file), ".tar"
            content = Path(file).read_bytes() if isinstance(file, str) else file.read()
        suffix = os.path.splitext(self.name(split, index))[1].lower()
        return (content, suffix) if self.reencode is None else self.reencode(content, suffix, name)

    def about(self, split: str, index: int) -> bytes:
        """What the .json file of a sample holds."""
        samples = self.samples[split]
        about: dict[str, Any] = {"name": self.name(split, index)}
        if samples.labels is not None and (label := int(samples.labels[index])) >= 0:
            about |= {"label": label, "class": self.classes[label]}
        return json.dumps(about).encode()

    def write(self, shard: Shard) -> list[tuple[str, str]]:
        """Write a shard and its part of the index; gives name and reason of the samples that cannot be read."""
        samples, names, labels, places, left_out = self.samples[shard.split], [], [], [], []
        path, part = self.folder / shard.name, self.folder / f"{shard.name}.part"
        try:
            with open(part, "wb") as file:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
                    for index in shard.samples:
                        _step()
                        try:
                            content, suffix = self.content(shard.split, index)
                        except UnreadableSample as error:
                            left_out.append((error.name, error.reason))
                            continue
                        names.append(os.fsencode(self.name(shard.split, index))[:LONGEST_NAME])
                        labels.append(-1 if samples.labels is None else int(samples.labels[index]))
                        start = add(archive, f"{index:08}{suffix}", content)
                        places.append((shard.number, start, len(content)))
                        add(archive, f"{index:08}.json", self.about(shard.split, index))
                file.flush()
                os.fsync(file.fileno())
            kept = {"names": np.array(names, dtype=bytes), "labels": np.array(labels, dtype=np.int64)}
            kept["places"] = np.array(places, dtype=np.int64).reshape(-1, 3)
            kept["left_out"] = np.frombuffer(json.dumps(left_out).encode(), np.uint8)
            write_atomic(self.folder / shard.rows, lambda path: np.savez(path, **kept))
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        return left_out


def add(archive: tarfile.TarFile, name: str, content: bytes) -> int:
    """Add a file that says nothing of when and by whom it was made; gives the place of its first byte."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
    archive.members = []  # which would keep every header
    return archive.offset - -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def frames_of(folder: str) -> bytes:
    """An archive of the frames of a video, in the order of the numbers in their names."""
    packed = io.BytesIO()
    names = sorted(filter(is_frame_file, os.listdir(folder)), key=by_numbers)
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in names:
            add(archive, name, Path(folder, name).read_bytes())
    return packed.getvalue()


def samples_per_shard(packer: Packer, megabytes: float) -> int:
    """How many samples of mean size, of some of the training samples, make a shard of about so many megabytes."""
    count = len(packer.samples["train"])
    sizes = []
    for index in range(0, count, -(-count // MEASURED)):
        try:
            sizes.append(len(packer.content("train", index)[0]) + 4 * tarfile.BLOCKSIZE)
        except UnreadableSample:
            continue
    return max(1, int(megabytes * 2**20 * len(sizes) / sum(sizes))) if sizes else 1000


def write_shards(packer: Packer, plan: Mapping[str, Any], *, workers: int) -> None:
    """Write the shards that are not there yet, and the index.

    Raises UserError for a disk that is full, and DataError for too many samples that cannot be read.
    """
    each = plan["shard_samples"]
    shards = []
    for split, samples in packer.samples.items():
        starts = range(0, len(samples), each)
        ranges = [range(start, min(start + each, len(samples))) for start in starts]
        shards += [Shard(split, number, part) for number, part in enumerate(ranges)]
    for part in packer.folder.glob("*.tar.part"):
        part.unlink()
    there = [(packer.folder / shard.name).is_file() and (packer.folder / shard.rows).is_file() for shard in shards]
    left = [shard for shard, is_there in zip(shards, there) if not is_there]
    if any(there):
        print(f"goes on: {len(shards) - len(left):,} of {len(shards):,} shards are there", flush=True)
    try:
        run(packer, left, done=sum(len(s.samples) for s in shards) - sum(len(s.samples) for s in left), workers=workers)
        finish(packer, shards, plan)
    except (OSError, BrokenProcessPool) as error:
        why = (
            reason(error, packer.folder / INDEX) if isinstance(error, OSError) else "a process was killed, most likely"
        )
        why += "" if isinstance(error, OSError) else " as memory ran out: lower workers"
        left = "The shards that are complete stay, and the same command goes on"
        raise UserError(f"output={packer.folder} cannot be written: {why}. {left}") from error


def run(packer: Packer, shards: Sequence[Shard], *, done: int, workers: int) -> None:
    """Write shards in processes, and show how far they are."""
    counter, stop = multiprocessing.Value("q", done), multiprocessing.Event()
    total = sum(map(len, packer.samples.values()))
    console = Console(stderr=True)
    bar = Progress("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console)
    bar.disable = not console.is_terminal
    left_out: list[tuple[str, str]] = []
    executor = ProcessPoolExecutor(workers, initializer=_start, initargs=(packer, counter, stop))
    try:
        with bar:
            task = bar.add_task("samples", total=total, completed=done)
            waiting = {executor.submit(_write, shard) for shard in shards}
            while waiting:
                finished, waiting = wait(waiting, timeout=0.3, return_when=FIRST_COMPLETED)
                left_out += [each for future in finished for each in future.result()]
                check_left_out(packer, left_out)
                bar.update(task, completed=counter.value)
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)


_state: tuple[Packer, Any, Any] | None = None
"""Of a process that writes shards: what it packs, the counter of samples, and the event that ends it."""


def _start(*state: Any) -> None:
    global _state
    _state = state
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the end of the main process, which may be killed, and end this one, which would wait for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _write(shard: Shard) -> list[tuple[str, str]]:
    return _state[0].write(shard)


def _step() -> None:
    """Count a sample. Raise InterruptedError where the main process has ended."""
    _, counter, stop = _state
    with counter.get_lock():
        counter.value += 1
    if stop.is_set():
        raise InterruptedError


def check_left_out(packer: Packer, left_out: Sequence[tuple[str, str]]) -> str:
    """What is said of samples that cannot be read. Raises DataError where they are too many."""
    total = sum(map(len, packer.samples.values()))
    listed = [printable(f"\n  {name}: {why}"[:400], keep="\n") for name, why in left_out[:SHOWN]]
    listed += [f"\n  ... and {len(left_out) - SHOWN:,} more"] if len(left_out) > SHOWN else []
    said = f"{len(left_out):,} of {total:,} samples cannot be read"
    if len(left_out) > (max(1.0, packer.max_bad * total) if packer.max_bad > 0 else 0):
        how = f"mend or remove them, remove {packer.folder}, and pack again, or raise that share"
        raise DataError(f"{said}, more than data.max_bad_share={packer.max_bad:g}; {how}:{''.join(listed)}")
    return f"left out: {said}:{''.join(listed)}"


def finish(packer: Packer, shards: Sequence[Shard], plan: Mapping[str, Any]) -> None:
    """Write the index of complete shards, and remove its parts."""
    left_out, splits, counts, size = [], {}, [], 0
    for split, short in NAMES.items():
        files = [shard for shard in shards if shard.split == split]
        arrays: dict[str, list[np.ndarray]] = {"names": [], "labels": [], "places": []}
        for shard in files:
            with np.load(packer.folder / shard.rows, allow_pickle=False) as kept:
                for name, parts in arrays.items():
                    parts.append(kept[name])
                left_out += map(tuple, parse_json(kept["left_out"].tobytes(), packer.folder / shard.rows))
        sizes = [(shard.name, os.path.getsize(packer.folder / shard.name)) for shard in files]
        whole = {name: np.concatenate(parts) for name, parts in arrays.items()}
        splits[split] = {"shards": sizes, "checksums": {name: checksum(each) for name, each in whole.items()}}
        counts.append(f"{len(whole['names']):,} {split}")
        size += sum(each for _, each in sizes)
        if not len(whole["names"]):
            raise DataError(f"none of the {split} samples can be read: {check_left_out(packer, left_out)}")
        for name, values in whole.items():
            write_array(packer.folder / f"{short}_{name}.npy", values)
    if left_out:
        print(check_left_out(packer, left_out))
    write_text(packer.folder / INDEX, json.dumps({"version": VERSION, **plan, "splits": splits}))
    for shard in shards:
        (packer.folder / shard.rows).unlink()
    print(f"{packer.folder}: {' and '.join(counts)} samples, {len(shards):,} shards, {size / 2**20:,.1f} MiB")


def write_array(path: Path, values: np.ndarray) -> None:
    write_atomic(path, lambda temporary: np.save(temporary, values))
