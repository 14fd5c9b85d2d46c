"""Small snapshots of the features of fixed samples, `pictures/step_<step>.npz` of a run folder.

for snapshot in read_snapshots("outputs/mine"):
    colours = as_colours(aligned(snapshot.components, reference))  # (n, *grid, 3)
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jepa.utils.files import write_atomic
from jepa.utils.read_data import DamagedFileError, open_regular

FOLDER = "pictures"
KEPT = 12  # snapshots of a run, or of each of its modalities
LARGEST = 64 * 2**20  # bytes of a snapshot; ours are below one MiB
DAMAGE = (ValueError, LookupError, TypeError, EOFError, RuntimeError, MemoryError, ArithmeticError, OSError)
DAMAGE += (zipfile.BadZipFile, zlib.error, struct.error, AttributeError)
"""What readers of archives and arrays raise for bytes that are none."""

LARGEST_HALF = 6e4  # what float16 holds, about


@dataclass(frozen=True)
class Samples:
    """Which samples a snapshot is of: `data.evaluation_batches(split, limit=limit)` yields all m, in this order.

    rows: the n of them whose tokens are kept. labels: (m,) int64, None without.
    """

    split: str
    limit: int
    rows: np.ndarray
    labels: np.ndarray | None = None


@dataclass(frozen=True)
class Snapshot:
    """Features of the network that makes the targets, after `step` steps.

    components: (n, *grid, 8) float16, the first principal components of the tokens of all n samples; NaN at padding.
    pooled: (m, up to 32) float16, those of the samples' mean tokens. modality: its name; "" of data of one.

    Each step has axes of its own, as principal components have: see `jepa.visualise.aligned`.
    """

    step: int
    components: np.ndarray
    pooled: np.ndarray
    samples: Samples
    modality: str = ""


def write_snapshot(run_folder: str | Path, snapshot: Snapshot) -> None:
    """Write a snapshot, and remove later ones, which are void then, and those beyond KEPT, evenly.

    Raise UserError where it cannot be written.
    """
    folder = Path(run_folder) / FOLDER / snapshot.modality
    arrays = {name: value for name, value in vars(snapshot.samples).items() if value is not None}
    for name in ("components", "pooled"):
        arrays[name] = getattr(snapshot, name).clip(-LARGEST_HALF, LARGEST_HALF).astype(np.float16)
    path = folder / f"step_{snapshot.step:08d}.npz"
    write_atomic(path, lambda temporary: np.savez_compressed(temporary, **arrays))
    found = snapshot_files(folder)
    for step in found.keys() - thinned([step for step in found if step <= snapshot.step], KEPT):
        found[step].unlink(missing_ok=True)


def read_snapshots(run_folder: str | Path) -> list[Snapshot]:
    """Return the snapshots of a run, by modality and step; none of a run that left none.

    Raise DamagedFileError for one that cannot be read.
    """
    folder = Path(run_folder) / FOLDER
    modalities = ["", *sorted(path.name for path in folder.iterdir() if path.is_dir())] if folder.is_dir() else []
    return [read_snapshot(path, step, m) for m in modalities for step, path in snapshot_files(folder / m).items()]


def read_snapshot(path: Path, step: int, modality: str = "") -> Snapshot:
    """Return the snapshot of a step in a file. Raise DamagedFileError where it holds none."""
    try:
        with open_regular(path, LARGEST) as file:
            if sum(entry.file_size for entry in zipfile.ZipFile(file).infolist()) > LARGEST:
                raise ValueError(f"it holds more than {LARGEST / 2**20:.0f} MiB")
            content = dict(np.load(file, allow_pickle=False))
        rows, labels = content["rows"].astype(np.int64), content.get("labels")
        samples = Samples(str(content["split"]), int(content["limit"]), rows, labels)
        snapshot = Snapshot(step, content["components"], content["pooled"], samples, modality)
        if snapshot.components.ndim < 3 or snapshot.pooled.ndim != 2 or len(snapshot.components) != len(rows):
            raise ValueError(f"components of {snapshot.components.shape} and pooled of {snapshot.pooled.shape}")
    except DAMAGE as error:
        raise DamagedFileError(path, f"it is no snapshot of features ({error})") from error
    return snapshot


def thinned(steps: Sequence[int], most: int) -> list[int]:
    """Return at most so many of rising steps: the first, the last, and others that are about evenly spaced."""
    steps = list(steps)
    while len(steps) > most:
        gaps = [after - before for before, after in zip(steps, steps[2:])]  # that leaving out the one between makes
        del steps[1 + gaps.index(min(gaps))]
    return steps


def snapshot_files(folder: Path) -> dict[int, Path]:
    """Return step -> file of the snapshots in a folder, by rising step."""
    paths = {path.stem.removeprefix("step_"): path for path in folder.glob("step_*.npz")}
    return dict(sorted((int(step), path) for step, path in paths.items() if step.isdecimal()))
