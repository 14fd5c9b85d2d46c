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
from jepa.config.compose import compose_config
from jepa.config.notes import notes
from jepa.config.overrides import with_new_keys
from jepa.config.resume import resumed
from jepa.config.stored import addable
from jepa.utils.errors import UserError


def test_a_key_of_the_constructor_needs_no_plus():
    config = load_config(["trainer.tf32=true", "optimizer.amsgrad=true", "model.mask.aspect_ratio=[0.5,2]"])
    assert (config.trainer.tf32, config.optimizer.amsgrad, config.model.mask.aspect_ratio) == (True, True, [0.5, 2])
    arguments = ["-m", "optimizer.amsgrad=true,false", "optimizer.lr=1,2", "loss=mse,l1", "hydra.sweep.dir=x"]
    expected = ["-m", "++optimizer.amsgrad=true,false", *arguments[2:]]
    assert with_new_keys(arguments, compose_config) == expected


@pytest.mark.parametrize(
    ("override", "close"), [("trainer.max_epoch=1", "trainer.max_epochs"), ("optimizer.lrr=1", "optimizer.lr")]
)
def test_any_other_key_is_a_typo(override, close):
    with pytest.raises(UserError, match=rf"Did you mean {close}"):
        load_config([override])


def test_a_key_of_ones_own_class_needs_no_plus(tmp_path, monkeypatch):
    (tmp_path / "own_trainer.py").write_text(
        "from jepa.trainer import Trainer\n\n\nclass Mine(Trainer):\n"
        "    def __init__(self, *, alpha=1.0, **others):\n        pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config = load_config(["trainer._target_=own_trainer.Mine", "trainer.alpha=0.5"])
    assert config.trainer.alpha == 0.5


def stored(*overrides):
    """What the run folder of a run with these options holds."""
    return {**to_plain(load_config(overrides)), "overrides": list(overrides), "run_dir": "outputs/x"}


def goes_on(before, *now):
    """The configuration of a run that goes on with these options."""
    return resumed(load_config(addable(o for o in now if not o.startswith("~"))), before, addable(now))


def test_the_stored_configuration_is_what_goes_on():
    before = stored("experiment=digits", "optimizer.lr=2e-3", "trainer.tf32=true")
    before["loss"]["terms"]["prediction"]["weight"] = 0.3  # as if the experiment's file had changed since
    config = to_plain(goes_on(before))
    assert {k: v for k, v in config.items() if k in before and k not in ("run_dir", "overrides", "resume")} == {
        k: v for k, v in before.items() if k not in ("run_dir", "overrides", "resume")
    }


def test_what_is_given_now_wins_and_reaches_what_follows_it():
    before = stored("experiment=digits", "optimizer.lr=2e-3", "scheduler=wsd")
    config = to_plain(goes_on(before, "optimizer.lr=5e-4", "scheduler.decay_share=0.1", "callbacks=early_stopping"))
    assert (config["optimizer"]["lr"], config["scheduler"]["lr"]) == (5e-4, 5e-4)
    assert config["scheduler"]["decay_share"] == 0.1
    assert "early_stopping" in config["callbacks"]
    assert config["trainer"]["max_epochs"] == 36
    config = to_plain(goes_on(before, "trainer=ddp", "logger=[jsonl]", "experiment=digits"))
    assert (config["trainer"]["strategy"], config["trainer"]["max_epochs"]) == ("ddp", 36)
    assert list(config["logger"]) == ["jsonl"]
    assert config["optimizer"]["lr"] == 2e-3
    assert "tensorboard" not in goes_on(before, "~logger.tensorboard").logger
    model = goes_on(before, "model/encoder=vit_tiny", "model/mask=random").model
    assert (model.encoder.embed_dim, model.mask.context_share, model.predictor.depth) == (192, 0.4, 1)
    assert model.target.momentum.start == 0.95
    with pytest.raises(
        UserError, match=r"~logger.tensorbord: the run has no such value, did you mean ~logger.tensorboard"
    ):
        goes_on(before, "~logger.tensorbord")
    other = goes_on(before, "experiment=fashion_mnist")
    assert (other.model.encoder.embed_dim, other.trainer.max_epochs, other.optimizer.lr) == (192, 0.6, 1e-3)


@pytest.mark.parametrize("kind", ["plain", "sharded"])
def test_runs_of_an_earlier_version_go_on(train, tmp_path, old_runs, kind):
    """Losses after going on are those that the code which wrote the folder had."""
    shutil.copytree(old_runs / kind, tmp_path / kind, symlinks=True)
    process = train(f"resume={kind}", "trainer.max_steps=8", "evaluation=none")
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
        "with data=image_folder, experiment=fashion_mnist still sets model/mask=multiblock_7x7, model/target=ema_fast, "
        "loss=invariance_sigreg, scheduler=cosine, data.batch_size=64"
    )
    (line,) = said("experiment=digits", "scheduler=wsd")
    assert line == "with scheduler=wsd, experiment=digits still sets scheduler.warmup_epochs=5"
