"""hydra/launcher=slurm on a real SLURM: arrays, several nodes, preemption, what fails, and launchers that die."""

from __future__ import annotations

import csv
import os
import re
import signal
import stat
import sys

import pytest
import torch
from weights import assert_same_weights

from jepa.utils.run_status import read_status

pytestmark = pytest.mark.slow


def test_a_sweep_is_a_job_array_and_a_failed_run_is_told(submit, slurm, tmp_path):
    """Also that of a sweep started again only what failed is run again."""
    sweep = tmp_path / "sweep"
    rates = "optimizer.lr=1e-3,-1,2e-3"
    process = submit(rates).wait()
    assert process.returncode == 1, process.stdout + process.stderr
    statuses = [read_status(sweep / str(run)) for run in range(3)]
    assert [status.state for status in statuses] == ["done", "failed", "done"]
    assert "learning rate" in statuses[1].reason
    assert f"#1 failed: {statuses[1].reason}" in process.stdout
    array = statuses[0].job.partition("_")[0]
    assert [status.job for status in statuses] == [f"{array}_{run}" for run in range(3)]
    assert f"submitted 3 as {array}_0 to {array}_2" in process.stdout
    slurm.wait_for(array, "COMPLETED")
    with (sweep / "leaderboard.csv").open() as file:
        assert sorted(row["state"] for row in csv.DictReader(file)) == ["done", "done", "failed"]
    assert (sweep / "leaderboard.html").is_file()

    again = submit(rates).wait()
    assert again.returncode == 1, again.stdout + again.stderr
    assert "3 runs in sweep: 1 to start, 2 done before" in again.stdout
    assert [read_status(sweep / str(run)).starts for run in (0, 2)] == [1, 1]
    assert read_status(sweep / "1").job != statuses[1].job


@pytest.mark.parametrize(("nodes", "devices"), [(1, 2), (2, 1)])
@pytest.mark.faults
def test_two_processes_that_are_preempted_end_like_one_run_that_is_let_be(
    submit, slurm, two_ranks, quick, slowly, until, tmp_path, nodes, devices
):
    """The signal, a save at the same step on both ranks, the queue again, and on from there."""
    run, steps = tmp_path / "sweep" / "0", 12
    shape = [f"trainer.nodes={nodes}", f"trainer.devices={devices}", "trainer=ddp", f"trainer.max_steps={steps}"]
    launcher = submit(*shape, *slowly)
    status = until(lambda status: (status.step or 0) >= 2)
    assert status.state == "running"
    details = slurm.details(status.job)
    assert (details["NumNodes"], details["NumTasks"]) == (str(nodes), "2")
    slurm.signal(status.job, "USR2")
    stopped = until(lambda status: status.state == "preempted").step
    slurm.start_now(status.job)
    process = launcher.wait()
    assert process.returncode == 0, process.stdout + process.stderr
    ended = read_status(run)
    assert (ended.state, ended.starts, ended.step) == ("done", 2, steps)
    assert 2 <= stopped < steps
    assert f"#0 preempted at step {stopped}, waits to be started again" in process.stdout
    steps_logged = re.findall(r'"step": (\d+),.*"train/loss"', (run / "metrics.jsonl").read_text())
    assert steps_logged == [str(step) for step in range(1, steps + 1)]  # one curve, nothing twice

    assert_same_weights(run, two_ranks(*quick, "trainer=ddp", f"trainer.max_steps={steps}"))


@pytest.mark.faults
def test_a_killed_launcher_is_started_again_and_no_run_is_repeated(submit, slurm, slowly, until, tmp_path):
    options = ["optimizer.lr=1e-3,2e-3,3e-3", "hydra.launcher.array_parallelism=1", "trainer.max_steps=4", *slowly]
    launcher = submit(*options)
    until(lambda status: status.state == "done", run=0)
    until(lambda status: status.state == "running", run=1)
    launcher.signal(signal.SIGKILL)
    assert launcher.wait().returncode == -signal.SIGKILL

    again = submit(*options).wait()
    assert again.returncode == 0, again.stdout + again.stderr
    assert "3 runs in sweep: 0 to start, 1 done before, 2 under way already" in again.stdout
    statuses = [read_status(tmp_path / "sweep" / str(run)) for run in range(3)]
    assert [(status.state, status.starts) for status in statuses] == [("done", 1)] * 3
    assert len({status.job.partition("_")[0] for status in statuses}) == 1


@pytest.mark.faults
def test_a_cancelled_run_is_told_and_can_go_on(submit, slurm, slowly, until, tmp_path):
    launcher = submit("trainer.max_steps=500", *slowly)
    job = until(lambda status: (status.step or 0) >= 1).job
    slurm.run(["scancel", job])
    process = launcher.wait()
    assert process.returncode == 1, process.stdout + process.stderr
    assert f"its job {job} left no result: CANCELLED" in process.stdout
    status = read_status(tmp_path / "sweep" / "0")
    assert status.state == "stopped"
    assert "(counts as val/loss 1e+09)" in process.stdout
    assert torch.load(tmp_path / "sweep" / "0" / "checkpoints" / "last.pt")["step"] == status.step  # it could save


def test_one_process_in_a_container_with_a_gpu(submit, slurm, tmp_path):
    """What is asked of SLURM, and how the job is started; apptainer's stand-in has no image but this system."""
    stand_in, told = tmp_path / "bin" / "apptainer", tmp_path / "told"
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/bin/bash\necho "$@" >{told}\nwhile [[ $1 != *.sif ]]; do shift; done\nshift\nexec "$@"\n')
    stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
    container = ["image=jepa.sif", "container_runtime=apptainer", "container_mounts=[/data:/data]"]
    others = [
        "cpus_per_task=2",
        "mem_gb=3",
        "timeout_min=30",
        "partition=main",
        "name=study",
        f"setup=['touch {told}']",
    ]
    if slurm.gpus:
        others += ["gpus_per_node=1"]
    settings = [f"hydra.launcher.{setting}" for setting in (*container, *others)]
    path = f"{stand_in.parent}:{os.environ['PATH']}"
    process = submit(*settings, f"hydra.launcher.container_python={sys.executable}", PATH=path).wait()
    assert process.returncode == 0, process.stdout + process.stderr
    assert f"exec --nv --bind /data:/data --pwd {tmp_path} jepa.sif {sys.executable} -u -m submitit" in told.read_text()
    details = slurm.details(read_status(tmp_path / "sweep" / "0").job)
    assert (details["Partition"], details["TimeLimit"], details["JobName"]) == ("main", "00:30:00", "study")
    assert "cpu=2,mem=3G,node=1" in details["TRES"]
    assert not slurm.gpus or details["TresPerNode"] == "gres:gpu:1"
