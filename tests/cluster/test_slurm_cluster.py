"""The cluster the other tests submit to does what they count on: arrays, two nodes, cancelling and requeueing."""

from __future__ import annotations

import os

import pytest
from slurm_cluster import Slurm, SlurmError

pytestmark = pytest.mark.slow


def test_jobs_arrays_and_nodes_run_and_no_accounting_is_kept(slurm: Slurm, tmp_path):
    at = f"--output={tmp_path}/%x_%a"
    one = slurm.submit(at, "--job-name=one", "--wrap=echo done")
    array = slurm.submit(at, "--job-name=array", "--array=0-2", "--wrap=echo $SLURM_ARRAY_TASK_ID")
    failing = slurm.submit(at, "--wrap=exit 3")
    nodes = slurm.run(["srun", "--nodes=2", "bash", "-c", "echo $SLURMD_NODENAME"]).stdout.split()
    assert sorted(nodes) == ["127.0.0.1", "127.0.0.2"]
    slurm.wait_for(one, "COMPLETED")
    slurm.wait_for(array, "COMPLETED")
    assert next(tmp_path.glob("one_*")).read_text() == "done\n"
    assert [(tmp_path / f"array_{task}").read_text() for task in range(3)] == ["0\n", "1\n", "2\n"]
    assert {f"{array}_{task}" for task in range(3)} < slurm.jobs().keys()
    with pytest.raises(SlurmError, match="is not COMPLETED: its job is FAILED"):
        slurm.wait_for(failing, "COMPLETED")
    assert slurm.details(failing)["ExitCode"] == "3:0"
    assert slurm.run(["sacct"], check=False).returncode != 0
    assert "SLURM_CONF" not in os.environ


def test_jobs_are_cancelled_and_requeued(slurm: Slurm, tmp_path):
    output = tmp_path / "output"
    script = f"echo restart ${{SLURM_RESTART_COUNT:-0}} >>{output}; test ${{SLURM_RESTART_COUNT:-0}} = 1 || sleep 600"
    requeued = slurm.submit("--output=/dev/null", "--requeue", f"--wrap={script}")
    cancelled = slurm.submit("--output=/dev/null", "--wrap=sleep 600")
    slurm.wait_for(requeued, "RUNNING")
    slurm.wait_for(cancelled, "RUNNING")
    slurm.run(["scancel", cancelled])
    slurm.run(["scontrol", "requeue", requeued])
    slurm.start_now(requeued)
    slurm.wait_for(requeued, "COMPLETED")
    slurm.wait_for(cancelled, "CANCELLED")
    assert output.read_text().split("\n")[:2] == ["restart 0", "restart 1"]
    assert slurm.details(requeued)["Restarts"] == "1"
    if slurm.gpus:
        shown = slurm.run(["srun", "--gpus-per-node=2", "printenv", "CUDA_VISIBLE_DEVICES"]).stdout
        assert shown.strip() == "0,1"
