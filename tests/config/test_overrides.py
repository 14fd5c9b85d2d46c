"""Keys that no yaml lists, and runs that go on with their stored configuration."""

from __future__ import annotations

import json
import shutil

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from jepa import load_config
from jepa.checkpoint.moved import upgrade
from jepa.config.build import to_plain
from jepa.config.compose import compose_with_choices
from jepa.config.keys import with_new_keys
from jepa.config.notes import notes
from jepa.config.resume import with_stored_options
from jepa.utils.errors import UserError
from jepa.utils.read_data import read_yaml


def test_a_key_of_the_constructor_needs_no_plus():
    config = load_config(["trainer.tf32=true", "optimizer.amsgrad=true", "model.mask.aspect_ratio=[0.5,2]"])
    assert (config.trainer.tf32, config.optimizer.amsgrad, config.model.mask.aspect_ratio) == (True, True, [0.5, 2])
    arguments = ["-m", "optimizer.amsgrad=true,false", "optimizer.lr=1,2", "loss=mse,l1", "hydra.sweep.dir=x"]
    expected = ["-m", "++optimizer.amsgrad=true,false", *arguments[2:]]
    assert with_new_keys(arguments, compose_with_choices) == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_epoch=1", "trainer.max_epoch=1: .* Did you mean trainer.max_epochs=1"),
        ("optimizer.lrr=1", "optimizer.lrr=1: .* Did you mean optimizer.lr"),
        ("trainer.tf23=true", "trainer.tf23=true: .* Did you mean trainer.tf32"),
        ("model.encoder.dim=32", "Did you mean model.encoder.embed_dim"),
        ("logger.tensorbord.x=1", "logger takes console, jsonl, tensorboard"),
        ("~logger.tensorbord", "Did you mean logger.tensorboard"),
        ("~monitor", "~monitor: a run needs every group; monitor=none turns it off"),
        ("modle=vit", "Did you mean model"),
    ],
)
def test_any_other_key_is_a_typo(override, message):
    with pytest.raises(UserError, match=rf"(?s){message}"):
        load_config(["optimizer.amsgrad=true", override])


def test_a_list_of_overrides_and_an_existing_folder_are_wanted(tmp_path):
    with pytest.raises(UserError, match=r"expected a list of overrides, \['loss=mse'\]"):
        load_config("loss=mse")
    with pytest.raises(UserError, match=r"config_dir=.*nowhere is not a folder"):
        load_config(config_dir=tmp_path / "nowhere")


def test_a_key_of_ones_own_class_needs_no_plus(tmp_path, monkeypatch):
    (tmp_path / "own_trainer.py").write_text(
        "from jepa.trainer import Trainer\n\n\nclass Mine(Trainer):\n"
        "    def __init__(self, *, alpha=1.0, **others):\n        pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config = load_config(["trainer._target_=own_trainer.Mine", "trainer.alpha=0.5"])
    assert config.trainer.alpha == 0.5


@pytest.fixture
def run(tmp_path):
    """A run folder with config.yaml alone, as a run with these options leaves it; gives its configuration."""

    def write(*overrides, folder="run", **changes):
        stored = load_config(overrides)
        for key, value in changes.items():
            OmegaConf.update(stored, key.replace("__", "."), value)
        config = {**to_plain(stored), "run_dir": str(tmp_path / folder)}
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "config.yaml").write_text(OmegaConf.to_yaml(config))
        return config

    return write


def settings(config):
    return {key: value for key, value in config.items() if key not in ("run_dir", "overrides", "resume")}


def test_the_stored_configuration_is_what_goes_on(run, tmp_path):
    # As if the experiment's file had changed since.
    changed = {"loss__terms__prediction__weight": 0.3, "scheduler__lr": 7.0}
    before = run("experiment=digits", "optimizer.lr=2e-3", "trainer.tf32=true", **changed)
    config = to_plain(load_config([f"resume={tmp_path}/run"]))
    assert settings(config) == settings(before)
    assert to_plain(load_config([f"resume={tmp_path}/run", "optimizer.lr=1e-3"]))["scheduler"]["lr"] == 7.0


@pytest.mark.faults
def test_a_damaged_file_of_what_goes_on_is_named(run, tmp_path):
    """And a sound one is read as OmegaConf reads it."""
    run("experiment=digits", "optimizer.lr=1e-3")
    config, sweep = tmp_path / "run" / "config.yaml", tmp_path / "sweep" / "multirun.yaml"
    config.write_text("a: 1e-3\nb: 2024-01-01\nc: .inf\nd: 1_000\ne: 'x\\x1b'\nf: on\ng: 1e3\nh: 0x10\n")
    assert read_yaml(config, verbatim=True) == OmegaConf.to_container(OmegaConf.load(config))
    sweep.parent.mkdir()
    for text, problem in {
        "": "holds nothing",
        "a": "holds a text",
        "- 1": "holds a list",
        "{": "did not find expected",
        "[" * 100_000: "nest",
        "a: !!python/object/apply:os.system [ls]": "line 1 has a tag",
        "a: &a [1]\nb: *a": "line 1 has an anchor",
        "overrides: abc": "overrides are no list",
        "overrides: [1]": "overrides are no list",
        "hydra: {overrides: {task: [1]}}\nmodel: 5\noverrides: 5": "overrides are no list",
        "model: [1]\nhydra: 5": "model is a list, expected names and values",
        "\0": "control characters",
        f"a: {'9' * 10_000}": "has 10,000 digits",
        f"a: 1{':1' * 10_000}": "has 20,001 digits",
        f"a: 0x{'f' * 30}": "has more than 20 digits",
    }.items():
        for path in (config, sweep):
            path.write_text(text)
            other = path is sweep and problem.startswith(("overrides", "model"))
            expected = "hydra.overrides are no lists" if other else problem
            with pytest.raises(UserError, match=rf"{path.name} is damaged: .*{expected}"):
                load_config([f"resume={path.parent}"])
    for path in (config, sweep):
        path.unlink()
        path.symlink_to("nothing")
        with pytest.raises(UserError, match=rf"{path.name} is damaged: it is a link that leads nowhere"):
            load_config([f"resume={path.parent}"])


def test_what_is_given_now_wins_and_reaches_what_follows_it(run, tmp_path):
    before = run("experiment=digits", "optimizer.lr=2e-3", "scheduler=wsd", "data.batch_size=16")

    def goes_on(*now):
        return to_plain(load_config([f"resume={tmp_path}/run", *now]))

    config = goes_on("optimizer.lr=5e-4", "scheduler.decay_share=0.1", "callbacks=early_stopping")
    assert (config["optimizer"]["lr"], config["scheduler"]["lr"]) == (5e-4, 5e-4)
    assert config["scheduler"]["decay_share"] == 0.1
    assert "early_stopping" in config["callbacks"]
    assert config["trainer"]["max_epochs"] == 36
    config = goes_on("trainer=ddp", "logger=[jsonl]", "experiment=digits", "data=digits")
    assert (config["trainer"]["strategy"], config["trainer"]["max_epochs"]) == ("ddp", 36)
    assert list(config["logger"]) == ["jsonl"]
    assert (config["optimizer"]["lr"], config["data"]["batch_size"]) == (2e-3, 16)
    assert "tensorboard" not in goes_on("~logger.tensorboard")["logger"]
    model = goes_on("model/encoder=vit_tiny", "model/mask=random")["model"]
    assert (model["encoder"]["embed_dim"], model["mask"]["context_share"]) == (192, 0.4)
    assert (model["predictor"]["depth"], model["target"]["momentum"]["start"]) == (1, 0.95)
    other = goes_on("experiment=fashion_mnist")
    assert (other["model"]["encoder"]["embed_dim"], other["trainer"]["max_epochs"]) == (256, 5)
    assert other["optimizer"]["lr"] == 2e-3  # given on the first command line
    with pytest.raises(UserError, match=r"Did you mean logger.tensorboard"):
        goes_on("~logger.tensorbord")
    with pytest.raises(
        UserError, match=r"Did you mean logger=\[console,jsonl,tensorboard,wandb\] logger.wandb.project=x"
    ):
        goes_on("logger.wandb.project=x")
    with pytest.raises(UserError, match=r"is a single run: leave out -m"):
        with_stored_options(["-m", f"resume={tmp_path}/run", "trainer.seed=1,2"])
    run("experiment=digits", "trainer=ddp", "~logger.tensorboard", folder="second")
    config = to_plain(load_config([f"resume={tmp_path}/second", "trainer=default"]))
    assert (config["trainer"].get("strategy"), "tensorboard" in config["logger"]) == ("auto", False)
    assert config["data"]["batch_size"] == before["data"]["batch_size"] * 4


@pytest.mark.parametrize("kind", ["plain", "sharded"])
def test_runs_of_an_earlier_version_go_on(train, tmp_path, old_runs, kind):
    """Losses after going on are those of the code before views were drawn anew, which augmentation is left out for."""
    shutil.copytree(old_runs / kind, tmp_path / kind, symlinks=True)
    process = train(f"resume={kind}", "trainer.max_steps=8", "evaluation=none", "data.augment=null")
    assert process.returncode == 0, process.stderr
    expected = json.loads((old_runs / kind / "expected.json").read_text())["continued"]
    rows = [json.loads(line) for line in (tmp_path / kind / "metrics.jsonl").read_text().splitlines()]
    losses = {str(row["step"]): row["train/loss"] for row in rows if row["step"] > 6 and "train/loss" in row}
    assert losses == pytest.approx(expected, rel=1e-5)


def test_stored_names_are_brought_up_to_date(old_runs):
    config = upgrade(OmegaConf.to_container(OmegaConf.load(old_runs / "plain" / "config.yaml")))
    assert (config["model"]["encoder"]["embed_dim"], config["model"]["encoder"]["num_heads"]) == (16, 2)
    scheduler = config["scheduler"]
    assert scheduler["_target_"] == "jepa.optim.schedulers.cosine"
    assert (scheduler["lr"], scheduler["warmup_steps"], scheduler["weight_decay"]) == (1e-3, 2, 0.04)


def test_every_name_of_an_earlier_version_is_found(old_runs):
    for target in (old_runs / "targets.txt").read_text().split():
        assert callable(get_object(upgrade({"_target_": target})["_target_"])), target


def test_first_lines_name_the_tuned_run_and_what_an_experiment_still_sets():
    def said(*overrides):
        return notes(load_config(overrides))

    assert said() == ["plain defaults: experiment=digits is the run that is tuned for these data"]
    assert said("loss=mse") == said("experiment=digits") == []
    (line,) = said("experiment=fashion_mnist", "data=image_folder", "data.root=x")
    assert line == (
        "with data=image_folder, experiment=fashion_mnist still sets loss=vicreg_views, model=lejepa, "
        "model/encoder=conv, scheduler=cosine, data.batch_size=128, data.augment.crop_scale=[0.3, 1.0], "
        "data.augment.color_jitter=0.6, data.hints.patch_size=28"
    )
    (line,) = said("experiment=digits", "scheduler=wsd")
    assert line == "with scheduler=wsd, experiment=digits still sets scheduler.warmup_epochs=5"
