"""Means over seeds, their intervals, and tests of the difference between two settings.

The only noise that is known is that over seeds, each of which gives one value per setting. The noise of the test set is
not in it, as that is the same in all runs.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from jepa.report.runs import Run, canonical
from jepa.utils.metric_direction import Direction

LEVEL = 0.95
"""Confidence level of all intervals; a difference is significant if its corrected p is below 1 - LEVEL."""

ROUNDING = 1e-9
"""Differences below this share of the values are rounding errors."""


@dataclass(frozen=True)
class Estimate:
    """A mean over `count` seeds. half: half the width of its interval, None for a single seed."""

    mean: float
    count: int
    half: float | None = None


@dataclass(frozen=True)
class Setting:
    """Runs that differ in the seed alone.

    values: seed -> value of the runs that count, averaged over repetitions of a seed, which are no new evidence.
    estimate: over these values, None without any. bad: number of failed or collapsed runs.
    """

    options: dict[str, str]
    values: dict[str | None, float]
    estimate: Estimate | None
    bad: int
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Comparison:
    """The best setting against another.

    lead: how much better the best is over the seeds that were compared; it may be negative over the seeds that both
    have. low, high: its interval, not corrected for other comparisons. p: two-sided; corrected: by Holm over all
    comparisons. All four are None for the method "none", see `compare`.
    """

    other: Setting
    method: Literal["paired", "welch", "none"]
    seeds: int
    lead: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    corrected: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the lead is more than chance."""
        return self.lead > 0 and self.corrected is not None and self.corrected < 1 - LEVEL


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean and its Student-t interval, mean +- t(0.975, n - 1) s / sqrt(n)."""
    mean, count = math.fsum(values) / len(values), len(values)
    if count < 2:
        return Estimate(mean, count)
    if np.ptp(values) <= ROUNDING * np.abs(values).max():
        return Estimate(mean, count, 0.0)
    return Estimate(mean, count, float(stats.sem(values) * stats.t.ppf((1 + LEVEL) / 2, count - 1)))


def settings_of(runs: Sequence[Run], metric: str, direction: Direction) -> list[Setting]:
    """Return the runs grouped by their options without the seed: best mean first, settings without a value last."""
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        key = tuple((name, canonical(value)) for name, value in run.setting.items())
        groups.setdefault(key, []).append(run)
    settings = []
    for group in groups.values():
        seeds: dict[str | None, list[float]] = {}
        for run in group:
            if run.counts(metric):
                seeds.setdefault(run.seed, []).append(run.value(metric))
        values = {seed: math.fsum(repeats) / len(repeats) for seed, repeats in seeds.items()}
        found = estimate(list(values.values())) if values else None
        settings.append(Setting(group[0].setting, values, found, sum(run.bad for run in group), tuple(group)))
    sign = -1.0 if direction == "maximize" else 1.0
    return sorted(settings, key=lambda s: math.inf if s.estimate is None else sign * s.estimate.mean)


def compare(best: Setting, other: Setting, direction: Direction) -> Comparison:
    """Test two settings that have values: paired over the seeds that both have, if two or more, else by Welch.

    The method is "none", without a p, if a setting has one seed, or if there is no variance at all: two seeds that
    agree to the last digit mean that the metric is too coarse or the seed has no effect, not that the noise is 0.
    """
    sign = 1.0 if direction == "maximize" else -1.0
    rounding = ROUNDING * max(abs(value) for setting in (best, other) for value in setting.values.values())
    common = [seed for seed in best.values if seed in other.values]
    paired = len(common) >= 2
    seeds = [common, common] if paired else [list(best.values), list(other.values)]
    ours, others = (np.array([sign * s.values[seed] for seed in own]) for s, own in zip((best, other), seeds))
    lead = math.fsum(ours) / len(ours) - math.fsum(others) / len(others)
    lead = lead if abs(lead) > rounding else 0.0
    count = min(len(ours), len(others))
    constant = np.ptp(ours - others) <= rounding if paired else max(np.ptp(ours), np.ptp(others)) <= rounding
    if count < 2 or constant:
        return Comparison(other, "none", count, lead)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one of them may be constant
        test = stats.ttest_rel(ours, others) if paired else stats.ttest_ind(ours, others, equal_var=False)
        interval = test.confidence_interval(LEVEL)
    method = "paired" if paired else "welch"
    return Comparison(other, method, count, lead, float(interval.low), float(interval.high), float(test.pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number (Holm, Scand. J. Statist. 1979).

    The i-th smallest of m, from 0, is multiplied by m - i, and is at least the one before it and at most 1.
    """
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, dtype=float)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return corrected.tolist()


def compare_with_best(settings: Sequence[Setting], direction: Direction) -> list[Comparison]:
    """Compare the first setting, the best, with every other that has a value, in their order.

    A setting of one seed is not tested, so not corrected for; one without variance is, with p = 1. Holm corrects for
    the number of comparisons, not for the best having been chosen by the same values, which flatters it a little.
    """
    valued = [setting for setting in settings if setting.estimate is not None]
    comparisons = [compare(valued[0], other, direction) for other in valued[1:]]
    tests = [index for index, item in enumerate(comparisons) if item.seeds >= 2]
    corrected = holm([1.0 if comparisons[index].p is None else comparisons[index].p for index in tests])
    for index, value in zip(tests, corrected):
        if comparisons[index].p is not None:
            comparisons[index] = dataclasses.replace(comparisons[index], corrected=value)
    return comparisons
