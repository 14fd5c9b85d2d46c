"""Evaluation: what frozen features are worth, beside raw input and random weights."""

from jepa.evaluation.attentive import AttentiveProbe
from jepa.evaluation.cache import FeatureCache
from jepa.evaluation.features import Features
from jepa.evaluation.few_shot import FewShotProbe
from jepa.evaluation.fine_tuning import FineTuning
from jepa.evaluation.frozen import FrozenEvaluation
from jepa.evaluation.knn import KNNProbe
from jepa.evaluation.linear import LinearProbe
from jepa.evaluation.rank import LiDAR, feature_std, lidar, rankme
from jepa.evaluation.retrieval import Retrieval
from jepa.evaluation.table import format_table

__all__ = [
    "AttentiveProbe",
    "FeatureCache",
    "Features",
    "FewShotProbe",
    "FineTuning",
    "FrozenEvaluation",
    "KNNProbe",
    "LiDAR",
    "LinearProbe",
    "Retrieval",
    "feature_std",
    "format_table",
    "lidar",
    "rankme",
]
