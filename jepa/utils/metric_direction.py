"""What the names of metrics say: which way is better."""

from __future__ import annotations

from typing import Literal

Direction = Literal["maximize", "minimize"]

DEFAULT_METRICS = ("eval/trained/linear", "val/loss")
"""What a sweep optimises where nothing else is asked for: the first of these that a run has."""

LESS_IS_BETTER = ("loss", "mse", "mae", "rmse", "error", "seconds", "parameters", "samples", "gib", "wait")
"""Words in a metric's name, behind its first part, that say so; of all others more is better."""


def direction_of(metric: str) -> Direction:
    """Which way a metric is better, by its name: "val/loss" is minimised, "eval/trained/linear" maximised.

    A term of a loss ("train/loss/sigreg") is minimised too; what is counted per second is maximised.
    """
    if metric.endswith("_per_second"):
        return "maximize"
    words = {word for part in metric.split("/")[1:] or [metric] for word in part.split("_")}
    return "minimize" if words & set(LESS_IS_BETTER) else "maximize"
