"""Evaluation: what frozen features are worth, beside raw input and random weights."""

from jepa.evaluation.features import Features
from jepa.evaluation.frozen import FrozenEvaluation
from jepa.evaluation.knn import KNNProbe
from jepa.evaluation.linear import LinearProbe
from jepa.evaluation.rank import feature_std, rankme
from jepa.evaluation.table import format_table

__all__ = [
    "Features",
    "FrozenEvaluation",
    "KNNProbe",
    "LinearProbe",
    "feature_std",
    "format_table",
    "rankme",
]
