"""Checkpoints of this project: runs, and encoders that `scripts/export.py` wrote as safetensors with a card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from torch import nn

from jepa.checkpoint.load import load_state
from jepa.checkpoint.moved import upgrade
from jepa.interop.adapter import Adapter, Loaded, Source, not_monitored
from jepa.interop.frozen_networks import load_our_encoders
from jepa.interop.sizes import check_overrides, to_pair
from jepa.interop.weights_file import CARD
from jepa.utils.errors import CheckpointError, UserError, first_line
from jepa.utils.nested import find_targets, flatten

TRUSTED = ("jepa.", "torch.nn.", "torch.optim.")
"""Starts of the class paths that any checkpoint may name."""


def run_config(source: Source) -> dict[str, Any]:
    """Return the configuration of a run's checkpoint, with present names.

    Raises CheckpointError for a file that names code from elsewhere, as building it would run that code with the
    file's arguments; in a run folder, which has its config.yaml, it is one's own.
    """
    config = upgrade(source.file.run["config"])
    folders = [Path(source.name), *source.path.parents[:2]]
    if (foreign := foreign_code(config)) and not any((folder / "config.yaml").is_file() for folder in folders):
        raise CheckpointError(
            f"{source.path} would call {', '.join(foreign)}, code from outside this repository, and is not in a run "
            "folder: if you trust it, put the run's config.yaml beside it"
        )
    return config


def foreign_code(config: Mapping[str, Any]) -> list[str]:
    """Return what the model, loss, data and evaluation of a configuration call outside of this repository."""
    sections = [config.get(section, {}) for section in ("model", "loss", "data", "evaluation")]
    return list(dict.fromkeys(name for name in find_targets(sections) if not name.startswith(TRUSTED)))


def load_run(source: Source) -> Loaded:
    """Load a run's model. Raises UserError for overrides unlike its configuration."""
    content, config = source.file.run, source.config
    stored = config["model"]
    values = flatten(stored)
    for key, value in source.overrides.items():
        if values.get(key) != value:
            raise UserError(
                f"model.{key}={value}, but the model of {source.path} has {values.get(key, 'no such value')}: its "
                "configuration is stored with its weights; leave it out"
            )

    def build_stored() -> nn.Module:
        loss = instantiate(config["loss"], _convert_="all")
        return instantiate({**stored, "_partial_": True}, _convert_="all")(loss=loss)

    build = source.build or build_stored
    model = build()
    load_state(model, content["model"], source.path)
    lines = [f"checkpoint of this project at step {content.get('step')}: {stored.get('_target_')}"]
    if foreign := foreign_code(config):
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


def load_run_into(model: nn.Module, source: Source) -> None:
    """Load a run's weights, but for the loss's own heads, into a model. Raises CheckpointError when they do not fit."""
    load_state(model, source.file.run["model"], source.path, keep=("loss.",))


def collapse_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return `collapse` of results.json from a run's checkpoint, with its rollbacks if it went back."""
    if not content.get("monitor"):
        return not_monitored("its run had no monitor")
    name, evidence, _ = content["monitor"]["verdict"]
    rollbacks = {"rollbacks": list(content["rollbacks"])} if content.get("rollbacks") else {}
    return {"verdict": name, "evidence": evidence, **rollbacks}


def read_card(source: Source) -> dict[str, Any]:
    """Return an exported encoder's card, with present names. Raises CheckpointError if damaged or of foreign code."""
    try:
        card = upgrade(json.loads(source.file.card))
        config = dict(card["encoder"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{source.path}: its header {CARD!r} is damaged ({first_line(error)})") from error
    if foreign := [target for target in find_targets(config) if not target.startswith("jepa.models.")]:
        raise CheckpointError(f"{source.path}: its header names {foreign}, expected an encoder of jepa.models")
    return {name: value for name, value in card.items() if value is not None}


def load_export(source: Source) -> Loaded:
    """Load an exported encoder. Raises CheckpointError when the weights do not match the model its card names."""
    card = source.config
    check_overrides(source, card)
    lines = [f"encoder exported from {card.get('source')} (its {card.get('network')} network)"]
    loaded = load_our_encoders(source, card["encoder"], lines)
    loaded.step, loaded.data = card.get("step"), card.get("data")
    return loaded


def load_random(source: Source) -> Loaded:
    """Build a model with random weights. Raises UserError where nothing says which."""
    if source.build is None:
        raise UserError(f"checkpoint={source.name} needs the configuration of a model")
    facts = {"image_size": source.image_size, "channels": source.channels}
    return Loaded(source.build(), source.build, ["random weights"], {"random": True}, **facts)


RANDOM = Adapter("random", lambda source: source.name == "random", load_random)
RUN = Adapter("run", lambda source: source.file.run is not None, load_run, run_config, load_run_into)
EXPORT = Adapter("export", lambda source: source.file.card is not None, load_export, read_card)
