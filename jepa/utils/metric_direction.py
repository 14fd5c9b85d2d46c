"""Whether a metric is maximised or minimised, by its name."""

from __future__ import annotations

from typing import Literal

Direction = Literal["maximize", "minimize"]

DEFAULT_METRICS = ("eval/trained/linear", "eval/trained/rankme", "val/loss")
"""The default objective of a sweep: the first of these that a run has."""

LESS_IS_BETTER = ("loss", "mse", "mae", "rmse", "error", "seconds", "parameters", "samples", "gib", "wait")
"""Words in the name of a metric to minimise, after its first part; all others are maximised."""


def direction_of(metric: str) -> Direction:
    """Return the direction of a metric: "val/loss" is minimised, "eval/trained/linear" maximised.

    So is a term of a loss ("train/loss/sigreg") minimised, and a rate per second maximised.
    """
    if metric.endswith("_per_second"):
        return "maximize"
    words = {word for part in metric.split("/")[1:] or [metric] for word in part.split("_")}
    return "minimize" if words & set(LESS_IS_BETTER) else "maximize"
