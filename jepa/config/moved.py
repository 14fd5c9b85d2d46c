"""Names that have moved: stored configurations of earlier versions, brought to today's names."""

from __future__ import annotations

import re
from typing import Any

MOVED = {
    "jepa.utils.spectrogram.LogMel": "jepa.utils.log_mel.LogMel",
    "jepa.data.audio.AudioData": "jepa.data.AudioData",
    "jepa.data.audio.SoundAugment": "jepa.data.SoundAugment",
    "jepa.data.huggingface.hugging_face": "jepa.data.hugging_face",
    "jepa.data.mix.MixedData": "jepa.data.MixedData",
    "jepa.data.paired.pictures_and_captions": "jepa.data.PicturesAndCaptions",
    "jepa.data.paired.written_and_spoken": "jepa.data.WrittenAndSpokenDigits",
    "jepa.data.series.SeriesData": "jepa.data.SeriesData",
    "jepa.data.series_augment.SeriesAugment": "jepa.data.SeriesAugment",
    "jepa.data.sources.coco.coco_captions": "jepa.data.sources.coco_captions",
    "jepa.data.sources.coco.coco_pictures": "jepa.data.sources.coco_pictures",
    "jepa.data.sources.moving_mnist.moving_mnist": "jepa.data.sources.moving_mnist",
    "jepa.data.sources.series.ett": "jepa.data.sources.ett",
    "jepa.data.sources.series.series_csv": "jepa.data.sources.series_csv",
    "jepa.data.sources.series.ucr": "jepa.data.sources.ucr",
    "jepa.data.sources.sounds.audio_folder": "jepa.data.sources.audio_folder",
    "jepa.data.sources.sounds.fsdd": "jepa.data.sources.fsdd",
    "jepa.data.sources.text.text_csv": "jepa.data.sources.text_csv",
    "jepa.data.sources.text.text_lines": "jepa.data.sources.text_lines",
    "jepa.data.sources.text.wikitext2": "jepa.data.sources.wikitext2",
    "jepa.data.sources.videos.video_folder": "jepa.data.sources.video_folder",
    "jepa.data.tasks.TaskData": "jepa.data.TaskData",
    "jepa.data.text.TextData": "jepa.data.TextData",
    "jepa.data.video.VideoData": "jepa.data.VideoData",
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
