"""What a run of two ranks leaves behind and prints: the same as one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from jepa.visualise import read_snapshots

pytestmark = pytest.mark.slow
EVALUATED = ["~logger.tensorboard", "evaluation.max_train_samples=64", "evaluation.max_test_samples=64"]
EVALUATED += ["visualise.every=6"]  # at the start and the end alone, which does not depend on the time it takes


def tree_of(folder: Path) -> set[str]:
    """Every file below a folder, but for what the tests' own server writes."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".run"))
    return {str(path.relative_to(folder)) for path in files}


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def shapes_of(path: Path) -> dict:
    return {name: tuple(tensor.shape) for name, tensor in torch.load(path, weights_only=True)["model"].items()}


@pytest.fixture(scope="module")
def single(begin_ranks, tmp_path_factory, tiny):
    """The folder a run of one process was started in."""
    folder = tmp_path_factory.mktemp("single")
    begin_ranks(*tiny, *EVALUATED, "hydra.run.dir=run", folder=folder, ranks=1).succeed()
    return folder


@pytest.mark.parametrize(("strategy", "slurm"), [("ddp", False), ("fsdp", False), ("ddp", True)])
def test_a_run_leaves_the_files_of_one_process(train_ranks, train, tiny, tmp_path, single, strategy, slurm):
    arguments = [*tiny, *EVALUATED, f"trainer={strategy}", "hydra.run.dir=run"]
    zero, one = train_ranks(*arguments, slurm=slurm)
    assert tree_of(tmp_path) == tree_of(single)  # so no outputs/ either, and nothing in the scratch folder
    assert one.stdout == ""
    assert zero.stdout.count("training from scratch") == 1
    assert f"(2 ranks) on cpu with {strategy.upper()}" in zero.stdout
    assert "Warning" not in zero.stderr + one.stderr
    ours, theirs = lines_of(tmp_path / "run"), lines_of(single / "run")
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    assert [set(line) for line in ours] == [set(line) for line in theirs]
    results = [json.loads((folder / "run/results.json").read_text()) for folder in (tmp_path, single)]
    assert results[0].keys() == results[1].keys()
    assert results[0]["trained"] == pytest.approx(results[1]["trained"], abs=0.05)
    files = [folder / "run/checkpoints/last.pt" for folder in (tmp_path, single)]
    assert shapes_of(files[0]) == shapes_of(files[1])
    seen, expected = (read_snapshots(folder / "run") for folder in (tmp_path, single))
    assert [snapshot.step for snapshot in seen] == [0, 6]
    assert np.allclose(seen[0].components, expected[0].components, atol=1e-2)
    if not slurm:
        again = train("resume=run", "trainer.max_steps=7", "evaluation=none")
        assert again.returncode == 0, again.stderr
        assert "at step 6 of 7" in again.stdout


def test_a_sweep(train_ranks, quick, tmp_path):
    zero, one = train_ranks("-m", *quick, "trainer.seed=0,1", "trainer.max_steps=2", "hydra.sweep.dir=sweep")
    for job in ("0", "1"):
        assert (tmp_path / "sweep" / job / "checkpoints/last.pt").is_file()
        assert len(lines_of(tmp_path / "sweep" / job)) == 2
    assert {path.split("/")[0] for path in tree_of(tmp_path)} == {"sweep"}
    assert zero.stdout.count("training from scratch") == 2
    assert "training from scratch" not in one.stdout


def test_by_torchrun(quick, tmp_path):
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command += [str(root / "train.py"), *quick, "hydra.run.dir=run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("training from scratch") == 1
    assert len(lines_of(tmp_path / "run")) == 6
    assert {path.split("/")[0] for path in tree_of(tmp_path)} == {"run"}


def test_a_sweep_goes_on_after_a_job_that_all_ranks_refuse(start_ranks, quick, tmp_path):
    slow = ["+callbacks.slow._target_=rank_helpers.Slow", "+callbacks.slow.seconds=0.3", "trainer.max_steps=45"]
    zero, one = start_ranks("-m", *quick, *slow, "trainer.grad_clip_norm=-1,null", "hydra.sweep.dir=sweep").wait()
    assert (zero.returncode, one.returncode) == (1, 1)
    assert (zero.stderr + one.stderr).count("error: trainer.grad_clip_norm=-1") == 1
    assert len(lines_of(tmp_path / "sweep/1")) == 45  # longer than the watch waits before it ends a process
