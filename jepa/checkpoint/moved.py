"""Names in stored configurations that have changed since. Whoever moves a class or renames a key adds a row here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOVED = {
    "jepa.utils.spectrogram": "jepa.utils.log_mel",
    **dict.fromkeys(
        (f"jepa.evaluation.{name}" for name in ("crossmodal", "few_shot", "knn", "retrieval")), "jepa.evaluation"
    ),
    "jepa.losses.dense": "jepa.losses.context_prediction",
    "jepa.masks.published": "jepa.masks.published_multiblock",
    "jepa.masks.random": "jepa.masks.random_tokens",
    "jepa.masks.spectrogram": "jepa.masks.time_frequency",
    "jepa.masks.video": "jepa.masks.tubes",
    "jepa.data.paired.pictures_and_captions": "jepa.data.PicturesAndCaptions",
    "jepa.data.paired.written_and_spoken": "jepa.data.WrittenAndSpokenDigits",
    **{
        f"jepa.data.{name}": "jepa.data"
        for name in ("audio", "huggingface", "mix", "series", "series_augment", "tasks", "text", "video")
    },
    "jepa.data.sources.moving_mnist.moving_mnist": "jepa.data.sources.moving_mnist",
    "jepa.models.corruption": "jepa.models.token_corruption",
    "jepa.models.crossmodal.CrossPredictor": "jepa.models.cross_predictor.CrossPredictor",
    "jepa.models.crossmodal": "jepa.models.cross_modal_jepa",
    "jepa.models.masked": "jepa.models.masked_jepa",
    "jepa.models.views": "jepa.models.lejepa",
    "jepa.models.encoders.image": "jepa.models.encoders.image_encoder",
    "jepa.models.encoders.picture.PictureStem": "jepa.models.encoders.image_stem.ImageStem",
    "jepa.models.encoders.transformer": "jepa.models.encoders.transformer_encoder",
    **{
        f"jepa.models.encoders.{name}": f"jepa.models.encoders.{name}_stem"
        for name in ("series", "spectrogram", "text", "tubelet")
    },
    "jepa.optim.ramp": "jepa.optim",
    "jepa.trainer.find_learning_rate": "jepa.tools.learning_rate_range_test",
    "jepa.trainer.find_batch_size": "jepa.tools.find_batch_size",
    **{f"jepa.data.sources.{name}": "jepa.data.sources" for name in ("coco", "series", "sounds", "text", "videos")},
}
"""Former dotted path of a module or class -> its present one; the first that fits counts."""
RENAMED_KEYS = {
    "jepa.models": {"dim": "embed_dim", "heads": "num_heads"},
    "jepa.data.sources.series_csv": {"date_column": "time_column"},
    "jepa.evaluation.KNNProbe": {"neighbours": "k"},
    "jepa.evaluation.AttentiveProbe": {"attention_heads": "num_heads"},
}
"""Module or class, by its present path -> former key of its constructor -> its present one."""
REMOVED_KEYS = {
    "jepa.monitor.Thresholds": (
        *("spread", "embedding_spread", "fall", "projection_fall", "kept_rank", "lost_rank", "falling_rank"),
        "target_rank",
    ),
}
"""Class -> former keys of its constructor that mean nothing now."""
ADDED_KEYS = {
    "jepa.masks.SpanMask": {"wrap": True},
    "jepa.masks.time_span.TimeSpanMask": {"wrap": True},
    "jepa.masks.time_frequency.SpectrogramMask": {"wrap": True},
}
"""Class -> later keys of its constructor, with what a configuration that was stored without them means."""
SCHEDULERS = {
    "jepa.optim.Constant": "constant",
    "jepa.optim.WarmupCosine": "cosine",
    "jepa.optim.WarmupStableDecay": "warmup_stable_decay",
    "jepa.optim.Warmup": "step",
}
"""Class of a stored learning-rate schedule -> function of `jepa.optim.schedulers` that makes it now."""


def upgrade(config: Any) -> Any:
    """Return a stored configuration, nested dicts and lists, with the present names of classes and keys."""
    if isinstance(config, (list, tuple)):
        return [upgrade(value) for value in config]
    if not isinstance(config, Mapping):
        return config
    config = dict(config)
    if isinstance(target := config.get("_target_"), str):
        former = next((former for former in MOVED if is_below(target, former)), None)
        target = config["_target_"] = MOVED[former] + target.removeprefix(former) if former else target
        for prefix, keys in RENAMED_KEYS.items():
            if is_below(target, prefix):
                config = {name if keys.get(name, name) in config else keys[name]: v for name, v in config.items()}
        config = ADDED_KEYS.get(target, {}) | config
        config = {name: value for name, value in config.items() if name not in REMOVED_KEYS.get(target, ())}
    scheduler = config.get("scheduler")
    if isinstance(scheduler, Mapping) and isinstance(scheduler.get("lr"), Mapping):
        config["scheduler"] = flat_scheduler(scheduler)
    return {name: upgrade(value) for name, value in config.items()}


def flat_scheduler(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the present form of a scheduler that was stored as two schedules beside the values they share."""
    rate, decay = stored["lr"], stored["weight_decay"]
    values = {name: value for name, value in stored.items() if not isinstance(value, Mapping)}
    values |= {name: rate[name] for name in ("decay_share",) if name in rate}
    peak = rate.get("peak", rate.get("value", rate.get("schedule", {}).get("start")))
    target = f"jepa.optim.schedulers.{SCHEDULERS[rate['_target_']]}"
    return {"_target_": target, "lr": peak, "weight_decay": decay.get("start", decay.get("value")), **values}


def is_below(target: str, prefix: str) -> bool:
    """Return whether a dotted name is `prefix`, or of something in it."""
    return f"{target}.".startswith(f"{prefix}.")
