"""Every conf/loss/*.yaml by itself: it builds, and gives a finite loss whose gradient reaches what the loss reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from jepa import load_config
from jepa.config.check import check_config
from jepa.types import Latents, StepRandomness, WorldLatents

CONF = Path(__file__).resolve().parents[2] / "conf" / "loss"
LOSSES = sorted(path.stem for path in CONF.glob("*.yaml"))
DIM, VALUES = 8, 12
SMALL = {"loss.projector.hidden": [16], "loss.projector.out_dim": 4}
PREVENT = set(LOSSES) - {"smooth_l1", "mse", "l1", "lp", "cosine", "multiscale"}
OF_WORLDS = {"world": ("states", "actions"), "lewm": ("one_step", "target_states")}
"""Loss -> what it reads of a world model."""
OF_VIEWS = {"sigreg_views", "vicreg_views", "visreg_views", "infonce_views", "levjepa"}


def build(name: str, **changes: object):
    """The objective of a config, its projector made small."""
    config = OmegaConf.create({"loss": load_config([f"loss={name}"]).loss})
    small = SMALL if "projector" in config.loss else {}
    for key, value in {**small, **changes}.items():
        OmegaConf.update(config, key, value, force_add=True)
    check_config(OmegaConf.to_container(config, resolve=True))
    return instantiate(config.loss, _convert_="all")(embedding_dim=DIM, token_values=VALUES)


def latents(weighted: bool = False) -> Latents:
    """Two masks of 6 samples on a grid of 4 x 4, two views, with gradients into all that a network gives."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    shapes = [(6, 2, 4), (6, 1, 5)]
    places = [torch.randint(0, 4, (*shape, 2), generator=generator) for shape in shapes]
    weights = [torch.rand(shape, generator=generator) for shape in shapes]
    states = {name: randn(6, 5, DIM).requires_grad_() for name in ("states", "target_states")}
    return WorldLatents(
        **states,
        one_step=randn(6, 4, DIM).requires_grad_(),
        actions=randn(6, 4, VALUES),
        predictions=[randn(*shape, DIM).requires_grad_() for shape in shapes],
        targets=[randn(*shape, DIM) for shape in shapes],
        target_weights=[w / w.mean() for w in weights] if weighted else None,
        positions=places,
        inputs=[randn(*shape, VALUES) for shape in shapes],
        embeddings=randn(2, 6, DIM).requires_grad_(),
        rng=StepRandomness(seed=0, step=0, total=6, start=0, count=6),
    )


def test_the_losses_are_those_of_the_readme():
    expected = (
        "contrastive cosine crossmodal infonce infonce_views invariance_sigreg l1 levjepa lewm lp mse multiscale "
    )
    expected += "multitask sigreg sigreg_views smooth_l1 vicreg vicreg_views visreg visreg_views world"
    assert expected.split() == LOSSES


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_finite_and_has_gradients(name, weighted):
    objective, given = build(name), latents(weighted)
    made = {"predictions", "targets", "positions", "inputs", "embeddings"}
    made |= {"states", "target_states", "one_step", "actions"} if name in OF_WORLDS else set()
    objective.require(made, by="MaskedJEPA")
    values = objective(given)
    assert list(values) == ["loss", *(f"loss/{term}" for term in objective.term_names)]
    assert all(value.dtype == torch.float32 and value.shape == () and value.isfinite() for value in values.values())
    values["loss"].backward()
    inputs = [] if name in OF_VIEWS | {"lewm"} else [*given.predictions]
    inputs += [tensor for field in OF_WORLDS.get(name, ()) if (tensor := getattr(given, field)).requires_grad]
    inputs += [given.embeddings] if "projections" in objective.needs else []
    for tensor in (*inputs, *objective.parameters()):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().sum() > 0
    assert objective.prevents_collapse is (name in PREVENT)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_runs_in_bf16_as_in_fp32(name):
    objective = build(name).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = objective(latents())["loss"]
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(objective(latents())["loss"].item(), rel=2e-2)


@pytest.mark.parametrize("name", LOSSES)
def test_the_main_prediction_has_one_name_in_every_loss_that_predicts(name):
    assert ("prediction" in build(name).term_names) is (name not in OF_VIEWS)
    assert (CONF / f"{name}.yaml").read_text().startswith("# ")


def test_multitask_weights_are_set_one_by_one():
    changes = {"loss.terms.reconstruction.weight": 1.0, "loss.terms.contrastive.weight": 0.5}
    objective, given = build("multitask", **changes), latents()
    values = objective(given)
    parts = [values[f"loss/{name}"] for name in ("prediction", "contrastive", "reconstruction")]
    assert values["loss"].item() == pytest.approx((parts[0] + 0.5 * parts[1] + parts[2]).item(), rel=1e-6)
    assert build("multitask", **{"loss.terms.contrastive": None}).term_names == ["prediction", "reconstruction"]


def test_vicreg_has_the_value_of_the_paper():
    """25 s + 25 (v + v') / 2 + (c + c'), as the released code adds them up."""
    z = latents().embeddings.detach()
    changes = {"loss.terms.prediction": None, "loss.projector": None}
    stds = (z.var(dim=1) + 1e-4).sqrt()
    covariances = [torch.cov(view.T) for view in z]
    off = sum((c - c.diag().diag()).square().sum() / DIM for c in covariances)
    expected = 25 * (z[0] - z[1]).square().mean() + 25 * (1 - stds).relu().mean() + off
    assert build("vicreg", **changes)(Latents(embeddings=z))["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
