"""The optimizers of conf/optimizer on the model of a tiny run."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
import torch

from jepa import load_config
from jepa.config.build import build, build_model, build_trainer, to_plain
from jepa.config.check import check_config
from jepa.optim import parameter_groups
from jepa.types import StepRandomness
from jepa.utils.errors import UserError

CONF = Path(__file__).resolve().parents[2] / "conf"
OPTIMIZERS = sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml"))
FAST = {"sgd": ["optimizer.lr=0.2"], "lars": ["optimizer.trust_coeff=0.02"]}
"""What goes somewhere in a few steps; the others take a learning rate of 3e-3."""


@pytest.fixture(scope="module")
def make(tiny):
    """A tiny run's configuration, model and optimizer."""

    def build_both(*overrides):
        config = load_config([*tiny, *overrides])
        check_config(to_plain(config))
        model = build_model(config)
        return config, model, build(config, "optimizer")(parameter_groups(model))

    return build_both


@lru_cache
def batch():
    torch.manual_seed(0)
    return {"views": torch.randn(32, 2, 1, 8, 8)}


def loss_of(model, step=0):
    rng = StepRandomness(seed=0, step=step, total=32, start=0, count=32)
    return model.loss(model(model.prepare(batch(), rng)))["loss"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_reduces_the_loss(make, name):
    overrides = [f"optimizer={name}", *FAST.get(name, ["optimizer.lr=3e-3"])]
    _, model, optimizer = make(*overrides)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    losses = []
    for step in range(8):
        if step == 4:  # from here on with weights and state as a checkpoint would give them
            state, weights = optimizer.state_dict(), model.state_dict()
            _, model, optimizer = make(*overrides)
            model.load_state_dict(weights)
            optimizer.load_state_dict(state)
        loss = loss_of(model)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    losses.append(loss_of(model).item())
    assert losses[-1] < 0.97 * losses[0], losses
    assert max(losses[4:]) < max(losses[:4])
    moved = [n for n, p in model.named_parameters() if n in before and not torch.equal(p, before[n])]
    assert set(moved) == set(before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_reaches_the_decaying_groups_alone(make, name):
    """One step with and one without decay from the same weights: the same but for what decays."""
    after = {}
    for decay in (0.0, 0.3):
        _, model, optimizer = make(f"optimizer={name}", "optimizer.lr=0.01", f"optimizer.weight_decay={decay}")
        decays = {id(p): group["decays"] for group in optimizer.param_groups for p in group["params"]}
        assert {group["weight_decay"] for group in optimizer.param_groups if not group["decays"]} == {0.0}
        loss_of(model).backward()
        optimizer.step()
        after[decay] = {n: (p, decays[id(p)]) for n, p in model.named_parameters() if p.requires_grad}
    for parameter, (still, decays) in after[0.0].items():
        assert torch.equal(still, after[0.3][parameter][0]) != decays, parameter


def test_muon_takes_matrices_and_adamw_the_rest(make):
    _, model, optimizer = make("optimizer=muon", "loss=invariance_sigreg")
    loss_of(model).backward()
    optimizer.step()
    names = {p: n for n, p in model.named_parameters()}
    by_muon = {names[p] for p, state in optimizer.state.items() if state["use_muon"]}
    by_adamw = {names[p] for p, state in optimizer.state.items() if not state["use_muon"]}
    assert {"encoder.vit.patch_embed.proj.weight", "encoder.vit.blocks.0.attn.qkv.weight"} <= by_muon
    assert {"predictor.embed.weight", "predictor.project.weight", "loss.projector.layers.0.weight"} <= by_muon
    assert {"predictor.mask_token", "encoder.vit.patch_embed.proj.bias", "encoder.vit.norm.weight"} <= by_adamw
    parameters = dict(model.named_parameters())
    assert all(n.endswith(".weight") and parameters[n].ndim in (2, 4) for n in by_muon)
    assert all(n == "predictor.mask_token" or parameters[n].ndim == 1 for n in by_adamw)
    assert by_muon | by_adamw == {n for n, p in parameters.items() if p.requires_grad}
    for parameter, state in optimizer.state.items():
        assert ("momentum_buffer" in state, "exp_avg_sq" in state) == (state["use_muon"], not state["use_muon"])
        assert parameter.grad is not None


def test_a_step_of_muon_is_orthogonal(make):
    """Its singular values lie near lr * 0.2 * sqrt(larger side), whatever the gradient's are."""
    config, _, _ = make("optimizer=muon", "optimizer.weight_decay=0", "optimizer.lr=0.1")
    layer = torch.nn.Linear(32, 96, bias=False)
    before = layer.weight.detach().clone()
    left, _, right = torch.linalg.svd(torch.randn(96, 32), full_matrices=False)
    layer.weight.grad = left @ torch.diag(torch.linspace(0.1, 2.0, 32)) @ right
    build(config, "optimizer")(parameter_groups(layer)).step()
    values = torch.linalg.svdvals(layer.weight.detach() - before) / (0.1 * 0.2 * 96**0.5)
    assert 0.6 < values.min() < values.max() < 1.4


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (["optimizer=lars", "optimizer.momentum=abc"], "optimizer.momentum=abc: timm.optim.Lars expects a number"),
        (["optimizer=sgd", "optimizer.momentum=abc"], "optimizer.momentum=abc"),
        (["optimizer=muon", "+optimizer.lrr=1"], "Did you mean optimizer.lr=1?"),
        (["optimizer=adam", "optimizer.betas=0.9"], "optimizer.betas=0.9"),
        (["optimizer=sgd", "optimizer.momentum=-1"], "optimizer: Invalid momentum value: -1"),
    ],
)
def test_mistakes(tiny, override, words, tmp_path):
    with pytest.raises(UserError) as error:
        build_trainer(load_config([*tiny, *override, f"run_dir={tmp_path}"]))
    assert words in str(error.value)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizers_own_rate_stands_unless_asked(tiny, name):
    own = load_config([*tiny, f"optimizer={name}"]).optimizer
    assert own.lr == {"adam": 1e-3, "adamw": 1e-3, "lars": 0.3, "muon": 1e-3, "sgd": 0.05}[name]
    assert load_config([*tiny, f"optimizer={name}", "optimizer.lr=0.3"]).optimizer.lr == 0.3
