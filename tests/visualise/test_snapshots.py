"""Snapshots in a run folder: written, thinned out, read, refused."""

from __future__ import annotations

import contextlib
import zipfile

import numpy as np
import pytest

from jepa.utils.read_data import DamagedFileError
from jepa.visualise import Samples, Snapshot, read_snapshots, write_snapshot

SAMPLES = Samples("test", 256, np.array([0, 2]), np.array([3, 1, 4]))


def snapshot(step, modality="", scale=1.0):
    return Snapshot(step, np.full((2, 4, 5, 8), scale), np.ones((3, 32)), SAMPLES, modality)


def steps(folder):
    return [each.step for each in read_snapshots(folder)]


def test_what_is_written_is_read(tmp_path):
    assert read_snapshots(tmp_path) == []
    for modality in ("", "sound"):
        write_snapshot(tmp_path, snapshot(7, modality, scale=1e9))
    first, second = read_snapshots(tmp_path)
    assert (first.step, first.modality, second.modality) == (7, "", "sound")
    assert first.components.dtype == first.pooled.dtype == np.float16
    assert np.isfinite(first.components).all()
    assert (first.samples.split, first.samples.limit) == ("test", 256)
    assert first.samples.rows.tolist() == [0, 2]
    assert first.samples.labels.tolist() == [3, 1, 4]


def test_at_most_twelve_stay_evenly_and_later_ones_are_void(tmp_path):
    for step in range(0, 101, 2):
        write_snapshot(tmp_path, snapshot(step))
    kept = steps(tmp_path)
    assert len(kept) == 12
    assert (kept[0], kept[-1]) == (0, 100)
    assert max(np.diff(kept)) <= 2.5 * 100 / 11
    write_snapshot(tmp_path, snapshot(kept[4]))
    assert steps(tmp_path) == kept[:5]


@pytest.mark.faults
def test_damaged_ones_are_refused_by_name(tmp_path):
    write_snapshot(tmp_path, snapshot(1))
    path = tmp_path / "pictures" / "step_00000001.npz"
    good = path.read_bytes()
    with np.load(path) as content:
        arrays = dict(content)
    for problem in (*range(0, len(good), 7), "cut", "text", "missing", "shape", "pickle", "bomb"):
        if isinstance(problem, int):  # a flipped byte, which is found or does not matter
            path.write_bytes(good[:problem] + bytes([good[problem] ^ 0x5A]) + good[problem + 1 :])
            with contextlib.suppress(DamagedFileError):
                read_snapshots(tmp_path)
            continue
        if problem == "cut":
            path.write_bytes(good[: len(good) // 2])
        elif problem == "text":
            path.write_bytes(b"step,1\n")
        elif problem == "missing":
            np.savez(path, **{name: value for name, value in arrays.items() if name != "rows"})
        elif problem == "shape":
            np.savez(path, **{**arrays, "components": np.ones((5, 8))})
        elif problem == "pickle":
            np.savez(path, **{**arrays, "split": np.array([{"a": 1}], dtype=object)})
        else:
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
                file.writestr("components.npy", bytes(2**27))
        with pytest.raises(DamagedFileError, match=r"step_00000001.npz is damaged: it is no snapshot"):
            read_snapshots(tmp_path)
