"""Results of an evaluation as a table, and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich import box
from rich.table import Table

from jepa.utils.metric_direction import direction_of

Results = dict[str, dict[str, float]]
"""Network ("trained", "random_init", "raw_input") -> metric -> value; "initial" is the network before the run."""

LABEL_FREE = ("rankme", "feature_std")  # metrics that say nothing of whether training has helped
MAX_COLUMNS = 6  # metrics that fit into 80 columns


def format_table(
    results: Mapping[str, Mapping[str, float]],
    std: Mapping[str, Mapping[str, float]] | None = None,
    caption: str | None = None,
) -> Table:
    """Return the results of `FrozenEvaluation` as a table with a row per network and a column per metric.

    Where that is too wide for 80 columns, with a row per metric and a column per network.

    std: standard deviations by row and metric, shown as 0.812 ± 0.004 where there are any. caption: stands below.

    Print it with `rich.console.Console().print`, which writes plain text when the output is not a terminal.
    """
    metrics = list(dict.fromkeys(metric for values in results.values() for metric in values))
    std = std or {}

    def cell(name: str, metric: str) -> str:
        value, deviation = results[name].get(metric), std.get(name, {}).get(metric)
        if value is None:
            return "-"
        decimals = 3 if abs(value) < 10 else 1  # fewer for large numbers such as ranks
        return f"{value:.{decimals}f}" + ("" if deviation is None else f" ± {deviation:.{decimals}f}")

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    table.add_column("frozen features of")
    tall = len(metrics) > MAX_COLUMNS or any(std.get(name) for name in results)
    rows, columns = (metrics, list(results)) if tall else (list(results), metrics)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row, *(cell(column, row) if tall else cell(row, column) for column in columns))
    return table


def compared(results: Results, std: Results | None = None, *, seeds: int = 1, samples: int | None = None) -> str | None:
    """Return a sentence on whether training has helped, probe by probe, or by ranks where no probe tells rows apart.

    As forecasts do not that look at no features. A lead of up to two standard errors is no clear difference: those of
    an accuracy over so many test samples, of the places of which `dense` counts many, of a mean over seeds, and of what
    comes with its 95 % interval, `low` and `high`. Roll-outs of a world model are also compared with "nothing moves".
    """
    ranks, beside = (*LABEL_FREE, "lidar"), ("/low", "/high", "/seconds_per_episode")

    def variance(row: str, name: str) -> float:
        value, deviation = results[row][name], (std or {}).get(row, {}).get(name, 0.0)
        low, high = (results[row].get(f"{name.rpartition('/')[0]}/{end}") for end in ("low", "high"))
        if low is not None and high is not None:
            return ((high - low) / (2 * 1.96)) ** 2
        is_accuracy = direction_of(name) == "maximize" and 0 <= value <= 1 and not name.endswith(("/miou", "/accuracy"))
        return deviation**2 / seeds + (value * (1 - value) / samples if is_accuracy and samples else 0.0)

    def leads(*rows: str) -> tuple[list[str], list[str], list[str]]:
        """Return the probes in which the trained network is better than the best of some rows, worse, or unclear."""
        trained, *others = (results.get(name, {}) for name in ("trained", *rows))
        shared = [n for n in trained if not (n in ranks or "/still/" in n or n.endswith(beside))]
        shared = [n for n in shared if all(n in row for row in others)]
        found: tuple[list[str], list[str], list[str]] = ([], [], [])
        for name in [name for name in shared if any(row[name] != trained[name] for row in others)]:
            sign = 1 if direction_of(name) == "maximize" else -1
            best = max(rows, key=lambda row: sign * results[row][name])
            lead = sign * (trained[name] - results[best][name])
            values = f"{name} ({best} {results[best][name]:.3f}, trained {trained[name]:.3f})"
            clear = abs(lead) > 2 * math.sqrt(variance("trained", name) + variance(best, name))
            found[(0 if lead > 0 else 1) if clear else 2].append(values)
        return found

    baselines = {"random_init": "random weights", "raw_input": "raw input"}  # that have scores of probes
    baselines = {name: said for name, said in baselines.items() if results.get(name, {}).keys() - set(ranks)}
    better, worse, unclear = leads(*baselines) if baselines else ([], [], [])
    if not (better or worse or unclear):
        return ranks_compared(results)
    names = ", ".join(values.partition(" (")[0] for values in better)
    said = [f"training has helped: better than {' and '.join(baselines.values())} in {names}"] if better else []
    said += [f"training has not helped in {', '.join(worse)}"] if worse else []
    said += [f"no clear difference, within two standard errors, in {', '.join(unclear)}"] if unclear else []
    trained = results.get("trained", {})
    standing = {name: trained.get(name.replace("/error/", "/error/still/"), value) for name, value in trained.items()}
    idle = [name for name, value in trained.items() if standing[name] < value]
    if idle:
        said.append(f"the error is larger than if nothing moved in {', '.join(idle)}")
    if "initial" in results:
        words = ("this run has improved", "this run has harmed", "this run has not clearly changed")
        said += [f"{word} {', '.join(each)}" for word, each in zip(words, leads("initial")) if each]
    return "; ".join(said)


def ranks_compared(results: Results) -> str | None:
    """Return a sentence on RankMe and LiDAR beside those of random weights, which are a hint; None without both."""
    trained, random = (results.get(name, {}) for name in ("trained", "random_init"))
    shared = [name for name in ("rankme", "lidar") if name in trained and name in random]
    better = sum(trained[name] > 1.05 * random[name] for name in shared)  # less is chance
    values = ", ".join(f"{name} {trained[name]:.3g}, random_init {random[name]:.3g}" for name in shared)
    said = "training has probably not helped: features spread over no more directions than those of random weights"
    if better:
        said = "whether training has helped is open without labels: look at nearest neighbours in the report"
    if better == len(shared):
        said = "features spread over more directions than those of random weights, and labels would say of what use"
    return f"{said} ({values})" if shared else None
