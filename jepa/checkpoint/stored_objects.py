"""Building what the configuration in a file describes, from one table of names: no other code is called by it."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping
from typing import Any

from hydra.utils import get_object

from jepa.utils.errors import CheckpointError

MODELS = {
    "jepa.losses": "Center Cosine Covariance InfoNCE Invariance InverseDynamics L1 Lp MSE MultiScale Objective OneStep "
    "Projector Reconstruction SIGReg Scale SlicedWasserstein SmoothL1 Smoothness Variance",
    "jepa.losses.context_prediction": "ContextPrediction",
    "jepa.masks": "MultiBlockMask PublishedMultiBlockMask RandomMask SpanMask multiblock_mask",
    "jepa.masks.future": "FutureMask",
    "jepa.masks.time_frequency": "SpectrogramMask",
    "jepa.masks.time_span": "TimeSpanMask",
    "jepa.masks.tubes": "BlockGroup TubeMask",
    "jepa.models": "EMATarget LeJEPA MaskedJEPA Predictor SharedTarget StopGradientTarget TeacherTarget "
    "TransformerEncoder timm_vision_transformer vision_transformer",
    "jepa.models.cross_modal_jepa": "CrossModalJEPA",
    "jepa.models.cross_predictor": "CrossPredictor",
    "jepa.models.encoders": "TransformerEncoder",
    "jepa.models.encoders.image_stem": "ImageStem",
    "jepa.models.encoders.impala": "IMPALA VectorEncoder",
    "jepa.models.encoders.series_stem": "SeriesStem",
    "jepa.models.encoders.spectrogram_stem": "SpectrogramStem",
    "jepa.models.encoders.temporal_cnn": "TemporalCNN",
    "jepa.models.encoders.text_stem": "TextStem",
    "jepa.models.encoders.transformer_encoder": "TransformerEncoder",
    "jepa.models.encoders.tubelet_stem": "TubeletStem",
    "jepa.models.multitask": "MultiTask",
    "jepa.models.token_corruption": "RandomTokens",
    "jepa.models.world_model": "WorldModel",
    "jepa.models.world_predictors": "CausalPredictor GRUPredictor MLPPredictor",
    "jepa.optim": "AveragingMomentum Constant Cosine Linear Ramp Step",
    "jepa.utils.log_mel": "LogMel",
}
"""Module -> the names in it of which a stored model or loss may consist."""
DATA = {
    "jepa.data": "AudioData Augment ImageData MixedData PicturesAndCaptions SeriesAugment SeriesData SoundAugment "
    "TaskData TextData TrajectoryData VideoData WrittenAndSpokenDigits hugging_face packed",
    "jepa.data.sources": "audio_folder cifar10 coco_captions coco_pictures digits episode_files ett fashion_mnist fsdd "
    "image_folder imagenet mnist moving_mnist segmentation_folder series_csv text_csv text_lines ucr video_folder "
    "wikitext2",
    "jepa.evaluation": "AttentiveProbe CrossModalRetrieval DenseProbe FewShotProbe FineTuning FrozenEvaluation "
    "KNNProbe LiDAR LinearProbe MotionProbe OnlineKNN OnlineLinear OnlineProbes OnlineRank Retrieval",
    "jepa.evaluation.forecast": "Forecast",
    "jepa.evaluation.world": "WorldProbe",
    "jepa.planning.costs": "GoalDistance",
    "jepa.planning.planners.cem": "CEM",
    "jepa.planning.planners.gradient": "Gradient",
    "jepa.planning.planners.icem": "ICEM",
    "jepa.planning.planners.mppi": "MPPI",
    "jepa.planning.planners.random_shooting": "RandomShooting",
    "jepa.planning.planning_probe": "PlanningProbe",
    "jepa.utils.log_mel": "LogMel",
    "jepa.worlds": "two_rooms_walks",
    "jepa.worlds.two_rooms_task": "TwoRoomsTask",
}
"""Module -> the names in it of which stored data and evaluation may consist."""
MODEL_TABLE, DATA_TABLE = (
    frozenset(f"{module}.{name}" for module, names in table.items() for name in names.split())
    for table in (MODELS, DATA)
)
"""The same as dotted names."""
Names = Collection[str]
SETTINGS = ("_target_", "_partial_", "_convert_", "_recursive_")
PATH = re.compile(r"[/\\]|^~|\.\.|\w:\w")
"""What paths and addresses have, and no setting of a model."""
PLACE = re.compile(r"root|path|csv|folder|.*_(root|folder|dir)")
"""Keys whose values are files or folders, whatever they look like."""
DEEPEST = 64
"""Levels of a stored configuration."""


def is_plain_config(config: Any, depth: int = 0) -> bool:
    """Return whether a configuration is nested dicts and lists of plain values, at most DEEPEST levels of them."""
    if isinstance(config, dict):
        if not all(isinstance(name, (str, int)) for name in config):
            return False
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        return depth < DEEPEST and all(is_plain_config(value, depth + 1) for value in config)
    return config is None or isinstance(config, (str, int, float))


def check_stored(
    config: Any, key: str, source: Any, *, names: Names | None = MODEL_TABLE, trusted: Names = (), paths: bool = False
) -> None:
    """Raise CheckpointError unless a configuration that `is_plain_config` accepts names nothing but what it may build.

    key: where it stands, "model". names: those of a table; None where nothing is built of it. trusted: further ones.
    paths: whether values may be paths.
    """
    check = functools.partial(check_stored, source=source, names=names, trusted=trusted, paths=paths)
    if isinstance(config, (list, tuple)):
        for number, value in enumerate(config):
            check(value, f"{key}[{number}]")
    elif isinstance(config, Mapping):
        if names is not None and any(str(name).startswith("_") and name not in SETTINGS for name in config):
            raise CheckpointError(f"{source}: {key} has one of Hydra's own keys beside {', '.join(SETTINGS)}")
        target = config.get("_target_")
        if names is not None and "_target_" in config and target not in (*names, *trusted):
            new = "; a new part of jepa belongs into the table of jepa/checkpoint/stored_objects.py"
            raise CheckpointError(
                f"{source} would build {target!r} as {key}, which is not among jepa's own parts: if the file is yours, "
                f"give trust=true, or name it: {key}._target_={target}{new if str(target).startswith('jepa.') else ''}"
            )
        for name, value in config.items():
            if name != "_target_":
                check(value, f"{key}.{name}")
    elif isinstance(config, str) and (
        "${" in config or (not paths and (PATH.search(config) or PLACE.fullmatch(key.rpartition(".")[2])))
    ):
        raise CheckpointError(
            f"{source}: {key}={config[:60]!r} is a path, an address or an interpolation, which a configuration from a "
            f"file may not bring: give the value on the command line, {key}=..."
        )


def build_stored(config: Any, key: str, trusted: Names = ()) -> Any:
    """Build what a checked configuration describes, as Hydra does. Raise CheckpointError for what is refused."""
    if isinstance(config, (list, tuple)):
        return [build_stored(value, f"{key}[{number}]", trusted) for number, value in enumerate(config)]
    if not isinstance(config, Mapping):
        return config
    given = {str(name): value for name, value in config.items() if name not in SETTINGS}
    arguments = {name: build_stored(value, f"{key}.{name}", trusted) for name, value in given.items()}
    if (target := config.get("_target_")) is None:
        return arguments
    if target not in (*MODEL_TABLE, *trusted):
        raise CheckpointError(f"{key}._target_={target!r} is not among jepa's own parts")
    function = get_object(target)
    if config.get("_partial_"):
        return functools.partial(function, **arguments)
    try:
        return function(**arguments)
    except CheckpointError:
        raise
    except Exception as error:  # a constructor may raise anything for arguments that nobody meant
        raise CheckpointError(f"{key}: {target} refuses what the file says: {error}") from error
