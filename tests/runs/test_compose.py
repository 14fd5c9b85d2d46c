"""Every config file composes, and every value in it is one that its constructor takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from jepa import load_config
from jepa.build import build, build_model, to_plain, with_assumed
from jepa.utils.check import check_config
from jepa.utils.errors import UserError

CONF = Path(__file__).resolve().parents[2] / "conf"
GROUPS = (
    "model",
    "model/encoder",
    "model/predictor",
    "model/mask",
    "model/target",
    "data",
    "loss",
    "optimizer",
)
GROUPS += ("scheduler", "trainer", "evaluation", "callbacks", "monitor", "experiment")
OPTIONS = [f"{group}={path.stem}" for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]


def compose(*overrides):
    """The configuration, with a root where the data set has none by itself."""
    config = load_config(overrides)
    if OmegaConf.is_missing(config.data, "root"):
        config.data.root = "/nowhere"
    return config


def model_for(option):
    """The model that the file of a data set names in its command; none for pictures, which the default takes."""
    group, name = option.split("=")
    return re.findall(r"\bmodel=\w+", (CONF / group / f"{name}.yaml").read_text())[:1] if group == "data" else []


def test_every_group_is_listed():
    folders = {str(path.parent.relative_to(CONF)) for path in CONF.rglob("*.yaml")}
    assert {f for f in folders if not f.startswith("recipe")} == {".", "logger", *GROUPS}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_compose_and_fit(option):
    config = compose(option, *model_for(option))
    check_config(to_plain(with_assumed(config)))
    for key in ("optimizer", "scheduler", "evaluation", "loss"):
        build(config, key)


PICTURES = [path.stem for path in sorted((CONF / "data").glob("*.yaml")) if "image_size:" in path.read_text()]


@pytest.mark.parametrize("data", PICTURES)
def test_data_sets_compose_with_every_small_encoder(data):
    for encoder in ("vit", "vit_tiny"):
        check_config(to_plain(compose(f"data={data}", f"model/encoder={encoder}")))


@pytest.mark.parametrize("loss", ["smooth_l1", "mse", "l1"])
def test_losses_build_with_the_default_recipe(loss):
    model = build_model(compose(f"loss={loss}"))
    assert model.loss.term_names == ["prediction", "invariance", "sigreg"]


def test_experiments_hold_deltas_only_and_say_how_to_run_them():
    for path in (CONF / "experiment").glob("*.yaml"):
        text = path.read_text()
        assert text.startswith("# @package _global_")
        assert f"experiment={path.stem}" in text
        node = OmegaConf.load(path)
        default = compose()
        deltas = [key for key in ("data", "model", "loss", "trainer") if key in node]
        assert deltas
        assert compose(f"experiment={path.stem}") != default


def test_the_command_line_wins():
    config = compose("experiment=ijepa_digits", "trainer.max_epochs=3", "data.batch_size=8")
    assert (config.trainer.max_epochs, config.data.batch_size) == (3, 8)
    assert config.loss.projector is None
    assert compose("model/encoder=vit_tiny").model.encoder.dim == 192
    assert compose().model.encoder.dim == 128


def test_loading_from_python(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ntrainer: {seed: 5}\n")
    assert load_config(["experiment=mine"], config_dir=tmp_path).trainer.seed == 5
    with pytest.raises(UserError, match=r"Did you mean data=mnist\?"):
        load_config(["data=mnits"])
    with pytest.raises(UserError, match=r"Did you mean trainer.max_epochs\?"):
        load_config(["trainer.max_epoch=1"])
    with pytest.raises(UserError, match=r"data.root is not set"):
        to_plain(load_config(["data=imagenet"]))
