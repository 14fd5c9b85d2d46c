"""Ranks that were stopped or killed go on exactly, in either format and on another number of ranks."""

from __future__ import annotations

import functools
import json
import signal
import time

import pytest
import torch

from jepa.checkpoint.load import read_file

pytestmark = pytest.mark.slow
STEPS = 14
# Nothing scheduled, so that a run of fewer steps is the start of a longer one.
STEADY = ["scheduler=constant", "model.target.momentum.start=0.99", "model.target.momentum.final=0.99"]
RUN = [
    *STEADY,
    "trainer.save_every_steps=2",
    "hydra.run.dir=run",
    "model.encoder.dropout=0.1",
    f"trainer.max_steps={STEPS}",
]
SLOW = ["+callbacks.slow._target_=rank_helpers.Slow", "+callbacks.slow.seconds=0.15"]
SHARDED = ["trainer.checkpoint_format=sharded"]


@pytest.fixture(scope="module")
def whole(begin_ranks, tmp_path_factory, quick):
    """Folders of runs of two ranks that were never interrupted, by strategy."""

    @functools.cache
    def run(strategy: str):
        folder = tmp_path_factory.mktemp(f"whole_{strategy}")
        begin_ranks(*quick, *RUN, f"trainer={strategy}", folder=folder).succeed()
        return folder / "run"

    return run


def lines_of(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["train/loss"], line["grad_norm"]) for line in lines]


def logged(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().count('"train/loss"') if path.exists() else 0


def wait_for(condition, timeout=300):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def tensors_of(node, path=""):
    if isinstance(node, torch.Tensor):
        return {path: node}
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    return {name: t for key, value in items for name, t in tensors_of(value, f"{path}/{key}").items()}


def assert_same(folder, other, exact=True):
    """Weights, optimizer and metrics of two runs."""
    states = []
    for each in (folder, other):
        plain, sharded = each / "checkpoints/last.pt", each / "checkpoints/last.sharded"
        content = read_file(plain if plain.exists() else sharded)
        assert content["step"] == STEPS
        states.append(tensors_of({"model": content["model"], "optimizer": content["optimizer"]["state"]}))
    assert states[0].keys() == states[1].keys()
    for name in states[0]:
        if exact:
            assert torch.equal(states[0][name], states[1][name]), name
        else:
            torch.testing.assert_close(states[0][name], states[1][name], rtol=1e-3, atol=1e-5, msg=name)
    ones, others = lines_of(folder), lines_of(other)
    assert [line[0] for line in ones] == [line[0] for line in others] == list(range(1, STEPS + 1))
    if exact:
        assert ones == others
    else:
        assert [line[1] for line in ones] == pytest.approx([line[1] for line in others], rel=1e-4)


def codes_of(processes):
    return [process.returncode for process in processes]


@pytest.mark.parametrize("told", [(0, 1), (1,)])
@pytest.mark.faults
def test_stopped_by_a_signal(start_ranks, train_ranks, quick, tmp_path, whole, told):
    """Also by one that only one rank gets."""
    folder = tmp_path / "run"
    run = start_ranks(*quick, *RUN, *SLOW, "trainer=ddp")
    wait_for(lambda: logged(folder) >= 5)
    run.signal(signal.SIGTERM, *told)
    zero, one = run.wait()
    assert codes_of((zero, one)) == [128 + signal.SIGTERM] * 2, zero.stderr + one.stderr
    step = torch.load(folder / "checkpoints/last.pt", weights_only=True)["step"]
    assert zero.stderr.startswith(f"stopped at step {step} of {STEPS}")
    assert one.stderr == ""
    assert lines_of(folder)[-1][0] == step
    processes = train_ranks("resume=run", "~callbacks.slow")
    assert f"at step {step} of {STEPS}" in processes[0].stdout
    assert_same(folder, whole("ddp"))


@pytest.mark.parametrize(
    ("strategy", "more"), [("ddp", ["trainer.async_save=true"]), ("fsdp", [*SHARDED, "trainer.async_save=true"])]
)
@pytest.mark.faults
def test_killed(start_ranks, train_ranks, quick, tmp_path, whole, strategy, more):
    """While checkpoints are written in the background. What a killed run left half written is ignored, and goes."""
    folder = tmp_path / "run"
    arguments = [*quick, *RUN, f"trainer={strategy}", *more, "resume=auto"]
    run = start_ranks(*arguments, *SLOW)
    wait_for(lambda: logged(folder) >= 6)
    run.signal(signal.SIGKILL)
    assert codes_of(run.wait()) == [-signal.SIGKILL] * 2
    half = folder / "checkpoints/sharded_00000009"
    if more[0] == SHARDED[0]:
        half.mkdir()
        (half / "__0_0.distcp").write_bytes(b"half")
    processes = train_ranks(*arguments)
    assert "resumed from" in processes[0].stdout
    assert_same(folder, whole(strategy))
    assert not half.exists()
    assert not list(folder.rglob(".*.writing"))


def test_plain_from_fsdp_is_resumed_exactly(train_ranks, quick, tmp_path, whole):
    for steps in (6, STEPS):
        train_ranks(*quick, *RUN, "trainer=fsdp", "resume=auto", f"trainer.max_steps={steps}")
    assert_same(tmp_path / "run", whole("fsdp"))


def test_sharded_on_two_ranks_then_one_then_two(start_ranks, train_ranks, train, quick, tmp_path, whole):
    """By SGD and without dropout, which adds the rank to its seed: then ranks change nothing but rounding."""
    quick = [*quick, *(option for option in RUN if "dropout" not in option), "optimizer=sgd", "optimizer.lr=0.01"]
    arguments, folder = [*quick, *SHARDED, "resume=auto"], tmp_path / "run"
    for steps, ranks in ((4, 2), (8, 1), (STEPS, 2)):
        given = [*arguments, f"trainer.max_steps={steps}", "trainer=fsdp"]
        processes = train_ranks(*given) if ranks == 2 else [train(*given)]
        assert set(codes_of(processes)) == {0}, processes
        assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["last.sharded", f"sharded_{steps:08d}"]
    other = tmp_path / "other"
    other.mkdir()
    process = train(*quick, folder=other)
    assert process.returncode == 0, process.stderr
    assert_same(folder, other / "run", exact=False)

    process = train(*quick, "init_from=run", "hydra.run.dir=next", "trainer.max_steps=1", "optimizer.lr=1e-9")
    assert process.returncode == 0, process.stderr
    ours, theirs = (
        read_file(path)["model"]
        for path in (tmp_path / "next/checkpoints/last.pt", folder / "checkpoints/last.sharded")
    )
    for name in (name for name in theirs if name.startswith("encoder.")):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)
    part = folder / "checkpoints/last.sharded/__1_0.distcp"
    part.write_bytes(part.read_bytes()[:100])
    again = start_ranks(*arguments, "trainer=fsdp", "trainer.max_steps=20").wait()
    assert codes_of(again) == [1, 1]
    assert any("a part of it is missing or damaged" in p.stderr for p in again)
    assert sum(p.stderr.count("error: ") for p in again) == 1
