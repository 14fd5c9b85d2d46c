"""Measures of roll-outs, on worlds whose truth is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from jepa.evaluation import FrozenEvaluation
from jepa.evaluation.results import compared
from jepa.evaluation.world import WorldProbe
from jepa.types import DataSpec


class Walks:
    """Agents that move by their actions; frames are a mirrored position, and a second number that tells nothing."""

    factor_names = ("end", "fixed")
    spec = DataSpec(64, 32, (5, 2), None, found={"action_dim": 1})

    def evaluation_batches(self, split, *, batch_size, limit=None):
        generator = torch.Generator().manual_seed(len(split))
        for _ in range(3):
            actions = torch.randn(limit or 16, 4, 1, generator=generator)
            states = torch.cat([torch.zeros(len(actions), 1, 1), actions.cumsum(dim=1)], dim=1)
            x = torch.cat([-states, torch.randn(*states.shape, generator=generator)], dim=-1)
            factors = torch.stack([states[:, -1, 0], torch.ones(len(states))], dim=1)
            yield {"x": x, "actions": actions, "states": states, "factors": factors}

    def has_truth(self, what):
        return what == "events"

    def truth_batches(self, split, *, batch_size, limit, what):
        batch = next(self.evaluation_batches(split, batch_size=batch_size))
        batch["event"], moved = torch.arange(len(batch["x"])) % 4 + 1, batch["x"].clone()
        moved[torch.arange(len(moved)), batch["event"], 0] += 10
        yield {**batch, "wall": moved, "teleport": moved}


class Exact(nn.Module):
    """Knows positions: states are frames without what tells nothing. gain: how far it thinks that actions reach."""

    history = 1

    def __init__(self, gain: float = 1.0, drift: float = 0.0):
        super().__init__()
        self.encoder = nn.Identity()
        self.gain = gain

    def encode(self, x):
        return x[..., :1]

    encode_target = encode

    def rollout(self, states, actions):
        return states[:, -1:] - self.gain * actions.cumsum(dim=1)

    def one_step(self, states, actions):
        return states[:, :-1] - self.gain * actions


def test_what_an_exact_and_a_blind_model_score():
    evaluation = FrozenEvaluation(
        probes={"world": WorldProbe(steps=[1, 4, 9], epochs=60, learning_rate=0.01)}, batch_size=16
    )
    results = evaluation(Exact(), Walks(), random_init=lambda: Exact(gain=0.0), device="cpu")
    exact, blind = results["trained"], results["random_init"]
    assert not any(name.startswith("world") for name in results["raw_input"])
    assert exact["world/error/4"] == pytest.approx(0, abs=1e-9)
    for name, value in {"error/1": 0.4, "error/4": 1.6, "error/still/4": 1.6}.items():  # variance 2, mean over 5 steps
        assert blind[f"world/{name}"] == pytest.approx(value + value / 4, rel=0.4)
    for probe in ("linear", "mlp"):
        assert exact[f"world/state_error/{probe}/4"] < 0.3
        assert exact[f"world/state_error/{probe}/encoded"] < 0.3
        assert blind[f"world/state_error/{probe}/4"] > 1
    assert exact["world/factor/end"] == pytest.approx(0.5, abs=0.15)  # of its variance 4, step t tells t
    assert "world/factor/fixed" not in exact
    assert exact["world/surprise/wall/auc"] == exact["world/surprise/teleport/auc"] == 1
    assert blind["world/surprise/wall/ratio"] > 10
    said = evaluation.table(results).caption
    assert "better than random weights in world/error/1" in said
    assert "nothing moved" not in said
    worse = {**exact, "world/error/4": 1.1 * exact["world/error/still/4"]}
    said = evaluation.table({**results, "trained": worse}).caption
    assert said.endswith("; the error is larger than if nothing moved in world/error/4")
    planned = {"/success": (0.6, 0.4), "/low": (0.39, 0.22), "/high": (0.78, 0.61), "/seconds_per_episode": (1.0, 2.0)}
    rows = {
        row: {f"planning{name}": v[n] for name, v in planned.items()}
        for n, row in enumerate(("trained", "random_init"))
    }
    said = compared(rows, samples=500)  # of the windows, and not the episodes
    assert said == (
        "no clear difference, within two standard errors, in planning/success (random_init 0.400, trained 0.600)"
    )


def test_bad_steps():
    with pytest.raises(ValueError, match=r"evaluation.probes.world.steps: got \[0\]"):
        WorldProbe(steps=[0])
