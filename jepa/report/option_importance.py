"""How much of a metric's variance over a sweep depends on each option."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jepa.report.runs import Run, as_number, canonical, natural_key

MIN_RUNS = 4  # fewer runs have no importances; they become reliable with ten runs per option
LOG_RATIO = 30.0  # positive numbers whose largest is this many times the smallest are spaced by their logarithm

TREES = 200


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
