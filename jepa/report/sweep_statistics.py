"""Means over seeds, tests of the difference between settings, and what a metric depends on.

The only noise that is known is that over seeds, each of which gives one value per setting. The noise of the test set is
not in it, as that is the same in all runs.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import numpy as np
from scipy import stats

from jepa.report.runs import Run, as_number, canonical, natural_key
from jepa.utils.metric_direction import Direction

LEVEL = 0.95  # confidence level of all intervals; a difference is significant if its corrected p is below 1 - LEVEL
ROUNDING = 1e-9  # differences below this share of the values are rounding errors

MIN_RUNS = 4  # fewer runs have no importances; they become reliable with ten runs per option
LOG_RATIO = 30.0  # positive numbers whose largest is this many times the smallest are spaced by their logarithm
TREES = 200


@dataclass(frozen=True)
class Setting:
    """Runs that differ in the seed alone.

    values: seed -> value of the runs that count, averaged over repetitions of a seed, which are no new evidence.
    mean: of these values, None without any. half: half the width of its interval, None for a single seed.
    """

    options: dict[str, str]
    values: dict[str | None, float]
    runs: list[Run]
    mean: float | None
    half: float | None

    @property
    def bad(self) -> int:
        """Number of failed or collapsed runs."""
        return sum(run.bad for run in self.runs)


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


def half_width(values: Sequence[float]) -> float | None:
    """Return half the width of the mean's Student-t interval, t(0.975, n - 1) s / sqrt(n); None for one value."""
    if len(values) < 2:
        return None
    if np.ptp(values) <= ROUNDING * np.abs(values).max():
        return 0.0
    return float(stats.sem(values) * stats.t.ppf((1 + LEVEL) / 2, len(values) - 1))


def settings_of(runs: Sequence[Run], metric: str, direction: Direction) -> list[Setting]:
    """Return the runs grouped by their options without the seed: best mean first, settings without a value last."""
    groups, settings = defaultdict(list), []
    for run in runs:
        groups[tuple(map(canonical, run.setting.values()))].append(run)
    for group in groups.values():
        seeds: dict[str | None, list[float]] = defaultdict(list)
        for run in (run for run in group if run.counts(metric)):
            seeds[run.seed].append(run.value(metric))
        values = {seed: fmean(repeats) for seed, repeats in seeds.items()}
        mean = fmean(values.values()) if values else None
        settings.append(Setting(group[0].setting, values, group, mean, half_width(list(values.values()))))
    sign = -1.0 if direction == "maximize" else 1.0
    return sorted(settings, key=lambda setting: math.inf if setting.mean is None else sign * setting.mean)


def compare(best: Setting, other: Setting, direction: Direction) -> Comparison:
    """Test two settings that have values: paired over the seeds that both have, if two or more, else by Welch.

    The method is "none", without a p, if a setting has one seed, or if there is no variance at all: two seeds that
    agree to the last digit mean that the metric is too coarse or the seed has no effect, not that the noise is 0.
    """
    sign = 1.0 if direction == "maximize" else -1.0
    common = [seed for seed in best.values if seed in other.values]
    paired = len(common) >= 2
    ours, others = (
        np.array([sign * setting.values[seed] for seed in (common if paired else setting.values)])
        for setting in (best, other)
    )
    rounding = ROUNDING * max(map(abs, [*best.values.values(), *other.values.values()]))
    lead = fmean(ours) - fmean(others)
    lead = lead if abs(lead) > rounding else 0.0
    count = min(len(ours), len(others))
    spread = np.ptp(ours - others) if paired else max(np.ptp(ours), np.ptp(others))
    if count < 2 or spread <= rounding:
        return Comparison(other, "none", count, lead)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one of them may be constant
        test = stats.ttest_rel(ours, others) if paired else stats.ttest_ind(ours, others, equal_var=False)
        low, high = map(float, test.confidence_interval(LEVEL))
    return Comparison(other, "paired" if paired else "welch", count, lead, low, high, float(test.pvalue))


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
    valued = [setting for setting in settings if setting.values]
    comparisons = [compare(valued[0], other, direction) for other in valued[1:]]
    tested = [place for place, item in enumerate(comparisons) if item.seeds >= 2]
    p_values = [1.0 if comparisons[place].p is None else comparisons[place].p for place in tested]
    for place, corrected in zip(tested, holm(p_values)):
        if comparisons[place].p is not None:
            comparisons[place] = dataclasses.replace(comparisons[place], corrected=corrected)
    return comparisons


def importances(runs: Sequence[Run], metric: str) -> dict[str, float]:
    """Return option -> share of the metric's variance that depends on it, largest first; the seed is no option.

    Permutation importance (Breiman 2001, section 10) of the trees of a random forest over the runs that count, each
    tree on the runs that it was not fitted to: how much its squared error grows when an option gets the values of other
    runs. Divided by twice the variance that is Sobol's total index (Jansen 1999): an interaction counts for each of its
    options and noise for none, so the shares need not add up to 1.

    Empty with fewer than 4 runs, without variance, and if the forest predicts unseen runs no better than their mean.
    """
    counted = [run for run in runs if run.counts(metric)]
    values = np.array([run.value(metric) for run in counted])
    columns = {key: [canonical(run.setting[key]) for run in counted] for key in runs[0].setting}
    columns = {key: column for key, column in columns.items() if len(set(column)) > 1}
    if len(counted) < MIN_RUNS or not columns or values.max() == values.min():
        return {}
    from sklearn.ensemble import RandomForestRegressor

    features = np.stack([positions_of(column)[0] for column in columns.values()], axis=1)  # (runs, options)
    features = features.clip(-1e38, 1e38)  # the forest computes in fp32
    values = (values - values.mean()) / values.std()
    forest = RandomForestRegressor(TREES, oob_score=True, random_state=0).fit(features, values)
    if forest.oob_score_ <= 0:
        return {}
    growth, rng = np.zeros(len(columns)), np.random.default_rng(0)
    for tree, seen in zip(forest.estimators_, forest.estimators_samples_):
        unseen = np.setdiff1d(np.arange(len(values)), seen)
        if not len(unseen):
            continue
        error = ((tree.predict(features[unseen]) - values[unseen]) ** 2).mean()
        for index in range(len(columns)):
            permuted = features[unseen]
            permuted[:, index] = rng.choice(features[:, index], size=len(unseen))
            growth[index] += ((tree.predict(permuted) - values[unseen]) ** 2).mean() - error
    shares = {key: max(0.0, float(share)) for key, share in zip(columns, growth / TREES / 2)}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def positions_of(column: Sequence[str]) -> tuple[np.ndarray, list[str], bool]:
    """Return where the values of an option lie on an axis, the words in their order, and whether it is logarithmic.

    There are no words if all values are numbers.
    """
    numbers = [as_number(text) for text in column]
    if None in numbers:
        words = sorted({canonical(text) for text in column}, key=natural_key)
        return np.array([words.index(canonical(text)) for text in column]), words, False
    is_log = is_logarithmic(numbers)
    return np.log10(numbers) if is_log else np.array(numbers), [], is_log


def is_logarithmic(values: Sequence[float]) -> bool:
    """Return whether numbers are better spaced by their logarithm."""
    return min(values) > 0 and max(values) >= LOG_RATIO * min(values)
