"""Damaged checkpoints of both formats: each is refused in one sentence, and nothing is overwritten or half loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from toy import ToyModel, adam, file_contents, toy_trainer

from jepa.checkpoint import plain
from jepa.monitor import CollapseMonitor
from jepa.utils.errors import CheckpointError, NonFiniteError

pytestmark = pytest.mark.faults


def put(*keys: Any, value: Any) -> Callable[[dict], None]:
    """Set one value of a nested content."""

    def change(content: dict) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


DAMAGE = {
    "negative step": (put("step", value=-1), "step is -1, expected a number from 0 on"),
    "step of another type": (put("step", value="3"), "step is '3'"),
    "step that is no number": (put("step", value=float("nan")), "step is nan"),
    "step that is a flag": (put("step", value=True), "step is True"),
    "nan weights": (put("model", "weight", value=torch.full((3, 2), torch.nan)), "weight of the model holds values"),
    "infinite weights": (put("model", "bias", value=torch.tensor([1.0, torch.inf])), "bias of the model holds values"),
    "weights that are words": (put("model", "weight", value="words"), "model is .*expected a dict of tensors"),
    "no model": (put("model", value=None), "model is None"),
    "a list of models": (put("model", value=[1]), "model is"),
    "another model": (put("model", "weight", value=torch.zeros(9, 9)), "of another model"),
    "pending": (put("pending", value=None), "pending is None"),
    "ended": (put("ended", value=3), "ended is 3"),
    "optimizer": (put("optimizer", value=7), "optimizer is 7"),
    "optimizer groups": (put("optimizer", "param_groups", value=[1, 2]), "optimizer is"),
    "optimizer state": (put("optimizer", "state", value={"a": 1}), "optimizer is"),
    "best": (put("best", value={}), "best is {}"),
    "table": (put("best", "table", value=[[1.0, "x"]]), "best is"),
    "metrics": (put("metrics", value={"train/loss": "low"}), "metrics is"),
    "callbacks": (put("callbacks", value=[]), "callbacks is"),
    "loggers": (put("loggers", value={"jsonl": 3}), "loggers is"),
    "config": (put("config", value="yaml"), "config is 'yaml'"),
    "rollbacks": (put("rollbacks", value=[3]), "rollbacks is"),
    "seconds": (put("train_seconds", value="long"), "train_seconds is 'long'"),
    "facts of the run": (put("run", value=3), "run is 3"),
    "terminal escapes": (put("ended", value=["\x1b[31m"]), r"ended is \['\\x1b"),
}


def state_of(content, name):
    """A state of the first parameter."""
    return content["optimizer"]["state"][0][name]


DAMAGE |= {
    "weight without values": (
        lambda c: c["model"].update(weight=torch.zeros(1).expand(c["model"]["weight"].shape)),
        "weight of the model is no plain tensor",
    ),
    "sparse weight": (
        lambda c: c["model"].update(weight=c["model"]["weight"].to_sparse()),
        "weight of the model is no plain tensor",
    ),
    "weights of another type": (
        lambda c: c["model"].update(weight=c["model"]["weight"].long()),
        r"weight: \(3, 2\) int64 in the file, \(3, 2\) in the model",
    ),
    "configuration without end": (
        lambda c: c["config"].update(data=c["config"]),
        "config is .*expected a dict of sections",
    ),
    "NaN in a moment": (lambda c: state_of(c, "exp_avg").fill_(torch.nan), "exp_avg .* not finite"),
    "negative second moment": (lambda c: state_of(c, "exp_avg_sq").fill_(-1.0), "exp_avg_sq .* negative"),
    "negative step of Adam": (lambda c: state_of(c, "step").fill_(-1.0), "state step .* negative"),
    "state of no parameter": (lambda c: c["optimizer"]["state"].update({99: {}}), "state of parameter 99"),
    "negative seconds": (lambda c: c.update(train_seconds=-1.0), "train_seconds is -1.0"),
    "data of another kind": (lambda c: c["config"].update(data=5), "config is .*, expected a dict of sections"),
}


@pytest.fixture(scope="module", params=["plain", "sharded"])
def trained(request, tmp_path_factory):
    """A run of two steps in each format."""
    folder = tmp_path_factory.mktemp(request.param)
    toy_trainer(folder, optimizer=adam, checkpoint_format=request.param, max_steps=2).fit()
    return folder, request.param


@pytest.mark.parametrize("kind", DAMAGE)
def test_fields_of_another_kind(tmp_path, kind):
    change, words = DAMAGE[kind]
    toy_trainer(tmp_path, optimizer=adam, max_steps=2).fit()
    last = tmp_path / "checkpoints/last.pt"
    content = torch.load(last)
    change(content)
    torch.save(content, last)
    before = file_contents(tmp_path)
    trainer = toy_trainer(tmp_path, optimizer=adam, max_steps=4, resume="auto")
    with pytest.raises(CheckpointError, match=words) as caught:
        trainer.fit()
    assert str(caught.value).isprintable() or "of another model" in str(caught.value)
    assert torch.equal(trainer.model.weight, ToyModel().weight)
    assert file_contents(tmp_path) == before


def test_both_formats_have_the_same_checks(trained, monkeypatch):
    folder, kind = trained
    for key in plain.FIELDS:
        monkeypatch.setitem(plain.FIELDS, key, (lambda value: False, "nothing"))
        with pytest.raises(CheckpointError, match=f"{key} is"):
            toy_trainer(folder, optimizer=adam, checkpoint_format=kind, max_steps=4, resume="auto").fit()
        monkeypatch.undo()


class Overflow(torch.optim.SGD):
    """Its second step makes weights that are not finite."""

    def step(self, closure=None):
        self.taken = getattr(self, "taken", 0) + 1
        super().step()
        if self.taken == 2:
            self.param_groups[0]["params"][0].data.fill_(torch.inf)


@pytest.mark.parametrize("kind", ["plain", "sharded"])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, kind):
    settings = {"optimizer": Overflow, "save_every_steps": 1, "max_steps": 3, "checkpoint_format": kind}
    with pytest.raises(
        NonFiniteError, match=r"not finite at step 2: the weights \(weight\).* checkpoint before is intact"
    ):
        toy_trainer(tmp_path / "stops", **settings).fit()
    again = toy_trainer(tmp_path / "stops", **settings)
    again.load_checkpoint(tmp_path / "stops")
    assert again.step == 1
    monitor = CollapseMonitor(on_collapse="rollback", max_rollbacks=1)
    goes_back = toy_trainer(tmp_path / "goes_back", monitor=monitor, **settings)
    goes_back.fit()
    assert goes_back.step == 3
    assert len(goes_back.state.rollbacks) == 1
