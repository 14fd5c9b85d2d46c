"""Every config file composes, and every value in it is one that its constructor takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from jepa import load_config
from jepa.config.build import FOUND_BY_DATA, build, build_model, filled, to_plain
from jepa.config.check import check_config
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
GROUPS += ("scheduler", "trainer", "evaluation", "callbacks", "monitor", "experiment", "sweep", "hydra/launcher")
OPTIONS = [f"{group}={path.stem}" for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]

NOT_PICTURES = {
    "video": ["video_folder", "moving_mnist", "fight_frames"],
    "text": ["text_lines", "text_csv", "wikitext2"],
    "series": ["series_csv", "ett", "ucr"],
    "audio": ["audio_folder", "fsdd"],
    "crossmodal": ["paired"],
    "crossmodal_captions": ["paired_coco"],
    "multitask": ["tasks"],
}
"""Model -> the data sets that it, and not the default model, is for."""
MODEL_OF = {data: model for model, sets in NOT_PICTURES.items() for data in sets}
DATA_OF = {model: sets[0] for model, sets in NOT_PICTURES.items()} | {"temporal_cnn": "ucr"}


def compose(*overrides):
    """The configuration, with something where the data set has no root or is to find out a size by itself."""
    config = load_config(overrides)
    for key in OmegaConf.missing_keys(config.data):
        OmegaConf.update(config, key if key.startswith("data.") else f"data.{key}", "/nowhere")
    return filled(config, dict.fromkeys(FOUND_BY_DATA, 8))


def fitting(option):
    """An option with the data or model it is for, where that is not the default."""
    group, _, name = option.partition("=")
    if group == "data" and name in MODEL_OF:
        return [option, f"model={MODEL_OF[name]}"]
    if group == "model" and name in DATA_OF:
        return [option, f"data={DATA_OF[name]}"]
    kind = next((model for model in DATA_OF if name.startswith(model)), None)
    if group.startswith("model/") and kind is not None:
        return [option, f"model={kind}", f"data={DATA_OF[kind]}"]
    return [option]


def test_every_group_is_listed():
    folders = {str(path.parent.relative_to(CONF)) for path in CONF.rglob("*.yaml")}
    assert {f for f in folders if not f.startswith("recipe")} == {".", "logger", "wandb", *GROUPS}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_compose_and_fit(option):
    config = compose(*fitting(option))
    check_config(to_plain(config))
    for key in ("optimizer", "scheduler", "evaluation", "loss"):
        build(config, key)


@pytest.mark.parametrize("data", [p.stem for p in sorted((CONF / "data").glob("*.yaml")) if p.stem not in MODEL_OF])
def test_data_sets_compose_with_every_small_encoder(data):
    for encoder in ("vit", "vit_tiny"):
        check_config(to_plain(compose(f"data={data}", f"model/encoder={encoder}")))


def test_a_model_for_other_data_is_told():
    with pytest.raises(
        UserError, match=r"model.encoder.image_size: .*'data.image_size' not found: this model and these data"
    ):
        to_plain(compose("data=text_lines"))


@pytest.mark.parametrize("loss", ["smooth_l1", "mse", "l1"])
def test_losses_build_with_the_default_recipe(loss):
    model = build_model(compose(f"loss={loss}"))
    assert model.loss.term_names == ["prediction", "invariance", "sigreg"]


def test_experiments_hold_deltas_only_and_say_how_to_run_them():
    default = compose()
    for path in (CONF / "experiment").glob("*.yaml"):
        text = path.read_text()
        assert text.startswith("# @package _global_")
        assert f"experiment={path.stem}" in text
        node = OmegaConf.load(path)
        deltas = [key for key in ("data", "model", "loss", "trainer") if key in node]
        assert deltas
        assert compose(f"experiment={path.stem}") != default


def test_the_command_line_wins():
    config = compose("experiment=ijepa_digits", "trainer.max_epochs=3", "data.batch_size=8")
    assert (config.trainer.max_epochs, config.data.batch_size) == (3, 8)
    assert config.loss.projector is None
    assert compose("model/encoder=vit_tiny").model.encoder.embed_dim == 192
    assert compose().model.encoder.embed_dim == 128


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
