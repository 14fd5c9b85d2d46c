"""Every config file composes, and every value in it is one that its constructor takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from jepa import load_config
from jepa.config.build import ANY_FOUND, ANY_HINTS, build, build_model, build_trainer, filled, left_open, to_plain
from jepa.config.check import check_config
from jepa.config.compose import SIZES
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
GROUPS += ("scheduler", "trainer", "evaluation", "callbacks", "monitor", "experiment", "sweep", "visualise")
GROUPS += ("hydra/launcher",)
OPTIONS = [f"{group}={path.stem}" for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]

NOT_PICTURES = {
    "video": ["video_folder", "moving_mnist", "fight_frames"],
    "text": ["text_lines", "text_csv", "wikitext2"],
    "series": ["series_csv", "ett", "ucr"],
    "audio": ["audio_folder", "fsdd"],
    "crossmodal": ["paired"],
    "crossmodal_captions": ["paired_coco"],
    "multitask": ["tasks"],
    "world": ["two_rooms", "trajectories"],
}
"""Model -> the data sets that it, and not the default model, is for."""
MODEL_OF = {data: model for model, sets in NOT_PICTURES.items() for data in sets}
DATA_OF = {model: sets[0] for model, sets in NOT_PICTURES.items()} | {"temporal_cnn": "ucr"}


def compose(*overrides, hints=ANY_HINTS):
    """The configuration, with something where a place is not given or the data set is to find out a size by itself."""
    config = load_config(overrides)
    for key in OmegaConf.missing_keys(config.data):
        OmegaConf.update(config, key if key.startswith("data.") else f"data.{key}", "/nowhere")
    if OmegaConf.is_interpolation(config, "init_from"):  # ${required:...}
        config.init_from = "/nowhere"
    for part in ("target", "encoder"):
        if OmegaConf.is_missing(node := config.model.get(part) or config, "checkpoint"):
            node.checkpoint = "/nowhere"
    return filled(config, ANY_FOUND | hints)


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
    assert folders == {".", "logger", "wandb", "model/encoder/auto_for", "planner", *GROUPS}  # planner: of plan.py


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


def test_foreign_letters_need_no_quotes():
    given = ["data=text_lines", "data.text_column=ข้อความ", "data.root=/tmp/รีวิว (1)/a,b.txt"]
    config = load_config([*given, "model=text"])
    assert (config.data.text_column, config.data.root) == ("ข้อความ", "/tmp/รีวิว (1)/a,b.txt")
    config = load_config(["data=series_csv", "model=series", "data.source.columns=[Presión (hPa),T]"])
    assert config.data.source.columns == ["Presión (hPa)", "T"]


def test_a_model_for_other_data_is_told():
    with pytest.raises(
        UserError, match=r"^this model .* go with model=text: python train.py data=text_lines model=text"
    ):
        to_plain(compose("data=text_lines"))


@pytest.mark.parametrize("data", ["digits", "mnist", "cifar10", "image_folder"])
def test_data_never_change_the_method(data):
    """Objective, target, masks and schedule are those of the default, whatever the data."""
    default, config = to_plain(compose()), to_plain(compose(f"data={data}"))
    for key in ("loss", "optimizer", "scheduler", "monitor"):
        assert config[key] == default[key]
    for key in ("mask", "target", "_target_"):
        assert config["model"][key] == default["model"][key]


def test_a_loss_is_what_its_file_says():
    for loss in ("smooth_l1", "mse", "l1"):
        for more in ((), ("data=mnist",), ("model=series", "data=ucr")):
            assert build_model(compose(f"loss={loss}", *more)).loss.term_names == ["prediction"]
    assert build_model(compose("loss=invariance_sigreg")).loss.term_names == ["prediction", "invariance", "sigreg"]


def test_losses_of_views_are_for_models_that_predict_nothing():
    with pytest.raises(UserError, match=r"LeJEPA makes .* but loss\.terms\.prediction reads predictions"):
        build_trainer(compose("model=lejepa", "loss=vicreg", "trainer.device=cpu"))
    assert build_model(compose("model=lejepa", "loss=vicreg_views")).loss.term_names == [
        "invariance",
        "variance",
        "covariance",
    ]


def test_a_run_fits_on_a_screen_or_two():
    text = OmegaConf.to_yaml(load_config())
    assert text.count("\n") <= 140
    keys = list(load_config())
    assert keys[:6] == ["data", "model", "loss", "optimizer", "scheduler", "trainer"]


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
    config = compose("experiment=digits", "trainer.max_epochs=3", "data.batch_size=8", "loss=mse", "model/target=ema")
    assert (config.trainer.max_epochs, config.data.batch_size) == (3, 8)
    assert list(config.loss.terms) == ["prediction"]
    assert config.data.views == 1
    assert config.model.target.momentum.start == 0.996
    assert compose("model/encoder=vit_tiny").model.encoder.embed_dim == 192
    assert compose().model.encoder.embed_dim == 128


def test_trainer_debug_wins_over_an_experiment():
    config = compose("experiment=ijepa_vith14", "trainer=debug", "trainer.log_every=3")
    trainer = config.trainer
    assert (config.data.batch_size, trainer.limit_train_batches, trainer.max_epochs, trainer.precision) == (
        2,
        4,
        1,
        "fp32",
    )
    assert trainer.log_every == 3


@pytest.mark.parametrize(
    "option",
    [
        *(f"loss={name}" for name in ("mse", "sigreg", "vicreg", "infonce")),
        *(f"model/mask={name}" for name in ("random", "multiblock")),
        *(f"model/target={name}" for name in ("ema", "shared", "stop_gradient")),
        *(f"model/encoder={name}" for name in ("vit_base", "timm")),
        *(f"scheduler={name}" for name in ("constant", "linear", "step", "wsd", "ijepa")),
        *(f"optimizer={name}" for name in ("sgd", "lars", "muon")),
        *(f"data={name}" for name in ("cifar10", "image_folder")),
        "evaluation=none",
        "trainer=debug",
    ],
)
def test_an_experiment_takes_other_options(option):
    """No value of the tuned run is left over that another option's constructor refuses."""
    check_config(to_plain(compose("experiment=digits", option)))


def test_sizes_have_one_meaning():
    """An encoder by name is what the same size is as a hint of the data."""
    for name in SIZES.keys() - {"toy_text", "toy_series"}:
        by_name, by_hint = compose(f"model/encoder=vit_{name}"), compose(f"data.hints.size={name}")
        assert to_plain(by_name)["model"]["encoder"] == to_plain(by_hint)["model"]["encoder"]
    with pytest.raises(UserError, match=r"data.hints.size=large: expected auto or one of toy, "):
        to_plain(compose("data.hints.size=large"))


def test_loading_from_python(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ntrainer: {seed: 5}\n")
    assert load_config(["experiment=mine"], config_dir=tmp_path).trainer.seed == 5
    with pytest.raises(UserError, match=r"Did you mean data=mnist\?"):
        load_config(["data=mnits"])
    with pytest.raises(UserError, match=r"Did you mean trainer.max_epochs=1\?"):
        load_config(["trainer.max_epoch=1"])
    with pytest.raises(UserError, match=r"data.root is not set"):
        to_plain(load_config(["data=imagenet"]))
    with pytest.raises(UserError, match=r"init_from: not set; give it on the command line: a run folder, "):
        to_plain(load_config(["experiment=continue"]))


@pytest.mark.parametrize("value", ["0.5", "auto", "[0.5]", "[0.1,0.2,0.3]"])
def test_mean_and_std_are_numbers_or_auto(value):
    config = load_config(["data=image_folder", "data.root=x", f"data.mean={value}", f"data.std={value}"])
    check_config(to_plain(filled(config, ANY_HINTS)))


def test_a_mean_that_is_neither():
    with pytest.raises(UserError, match=r"data.mean=most"):
        check_config(to_plain(load_config(["data=image_folder", "data.root=x", "data.mean=most"])))


def test_what_data_finds_out_is_filled_in():
    mix = ["data=mix", "+data@data.parts.a=mnist", "+data@data.parts.b=mnist", "data.parts.a.mean=auto"]
    config = load_config([*mix, "data.parts.b.mean=auto", "data.parts.b.std=auto"])
    assert left_open(config) == [
        *("channels", "image_size", "length", "vocab_size"),
        *("parts.a.mean", "parts.b.mean", "parts.b.std"),
    ]
    found = {"channels": 1, "mean": [0.3], "a.mean": [0.1], "b.mean": [0.2], "b.std": [0.5]}
    data = filled(config, found).data
    assert (data.parts.a.mean, data.parts.b.mean, data.parts.b.std, data.channels) == ([0.1], [0.2], [0.5], 1)
    assert config.data.parts.a.mean == "auto"
    hub = load_config(["data=hf", "data.path=x", "data.column=image", "data.image.mean=auto"])
    assert filled(hub, {"mean": [0.1, 0.2, 0.3]}).data.image.mean == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.startswith(("data=", "experiment="))])
def test_every_run_is_validated_and_saved(option):
    trainer = compose(*fitting(option)).trainer
    for name in ("validate", "save"):
        assert trainer.get(f"{name}_every_steps") or trainer.get(f"{name}_every_epochs")
