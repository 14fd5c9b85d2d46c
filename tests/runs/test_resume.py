"""Going on exactly where a run was killed or stopped."""

from __future__ import annotations

import json
import random
import signal
import time

import pytest
import torch

pytestmark = pytest.mark.slow
TIMES = {"samples_per_second", "data_wait", "memory_gib", "cost/seconds"}
RUN = [
    "trainer.max_steps=24",
    "trainer.save_every_steps=2",
    "trainer.validate_every_steps=5",
    "data.batch_size=96",
]


def lines_of(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def identical(one, two):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(identical(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(identical, one, two))
    return one == two


def assert_same(folder, other, checkpoints=None):
    files = (checkpoints or folder / "checkpoints") / "last.pt", other / "checkpoints/last.pt"
    one, two = (torch.load(file, weights_only=True) for file in files)
    for key in ("step", "model", "optimizer", "scaler", "best", "pending"):
        assert identical(one[key], two[key]), key
    assert lines_of(folder) == lines_of(other)
    assert (folder / "results.json").read_text() == (other / "results.json").read_text()


def logged(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().count('"train/loss"') if path.exists() else 0


def wait_for(condition, timeout=60):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(fork_server, tmp_path_factory, tiny):
    """A run that was never interrupted. An epoch is 15 steps."""
    folder = tmp_path_factory.mktemp("whole")
    arguments = [
        *tiny,
        "~logger.tensorboard",
        "evaluation=none",
        *RUN,
        "hydra.run.dir=run",
        "model.encoder.dropout=0.1",
    ]
    process = fork_server.start(arguments, folder, {}).wait()
    assert process.returncode == 0, process.stderr
    return folder / "run"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.faults
def test_killed_and_started_again(start, quick, tmp_path, whole, workers):
    folder = tmp_path / "run"
    arguments = [*quick, *RUN, "hydra.run.dir=run", "model.encoder.dropout=0.1", "resume=auto"]
    arguments += [f"data.num_workers={workers}"]
    moments = sorted(random.Random(time.time_ns()).sample(range(1, 22), 2))
    print("killed at", moments)
    for moment in moments:
        run = start(*arguments)
        wait_for(lambda moment=moment: logged(folder) >= moment)
        time.sleep(random.random() * 0.03)
        run.signal(signal.SIGKILL)
        assert run.wait().returncode == -signal.SIGKILL
    assert not (folder / "results.json").exists()
    process = start(*arguments).wait()
    assert process.returncode == 0, process.stderr
    assert "resumed from" in process.stdout
    assert_same(folder, whole)


@pytest.mark.parametrize("given", ["run", "run/checkpoints/last.pt"])
def test_a_longer_run_by_its_folder_or_file(train, start, quick, tmp_path, whole, given):
    """resume= needs no other overrides; what is given wins."""
    run = start(*quick, *RUN, "hydra.run.dir=run", "model.encoder.dropout=0.1")
    wait_for(lambda: logged(tmp_path / "run") >= 7)
    run.signal(signal.SIGKILL)
    run.wait()
    process = train(f"resume={given}")
    assert process.returncode == 0, process.stderr
    assert_same(tmp_path / "run", whole)
    assert not (tmp_path / "outputs").exists()
    if given == "run":
        again = train("resume=run")
        assert again.returncode == 0, again.stderr
        assert "nothing is left to do" in again.stdout
        longer = train("resume=run", "trainer.max_steps=26")
        assert longer.returncode == 0, longer.stderr
        assert lines_of(tmp_path / "run")[-1]["step"] == 26
        assert lines_of(tmp_path / "run")[:24] == lines_of(whole)[:24]


@pytest.mark.parametrize(
    ("number", "setting"),
    [
        (signal.SIGINT, "data.num_workers=2"),
        (signal.SIGTERM, "data.num_workers=2"),
        (signal.SIGUSR1, "trainer.async_save=true"),
        (signal.SIGUSR2, "trainer.checkpoint_dir=elsewhere"),
    ],
)
@pytest.mark.faults
def test_stopped_by_a_signal(train, start, quick, tmp_path, whole, number, setting):
    folder = tmp_path / "run"
    run = start(*quick, *RUN, "hydra.run.dir=run", "model.encoder.dropout=0.1", setting)
    wait_for(lambda: logged(folder) >= 8)
    run.signal(number)
    process = run.wait()
    assert process.returncode == 128 + number
    assert "Traceback" not in process.stderr
    assert process.stderr.startswith("stopped at step ")
    assert f"go on with resume={folder}" in process.stderr or "go on with resume=run" in process.stderr
    checkpoints = tmp_path / "elsewhere" if "checkpoint_dir" in setting else folder / "checkpoints"
    step = torch.load(checkpoints / "last.pt", weights_only=True)["step"]
    assert f"stopped at step {step} of 24 by {signal.Signals(number).name};" in process.stderr
    assert lines_of(folder)[-1]["step"] == step
    assert train("resume=run").returncode == 0
    assert_same(folder, whole, checkpoints)
    assert (folder / "checkpoints").exists() == ("checkpoint_dir" not in setting)


@pytest.mark.faults
def test_ctrl_c_ends_a_sweep(start, quick, tmp_path):
    run = start("-m", *quick, "trainer.seed=0,1", "trainer.max_steps=500", "hydra.sweep.dir=sweep")
    wait_for(lambda: logged(tmp_path / "sweep/0") >= 2)
    run.signal(signal.SIGINT)
    process = run.wait()
    assert process.returncode == 130
    assert "Traceback" not in process.stderr
    assert (tmp_path / "sweep/0/checkpoints/last.pt").exists()
    assert not (tmp_path / "sweep/1/checkpoints").exists()


def test_what_a_resume_refuses(train, quick, tmp_path, refused):
    assert train(*quick, "hydra.run.dir=run", "trainer.max_steps=4").returncode == 0
    folder = tmp_path / "run"

    def files():
        paths = (p for p in folder.rglob("*") if p.is_file() and ".hydra" not in p.parts and p.suffix != ".log")
        return {path: path.read_bytes() for path in paths}

    before = files()
    assert "already holds a checkpoint" in refused(train(*quick, "hydra.run.dir=run"))
    message = refused(train("resume=run", "model.encoder.depth=2"))
    assert "is of another model: 24 keys missing" in message
    assert "encoder.vit.blocks.1." in message
    assert "past the end of this run (3 steps)" in refused(train("resume=run", "trainer.max_steps=3"))
    assert "with data.batch_size=32, and this is data.batch_size=16" in refused(
        train("resume=run", "data.batch_size=16")
    )
    assert "optimizer.amsgrad=True (before False)" in refused(train("resume=run", "optimizer.amsgrad=true"))
    assert "no run folder or checkpoint at nowhere" in refused(train("resume=nowhere"))
    assert "hydra.run.dir" in refused(train("resume=run", *quick, "hydra.run.dir=elsewhere"))
    assert files() == before
    assert train("resume=run", "trainer.max_steps=5").returncode == 0  # the wrong depth was not stored

    last = folder / "checkpoints/last.pt"
    last.write_bytes(last.read_bytes()[:5000])
    before = files()
    for resume in ("run", "auto"):
        where = [] if resume == "run" else ["hydra.run.dir=run", *quick]
        message = refused(train(f"resume={resume}", "trainer.max_steps=9", *where))
        assert "cannot read the checkpoint" in message
        assert "5,000 bytes" in message
    assert files() == before


def test_the_file_of_init_from_is_not_needed_to_resume(train, quick, tmp_path):
    assert train(*quick, "hydra.run.dir=first", "trainer.max_steps=2").returncode == 0
    assert train(*quick, "hydra.run.dir=run", "trainer.max_steps=2", "init_from=first").returncode == 0
    (tmp_path / "first/checkpoints/last.pt").unlink()
    for resume in (["resume=run"], [*quick, "resume=auto", "hydra.run.dir=run", "init_from=first"]):
        process = train(*resume, "trainer.max_steps=4")
        assert process.returncode == 0, process.stderr
