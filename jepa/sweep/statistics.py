"""Means over seeds, their intervals, and whether a difference between two settings is more than chance.

What is compared are seeds: each gives one number per setting, and the spread over them is the only noise that is known.
It holds nothing of the noise of the test set, which is the same in all runs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

from jepa.sweep.collect import Run, canonical
from jepa.utils.metric_direction import Direction

LEVEL = 0.95
"""Of all intervals; a difference is told from chance where its corrected p is below 1 - LEVEL."""

ROUNDING = 1e-9
"""A spread below this share of the values is no spread, but rounding."""


@dataclass(frozen=True)
class Estimate:
    """A mean. deviation: sample standard deviation (n - 1); low, high: its interval; all None for a single value."""

    mean: float
    count: int
    deviation: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def half(self) -> float | None:
        """Half the width of the interval."""
        return None if self.high is None else self.high - self.mean


@dataclass(frozen=True)
class Setting:
    """Runs that differ in nothing but the seed.

    options: their options. values: seed -> value, of the runs that count (`Run.counts`); repetitions of one seed are
    no new evidence, so their mean is one value. estimate: over these values, None without any.
    bad: runs left out as they failed or collapsed. runs: all.
    """

    options: dict[str, str]
    values: dict[str | None, float]
    estimate: Estimate | None
    bad: int
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Comparison:
    """The best setting against another.

    lead: how much better the best is, over the seeds that were compared; below 0 where it is worse by those that both
    have. low, high: its interval, not corrected for there being other comparisons. p: two-sided; corrected: by Holm
    over all comparisons. They are None where there is nothing to tell the noise by, which `method` "none" says: see
    `compare`.
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
    def is_real(self) -> bool:
        """Whether the lead is told from chance."""
        return self.lead > 0 and self.corrected is not None and self.corrected < 1 - LEVEL


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and its Student-t interval, mean +- t(0.975, n - 1) s / sqrt(n). (Student, Biometrika 1908.)

    Takes one finite value or more.
    """
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return Estimate(mean, count)
    deviation = deviation_of(values)
    half = quantile(count - 1) * deviation / math.sqrt(count)
    return Estimate(mean, count, deviation, mean - half, mean + half)


def deviation_of(values: Sequence[float]) -> float:
    """Sample standard deviation, over n - 1; exactly 0 where the values differ by no more than rounding."""
    if max(values) - min(values) <= ROUNDING * max(map(abs, values)):
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def quantile(freedom: float) -> float:
    """Of Student's t: what its absolute value stays below with a probability of LEVEL."""
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))


def settings_of(runs: Sequence[Run], metric: str, direction: Direction) -> list[Setting]:
    """Runs grouped by what they are but for the seed, best mean first, those without a value last."""
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        key = tuple((name, canonical(value)) for name, value in run.setting.items())
        groups.setdefault(key, []).append(run)
    settings = [setting_of(group, metric) for group in groups.values()]
    sign = -1.0 if direction == "maximize" else 1.0
    return sorted(settings, key=lambda s: math.inf if s.estimate is None else sign * s.estimate.mean)


def setting_of(runs: Sequence[Run], metric: str) -> Setting:
    """The setting of runs that differ in the seed."""
    seeds: dict[str | None, list[float]] = {}
    for run in runs:
        if run.counts(metric):
            seeds.setdefault(run.seed, []).append(run.value(metric))
    values = {seed: math.fsum(group) / len(group) for seed, group in seeds.items()}
    return Setting(
        options=runs[0].setting,
        values=values,
        estimate=estimate(list(values.values())) if values else None,
        bad=sum(run.bad for run in runs),
        runs=tuple(runs),
    )


def compare(best: Setting, other: Setting, direction: Direction) -> Comparison:
    """Two settings that have values: by a paired t test over the seeds both have, if these are two or more, else by
    Welch's.

    Paired (Student 1908): t = mean(d) / (s_d / sqrt(n)), n - 1 degrees of freedom, d the differences by seed.
    Welch (Biometrika 1947): t = (m1 - m2) / sqrt(v1 + v2), v = s^2 / n, with (v1 + v2)^2 / (v1^2 / (n1 - 1) +
    v2^2 / (n2 - 1)) degrees of freedom.

    Nothing is told, and method is "none", where a setting has one seed and so shows no noise; and where there is no
    spread at all: two seeds that agree to the last digit say that the metric is too coarse or the seed without effect,
    not that the noise is zero and p is 0.
    """
    sign = 1.0 if direction == "maximize" else -1.0
    common = [seed for seed in best.values if seed in other.values]
    # Rounding is that of the values, not of their differences.
    noise = ROUNDING * max(abs(value) for setting in (best, other) for value in setting.values.values())
    if len(common) >= 2:
        differences = [sign * (best.values[seed] - other.values[seed]) for seed in common]
        lead = math.fsum(differences) / len(common)
        flat = max(differences) - min(differences) <= noise
        error = 0.0 if flat else deviation_of(differences) / math.sqrt(len(common))
        return tested(other, "paired", len(common), lead if abs(lead) > noise else 0.0, error, len(common) - 1)
    lead = sign * (best.estimate.mean - other.estimate.mean)
    lead = lead if abs(lead) > noise else 0.0
    counts = best.estimate.count, other.estimate.count
    if min(counts) < 2:
        return Comparison(other, "none", min(counts), lead)
    parts = [s.estimate.deviation**2 / s.estimate.count for s in (best, other)]
    freedom = 0.0
    if sum(parts) > 0:
        # As shares, so that the squares of tiny variances do not vanish.
        shares = [part / sum(parts) for part in parts]
        freedom = 1 / sum(share**2 / (count - 1) for share, count in zip(shares, counts))
    return tested(other, "welch", min(counts), lead, math.sqrt(sum(parts)), freedom)


def tested(
    other: Setting, method: Literal["paired", "welch"], seeds: int, lead: float, error: float, freedom: float
) -> Comparison:
    """A comparison by its lead, the standard error of that, and the degrees of freedom."""
    if not error > 0:
        return Comparison(other, "none", seeds, lead)
    p = float(2 * stats.t.sf(abs(lead) / error, freedom))
    half = quantile(freedom) * error
    return Comparison(other, method, seeds, lead, lead - half, lead + half, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number, each at most 1 (Holm, Scand. J. Statist. 1979): in rising order the i-th
    of m, from 0, is multiplied by m - i, and is at least the one before it."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def compare_with_best(settings: Sequence[Setting], direction: Direction) -> list[Comparison]:
    """The first setting, the best, against every other that has a value, in their order.

    A setting of one seed is not tested, and so not corrected for; one without any spread is, with p = 1. That the best
    was chosen by the same numbers flatters it a little, more so the more settings there are: Holm's correction is for
    the comparisons, not for that choice.
    """
    valued = [setting for setting in settings if setting.estimate is not None]
    comparisons = [compare(valued[0], other, direction) for other in valued[1:]]
    tests = [index for index, item in enumerate(comparisons) if item.seeds >= 2]
    corrected = holm([1.0 if comparisons[index].p is None else comparisons[index].p for index in tests])
    for index, value in zip(tests, corrected):
        if comparisons[index].p is not None:
            comparisons[index] = dataclasses.replace(comparisons[index], corrected=value)
    return comparisons
