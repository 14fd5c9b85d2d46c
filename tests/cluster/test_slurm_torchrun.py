"""scripts/slurm_torchrun.sh on two nodes: near the time limit it saves, goes back into the queue, and goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from slurm_cluster import Slurm
from weights import assert_same_weights

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "slurm_torchrun.sh"

STEPS = 100


@pytest.fixture
def options(quick: list[str]) -> list[str]:
    """A run on CPUs."""
    return [*quick, f"trainer.max_steps={STEPS}", "trainer.log_every=5"]


def submit(slurm: Slurm, log: Path, nodes: int, *options: str, **environment: str) -> str:
    """Submit the script, one process on each node."""
    environment |= {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "NPROC_PER_NODE": "1"}
    environment["PYTHONPATH"] = f"{ROOT / 'tests'}:{ROOT}"
    at = [f"--nodes={nodes}", f"--output={log}", f"--chdir={ROOT}"]
    return slurm.submit(*at, SCRIPT, *options, env=environment)


def wait_for_step(step: int, slurm: Slurm, job: str, run: Path) -> None:
    """Wait until a step is logged."""

    def holds() -> bool:
        lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").is_file() else []
        return any(json.loads(line)["step"] >= step for line in lines)

    slurm.wait_until(holds, job, f"step {step} was not logged")


@pytest.mark.slow
@pytest.mark.faults
def test_a_job_that_is_stopped_and_requeued_ends_like_one_that_is_let_be(slurm, options, slowly, two_ranks, tmp_path):
    run, log = tmp_path / "job", tmp_path / "log"
    options = [*options, "trainer=ddp", "trainer.devices=1", "trainer.nodes=2"]
    job = submit(slurm, log, 2, *options, *slowly, f"hydra.run.dir={run}")

    wait_for_step(10, slurm, job, run)
    slurm.signal(job, "USR2", "--batch")  # what --signal=B:USR2@120 sends before the time limit
    slurm.start_now(job)
    stopped = torch.load(run / "checkpoints" / "last.pt")["step"]
    assert 10 <= stopped < STEPS
    slurm.wait_for(job, "COMPLETED")

    told = log.read_text()
    assert f"stopped at step {stopped} of {STEPS}" in told
    assert f"job {job} goes back into the queue" in told
    assert "start 2: 1 processes on each of 127.0.0.1 127.0.0.2" in told
    assert f"resumed from {run / 'checkpoints' / 'last.pt'} at step {stopped}" in told
    assert "Traceback" not in told
    assert slurm.details(job)["Restarts"] == "1"

    assert_same_weights(run, two_ranks(*options))


@pytest.mark.slow
def test_after_the_last_requeue_it_ends_and_says_how_to_go_on(slurm, options, slowly, tmp_path):
    run, log = tmp_path / "job", tmp_path / "log"
    job = submit(slurm, log, 1, *options, *slowly, f"hydra.run.dir={run}", MAX_REQUEUES="0")
    wait_for_step(10, slurm, job, run)
    slurm.signal(job, "USR2", "--batch")
    slurm.wait_for(job, "FAILED")
    assert slurm.details(job)["Restarts"] == "0"
    assert slurm.details(job)["ExitCode"] == "140:0"
    assert (
        "the job has been requeued 0 times: sbatch the same command with resume=<the run's folder>" in log.read_text()
    )


@pytest.mark.slow
def test_a_wrong_option_ends_the_job_with_its_message(slurm, tmp_path):
    log = tmp_path / "log"
    job = submit(slurm, log, 1, "optimizer.learning_rate=3", f"hydra.run.dir={tmp_path / 'job'}")
    slurm.wait_for(job, "FAILED")
    told = log.read_text()
    assert "error: optimizer.learning_rate=3: there is no such key. Did you mean optimizer.lr=3?" in told
    assert "Traceback" not in told
    assert slurm.details(job)["Restarts"] == "0"


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ([], {"SLURM_JOB_ID": ""}, "to be submitted: sbatch"),
        (["-m", "trainer.seed=0,1"], {}, "a sweep is submitted by train.py itself"),
        (["resume=train.py"], {}, "resume=train.py is not a run's folder"),
        ([], {"PYTHON": "no/python"}, "no no/python"),
    ],
)
def test_what_cannot_be_started_is_refused_at_once(arguments, environment, message):
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "SLURM_JOB_ID": "1", **environment}
    command = ["bash", SCRIPT, *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"slurm_torchrun.sh: {message}")


def test_elsewhere_than_in_the_repository_it_is_refused(tmp_path):
    environment = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "1"}
    done = subprocess.run(["bash", SCRIPT], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"no train.py in {tmp_path}: submit it from the repository's root" in done.stderr
