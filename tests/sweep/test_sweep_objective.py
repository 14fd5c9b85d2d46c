"""What a run is worth to a sweep."""

from __future__ import annotations

import math

import pytest

from jepa.config.sweep_objective import SweepObjective, as_returned
from jepa.utils.errors import UserError
from jepa.utils.metric_direction import direction_of


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("eval/trained/linear", "maximize"),
        ("online/knn", "maximize"),
        ("monitor/rankme", "maximize"),
        ("monitor/lidar", "maximize"),
        ("val/loss", "minimize"),
        ("train/loss/sigreg", "minimize"),
        ("cost/seconds", "minimize"),
        ("cost/parameters", "minimize"),
    ],
)
def test_the_name_says_which_way_is_better(name, direction):
    assert direction_of(name) == direction
    assert SweepObjective.of(name).directions == (direction,)


def test_one_metric_several_and_none():
    metrics = {"eval/trained/linear": 0.5, "val/loss": 2.0, "cost/seconds": 9.0}
    assert SweepObjective.of(None).measured(metrics) == {"eval/trained/linear": 0.5}
    assert SweepObjective.of(None).measured({"val/loss": 2.0}) == {"val/loss": 2.0}
    unlabelled = {"val/loss": 2.0, "eval/trained/rankme": 9.0}
    assert SweepObjective.of(None).measured(unlabelled) == {"eval/trained/rankme": 9.0}
    assert SweepObjective.of(None).measured({}) == {}
    assert as_returned({}) is None
    assert as_returned(SweepObjective.of("val/loss").measured(metrics)) == 2.0
    both = SweepObjective.of(["eval/trained/linear", "cost/seconds"])
    assert both.directions == ("maximize", "minimize")
    assert as_returned(both.measured(metrics)) == (0.5, 9.0)
    assert SweepObjective.of("val/loss", "maximize").directions == ("maximize",)


def test_failed_collapsed_and_endless_values():
    one, two = SweepObjective.of("online/knn"), SweepObjective.of(["online/knn", "val/loss"], failed_value=[0.1, 7])
    assert one.failed() == {"online/knn": 0.0}
    assert SweepObjective.of("val/loss").failed() == {"val/loss": 1e9}
    assert SweepObjective.of(None).failed() == {"eval/trained/linear": 0.0}
    assert SweepObjective.of(None, evaluated=False).failed() == {"val/loss": 1e9}
    assert SweepObjective.of(None).measured({"val/loss": math.nan}) == {"val/loss": 1e9}
    assert two.failed() == {"online/knn": 0.1, "val/loss": 7.0}
    good = {"online/knn": 0.9, "val/loss": 0.5}
    for verdict in ("collapse", "dimensional collapse", "diverged"):
        assert two.measured(good, verdict) == two.failed()
        assert SweepObjective.of("online/knn", collapsed="measured").measured(good, verdict) == {"online/knn": 0.9}
    assert two.measured(good, "healthy") == two.measured(good) == good
    assert two.measured({**good, "val/loss": math.inf}) == {"online/knn": 0.9, "val/loss": 7.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("val/loss", "up"), "sweep.direction=up: expected maximize, minimize"),
        ((5,), "optimized_metric=5: expected the name of a metric"),
        ((["val/loss", "val/loss"],), "a metric is given twice"),
        (("val/loss", None, "much"), "sweep.failed_value=much: expected a number"),
        (("val/loss", None, None, "ignored"), "sweep.collapsed=ignored: expected failed"),
        ((["val/loss", "online/knn"], ["minimize"]), r"sweep.direction=\['minimize'\]: got 1 values for 2"),
        ((["val/loss", "online/knn"], None, [1, 2, 3]), "sweep.failed_value=.*got 3 values for 2"),
    ],
)
def test_what_makes_no_sense(arguments, message):
    with pytest.raises(UserError, match=message):
        SweepObjective.of(*arguments)


def test_a_metric_that_did_not_come():
    with pytest.raises(UserError, match=r"optimized_metric=online/kn .*did you mean online/knn\?"):
        SweepObjective.of("online/kn").measured({"online/knn": 1.0})
    with pytest.raises(UserError, match="there are none"):
        SweepObjective.of("online/knn").measured({})
