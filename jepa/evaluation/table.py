"""Results as a table for the console."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table


def format_table(results: Mapping[str, Mapping[str, float]]) -> Table:
    """The results of `FrozenEvaluation`: one row per network, one column per metric in the order they come.

    Print it with `rich.console.Console().print`, which writes plain text when the output is not a terminal.
    """
    columns = list(dict.fromkeys(metric for metrics in results.values() for metric in metrics))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("frozen features of")
    for column in columns:
        table.add_column(column, justify="right")
    for name, metrics in results.items():
        table.add_row(name, *(_format(metrics.get(column)) for column in columns))
    return table


def _format(value: float | None) -> str:
    """Three decimals for shares and standard deviations, fewer for large numbers such as ranks."""
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
