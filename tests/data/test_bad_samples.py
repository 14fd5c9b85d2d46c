"""Damaged files: replaced, reported once, and fatal when there are too many; with workers and without."""

from __future__ import annotations

import json
import logging
import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import hostile_samples
import pytest
import torch
from data_helpers import CROPS, folder_data, same, write_classes
from PIL import Image

from jepa.data import DataModule
from jepa.data.sources import Splits
from jepa.utils.errors import DataError, UserError

pytestmark = pytest.mark.faults
WORKERS = pytest.mark.parametrize("workers", [0, 2])


def write_train_and_val(root, *, each: int):
    for split in ("train", "val"):
        write_classes(root / split, classes=2, each=each)


def damage(root, *names):
    """Cut files off in the middle."""
    for name in names:
        path = root / name
        path.write_bytes(path.read_bytes()[:40])


@WORKERS
def test_a_bad_file_is_replaced_by_the_next_and_reported_once(tmp_path, caplog, workers):
    write_train_and_val(tmp_path, each=10)
    damage(tmp_path, "train/a/9.png", "val/a/9.png")
    data = folder_data(tmp_path, num_workers=workers, augment=CROPS)
    with caplog.at_level(logging.WARNING, "jepa"):
        batches = list(data.train_batches(seed=0, start_step=0, stop_step=15))  # three epochs
        for _ in range(2):
            test = list(data.evaluation_batches("test", batch_size=20))
    bad = [str(tmp_path / split / "a" / "9.png") for split in ("train", "val")]
    assert sorted(data.bad_samples) == bad
    for path in bad:
        assert sum(path in record.getMessage() for record in caplog.records) == 1
    labels = torch.cat([batch["label"] for batch in batches])
    assert labels.sum() == 3 * 11, "the next file, of the other class, came with its own label"
    assert torch.equal((test[0]["x"][:, 0, 4, 4] * 255).round().long(), 60 * test[0]["label"])
    assert all("bad" not in batch for batch in batches + test)
    again = folder_data(tmp_path, augment=CROPS)
    assert same(again.train_batches(seed=0, start_step=0, stop_step=15), batches)


@WORKERS
@pytest.mark.parametrize("each", [8, 3])
def test_too_many_bad_files_stop_the_run(tmp_path, caplog, workers, each):
    write_train_and_val(tmp_path, each=10)
    names = [f"train/{name}/{i}.png" for name in "ab" for i in range(each)]
    damage(tmp_path, *names)
    data = folder_data(tmp_path, num_workers=workers, max_bad_share=0.2)
    with pytest.raises(DataError, match=r"of 20 samples .* data\.max_bad_share=0\.2\. Mend") as error:
        list(data.train_batches(seed=0, start_step=0, stop_step=5))
    assert str(tmp_path / "train") in str(error.value)
    assert "Traceback" not in str(error.value)
    assert len(data.bad_samples) > 4
    assert all(path in caplog.text for path in data.bad_samples), "what stopped the run is in the log"


@WORKERS
def test_nothing_but_bad_files_ends(tmp_path, workers):
    write_classes(tmp_path, classes=2, each=4)
    damage(tmp_path, *(f"{name}/{i}.png" for name in "ab" for i in range(4)))
    data = folder_data(tmp_path, num_workers=workers, max_bad_share=0.99)
    with pytest.raises(DataError, match=r"100\.0%"):
        next(data.evaluation_batches("train", batch_size=2))


def test_a_single_damaged_sample_of_a_split_ends(tmp_path):
    """Which the limit allows, as it allows all of a small part of a mix."""
    write_classes(tmp_path / "train", classes=2, each=1)
    write_classes(tmp_path / "val", classes=1, each=1)
    damage(tmp_path, "val/a/0.png")
    with pytest.raises(DataError, match=r"none of the 1 samples of the test split can be read: .*val/a/0.png \("):
        next(folder_data(tmp_path).evaluation_batches("test", batch_size=2))


def test_the_allowed_share_may_be_reached(tmp_path):
    write_train_and_val(tmp_path, each=10)
    damage(tmp_path, "train/a/0.png", "train/b/0.png")
    data = folder_data(tmp_path, max_bad_share=0.1)
    list(data.train_batches(seed=0, start_step=0, stop_step=5))
    assert len(data.bad_samples) == 2


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.write_text("404 not found"), "UnidentifiedImageError"),
        (lambda path: path.write_bytes(path.read_bytes()[:-50]), "truncated"),
        (lambda path: path.unlink(), "FileNotFoundError"),
        (replace_by_folder, "IsADirectoryError"),
        (lambda path: Image.new("L", (50, 50)).save(path), "DecompressionBombError"),
    ],
)
def test_every_kind_of_damage_is_named(tmp_path, monkeypatch, harm, reason):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    write_train_and_val(tmp_path, each=3)
    path = tmp_path / "train" / "a" / "0.jpg"
    Image.radial_gradient("L").resize((30, 30)).save(path)
    data = folder_data(tmp_path)
    harm(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(data.evaluation_batches("train", batch_size=4))
    assert reason in data.bad_samples[str(path)]
    assert len(data.bad_samples) == 1


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The bad samples of every case, read in a process of its own under a memory limit."""
    folder = tmp_path_factory.mktemp("hostile")
    done = subprocess.run(
        [sys.executable, hostile_samples.__file__, folder],
        env={**os.environ, "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("case", "name"), [(hostile_samples.name_of(*case[::2]), case[3]) for case in hostile_samples.CASES]
)
def test_one_hostile_sample_never_ends_a_run(found, case, name):
    bad = found[case]
    assert isinstance(bad, list), bad
    assert len(bad) == (name is not None)
    assert all(name in each for each in bad)


class Faulty:
    """Forty samples, of which number 7 raises, or is, what is given."""

    def __init__(self, fault) -> None:
        self.fault = fault

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int):
        if index == 7 and isinstance(self.fault, Exception):
            raise self.fault
        return (self.fault if index == 7 else float(index)), None


def read_with(fault, workers: int = 0) -> dict[str, str]:
    data = DataModule(batch_size=8, num_workers=workers)
    data.setup(
        Splits(Faulty(fault), Faulty(None)),
        prepare=lambda value, random: torch.full((2,), value),
        input_shape=(2,),
    )
    assert sum(len(batch["x"]) for batch in data.evaluation_batches("train", batch_size=8)) == 40
    return data.bad_samples


@pytest.mark.parametrize(
    "fault",
    [
        OSError(5, "Input/output error"),
        ValueError("wrong"),
        RuntimeError("cannot decode"),
        MemoryError(),
        IndexError("past the end"),
        OverflowError("too large"),
        ZeroDivisionError(),
        EOFError(),
        SyntaxError("broken PNG"),
        struct.error("needs 4 bytes"),
        zlib.error("incorrect header"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        RecursionError(),
        Exception("of a decoder"),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_any_error_of_the_data_makes_a_bad_sample(fault):
    bad = read_with(fault)
    assert list(bad) == ["sample 7 of the train split"]
    assert type(fault).__name__ in bad["sample 7 of the train split"]
    assert "(test_bad_samples.py:" in bad["sample 7 of the train split"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_values_that_mean_nothing_make_a_bad_sample(value):
    (reason,) = read_with(value).values()
    assert ("beyond" if value == 1e30 else "infinite") in reason


@WORKERS
def test_programming_errors_are_seen(workers):
    for error in (TypeError, AttributeError, NameError, KeyError, AssertionError, NotImplementedError)[
        : 6 - 2 * workers
    ]:
        with pytest.raises(error, match="a mistake") as seen:
            read_with(error("a mistake"), workers)
        assert "test_bad_samples.py" in str(seen.getrepr()) + str(seen.value), "where it was raised"


@WORKERS
def test_wrong_settings_found_while_reading_end_the_run(workers):
    with pytest.raises(UserError, match=r"data\.fps"):
        read_with(UserError("data.fps is wrong"), workers)


def test_what_a_hostile_name_holds_does_not_reach_the_terminal(tmp_path, caplog):
    write_train_and_val(tmp_path, each=3)
    Path(tmp_path / "train" / "a" / "\x1b[2J.png").write_text("no picture")
    list(folder_data(tmp_path).evaluation_batches("train", batch_size=9))
    assert "\\x1b[2J.png" in caplog.text
    assert "\x1b" not in caplog.text
