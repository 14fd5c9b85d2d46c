"""Callbacks and early stopping."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from toy import toy_trainer

from jepa import load_config
from jepa.config.build import build, to_plain
from jepa.config.check import check_config
from jepa.trainer import Callback, EarlyStopping, Logger
from jepa.trainer.settings import Intervals
from jepa.types import RunLength
from jepa.utils.errors import UserError


class Run:
    """What a callback sees of a trainer."""

    def __init__(self, **others):
        self.step, self.run_length = 0, RunLength(max_steps=100, steps_per_epoch=10)
        self.every = Intervals(validate=10)
        self.reasons, self.said = [], []
        self.__dict__.update(others)

    def stop(self, reason):
        self.reasons.append(reason)

    def say(self, text):
        self.said.append(text)

    def feed(self, callback, *values, name="val/loss"):
        """Measurements, one a step, until it stops; gives the step."""
        for value in values:
            self.step += 1
            callback.step_end(self)
            callback.measured(self, {"train/loss": 1.0, "lr": 0.1})
            callback.measured(self, {name: value})
            if self.reasons:
                break
        return self.step


def test_stops_after_patience_measurements():
    run, callback = Run(), EarlyStopping(patience=3)
    callback.begin(run)
    assert run.feed(callback, 5.0, 4.0, 4.5, 4.0, 3.0, 3.5, 3.0, 3.2, 1.0) == 8
    assert run.reasons == ["val/loss has not improved for 3 measurements (best: 3 at step 5; patience=3)"]


def test_more_is_better_and_by_how_much():
    run, callback = (
        Run(every=Intervals(evaluate=1)),
        EarlyStopping(monitor="eval/trained/knn", patience=2, min_delta=0.1, mode="max"),
    )
    callback.begin(run)
    assert run.feed(callback, 0.5, 0.65, 0.7, 0.74, 0.9, name="eval/trained/knn") == 4
    assert callback.best == 0.65


def test_what_is_not_a_number_is_never_better():
    run, callback = Run(), EarlyStopping(patience=2)
    assert run.feed(callback, math.nan, 3.0, math.nan, math.inf, 1.0) == 4
    run, callback = Run(), EarlyStopping(patience=2)
    assert run.feed(callback, math.nan, math.nan) == 2
    assert "best: never a number" in run.reasons[0]


VALUES = (5.0, 4.0, 4.5, 3.9, 4.2, 4.3, 3.8, 3.9, 3.9, 3.9)


@pytest.mark.parametrize("broken_off", range(1, 9))
def test_state_survives_a_resume(broken_off):
    whole = EarlyStopping(patience=3)
    stopped = Run().feed(whole, *VALUES)
    first, second, run = EarlyStopping(patience=3), EarlyStopping(patience=3), Run()
    run.feed(first, *VALUES[:broken_off])
    second.load_state_dict(first.state_dict())
    second.begin(run)
    assert run.feed(second, *VALUES[broken_off:]) == stopped == 10
    assert second.state_dict() == whole.state_dict()


def test_a_run_that_was_stopped_stays_stopped():
    callback = EarlyStopping(patience=2)
    Run().feed(callback, 1.0, 2.0, 2.0)
    again, patient, other = EarlyStopping(patience=2), EarlyStopping(patience=3), EarlyStopping(monitor="lr")
    runs = []
    for restored in (again, patient, other):
        restored.load_state_dict(callback.state_dict())
        runs.append(Run(step=3))
        restored.begin(runs[-1])
    assert [len(run.reasons) for run in runs] == [1, 0, 0]
    assert other.best is None


def test_a_metric_that_cannot_come_is_refused():
    for monitor, remedy in (("val/loss", "validate_every_epochs"), ("eval/trained/knn", "evaluation.every")):
        with pytest.raises(
            UserError, match=rf"monitor={monitor}, which is not measured during this run: set .*{remedy}"
        ):
            EarlyStopping(monitor=monitor).begin(Run(every=Intervals()))


@pytest.mark.parametrize(
    ("monitor", "hint"),
    [
        ("val/los", r"did you mean val/loss\?"),
        ("train/loss/sigreg", r"did you mean train/loss\?"),
        ("grad_nrm", "there are lr, train/loss"),
    ],
)
def test_a_misspelt_metric_is_refused_when_its_kind_comes(monitor, hint):
    run, callback = Run(), EarlyStopping(monitor=monitor)
    callback.begin(run)
    with pytest.raises(UserError, match=f"monitor={monitor}, which was not among the metrics: {hint}"):
        run.feed(callback, 1.0)


def test_metrics_of_other_kinds_are_no_mistake():
    run, callback = Run(), EarlyStopping(monitor="train/loss", patience=1)
    callback.measured(run, {"epoch": 1.0, "val/loss": 1.0})
    callback.measured(run, {"train/loss": 1.0})
    callback.measured(run, {"train/half": 1.0, "train/loss": 1.0})
    assert run.reasons


def test_a_metric_that_never_came_is_told_of():
    run, callback = Run(), EarlyStopping()
    callback.measured(run, {"train/loss": 1.0, "lr": 0.1})
    callback.end(run)  # broken off
    assert not run.said
    run.step = 100
    callback.end(run)
    assert run.said == ["early stopping never saw monitor=val/loss; the metrics that came are: lr, train/loss"]


@pytest.mark.parametrize("wrong", [{"patience": 0}, {"min_delta": -1.0}, {"mode": "least"}])
def test_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match=r"expected patience >= 1, min_delta >= 0 and mode 'min' or 'max'"):
        EarlyStopping(**wrong)


def test_a_callback_that_does_nothing():
    callback, run = Callback(), SimpleNamespace()
    callback.begin(run), callback.step_end(run), callback.measured(run, {}), callback.end(run)
    callback.load_state_dict(callback.state_dict())
    assert callback.state_dict() == {}


class Mine(Callback):
    """A user's own."""

    def __init__(self, *, period: int = 1):
        self.period = period


def test_callbacks_from_the_configuration():
    assert load_config().callbacks == {}
    config = load_config(["callbacks=early_stopping", "callbacks.early_stopping.patience=5"])
    check_config(to_plain(config))
    callbacks = build(config, "callbacks")
    assert (callbacks["early_stopping"].patience, callbacks["early_stopping"].monitor) == (5, "val/loss")
    own = ["+callbacks.mine._target_=test_callbacks.Mine", "+callbacks.mine.period=3"]
    assert build(load_config(own), "callbacks")["mine"].period == 3
    assert set(build(load_config([*own, "callbacks=early_stopping"]), "callbacks")) == {"early_stopping", "mine"}
    with pytest.raises(UserError, match=r"callbacks.early_stopping.mode"):
        check_config(to_plain(load_config(["callbacks=early_stopping", "callbacks.early_stopping.mode=least"])))


class Stop(Callback):
    """Asks to stop after a step."""

    def __init__(self, step):
        self.step = step

    def step_end(self, trainer):
        if trainer.step == self.step:
            trainer.stop("it is enough")


class Said(Logger):
    """Keeps what is said."""

    def __init__(self):
        self.said = []

    def message(self, text):
        self.said.append(str(text))


@pytest.mark.parametrize(("step", "ends"), [(3, True), (5, False)])
def test_the_last_line_says_why_a_run_ends_early(tmp_path, step, ends):
    said = Said()
    toy_trainer(tmp_path, loggers=[said], callbacks={"stop": Stop(step)}).fit()
    assert (said.said[-1] == "ended at step 3 of 5: it is enough") == ends
    assert any("ended at step" in line for line in said.said) == ends
