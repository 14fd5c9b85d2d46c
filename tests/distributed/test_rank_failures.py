"""A rank that fails brings the other down soon, and the reason is said once."""

from __future__ import annotations

import signal
import time

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.faults]
FAULT = ["+callbacks.fault._target_=rank_helpers.Fault", "trainer.max_steps=500", "hydra.run.dir=run"]
PATIENCE = "+callbacks.patience._target_=rank_helpers.ShortPatience"
SOON = 60


@pytest.fixture
def failed(start_ranks, quick):
    """Run two ranks to their failure; gives the codes and both outputs, in a bounded time."""

    def run(*arguments, **others):
        begun = time.monotonic()
        processes = start_ranks(*quick, *arguments, **others).wait(SOON)
        assert time.monotonic() - begun < SOON
        codes = [process.returncode for process in processes]
        assert 0 not in codes, processes
        return codes, [process.stderr for process in processes]

    return run


@pytest.mark.parametrize(("strategy", "rank"), [("ddp", 0), ("ddp", 1), ("fsdp", 1)])
def test_a_mistake_on_one_rank(failed, strategy, rank):
    codes, errors = failed(
        *FAULT, "+callbacks.fault.kind=user_error", f"+callbacks.fault.rank={rank}", f"trainer={strategy}"
    )
    assert codes == [1, 1]
    assert errors[rank] == "error: the sensor on the roof is wet: dry it\n"
    assert "error: " not in errors[1 - rank]
    assert "Traceback" not in errors[0] + errors[1]


def test_a_bug_on_one_rank(failed):
    codes, errors = failed(*FAULT, "+callbacks.fault.kind=bug")
    assert codes == [1, 1]
    assert errors[1].count("Traceback") == 1
    assert "KeyError: 'lost key'" in errors[1]
    assert errors[0] == ""


@pytest.mark.parametrize(
    ("kind", "rank", "code"), [("kill", 1, -signal.SIGKILL), ("exit", 1, 7), ("kill", 0, -signal.SIGKILL)]
)
def test_a_rank_that_is_gone(failed, kind, rank, code):
    codes, errors = failed(*FAULT, f"+callbacks.fault.kind={kind}", f"+callbacks.fault.rank={rank}")
    assert codes[rank] == code
    assert codes[1 - rank] == 1
    assert errors[rank] == ""
    assert "Traceback" not in errors[1 - rank]
    assert errors[1 - rank].count("error: ") == 1
    assert "lost" in errors[1 - rank] or "gone" in errors[1 - rank]


def test_a_rank_that_falls_silent(start_ranks, quick):
    """It is stopped as a whole, so that its heartbeat stops too; after 3 s here, else 60."""
    run = start_ranks(*quick, *FAULT, "+callbacks.fault.kind=silent", PATIENCE)
    begun = time.monotonic()
    zero = run.runs[0].wait(SOON)
    assert time.monotonic() - begun < SOON
    assert zero.returncode == 1
    assert zero.stderr.count("error: ") == 1
    assert "rank 1 has not been heard of for 3 s: it was killed or hangs" in zero.stderr
    run.signal(signal.SIGKILL, 1)
    assert run.runs[1].wait().returncode == -signal.SIGKILL


def test_a_rank_that_hangs_with_its_heart_beating(failed):
    codes, errors = failed(*FAULT, "+callbacks.fault.kind=hang", "trainer.timeout_seconds=4", PATIENCE)
    assert codes == [1, 1]
    assert "Traceback" not in errors[0] + errors[1]
    assert "imed out" in errors[0]


MISTAKES = {
    "data.batch_size=33": "cannot be shared by 2 ranks; the nearest sizes that can are 32 and 34",
    "model.encoder.dept=3": "Did you mean model.encoder.depth=3?",
    "trainer.max_steps=many": "trainer.max_steps=many: jepa.trainer.Trainer expects a whole number",
    "trainer.backend=nccl": "needs CUDA, but the device is cpu: use trainer.backend=gloo",
    "model.encoder.patch_size=3": "patch",
    "resume=nowhere": "no run folder or checkpoint at nowhere",
}


@pytest.mark.parametrize(("mistake", "words"), MISTAKES.items())
def test_a_wrong_config_is_said_once(failed, mistake, words):
    codes, errors = failed(mistake)
    assert codes == [1, 1]
    assert "Traceback" not in errors[0] + errors[1]
    said = (errors[0] + errors[1]).count("error: ")
    assert said == 1 or mistake == "trainer.backend=nccl", errors  # what a device can is for each rank to say
    assert words in errors[0] + errors[1]
