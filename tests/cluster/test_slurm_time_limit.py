"""A run of hydra/launcher=slurm that hits its time limit is queued again and ends with an uninterrupted run's weights.

In a file of its own, as it waits for half a minute while others can work.
"""

from __future__ import annotations

import pytest
from weights import assert_same_weights

from jepa.utils.run_status import read_status


@pytest.mark.slow
@pytest.mark.faults
def test_a_run_that_hits_its_time_limit(submit, slurm, train, quick, slowly, until, tmp_path):
    limit = [f"hydra.launcher.{setting}" for setting in ("timeout_min=10", "signal_delay_s=30", "max_num_timeout=1")]
    launcher = submit("trainer.max_steps=100", *limit, *slowly)
    slurm.end_soon(until(lambda status: (status.step or 0) >= 2).job, seconds=75)
    status = until(lambda status: status.state == "preempted")
    assert 1 < status.step < 100
    slurm.start_now(status.job)
    process = launcher.wait()
    assert process.returncode == 0, process.stdout + process.stderr
    ended = read_status(tmp_path / "sweep" / "0")
    assert (ended.state, ended.starts, ended.job) == ("done", 2, status.job)
    assert slurm.details(status.job)["Restarts"] == "1"

    let_be = train(*quick, "trainer.max_steps=100", "hydra.run.dir=let_be")
    assert let_be.returncode == 0, let_be.stderr
    assert_same_weights(tmp_path / "sweep" / "0", tmp_path / "let_be")
