"""What may change when a run goes on: refused before anything is written, or said, or exact."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from toy import ToyData, adam, file_contents, toy_trainer

from jepa.trainer import Trainer
from jepa.utils.errors import CheckpointError, UserError
from jepa.utils.run_status import read_status

pytestmark = pytest.mark.faults


def amsgrad(groups, lr):
    return torch.optim.AdamW(groups, lr=lr, amsgrad=True)


def going_on(folder, **settings):
    """A trainer that goes on in the folder for two steps, and what it says."""
    trainer, words = toy_trainer(folder, resume="auto", **{"max_steps": 7, **settings}), []
    trainer.say = words.append
    return trainer, words


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (
            8,
            r"trained with data.batch_size=12, and this is data.batch_size=8, .*micro_batch_size=6 .*init_from=",
        ),
        (
            24,
            r"trained with data.batch_size=12, and this is data.batch_size=24, [^(]*go on with data.batch_size=12, or",
        ),
    ],
)
def test_another_batch_size_is_refused(tmp_path, size, words):
    toy_trainer(tmp_path).fit()
    before = file_contents(tmp_path)
    with pytest.raises(UserError, match=words):
        going_on(tmp_path, data=ToyData(batch_size=size))[0].fit()
    assert file_contents(tmp_path) == before
    loaded = toy_trainer(tmp_path / "new", data=ToyData(batch_size=size))
    loaded.load_checkpoint(tmp_path)  # by a user who knows
    assert loaded.step == 5


def test_of_a_checkpoint_of_an_earlier_version_the_configuration_tells(tmp_path):
    toy_trainer(tmp_path).fit()
    last = tmp_path / "checkpoints/last.pt"
    content = torch.load(last)
    del content["run"]
    torch.save(content, last)
    going_on(tmp_path)[0].fit()
    torch.save({**content, "config": {"data": {"batch_size": 6}}}, last)
    with pytest.raises(UserError, match=r"trained with data.batch_size=6, and this is data.batch_size=12"):
        going_on(tmp_path)[0].fit()


class MoreData(ToyData):
    """Has 40 samples."""

    def __init__(self):
        super().__init__()
        self.spec = type(self.spec)(num_train=40, num_test=20, input_shape=(3,), classes=None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, []),
        ({"log_every": 3}, []),
        ({"precision": "bf16"}, ["precision bf16 (before fp32): as before up to rounding"]),
        ({"micro_batch_size": 4}, ["micro-batches 3 (before 1): as before up to rounding"]),
        ({"seed": 1}, ["trainer.seed 1 (before 0): other samples"]),
        ({"data": MoreData()}, ["training samples 40 (before 30): other samples"]),
    ],
    ids=["nothing", "logging", "precision", "micro_batches", "seed", "data"],
)
def test_what_is_not_exact_is_said_in_the_first_lines(tmp_path, settings, words):
    toy_trainer(tmp_path).fit()
    trainer, said = going_on(tmp_path, **settings)
    trainer.fit()
    assert trainer.step == 7
    said = [line for line in said if "bit-exact" in line]
    assert [line.removeprefix("not bit-exact from here on: ")[: len(word)] for line, word in zip(said, words)] == words
    assert len(said) == len(words)


# A start that fails leaves the configuration that works.


def test_a_failed_start_keeps_the_configuration_that_works(tmp_path):
    class Fails(Trainer):
        def training_step(self, batch, step):
            raise ZeroDivisionError

    def config(learning_rate):
        return {"optimizer": {"lr": learning_rate}, "overrides": [f"optimizer.lr={learning_rate}"]}

    toy_trainer(tmp_path, config=config(0.1)).fit()
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(ZeroDivisionError):
        going_on(tmp_path, kind=Fails, config=config(0.5))[0].fit()
    assert (tmp_path / "config.yaml").read_bytes() == before
    assert read_status(tmp_path).overrides == ["optimizer.lr=0.1"]
    going_on(tmp_path, max_steps=6, config=config(0.7))[0].fit()
    assert OmegaConf.load(tmp_path / "config.yaml").optimizer.lr == 0.7
    assert read_status(tmp_path).overrides == ["optimizer.lr=0.7"]


def test_optimizer_state_that_is_missing_or_damaged(tmp_path):
    toy_trainer(tmp_path, optimizer=adam).fit()
    before = file_contents(tmp_path)
    with pytest.raises(CheckpointError, match=r"lacks .*max_exp_avg_sq .*optimizer.amsgrad=True \(before False\)"):
        going_on(tmp_path, optimizer=amsgrad)[0].fit()
    assert file_contents(tmp_path) == before
    last = tmp_path / "checkpoints/last.pt"
    for damage, words in (
        (lambda entry: entry.pop("exp_avg"), "lacks the optimizer state exp_avg .*it is damaged"),
        (lambda entry: entry.update(exp_avg=torch.zeros(7, 7)), r"exp_avg of a parameter \(3, 2\) is \(7, 7\)"),
        (lambda entry: entry.update(exp_avg_sq="words"), r"exp_avg_sq of a parameter \(3, 2\) is str"),
    ):
        last.write_bytes(before[last])
        content = torch.load(last)
        damage(content["optimizer"]["state"][0])
        torch.save(content, last)
        with pytest.raises(CheckpointError, match=words):
            going_on(tmp_path, optimizer=adam)[0].fit()
    last.write_bytes(before[last])
    going_on(tmp_path, optimizer=adam)[0].fit()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (lambda g, lr: torch.optim.SGD(g, lr), lambda g, lr: torch.optim.SGD(g, lr, momentum=0.9)),
        (lambda g, lr: torch.optim.SGD(g, lr, momentum=0.9), lambda g, lr: torch.optim.SGD(g, lr)),
        (amsgrad, adam),
        (lambda g, lr: torch.optim.Adafactor(g, lr), lambda g, lr: torch.optim.Adafactor(g, lr)),
    ],
    ids=["momentum begins", "momentum ends", "amsgrad ends", "factored"],
)
def test_an_optimizer_that_can_go_on_does(tmp_path, before, after):
    toy_trainer(tmp_path, optimizer=before).fit()
    trainer, _ = going_on(tmp_path, optimizer=after)
    trainer.fit()
    assert trainer.step == 7
