"""Building the model and loss that a file describes, from one table of names: no other code can be called by it."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Collection, Mapping
from typing import Any

from jepa.utils.errors import CheckpointError

NAMES = {
    "jepa.losses": (
        "Cosine Covariance InfoNCE Invariance L1 Lp MSE MultiScale Objective Projector Reconstruction SIGReg SmoothL1 "
        "TargetMean Variance"
    ),
    "jepa.losses.context_prediction": "ContextPrediction",
    "jepa.masks": "BlockMask MultiBlockMask RandomMask SpanMask multiblock_mask",
    "jepa.masks.future": "FutureMask",
    "jepa.masks.time_frequency": "SpectrogramMask",
    "jepa.masks.time_span": "TimeSpanMask",
    "jepa.masks.tubes": "BlockGroup TubeMask",
    "jepa.models": (
        "EMATarget LeJEPA MaskedJEPA Predictor SharedTarget StopGradientTarget TransformerEncoder "
        "timm_vision_transformer vision_transformer"
    ),
    "jepa.models.cross_modal_jepa": "CrossModalJEPA",
    "jepa.models.cross_predictor": "CrossPredictor",
    "jepa.models.encoders.image_stem": "ImageStem",
    "jepa.models.encoders.series_stem": "SeriesStem",
    "jepa.models.encoders.spectrogram_stem": "SpectrogramStem",
    "jepa.models.encoders.temporal_cnn": "TemporalCNN",
    "jepa.models.encoders.text_stem": "TextStem",
    "jepa.models.encoders.tubelet_stem": "TubeletStem",
    "jepa.models.modality_encoders": "ModalityEncoders",
    "jepa.models.multitask": "MultiTask",
    "jepa.models.token_corruption": "RandomTokens",
    "jepa.optim": "Constant Cosine Linear",
    "jepa.optim.ramp": "Ramp",
    "torch.nn": "GELU ReLU SiLU LayerNorm RMSNorm Identity",
}
"""Module -> the names in it that a stored model or loss may have built."""
TABLE = {f"{module}.{name}": (module, name) for module, names in NAMES.items() for name in names.split()}

SETTINGS = ("_target_", "_partial_", "_convert_", "_recursive_")


def unlisted(config: Any, trusted: Collection[str] = ()) -> list[str]:
    """Return every `_target_` of a nested configuration that is neither in the table nor trusted by name."""
    if isinstance(config, (list, tuple)):
        return [target for value in config for target in unlisted(value, trusted)]
    if not isinstance(config, Mapping):
        return []
    own = [str(config["_target_"])] if "_target_" in config else []
    own = [target for target in own if target not in TABLE and target not in trusted]
    return list(dict.fromkeys([*own, *(target for value in config.values() for target in unlisted(value, trusted))]))


def build_listed(config: Any, key: str, trusted: Collection[str] = ()) -> Any:
    """Build what a nested configuration of a file describes, as Hydra's `instantiate` would.

    key: where the configuration stands, "model", for errors.
    trusted: names outside the table that may be imported all the same, as the user gave them.

    Raise CheckpointError for another name, for an argument that is a path or an address, and for arguments that a
    constructor refuses.
    """
    if isinstance(config, (list, tuple)):
        return [build_listed(value, f"{key}[{number}]", trusted) for number, value in enumerate(config)]
    if isinstance(config, str) and (re.search(r"[/\\]|^~|:\w", config) or len(config) > 200):
        raise CheckpointError(f"{key}={config[:60]!r}: a configuration from a file names neither paths nor addresses")
    if not isinstance(config, Mapping):
        return config
    arguments = {
        str(name): build_listed(value, f"{key}.{name}", trusted)
        for name, value in config.items()
        if name not in SETTINGS or "_target_" not in config
    }
    if "_target_" not in config:
        return arguments
    target = config["_target_"]
    if target not in TABLE and target not in trusted:
        raise CheckpointError(f"{key}._target_={target!r}: a file may name parts of jepa's models and losses alone")
    module, _, name = target.rpartition(".") if target not in TABLE else (TABLE[target][0], "", TABLE[target][1])
    function = getattr(importlib.import_module(module), name)
    if config.get("_partial_"):
        return functools.partial(function, **arguments)
    try:
        return function(**arguments)
    except (TypeError, ValueError, RuntimeError, MemoryError, OverflowError) as error:
        raise CheckpointError(f"{key}: {target} refuses what the file says: {error}") from error
