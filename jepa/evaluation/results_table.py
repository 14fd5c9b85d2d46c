"""Evaluation results as a table for the console."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table

MAX_COLUMNS = 6
"""Metrics that fit into 80 columns."""


def format_table(
    results: Mapping[str, Mapping[str, float]], std: Mapping[str, Mapping[str, float]] | None = None
) -> Table:
    """Return the results of `FrozenEvaluation` as a table with a row per network and a column per metric.

    Where that is too wide for 80 columns, with a row per metric and a column per network.

    std: standard deviations by row and metric, shown as 0.812 ± 0.004 where there are any.

    Print it with `rich.console.Console().print`, which writes plain text when the output is not a terminal.
    """
    metrics = list(dict.fromkeys(metric for values in results.values() for metric in values))
    std = std or {}

    def cell(name: str, metric: str) -> str:
        return _format(results[name].get(metric), std.get(name, {}).get(metric))

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("frozen features of")
    tall = len(metrics) > MAX_COLUMNS or any(std.get(name) for name in results)
    rows, columns = (metrics, list(results)) if tall else (list(results), metrics)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row, *(cell(column, row) if tall else cell(row, column) for column in columns))
    return table


def _format(value: float | None, std: float | None = None) -> str:
    """Three decimals for shares and standard deviations, fewer for large numbers such as ranks."""
    if value is None:
        return "-"
    decimals = 3 if abs(value) < 10 else 1
    return f"{value:.{decimals}f}" + ("" if std is None else f" ± {std:.{decimals}f}")
