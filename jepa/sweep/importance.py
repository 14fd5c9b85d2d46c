"""Which options the metric of a sweep depends on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jepa.sweep.collect import Run, as_number, canonical

FEWEST = 4
"""Runs below which nothing is said; with ten times as many it begins to be reliable."""

LOG_SPAN = 30.0
"""Positive numbers whose largest is so many times the smallest are spaced by their logarithm."""

TREES = 200


def importances(runs: Sequence[Run], metric: str) -> dict[str, float]:
    """Option -> the share of the metric's variance that depends on it, the largest first. The seed is no option here.

    Permutation importance over the runs that count (Breiman 2001, section 10), of each tree of a random forest with a
    fixed seed, on the runs that this tree has not seen: as much as its squared error grows when an option is given the
    values of runs drawn at random. Over twice the variance that is Sobol's total index (Jansen 1999), so an interaction
    counts for each of its options and noise for none: the shares need not add up to 1.

    Empty with fewer than 4 such runs, where nothing varies, and where the forest foretells runs that it has not seen no
    better than their mean does.
    """
    counted = [run for run in runs if run.counts(metric)]
    values = np.array([run.value(metric) for run in counted])
    columns = {key: [canonical(run.setting[key]) for run in counted] for key in (counted[0].setting if counted else ())}
    columns = {key: column for key, column in columns.items() if len(set(column)) > 1}
    if len(counted) < FEWEST or not columns or values.max() == values.min():
        return {}
    from sklearn.tree import DecisionTreeRegressor

    features = np.array([_as_numbers(column) for column in columns.values()]).T  # (runs, options)
    values = (values - values.mean()) / values.std()
    count, draw = len(values), np.random.default_rng(0)
    growth, foretold, trees = np.zeros(len(columns)), np.zeros(count), np.zeros(count)
    for _ in range(TREES):
        seen = draw.integers(count, size=count)
        unseen = np.setdiff1d(np.arange(count), seen)
        if not len(unseen):
            continue
        tree = DecisionTreeRegressor(random_state=0).fit(features[seen], values[seen])
        guesses = tree.predict(features[unseen])
        foretold[unseen] += guesses
        trees[unseen] += 1
        error = ((guesses - values[unseen]) ** 2).mean()
        for index in range(len(columns)):
            shuffled = features[unseen]
            shuffled[:, index] = features[draw.integers(count, size=len(unseen)), index]
            growth[index] += ((tree.predict(shuffled) - values[unseen]) ** 2).mean() - error
    if ((foretold / np.maximum(trees, 1) - values) ** 2).mean() >= 1:  # the variance, which the mean leaves
        return {}
    shares = {key: max(0.0, float(share)) for key, share in zip(columns, growth / TREES / 2)}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def logarithmic(values: Sequence[float]) -> bool:
    """Whether numbers are better spaced by their logarithm."""
    return min(values) > 0 and max(values) >= LOG_SPAN * min(values)


def _as_numbers(column: Sequence[str]) -> list[float]:
    """The values of an option as a tree takes them: numbers, spaced as they are drawn, or the places of words."""
    figures = [as_number(text) for text in column]
    if any(figure is None for figure in figures):
        words = sorted(set(column))
        return [float(words.index(text)) for text in column]
    return [math.log10(figure) for figure in figures] if logarithmic(figures) else figures
