"""Results as a table for the console."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table


def format_table(
    results: Mapping[str, Mapping[str, float]], spread: Mapping[str, Mapping[str, float]] | None = None
) -> Table:
    """The results of `FrozenEvaluation`: one row per network, one column per metric in the order they come.

    spread: standard deviations by row and metric, shown as 0.812 ± 0.004 where there are any.

    Print it with `rich.console.Console().print`, which writes plain text when the output is not a terminal.
    """
    columns = list(dict.fromkeys(metric for metrics in results.values() for metric in metrics))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("frozen features of")
    for column in columns:
        table.add_column(column, justify="right")
    for name, metrics in results.items():
        spreads = (spread or {}).get(name, {})
        table.add_row(name, *(_format(metrics.get(column), spreads.get(column)) for column in columns))
    return table


def _format(value: float | None, spread: float | None = None) -> str:
    """Three decimals for shares and standard deviations, fewer for large numbers such as ranks."""
    if value is None:
        return "-"
    decimals = 3 if abs(value) < 10 else 1
    return f"{value:.{decimals}f}" + ("" if spread is None else f" ± {spread:.{decimals}f}")
