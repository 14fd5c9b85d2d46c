"""Two ranks of half the batch train as one process does, with DDP and with FSDP; so do micro-batches."""

from __future__ import annotations

import json

import pytest
import torch
from rank_trainings import SINGLE, TRAININGS

pytestmark = pytest.mark.slow
MEASURED = {"samples_per_second", "data_wait", "memory_gib", "cost/seconds"}
ESTIMATED = {"update_ratio", "train/embedding_std", "train/target_std", "train/prediction_std"}
"""From a few entries or rows."""
SCRIPT = "tests/distributed/rank_trainings.py"
ON_RANKS = [name for name in TRAININGS if name not in SINGLE] + ["ddp_unused", "fsdp_unused", "ddp_shares"]
KINDS = ("ddp", "fsdp")


@pytest.fixture(scope="module")
def trained(begin_ranks, tmp_path_factory):
    """Every training, run once: a function from its name and a rank to what it came to."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("single", "ranks")}
    ranks = begin_ranks(str(folders["ranks"]), *ON_RANKS, folder=folders["ranks"], script=SCRIPT)
    names = [*SINGLE, "single_shares"]
    begin_ranks(str(folders["single"]), *names, folder=folders["single"], ranks=1, script=SCRIPT).succeed()
    ranks.succeed(timeout=500)

    def result(name: str, rank: int = 0) -> dict:
        kind = "ranks" if name.startswith(KINDS) else "single"
        return torch.load(folders[kind] / f"{name}_{rank}.pt", weights_only=False)

    return result


def assert_same_lines(ones, others, relative=1e-4, absolute=1e-6, but=frozenset()):
    """Every metric of every line of metrics.jsonl but the monitor's, of rows that ranks and micro-batches choose."""
    assert len(ones) == len(others) > 0
    for one, other in zip(ones, others):
        one, other = ({k: v for k, v in line.items() if not k.startswith("monitor/")} for line in (one, other))
        assert one.keys() == other.keys()
        for name in one.keys() - MEASURED - ESTIMATED - but:
            if one[name] is None:  # not finite: an overflow of fp16
                assert other[name] is None
                continue
            assert other[name] == pytest.approx(one[name], rel=relative, abs=absolute), f"{name} at {one['step']}"


def assert_same_weights(one, other, relative=1e-4, absolute=2e-6):
    """Every parameter and buffer."""
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            other[name], one[name], rtol=relative, atol=absolute, msg=lambda m, n=name: f"{n}: {m}"
        )


def assert_identical(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["default", "val33", "coverage", "own", "stopped"])
def test_two_ranks_are_one_process(trained, kind, name):
    """Losses of every term, gradient norms, val/loss (its last batch has 3 samples, val33's has 1) and weights."""
    one, two = trained(name), trained(f"{kind}_{name}")
    assert (one["wrapped"], two["wrapped"]) == ("single", kind)
    assert_same_lines(one["lines"], two["lines"])
    assert_same_weights(one["model"], two["model"])


@pytest.mark.parametrize("name", [name for name in TRAININGS if name not in SINGLE])
def test_ranks_agree(trained, name):
    zero, one = trained(name, 0), trained(name, 1)
    assert_identical(zero["model"], one["model"])
    assert (zero["step"], zero["scaler"]) == (one["step"], one["scaler"])


@pytest.mark.parametrize("name", ["default", "own", "adamw", "lars", "fp16"])
def test_fsdp_is_ddp(trained, name):
    """With the norm of every gradient (adamw), and evaluation; Adam's division makes it no looser than rounding."""
    one, two = trained(f"ddp_{name}"), trained(f"fsdp_{name}")
    assert_same_lines(one["lines"], two["lines"])
    assert_same_weights(one["model"], two["model"])
    if name == "adamw":
        assert sum(key.startswith("grad_norm/encoder.vit.blocks.1.") for key in two["lines"][0]) == 12
        assert {key for key in two["metrics"] if key.startswith("eval/")} >= {"eval/trained/knn", "eval/trained/linear"}


def test_muon_under_fsdp_is_muon_under_ddp(trained):
    """Its Newton-Schulz iterations run in bfloat16."""
    one, two = trained("ddp_muon"), trained("fsdp_muon")
    assert_same_lines(one["lines"], two["lines"], relative=2e-3)
    for name, weight in one["model"].items():
        assert (two["model"][name] - weight).float().norm() <= 0.01 * weight.float().norm() + 1e-3, name


@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_another_optimizer(trained, kind):
    runs = trained("adamw"), trained(f"{kind}_adamw")
    losses = [[line["train/loss"] for line in run["lines"] if "train/loss" in line] for run in runs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["tokens", "coverage"])
def test_micro_batches_are_one_batch(trained, kind, name):
    one, parts = trained(name), trained(f"{kind}_{name}_in_parts")
    assert_same_lines(one["lines"], parts["lines"])
    assert_same_weights(one["model"], parts["model"])


def test_recomputed_activations_change_nothing(trained):
    assert_same_lines(trained("fsdp_default")["lines"], trained("fsdp_recomputed")["lines"])
    assert_same_weights(trained("fsdp_default")["model"], trained("fsdp_recomputed")["model"])


def test_each_rank_takes_its_slice_of_data_and_masks(trained):
    whole, parts = trained("single_shares")["taken"], [trained("ddp_shares", rank)["taken"] for rank in (0, 1)]
    for step in range(2):
        for name, tensor in whole[step].items():
            assert torch.equal(torch.cat([part[step][name] for part in parts]), tensor), name
            assert not torch.equal(parts[0][step][name], parts[1][step][name]), name
        assert not torch.equal(whole[0]["views"], whole[1]["views"])


@pytest.mark.parametrize("kind", KINDS)
def test_an_own_step_trains_what_it_uses(trained, kind):
    """It calls submodules by themselves: the ranks agree (above), and what it leaves out stays as it was."""
    before, after = trained(f"{kind}_stopped")["model"], trained(f"{kind}_own")["model"]
    head = "loss.projector.layers.0.weight"
    assert not torch.equal(before[head], after[head])
    assert torch.equal(after[head], trained("own")["model"][head])
    assert trained(f"{kind}_own")["lines"][-1]["grad_norm/loss"] == 0


def test_an_unused_parameter_is_named(trained):
    for rank in (0, 1):
        message = trained("ddp_unused", rank)["refused"]
        assert message.startswith("1 parameters took no part in the loss (idle")
        assert "trainer.find_unused_parameters=true" in message
        assert trained("fsdp_unused", rank) == {"step": 1}  # shards wait for nobody


def test_early_stopping_ends_both_ranks_at_the_same_step(trained):
    for kind in KINDS:
        assert {trained(f"{kind}_stopped", rank)["step"] for rank in (0, 1)} == {trained("stopped")["step"]}
        assert trained(f"{kind}_stopped")["step"] < 5


@pytest.mark.parametrize("name", ["ddp_fp16", "fsdp_fp16", "fsdp_fp16_sgd"])
def test_fp16_skips_the_same_steps_on_all_ranks(trained, name):
    """The scale starts so high that the first steps overflow."""
    zero, one = (trained(name, rank) for rank in (0, 1))
    assert zero["scaler"] == one["scaler"]
    assert 2.0**10 < zero["scaler"]["scale"] < 2.0**22
    taken = [line["grad_norm"] is not None for line in zero["lines"]]
    assert not taken[0]
    assert any(taken)


def test_one_rank_may_ask_for_the_end_and_what_differs_by_rank_is_agreed_on(train_ranks, quick, tmp_path):
    ask = ["+callbacks.ask._target_=rank_helpers.AskForTheEnd", "+callbacks.ask.rank=1", "+callbacks.ask.step=3"]
    best = ["trainer.best_metric=data_wait", "trainer.best_k=2", "trainer=fsdp", "trainer.max_steps=50"]
    train_ranks(*quick, *ask, *best, "hydra.run.dir=run")
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert (results["step"], results["stopped"]) == (3, "rank 1 has had enough")
