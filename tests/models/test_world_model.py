"""World models: states, roll-outs under actions, targets, and what they refuse."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from jepa.losses import MSE, InverseDynamics, Objective, OneStep, Variance
from jepa.models import EMATarget, SharedTarget, StopGradientTarget, TeacherTarget, vision_transformer
from jepa.models.encoders.impala import IMPALA, VectorEncoder
from jepa.models.world_model import WorldModel
from jepa.models.world_predictors import CausalPredictor, GRUPredictor, MLPPredictor
from jepa.optim import Constant
from jepa.types import RunLength, StepRandomness

CAUSAL = partial(CausalPredictor, depth=2, num_heads=2)
TERMS = {
    "prediction": {"weight": 1.0, "term": MSE()},
    "one_step": {"weight": 1.0, "term": OneStep(distance=MSE())},
    "inverse_dynamics": {"weight": 1.0, "term": partial(InverseDynamics, hidden=[8])},
    "variance": {"weight": 1.0, "term": Variance(views_together=True)},
}
RNG = StepRandomness(seed=0, step=0, total=4, start=0, count=4)


def make(**changes) -> WorldModel:
    torch.manual_seed(0)
    settings = {
        "encoder": VectorEncoder(channels=3, embed_dim=8, hidden=[16]),
        "predictor": GRUPredictor,
        "target": SharedTarget,
        "loss": partial(Objective, terms=TERMS),
        "action_dim": 2,
        "action_low": -2.0,
        "action_high": [2.0, 3.0],
        "rollout_steps": 4,
    }
    return WorldModel(**{**settings, **changes})


def batch(frames: int = 7, shape: tuple[int, ...] = (3,)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    actions = torch.rand(4, frames - 1, 2, generator=generator)
    return {"x": torch.randn(4, frames, *shape, generator=generator), "actions": actions}


@pytest.mark.parametrize("predictor", [GRUPredictor, MLPPredictor, CAUSAL], ids=["gru", "mlp", "causal"])
def test_roll_outs(predictor):
    """The first step is the teacher-forced one after any history, further ones go on from it, none sees the future."""
    model, given = make(predictor=predictor, action_mean=0.3, action_std=2.0).eval(), batch()
    if predictor is CAUSAL:  # at first nothing depends on actions
        for block in model.predictor.blocks:
            torch.nn.init.normal_(block.condition.weight)
    with torch.no_grad():
        states, actions = model.encode(given["x"]), given["actions"]
        single = model.one_step(states, actions)
        assert single.shape == (4, 6, 8)
        for history in (1, 2, 3, 5):
            rolled = model.rollout(states[:, :history], actions)
            assert rolled.shape == (4, 7 - history, 8)
            assert torch.allclose(rolled[:, 0], single[:, history - 1], atol=1e-6)
            assert torch.equal(model.rollout(states[:, :history], actions.double()), rolled)
            further = torch.cat([states[:, :history], rolled[:, :1]], dim=1)
            assert torch.allclose(model.rollout(further, actions), rolled[:, 1:], atol=1e-6)
        other = actions.clone()
        other[:, 3] += 1
        changed = (model.rollout(states[:, :2], other) - model.rollout(states[:, :2], actions)).abs().amax((0, 2)) > 0
        assert changed.tolist() == [False, False, True, True, True]
    terms = model.train().training_step(given, RNG)
    terms["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert terms["loss/prediction"] > 0


def test_targets():
    """Shared ones have gradients, stopped and averaged ones do not; an average follows; a frozen encoder stays."""
    only = partial(Objective, terms={"prediction": TERMS["prediction"], "variance": TERMS["variance"]})
    gradients = []
    for target in (SharedTarget, StopGradientTarget, partial(EMATarget, momentum=Constant(value=0.5))):
        model = make(target=target, loss=only)
        latents = model({**batch(), "rng": RNG})
        assert latents.embeddings.shape == (7, 4, 8)
        assert latents.targets[0].shape == latents.predictions[0].shape == (4, 1, 4, 8)
        gradients.append(latents.targets[0].requires_grad)
    assert gradients == [True, False, False]
    with torch.no_grad():
        model.encoder.layers[0].weight.add_(1.0)
        assert not torch.allclose(model.encode_target(batch()["x"]), model.encode(batch()["x"]))
        model.update_target(0, RunLength(10, 10))
    assert "target.encoder.layers.0.weight" in model.state_dict()
    frozen = make(
        freeze_encoder=True,
        loss=only,
        encoder=vision_transformer(
            image_size=8, channels=2, patch_size=4, embed_dim=8, depth=1, num_heads=2, dropout=0.5
        ),
    ).train()
    given = batch(shape=(2, 8, 8))
    frozen.training_step(given, RNG)["loss"].backward()
    assert all(p.grad is None for p in frozen.encoder.parameters())
    assert frozen.norm.weight.grad is None  # a gain of 0 would make the prediction's error 0
    assert all(p.grad is not None for p in frozen.predictor.parameters())
    mean = frozen.encoder(given["x"].flatten(0, 1)).mean(dim=1)  # without dropout, although in training
    assert torch.allclose(frozen.encode(given["x"]).flatten(0, 1), frozen.norm(mean), atol=1e-6)


def test_the_published_sizes():
    torch.manual_seed(0)
    model = make(encoder=IMPALA(image_size=65, channels=2), loss=partial(Objective, terms=TERMS))
    assert model.encoder.project.in_features == 2592
    assert model.encode(torch.randn(1, 2, 2, 65, 65)).shape == (1, 2, 512)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert counts["encoder"] == 1_425_072
    assert counts["predictor"] == 3 * 512 * (512 + 2) + 6 * 512


def nan(actions):
    actions[1, 2, 0] = torch.nan
    return actions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: torch.cat([a, a], dim=-1), r"actions of shape \(4, 6, 4\) and float32, and the model takes floats "),
        (lambda a: a.long(), r"actions of shape \(4, 6, 2\) and int64, and the model takes floats \(B, steps, 2\)"),
        (nan, "got an action of nan, and the model was trained on actions from "),
        (
            lambda a: a * 100,
            r"trained on actions from \[-2.0, -2.0\] to \[2.0, 3.0\]: give them in the units of its data",
        ),
        (lambda a: a[:, :1], r"a history of shape \(4, 2, 8\) wants at least 2 actions for each of its 4 samples"),
    ],
)
def test_actions_of_another_kind(change, message):
    model, given = make(), batch()
    with pytest.raises(ValueError, match=message):
        model.rollout(torch.zeros(4, 2, 8), change(given["actions"]))


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({}, {"x": torch.zeros(4, 3)}, "takes trajectories.* use data=two_rooms or data=trajectories"),
        ({}, {**batch(), "actions": torch.zeros(4, 7, 2)}, "expected an action between every two frames"),
        ({"rollout_steps": 8}, batch(), r"need windows of 9 frames, .* is 7: set model.rollout_steps=6"),
        ({}, batch(shape=(4,)), r"expected frames \(B, 3\), got \(28, 4\)"),
        ({"target": TeacherTarget}, None, "model/target=shared, stop_gradient or ema; model/encoder=frozen"),
        ({"action_low": [0.0] * 3}, None, r"model.action_low=\[.*\]: expected a number, or 2"),
        ({"action_low": 5.0}, None, "above action_high"),
        ({"norm": "batch"}, None, "model.norm: got 'batch'"),
        ({"freeze_encoder": True, "target": StopGradientTarget}, None, "is its own target"),
        ({"loss": partial(Objective, terms={"prediction": TERMS["prediction"]})}, None, "collapses to a constant"),
    ],
)
def test_what_is_refused(changes, given, message):
    if "target" in changes and given is None and changes["target"] is TeacherTarget:
        changes = {"target": partial(TeacherTarget, out_dim=8)}
    with pytest.raises(ValueError, match=message):
        make(**changes).training_step(given, RNG)
