"""Names that have moved: stored configurations of earlier versions, brought to today's names."""

from __future__ import annotations

import re
from typing import Any

MOVED = {
    "jepa.utils.spectrogram.LogMel": "jepa.utils.log_mel.LogMel",
}
"""Dotted path of a class or function as stored -> as it is now."""

RENAMED = {"dim": "embed_dim", "heads": "num_heads"}
"""Arguments of our networks as stored -> as they are now."""

NETWORKS = re.compile(r"jepa\.models\..*(Encoder|CNN|Stem|Predictor|vision_transformer)$")


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
    """Return a plain nested configuration with every moved `_target_` and renamed argument as it is called today."""
    if isinstance(config, list):
        return [upgrade_names(item) for item in config]
    if not isinstance(config, dict):
        return config
    target = config.get("_target_")
    new = {key: upgrade_names(value) for key, value in config.items()}
    if isinstance(target, str):
        new["_target_"] = MOVED.get(target, target)
        if NETWORKS.match(target):
            new = {RENAMED.get(key, key): value for key, value in new.items()}
    return new
