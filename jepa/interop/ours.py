"""Checkpoints of this project: runs, and encoders that `scripts/export.py` wrote as safetensors with a card."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from jepa.checkpoint.load import load_state
from jepa.checkpoint.moved import upgrade
from jepa.checkpoint.stored_objects import MODEL_TABLE, build_stored, check_stored, is_plain_config
from jepa.interop.adapter import Adapter, Loaded, Source, not_monitored
from jepa.interop.frozen_networks import load_our_encoders
from jepa.interop.network_names import State
from jepa.interop.sizes import check_overrides, to_pair
from jepa.interop.weights_file import CARD
from jepa.utils.errors import CheckpointError, UserError, first_line
from jepa.utils.nested import find_targets, flatten
from jepa.utils.random import seeded
from jepa.utils.read_data import parse_json

TEACHER = "jepa.config.teacher.teacher_target"  # what a configuration calls to load a frozen teacher


def absent_teachers(config: Any) -> Any:
    """Return a nested configuration whose teachers are absent: a trained encoder needs none, and no file is opened."""
    if isinstance(config, (list, tuple)):
        return [absent_teachers(value) for value in config]
    if not isinstance(config, Mapping):
        return config
    if config.get("_target_") == TEACHER:
        return {"_target_": "jepa.models.TeacherTarget", "_partial_": True, "out_dim": config.get("out_dim")}
    return {name: absent_teachers(value) for name, value in config.items()}


def run_config(source: Source) -> dict[str, Any]:
    """Return the configuration of a run's checkpoint, with present names.

    Raise CheckpointError for a damaged one, and for code that is neither ours nor trusted, which building it would run.
    """
    stored = source.file.run["config"]
    try:
        if not is_plain_config(stored):
            raise ValueError("nested too deep, or values that are not plain")
        config = {"loss": {}} | {name: value for name, value in upgrade(stored).items() if value is not None}
        config["model"] = absent_teachers(config["model"])
        sections = {name: dict(config.get(name, {})) for name in ("model", "loss", "data", "evaluation", "trainer")}
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{source.path}: its configuration is damaged ({first_line(error)})") from error
    if source.trusted is None:
        source.trusted = find_targets(sections)
        return config
    for section in ("model", "loss"):
        check_stored(sections[section], section, source.path, trusted=source.trusted)
    for section in ("data", "evaluation"):  # built by evaluating alone, and checked there
        check_stored(sections[section], section, source.path, names=None, paths=True)
    return config


def check_claims(config: Any, key: str, weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise CheckpointError where a stored configuration claims larger networks than there are weights for."""
    if isinstance(config, (list, tuple)):
        config = dict(enumerate(config))
    if not isinstance(config, Mapping):
        return
    values = sum(tensor.numel() for tensor in weights.values())
    stem = config.get("stem") if isinstance(config.get("stem"), Mapping) else {}

    def size(name: str) -> int:
        value = config.get(name, stem.get(name))
        return math.prod(value) if isinstance(value, (list, tuple)) else value if type(value) is int else 1

    width, patch = size("embed_dim"), size("patch_size")
    if type(config.get("patch_size", stem.get("patch_size"))) is int and "Series" not in str(stem.get("_target_")):
        patch *= patch  # a side
    claims = [(name, value - 2**20) for name, value in config.items() if type(value) is int]  # that much is no harm
    claims += [("embed_dim", width * width * size("depth"))]
    claims += [("patch_size", width * size("channels") * patch * size("tubelet_size"))]
    claims += [(name, width * size(name)) for name in ("vocab_size", "max_length", "mask_tokens")]
    target, predictor = (config.get(name) for name in ("target", "predictor"))
    if isinstance(target, Mapping) and isinstance(predictor, Mapping) and type(target.get("out_dim")) is int:
        width = predictor.get("embed_dim")
        claims += [("target.out_dim", target["out_dim"] * (width if type(width) is int else 1))]
    if large := [name for name, claim in claims if claim > values]:
        raise CheckpointError(
            f"{path} is damaged: its configuration claims more than its {values:,} values by {key}.{large[0]}"
        )
    for name, value in config.items():
        check_claims(value, f"{key}.{name}", weights, path)


def load_run(source: Source) -> Loaded:
    """Load a run's model. Raises UserError for overrides unlike its configuration."""
    content, config = source.file.run, source.config
    stored, values = config["model"], flatten(config["model"])
    for key, value in source.overrides.items():
        if values.get(key) != value:
            raise UserError(
                f"model.{key}={value}, but the model of {source.path} has {values.get(key, 'no such value')}: its "
                "configuration is stored with its weights; leave it out"
            )
    own_seed = source.seed if source.seed is not None else (config.get("trainer") or {}).get("seed", 0)

    def build(seed: int | None = None) -> nn.Module:
        with seeded(own_seed if seed is None else seed, "init"):
            loss = build_stored(config["loss"], "loss", source.trusted)
            return build_stored({**stored, "_partial_": False, "loss": loss}, "model", source.trusted)

    for section in ("model", "loss"):
        check_claims(config[section], section, content["model"], source.path)
    model = build()
    load_state(model, content["model"], source.path)
    lines = [f"checkpoint of this project at step {content.get('step')}: {stored.get('_target_')}"]
    if foreign := [target for target in find_targets([stored, config["loss"]]) if target not in MODEL_TABLE]:
        lines.append(f"built with code from outside this repository: {', '.join(foreign)}")
    data, encoder = config.get("data", {}), stored.get("encoder")
    ours = isinstance(encoder, Mapping) and str(encoder.get("_target_", "")).startswith("jepa.models.")
    return Loaded(
        model,
        build,
        lines,
        {"model": stored},
        encoder=encoder if ours else None,
        image_size=to_pair(data.get("image_size")),
        channels=data.get("channels"),
        step=content.get("step"),
        metrics=dict(content.get("metrics") or {}),
        data=data or None,
        stopped=content.get("ended"),
        collapse=collapse_of(content),
    )


def collapse_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return `collapse` of results.json from a run's checkpoint, with its rollbacks if it went back."""
    if not content.get("monitor"):
        return not_monitored("its run had no monitor")
    name, evidence, _ = content["monitor"]["verdict"]
    rollbacks = {"rollbacks": list(content["rollbacks"])} if content.get("rollbacks") else {}
    return {"verdict": name, "evidence": evidence, **rollbacks}


def read_card(source: Source) -> dict[str, Any]:
    """Return an exported encoder's card, with present names. Raise CheckpointError for damage and foreign code."""
    try:
        card = upgrade(parse_json(source.file.card, source.path))
        config = dict(card["encoder"])
        if not isinstance(card.get("data"), (dict, type(None))) or not is_plain_config(card):
            raise ValueError("its data are no names and values")
        if card.get("step") is not None and type(card["step"]) is not int:
            raise ValueError("its step is no number")
    except (UserError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{source.path}: its header {CARD!r} is damaged ({first_line(error)})") from error
    check_stored(config, "encoder", source.path)
    check_stored(card.get("data"), "data", source.path, names=None, paths=True)
    return {name: card[name] for name in ("encoder", "data", "source", "network", "step") if card.get(name) is not None}


def load_export(source: Source) -> Loaded:
    """Load an exported encoder. Raises CheckpointError when the weights do not match the model its card names."""
    card = source.config
    check_overrides(source, card)
    lines = [f"encoder exported from {card.get('source')} (its {card.get('network')} network)"]
    check_claims(card["encoder"], "encoder", source.file.encoder, source.path)
    loaded = load_our_encoders(source, card["encoder"], lines)
    loaded.step, loaded.data = card.get("step"), card.get("data")
    return loaded


def load_random(source: Source) -> Loaded:
    """Load the configured model with random weights. Raise UserError without a configuration."""
    if source.build is None:
        raise UserError(f"checkpoint={source.name} needs the configuration of a model")
    facts = {"image_size": source.image_size, "channels": source.channels}
    return Loaded(source.build(), source.build, ["random weights"], {"random": True}, **facts)


def export_weights(model: nn.Module, source: Source) -> State:
    """Return the weights of an exported encoder by the names of a model."""
    return {f"encoder.{name}": tensor for name, tensor in source.file.encoder.items()}


RANDOM = Adapter("random", lambda source: source.name == "random", load_random)
RUN = Adapter(
    "run", lambda source: source.file.run is not None, load_run, run_config, lambda _, source: source.file.run["model"]
)
EXPORT = Adapter("export", lambda source: source.file.card is not None, load_export, read_card, export_weights)
