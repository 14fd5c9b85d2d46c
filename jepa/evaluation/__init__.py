"""Evaluation: probes of frozen features, beside the same probes of raw input and of random weights."""

from jepa.evaluation.attentive import AttentiveProbe
from jepa.evaluation.dense import DenseProbe, MotionProbe
from jepa.evaluation.feature_cache import FeatureCache
from jepa.evaluation.features import Features
from jepa.evaluation.fine_tuning import FineTuning
from jepa.evaluation.frozen import FrozenEvaluation
from jepa.evaluation.lidar_rank import LiDAR, lidar
from jepa.evaluation.linear import FewShotProbe, LinearProbe
from jepa.evaluation.nearest_neighbours import CrossModalRetrieval, KNNProbe, Retrieval
from jepa.evaluation.online import OnlineKNN, OnlineLinear, OnlineProbe, OnlineProbes, OnlineRank
from jepa.evaluation.results import format_table
from jepa.utils.tensors import feature_std, rankme
