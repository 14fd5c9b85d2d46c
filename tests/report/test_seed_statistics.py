"""Means over seeds, intervals and tests, against closed forms and scipy's own."""

from __future__ import annotations

import math

import pytest
from run_folders import METRIC, write_run
from scipy import stats

from jepa.report.runs import read_runs
from jepa.report.sweep_statistics import compare_with_best, half_width, holm, settings_of


def settings(folder, values, direction="maximize"):
    """Settings of a sweep over `optimizer.lr`: rate -> values by seed, None for a run that failed."""
    number = 0
    for rate, seeds in values.items():
        for seed, value in seeds.items():
            state = {"state": "failed"} if value is None else {}
            write_run(folder, number, f"optimizer.lr={rate} trainer.seed={seed}", value, **state)
            number += 1
    return settings_of(read_runs(folder), METRIC, direction)


def test_an_interval_is_that_of_student():
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.302652729911275 / math.sqrt(3))  # t(0.975, 2)
    assert half_width([5.0]) is None
    assert half_width([0.1, 0.1, 0.1]) == 0
    values = [0.91, 0.94, 0.90, 0.93, 0.97]
    low, high = stats.t.interval(0.95, 4, loc=sum(values) / 5, scale=stats.sem(values))
    assert half_width(values) == pytest.approx((high - low) / 2)


def test_settings_are_what_is_the_same_but_for_the_seed(tmp_path):
    found = settings(tmp_path, {"1e-3": {0: 0.5, 1: 0.7, 2: None}, "0.01": {0: 0.8, 1: 0.8}, "1e-2": {2: 0.5}})
    assert [setting.options["optimizer.lr"] for setting in found] == ["0.01", "1e-3"]  # 0.01 is 1e-2
    assert found[0].values == {"0": 0.8, "1": 0.8, "2": 0.5}
    assert found[0].mean == pytest.approx(0.7)
    assert (found[1].values, found[1].bad) == ({"0": 0.5, "1": 0.7}, 1)


@pytest.mark.parametrize(
    ("method", "other", "significant"),
    [
        ("paired", {0: 0.89, 1: 0.90, 2: 0.94, 3: 0.89}, True),
        ("welch", {5: 0.90, 6: 0.80, 7: 0.91, 8: 0.83}, False),  # other seeds
    ],
)
def test_seeds_in_common_are_paired(tmp_path, method, other, significant):
    best = {0: 0.90, 1: 0.92, 2: 0.95, 3: 0.91}
    (found,) = compare_with_best(settings(tmp_path, {"1e-3": best, "1e-2": other}), "maximize")
    values = list(best.values()), list(other.values())
    wanted = stats.ttest_rel(*values) if method == "paired" else stats.ttest_ind(*values, equal_var=False)
    assert (found.method, found.seeds, found.significant) == (method, 4, significant)
    assert found.p == pytest.approx(wanted.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(wanted.confidence_interval(0.95)))
    assert found.corrected == found.p  # one comparison


def test_one_seed_in_common_is_no_pair(tmp_path):
    one, two = {0: 0.90, 1: 0.92}, {1: 0.80, 2: 0.84}
    (found,) = compare_with_best(settings(tmp_path, {"1e-3": one, "1e-2": two}), "maximize")
    assert found.method == "welch"
    # Both variances 2e-4 and 8e-4, over 2 seeds: 1e-4 + 4e-4; (5e-4)^2 / (1e-8 + 16e-8) degrees of freedom.
    wanted = 2 * stats.t.sf(0.09 / math.sqrt(5e-4), 25 / 17)
    assert found.p == pytest.approx(wanted)


def test_less_can_be_better(tmp_path):
    found = settings(tmp_path, {"1e-3": {0: 0.30, 1: 0.31, 2: 0.32}, "1e-2": {0: 0.20, 1: 0.22, 2: 0.21}}, "minimize")
    assert found[0].options["optimizer.lr"] == "1e-2"
    (comparison,) = compare_with_best(found, "minimize")
    assert comparison.lead == pytest.approx(0.1)
    assert 0 < comparison.low < 0.1 < comparison.high
    assert comparison.significant


def test_the_best_by_its_mean_may_be_behind_in_the_seeds_that_both_have(tmp_path):
    values = {"1e-3": {0: 0.9000, 1: 0.9001, 2: 0.99}, "1e-2": {0: 0.9100, 1: 0.9102}}
    (found,) = compare_with_best(settings(tmp_path, values), "maximize")
    assert found.lead == pytest.approx(-0.01005)
    assert found.corrected < 0.05
    assert not found.significant  # a lead that is none cannot be one


def test_what_shows_no_noise_is_not_told_from_chance(tmp_path):
    flat = settings(tmp_path / "flat", {"1e-3": {0: 0.9, 1: 0.9}, "1e-2": {0: 0.8, 1: 0.8}, "0.1": {0: 0.7}})
    found = compare_with_best(flat, "maximize")
    assert [(item.method, item.p, item.significant) for item in found] == [("none", None, False)] * 2
    shifted = settings(tmp_path / "shifted", {"1e-3": {0: 0.9, 1: 0.7}, "1e-2": {0: 0.8, 1: 0.6}})
    assert compare_with_best(shifted, "maximize")[0].p is None  # 0.1 in every seed


def test_a_tie_is_no_lead_of_a_rounding_error(tmp_path):
    one, two = ({seed: hits / 360 for seed, hits in enumerate(row)} for row in ((316, 300, 312), (314, 309, 305)))
    assert math.fsum(one[seed] - two[seed] for seed in one) != 0
    (found,) = compare_with_best(settings(tmp_path, {"1e-3": one, "1e-2": two}), "maximize")
    assert found.lead == 0
    assert found.p == pytest.approx(1)


def test_all_comparisons_are_corrected_for_but_those_that_are_none(tmp_path):
    best = {0: 0.90, 1: 0.92, 2: 0.95}
    others = {"1e-2": {0: 0.86, 1: 0.89, 2: 0.91}, "0.1": {0: 0.80, 1: 0.83, 2: 0.84}, "1": {0: 0.5}}
    found = compare_with_best(settings(tmp_path, {"1e-3": best, **others}), "maximize")
    first, second, lone = found
    assert (lone.p, lone.corrected) == (None, None)
    low, high = sorted([first, second], key=lambda item: item.p)
    assert low.corrected == pytest.approx(2 * low.p)
    assert high.corrected == pytest.approx(max(high.p, 2 * low.p))


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([0.04, 0.001, 0.02, 0.02]) == pytest.approx([0.06, 0.004, 0.06, 0.06])  # never below one before it
