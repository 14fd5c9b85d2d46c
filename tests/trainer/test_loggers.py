"""Loggers, the console, periods and the meter."""

from __future__ import annotations

import io
import json
import os
import time

import pytest
import torch

from jepa.trainer import Console, JSONLines, Logger, RunInfo, TensorBoard
from jepa.trainer.console import duration
from jepa.trainer.settings import due, period
from jepa.trainer.step_metrics import StepMeter, to_floats
from jepa.types import RunLength
from jepa.utils.errors import UserError
from jepa.utils.read_data import DamagedFileError

HORIZON = RunLength(max_steps=20, steps_per_epoch=2.5)


def steps_of(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def info(folder, step=0, redo=False):
    return RunInfo(folder, step, HORIZON, {}, redo)


def write(folder, steps, *, start=0, redo=False, **settings):
    logger = JSONLines(**settings)
    logger.open(info(folder, start, redo))
    for step in steps:
        logger.log({"loss": step / 10}, step)
    logger.close()


def test_lines_after_the_checkpoint_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(tmp_path, [1, 2, 3, 4, 5])
    assert json.loads(path.read_text().splitlines()[1]) == {"step": 2, "loss": 0.2}
    write(tmp_path, [4, 5, 6], start=3)
    assert steps_of(path) == [1, 2, 3, 4, 5, 6]
    write(tmp_path, [])
    assert path.read_text() == ""
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_half_a_line_is_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(tmp_path, [1, 2])
    for rest in ('{"step": 2, "lo', '{"step": 2}\n{', "[1]\n", "\x00\x00"):
        path.write_text(path.read_text() + rest)
        write(tmp_path, [3], start=2)
        assert steps_of(path)[-1] == 3
        assert set(steps_of(path)) == {1, 2, 3}


@pytest.mark.faults
def test_lines_that_hold_no_metrics_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(tmp_path, [1, 2])
    sound = path.read_bytes()
    for line in (
        b'{"step": "x"}',
        b'{"step": [1]}',
        b'{"step": true}',
        b"\xff",
        b"[" * 100_000,
        b'"step"',
        b"0" * 2**21,
    ):
        path.write_bytes(line + b"\n" + sound + line + b"\n")
        write(tmp_path, [3], start=2)
        assert steps_of(path) == [1, 2, 3]
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DamagedFileError, match=r"metrics.jsonl is damaged: it is no regular file"):
        write(tmp_path, [3], start=2)


def test_what_is_measured_again_is_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 2, "val/loss": 1.0}, {"step": 3, "train/loss": 2.0}, {"step": 3, "val/loss": 3.0}]
    for redo, left in ((False, lines), (True, lines[:2])):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        write(tmp_path, [], start=3, redo=redo)
        assert [json.loads(line) for line in path.read_text().splitlines()] == left


def test_values_that_are_not_finite_are_null_and_lines_on_disk_at_once(tmp_path):
    logger = JSONLines()
    logger.open(info(tmp_path))
    logger.log({"a": float("nan"), "b": float("inf"), "c": -float("inf"), "d": 1.5}, 1)
    text = (tmp_path / "metrics.jsonl").read_text()
    logger.close()
    assert json.loads(text, parse_constant=pytest.fail) == {"step": 1, "a": None, "b": None, "c": None, "d": 1.5}


def test_a_path_of_ones_own(tmp_path):
    run, shared = tmp_path / "run", tmp_path / "shared" / "lines.jsonl"
    run.mkdir()
    for path, file in (("sub/lines.jsonl", run / "sub" / "lines.jsonl"), (str(shared), shared)):
        for start, steps in ((0, [1, 2]), (1, [2, 3])):
            write(run, steps, start=start, path=path)
        assert steps_of(file) == [1, 2, 3]
    for kept in (1, 2):
        write(run, [], path=str(shared))  # another run, which must not erase that one
        assert steps_of(shared.with_name("lines.jsonl.1")) == [1, 2, 3]
        assert len(list(shared.parent.iterdir())) == kept + 1


def test_tensorboard_in_a_folder_of_ones_own(tmp_path):
    for folder, expected in ((None, "run/tensorboard"), ("tb", "run/tb"), (str(tmp_path / "tb"), "tb")):
        logger = TensorBoard(folder=folder)
        logger.open(info(tmp_path / "run"))
        logger.close()
        assert list((tmp_path / expected).glob("events*"))


def test_a_logger_without_state():
    assert Logger().state_dict() == {}
    Logger().load_state_dict({})


@pytest.mark.slow
def test_tensorboard_voids_what_was_later(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, value in ((0, 1.0), (3, 2.0), (0, 3.0)):
        logger = TensorBoard()
        logger.open(info(tmp_path, start))
        for step in range(start + 1, 6):
            logger.log({"train/loss": value}, step)
        logger.close()
        time.sleep(1.1)  # files are named by the second
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        expected = [value if step > start else 1.0 for step in range(1, 6)]
        assert [(e.step, e.value) for e in events.Scalars("train/loss")] == list(enumerate(expected, 1))


def console(terminal=False, **settings):
    made = Console(**settings)
    file = io.StringIO()
    made._console.file = file
    made._console._force_terminal, made._console._width = terminal, 120
    return made, file


VALUES = {"train/loss": 0.51234, "lr": 1e-3, "samples_per_second": 1234.5}


def test_plain_lines():
    made, file = console(seconds_between_lines=0)
    made.open(info(None))
    made.log(VALUES, 5)
    made.log({"val/loss": 1.0}, 5)
    made.message("a word [not markup?]")
    made.close()
    lines = file.getvalue().splitlines()
    assert lines[0].startswith("epoch 2.0/8.0  step 5/20  loss 0.5123  lr 1.00e-03  1,234 samples/s  0:00 left")
    assert len(lines) == 2
    assert "\x1b" not in file.getvalue()


@pytest.mark.parametrize(("steps", "shown"), [(21, [1, 21]), (20, range(1, 21))])
def test_lines_are_rare_but_the_last_comes(steps, shown):
    """A short run shows all."""
    made, file = console(seconds_between_lines=1000)
    made.open(RunInfo(None, 0, RunLength(max_steps=steps, steps_per_epoch=2.5)))
    for step in range(1, steps + 1):
        made.log(VALUES, step)
    lines = file.getvalue().splitlines()
    assert [line.split("step ")[1].split()[0] for line in lines] == [f"{step}/{steps}" for step in shown]


def test_a_bar_in_a_terminal():
    made, file = console(terminal=True)
    made.open(info(None, 3))
    made.advance(4)
    made.log(VALUES, 4)
    made.message("above the bar")
    made.advance(20)
    made.close()
    text = file.getvalue()
    for piece in ("above the bar", "loss 0.5123", "20/20", "epoch 8.0/8.0", "lr 1.00e-03"):
        assert piece in text
    assert made._progress is None


@pytest.mark.parametrize("terminal", [False, True])
def test_gradient_norms_of_the_modules(terminal):
    metrics = {**VALUES, "grad_norm": 3.0, "grad_norm/encoder": 0.25, "grad_norm/encoder.norm.weight": 1.0}
    made, file = console(terminal=terminal, seconds_between_lines=0, show_gradients=True)
    made.open(info(None))
    made.log(metrics, 5)
    made.log(VALUES, 6)
    made.close()
    assert file.getvalue().count("gradient norms  encoder 2.50e-01") == 1
    assert "encoder.norm" not in file.getvalue()
    made, file = console(terminal=terminal, seconds_between_lines=0)
    made.open(info(None))
    made.log(metrics, 5)
    made.close()
    assert "gradient norms" not in file.getvalue()


def test_a_path_with_brackets_is_shown_as_it_is():
    made, file = console()
    made.open(info(None))
    made.message("training from scratch in outputs/[a]/:cat:/run")
    assert "outputs/[a]/:cat:/run" in file.getvalue()


def test_durations():
    expected = {0: "0:00", 59.6: "1:00", 61: "1:01", 3599: "59:59", 3600: "1:00:00", 90061: "25:01:01"}
    assert {seconds: duration(seconds) for seconds in expected} == expected


def test_due():
    assert [step for step in range(1, 11) if due(step, 3)] == [3, 6, 9]
    assert [step for step in range(1, 11) if due(step, 2.5)] == [3, 5, 8, 10]
    assert [step for step in range(1, 4) if due(step, 0.4)] == [1, 2, 3]
    assert not any(due(step, None) for step in range(10))


def test_periods():
    assert period("trainer.save_", None, None, HORIZON) is None
    assert period("trainer.save_", 2, None, HORIZON) == 5.0
    assert period("trainer.save_", None, 7, HORIZON) == 7
    assert period("trainer.save_", 2, 7, HORIZON) == 7  # steps win, as trainer.max_steps does
    for wrong in ((0, None), (-1, None), (None, 0)):
        with pytest.raises(UserError, match=r"trainer.save_every_epochs and trainer.save_every_steps must be positive"):
            period("trainer.save_", *wrong, HORIZON)


def test_the_meter():
    meter = StepMeter(torch.device("cpu"))

    def slow():
        for item in "abc":
            time.sleep(0.02)
            yield item

    for _ in meter.waiting_for(slow()):
        meter.count(10)
    values = meter.read()
    assert 0 < values["samples_per_second"] <= 30 / 0.06
    assert 0.8 < values["data_wait"] <= 1.0
    assert 0.01 < values["memory_gib"] < 100
    assert meter.read()["samples_per_second"] == 0.0


def test_floats_come_in_order():
    values = to_floats({"a": torch.tensor(1), "b": 2.5, "c": torch.tensor(3.0, dtype=torch.float64)})
    assert values == {"a": 1.0, "b": 2.5, "c": 3.0}
    assert all(type(value) is float for value in values.values())
    assert to_floats({"x": 1.0}) == {"x": 1.0}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_memory_of_a_cuda_device():
    held = torch.ones(2**28, device="cuda")  # 1 GiB
    more = torch.ones(2**28, device="cuda")
    del more
    values = StepMeter(torch.device("cuda")).read()
    assert values["memory_gib"] == values["memory_peak_gib"] >= 2.0
    assert 1.0 <= values["memory_allocated_gib"] < 2.0 <= values["memory_reserved_gib"]
    del held
