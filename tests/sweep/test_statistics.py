"""Means over seeds, intervals and tests, against closed forms and scipy's own."""

from __future__ import annotations

import math

import pytest
from runs import METRIC, write_run
from scipy import stats

from jepa.sweep.collect import collect
from jepa.sweep.statistics import compare_with_best, estimate, holm, settings_of


def settings(folder, values):
    """Settings of a sweep over `optimizer.lr`: rate -> values by seed, None for a run that failed."""
    number = 0
    for rate, seeds in values.items():
        for seed, value in seeds.items():
            state = {"state": "failed"} if value is None else {}
            write_run(folder, number, f"optimizer.lr={rate} trainer.seed={seed}", value, **state)
            number += 1
    return settings_of(collect(folder), METRIC, "maximize")


def test_an_interval_over_three_seeds():
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.count, found.deviation) == (2.0, 3, 1.0)
    assert found.half == pytest.approx(4.302652729911275 / math.sqrt(3))  # t(0.975, 2)
    assert estimate([5.0]).half is None
    assert estimate([0.1, 0.1, 0.1]).half == 0


def test_settings_are_what_is_the_same_but_for_the_seed(tmp_path):
    found = settings(tmp_path, {"1e-3": {0: 0.5, 1: 0.7, 2: None}, "0.01": {0: 0.8, 1: 0.8}, "1e-2": {2: 0.5}})
    assert [setting.options["optimizer.lr"] for setting in found] == ["0.01", "1e-3"]  # 0.01 is 1e-2
    assert found[0].values == {"0": 0.8, "1": 0.8, "2": 0.5}
    assert (found[1].values, found[1].bad) == ({"0": 0.5, "1": 0.7}, 1)


def test_seeds_in_common_are_paired(tmp_path):
    one, two = {0: 0.90, 1: 0.92, 2: 0.95, 3: 0.91}, {0: 0.89, 1: 0.90, 2: 0.94, 3: 0.89}
    (found,) = compare_with_best(settings(tmp_path, {"1e-3": one, "1e-2": two}))
    wanted = stats.ttest_rel(list(one.values()), list(two.values()))
    assert (found.method, found.seeds) == ("paired", 4)
    assert found.p == pytest.approx(wanted.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(wanted.confidence_interval(0.95)))
    assert found.corrected == found.p  # one comparison
    assert found.is_real


def test_other_seeds_are_not_paired(tmp_path):
    one, two = {0: 0.90, 1: 0.92, 2: 0.95}, {5: 0.90, 6: 0.80, 7: 0.91, 8: 0.83}
    (found,) = compare_with_best(settings(tmp_path, {"1e-3": one, "1e-2": two}))
    wanted = stats.ttest_ind(list(one.values()), list(two.values()), equal_var=False)
    assert found.method == "welch"
    assert found.p == pytest.approx(wanted.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(wanted.confidence_interval(0.95)))
    assert not found.is_real


def test_what_shows_no_noise_is_not_told_from_chance(tmp_path):
    flat = settings(tmp_path / "flat", {"1e-3": {0: 0.9, 1: 0.9}, "1e-2": {0: 0.8, 1: 0.8}, "0.1": {0: 0.7}})
    found = compare_with_best(flat)
    assert [(item.method, item.p, item.is_real) for item in found] == [("none", None, False)] * 2


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
