"""Every objective trains with every model it is meant for, and says what it cannot do."""

from __future__ import annotations

import json
import math

import pytest

from jepa import build_trainer, load_config
from jepa.utils.errors import UserError

SMALL = (
    "data.batch_size=8",
    "model.encoder.embed_dim=32",
    "model.encoder.depth=1",
    "trainer.max_steps=2",
    "trainer.log_every=1",
    "trainer.limit_val_batches=1",
    "trainer.precision=fp32",
    "trainer.device=cpu",
    "evaluation=none",
    "logger=jsonl",
)
MASKED = {
    **{name: ["prediction"] for name in ("smooth_l1", "mse", "l1", "lp", "cosine", "infonce", "multiscale")},
    "multitask": ["prediction", "contrastive", "reconstruction"],
    "sigreg": ["prediction", "sigreg"],
    "vicreg": ["prediction", "invariance", "variance", "covariance"],
    "invariance_sigreg": ["prediction", "invariance", "sigreg"],
}
OF_VIEWS = {"sigreg_views": ["sigreg", "invariance"], "vicreg_views": ["invariance", "variance", "covariance"]}
OF_VIEWS["infonce_views"] = ["contrastive"]
PROJECTED = {"vicreg", "invariance_sigreg", *OF_VIEWS}


def small(loss):
    """The options of a loss, its projector made small where it has one."""
    return [f"loss={loss}", *(["loss.projector.hidden=[16]"] if loss in PROJECTED else [])]


def train(folder, *overrides):
    """The metrics of two steps on digits."""
    config = load_config([*SMALL, *overrides])
    config.run_dir = str(folder)
    build_trainer(config).fit()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "train/loss" in line]


@pytest.mark.parametrize("loss", MASKED)
def test_masked_models_train_with_every_loss(tmp_path, loss):
    lines = train(tmp_path, *small(loss), "model.predictor.embed_dim=32")
    assert len(lines) == 2
    for line in lines:
        terms = {name.removeprefix("train/loss/") for name in line if name.startswith("train/loss/")}
        assert terms == set(MASKED[loss])
        assert all(math.isfinite(line[f"train/loss/{term}"]) for term in terms)


@pytest.mark.parametrize("loss", OF_VIEWS)
def test_models_of_views_train_with_every_loss_of_views(tmp_path, loss):
    lines = train(tmp_path, "model=lejepa", *small(loss))
    assert {name.removeprefix("train/loss/") for name in lines[0] if name.startswith("train/loss/")} == set(
        OF_VIEWS[loss]
    )


def test_lejepa_brings_its_loss_along(tmp_path):
    local = "data.local_augment={_target_: jepa.data.Augment, crop_scale: [0.1, 0.4]}"
    lines = train(tmp_path, "model=lejepa", "data.local_views=2", "data.local_size=4", local)
    assert "train/loss/sigreg" in lines[0]
    assert "train/loss/prediction" not in lines[0]


def test_one_network_trains_with_sigreg_alone(tmp_path):
    lines = train(tmp_path, "model/target=shared", "loss=sigreg", "model.predictor.embed_dim=32")
    assert "momentum" not in lines[0]


def test_weights_of_a_mix_are_its_own(tmp_path):
    weights = {"reconstruction": 2.0, "contrastive": 0.25, "prediction": 0.5}
    overrides = [f"loss.terms.{name}.weight={weight}" for name, weight in weights.items()]
    line = train(tmp_path, "loss=multitask", "model.predictor.embed_dim=32", *overrides)[0]
    total = sum(weight * line[f"train/loss/{name}"] for name, weight in weights.items())
    assert line["train/loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model=lejepa", "loss=mse"], ["loss.terms.prediction reads predictions", "loss.terms.prediction=null"]),
        (["model/target=shared"], ["SharedTarget", "collapses"]),
        (["model=lejepa", "loss.terms.sigreg=null"], ["collapse", "allow_collapse"]),
        (["loss=lp", "loss.terms.prediction.term.loss_exponent=0"], ["loss_exponent"]),
        (["loss=infonce", "loss.terms.prediction.term.temperature=0"], ["temperature"]),
    ],
)
def test_mistakes_are_named(tmp_path, overrides, words):
    with pytest.raises(UserError) as error:
        train(tmp_path, *overrides)
    assert all(word in str(error.value) for word in words), str(error.value)
