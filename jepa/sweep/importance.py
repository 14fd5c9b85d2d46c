"""Which options the metric of a sweep depends on."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jepa.sweep.collect import Run, as_number, canonical

FEWEST = 4
"""Runs below which nothing is said; with ten times as many it begins to be reliable."""

LOG_SPAN = 30.0
"""Positive numbers whose largest is so many times the smallest are spaced by their logarithm."""

TREES, SHUFFLES = 100, 20


def importances(runs: Sequence[Run], metric: str) -> dict[str, float]:
    """Option -> its share of what the metric depends on, the most important first. The seed is no option here.

    Permutation importance (Breiman 2001, section 10): a random forest, with a fixed seed, is fitted to the runs that
    count, and an option is as important as the fit gets worse when its values are shuffled among the runs. The shares
    add up to 1.

    Empty with fewer than 4 such runs, or where nothing varies.
    """
    counted = [run for run in runs if run.counts(metric)]
    values = [run.value(metric) for run in counted]
    columns = {key: [canonical(run.setting[key]) for run in counted] for key in (counted[0].setting if counted else ())}
    columns = {key: column for key, column in columns.items() if len(set(column)) > 1}
    if len(counted) < FEWEST or not columns or max(values) == min(values):
        return {}
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    features = list(zip(*map(_as_numbers, columns.values())))
    forest = RandomForestRegressor(TREES, random_state=0).fit(features, values)
    found = permutation_importance(forest, features, values, n_repeats=SHUFFLES, random_state=0).importances_mean
    positive = {key: max(0.0, float(share)) for key, share in zip(columns, found)}
    total = sum(positive.values())
    shares = {key: share / total for key, share in positive.items()} if total > 0 else {}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def logarithmic(values: Sequence[float]) -> bool:
    """Whether numbers are better spaced by their logarithm."""
    return min(values) > 0 and max(values) >= LOG_SPAN * min(values)


def _as_numbers(column: Sequence[str]) -> list[float]:
    """The values of an option as a forest takes them: numbers, spaced as they are drawn, or the places of words."""
    figures = [as_number(text) for text in column]
    if any(figure is None for figure in figures):
        words = sorted(set(column))
        return [float(words.index(text)) for text in column]
    return [math.log10(figure) for figure in figures] if logarithmic(figures) else figures
