"""Names in stored configurations that have changed since, and their present names."""

from __future__ import annotations

import re
from typing import Any

MOVED = {
    "jepa.evaluation.crossmodal.CrossModalRetrieval": "jepa.evaluation.CrossModalRetrieval",
    "jepa.losses.dense.ContextPrediction": "jepa.losses.context_prediction.ContextPrediction",
    "jepa.masks.published.PublishedMultiBlockMask": "jepa.masks.PublishedMultiBlockMask",
    "jepa.masks.random.RandomMask": "jepa.masks.RandomMask",
    "jepa.masks.spectrogram.SpectrogramMask": "jepa.masks.time_frequency.SpectrogramMask",
    "jepa.masks.video.BlockGroup": "jepa.masks.tubes.BlockGroup",
    "jepa.masks.video.TubeMask": "jepa.masks.tubes.TubeMask",
    "jepa.utils.spectrogram.LogMel": "jepa.utils.log_mel.LogMel",
}
"""Stored dotted path of a class or function -> its present one."""

RENAMED = {
    re.compile(r"jepa\.models\..*(Encoder|CNN|Stem|Predictor|vision_transformer)$"): {
        "dim": "embed_dim",
        "heads": "num_heads",
    },
    re.compile(r"jepa\.evaluation\..*KNNProbe$"): {"neighbours": "k"},
    re.compile(r"jepa\.evaluation\..*AttentiveProbe$"): {"attention_heads": "num_heads"},
}
"""Stored target -> stored names of its arguments -> their present ones."""


SCHEDULERS = {
    "jepa.optim.Constant": "constant",
    "jepa.optim.WarmupCosine": "cosine",
    "jepa.optim.WarmupStableDecay": "warmup_stable_decay",
    "jepa.optim.Warmup": "step",
}
"""Class of a stored learning-rate schedule -> function of `jepa.optim.schedulers` that makes it today."""


def upgrade(config: dict[str, Any]) -> dict[str, Any]:
    """Return a stored configuration, plain and resolved, as it is written today."""
    new = upgrade_names(config)
    scheduler = new.get("scheduler")
    if isinstance(scheduler, dict) and "_target_" not in scheduler and isinstance(scheduler.get("lr"), dict):
        new["scheduler"] = _one_scheduler(scheduler)
    return new


def _one_scheduler(stored: dict[str, Any]) -> dict[str, Any]:
    """Return the flat scheduler of one that was stored as two schedules beside the values they shared."""
    rate, decay = stored["lr"], stored["weight_decay"]
    values = {key: value for key, value in stored.items() if not isinstance(value, dict)}
    if "decay_share" in rate:
        values["decay_share"] = rate["decay_share"]
    peak = rate.get("peak", rate.get("value", rate.get("schedule", {}).get("start")))
    target = f"jepa.optim.schedulers.{SCHEDULERS[rate['_target_']]}"
    return {"_target_": target, "lr": peak, "weight_decay": decay.get("start", decay.get("value")), **values}


def upgrade_names(config: Any) -> Any:
    """Return a plain nested configuration with the present names of classes and arguments."""
    if isinstance(config, list):
        return [upgrade_names(item) for item in config]
    if not isinstance(config, dict):
        return config
    target = config.get("_target_")
    new = {key: upgrade_names(value) for key, value in config.items()}
    if isinstance(target, str):
        new["_target_"] = MOVED.get(target, target)
        for pattern, keys in RENAMED.items():
            if pattern.match(target):
                new = {keys.get(key, key): value for key, value in new.items()}
    return new
