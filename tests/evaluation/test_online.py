"""Probes that are trained along with a run: what they score, and that the run does not notice."""

from __future__ import annotations

import json

import pytest
import torch

from jepa import build_trainer, load_config
from jepa.evaluation import OnlineKNN, OnlineLinear, OnlineProbe, OnlineProbes, OnlineRank
from jepa.utils.errors import UserError

ONLINE = ["evaluation=online", "evaluation.at_end=false", "~logger.tensorboard", "evaluation.online.every_steps=2"]
NAMES = [f"online/{name}/{split}" for name in ("linear", "knn", "rank") for split in ("train", "val")]


def clusters(samples, seed):
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (samples,), generator=random)
    centres = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    return 5 * centres[labels] + torch.randn(samples, 16, generator=random) + 7, labels


@pytest.mark.parametrize("probe", [OnlineLinear(), OnlineKNN(k=5, queue=100)])
def test_probes_learn_classes(probe):
    probe.classes = 3
    for step in range(100):
        probe.learn(*clusters(32, step))
    assert probe.score(*clusters(200, 999)) > 0.95


def test_the_rank_is_that_of_the_last_features():
    probe = OnlineRank(queue=20)
    for step in range(5):
        probe.learn(torch.randn(8, 16) * (step > 1), None)
    assert probe.state["x"].shape == (20, 16)
    assert 8 < probe.train_score(None, None) < 16


def trained(tiny, folder, *options, steps=6):
    overrides = [*tiny, "trainer.validate_every_steps=3", f"trainer.max_steps={steps}", *options]
    trainer = build_trainer(load_config([*overrides, f"run_dir={folder}"]))
    trainer.fit()
    return trainer


@pytest.mark.slow
def test_a_run_has_the_same_weights_and_loss_and_scores_beside(tiny, tmp_path):
    plain = trained(tiny, tmp_path / "plain", "evaluation=none", "~logger.tensorboard")
    probed = trained(tiny, tmp_path / "probed", *ONLINE)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, probed.model.state_dict()[name]), name
    assert plain.metrics["val/loss"] == probed.metrics["val/loss"]
    assert set(NAMES) <= probed.metrics.keys()
    assert 0 <= probed.metrics["online/linear/val"] <= 1 < probed.metrics["online/rank/val"]
    rows = [json.loads(line) for line in (tmp_path / "probed" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "online/linear/train" in row] == [2, 4, 6]
    assert [row["step"] for row in rows if "online/linear/val" in row] == [3, 6]
    assert not probed.model._forward_hooks


class FailAt:
    """Ends a run in a step."""

    def __init__(self, step):
        self.step = step

    def __getattr__(self, name):
        return lambda *arguments: {} if name == "state_dict" else None

    def step_end(self, trainer):
        if trainer.step == self.step:
            raise RuntimeError("power is gone")


@pytest.mark.slow
def test_micro_batches_and_a_resumed_run_change_nothing(tiny, tmp_path):
    whole = trained(tiny, tmp_path / "whole", *ONLINE)
    options = [*ONLINE, "trainer.validate_every_steps=3", "trainer.save_every_steps=4", f"run_dir={tmp_path / 'cut'}"]
    first = build_trainer(load_config([*tiny, *options]))
    first.callbacks["fails"] = FailAt(5)
    with pytest.raises(RuntimeError, match="power is gone"):
        first.fit()
    second = build_trainer(load_config([*tiny, *options, "resume=auto"]))
    second.fit()
    small = trained(tiny, tmp_path / "micro", *ONLINE, "trainer.micro_batch_size=8")
    for name in NAMES:
        assert second.metrics[name] == whole.metrics[name], name
        assert small.metrics[name] == pytest.approx(whole.metrics[name], abs=0.5 if "rank" in name else 0.02), name


class Norm(OnlineProbe):
    ready = True

    def score(self, x, labels):
        return float(x.norm(dim=1).mean())


def test_a_probe_that_learns_nothing_is_scored(tiny, tmp_path):
    trainer = build_trainer(load_config([*tiny, "evaluation=none", "~logger.tensorboard", f"run_dir={tmp_path}"]))
    trainer.callbacks["online"] = OnlineProbes(probes={"norm": Norm()}, every_steps=1)
    trainer.fit()
    assert trainer.metrics["online/norm/train"] > 0


def test_what_cannot_be_probed_is_said(tiny, tmp_path):
    probes = OnlineProbes(probes={"linear": OnlineLinear(label="species"), "gone": None}, every_steps=1)
    trainer = build_trainer(load_config([*tiny, "evaluation=none", "~logger.tensorboard", f"run_dir={tmp_path}"]))
    trainer.callbacks["online"] = probes
    with pytest.raises(UserError, match=r"evaluation.online.probes.linear.label=species: a batch holds no such labels"):
        trainer.fit()
    object.__setattr__(trainer.data.spec, "classes", None)
    with pytest.raises(UserError, match=r"evaluation.online.probes.linear needs labels, and the data has none"):
        probes.begin(trainer)
    with pytest.raises(UserError, match="gives no `embeddings`"):
        OnlineProbes(probes={}).step_end(trainer)
    with pytest.raises(ValueError, match="lr=0"):
        OnlineLinear(lr=0)
