"""Checkpoints of this project: runs, and encoders that `scripts/export.py` wrote as safetensors with a card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from jepa.checkpoint.load import first_line, load_state
from jepa.checkpoint.moved import upgrade
from jepa.interop.adapter import Adapter, Loaded, Options, Source, build, not_monitored
from jepa.interop.frozen_networks import load_file_encoders
from jepa.interop.sizes import check_overrides, to_pair
from jepa.interop.weights_file import CARD
from jepa.utils.errors import CheckpointError, UserError
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
    return list(dict.fromkeys(t for section in sections for t in find_targets(section) if not t.startswith(TRUSTED)))


def load_run(source: Source, options: Options) -> Loaded:
    """Load a run's model. Raises UserError for overrides unlike its configuration."""
    content, config = source.file.run, source.config
    stored = config["model"]
    values = flatten(stored)
    for key, value in options.overrides.items():
        if values.get(key) != value:
            raise UserError(
                f"model.{key}={value}, but the model of {source.path} has {values.get(key, 'no such value')}: its "
                "configuration is stored with its weights; leave it out"
            )

    def build_stored() -> nn.Module:
        return build({**stored, "_partial_": True})(loss=build(config["loss"]))

    build_model = options.build or build_stored
    model = build_model()
    load_state(model, content["model"], source.path)
    lines = [f"checkpoint of this project at step {content.get('step')}: {stored.get('_target_')}"]
    if foreign := foreign_code(config):
        lines.append(f"built with code from outside this repository: {', '.join(foreign)}")
    data, encoder = config.get("data", {}), stored.get("encoder")
    ours = isinstance(encoder, Mapping) and str(encoder.get("_target_", "")).startswith("jepa.models.")
    return Loaded(
        model,
        build_model,
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


def export_config(source: Source) -> dict[str, Any] | None:
    """Return the data's configuration in an exported encoder's card. Raises CheckpointError when it is damaged."""
    data = read_card(source).get("data")
    return {"data": data} if data else None


def read_card(source: Source) -> dict[str, Any]:
    """Return an exported encoder's card, with present names.

    Raises CheckpointError when it is damaged, or names other code than ours.
    """
    try:
        card = upgrade(json.loads(source.file.card))
        config = dict(card["encoder"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{source.path}: its header {CARD!r} is damaged ({first_line(error)})") from error
    if foreign := [target for target in find_targets(config) if not target.startswith("jepa.models.")]:
        raise CheckpointError(f"{source.path}: its header names {foreign}, expected an encoder of jepa.models")
    return card


def load_export(source: Source, options: Options) -> Loaded:
    """Load an exported encoder. Raises CheckpointError when the weights do not match the model its card names."""
    card = read_card(source)
    check_overrides({"encoder": card["encoder"]}, options.overrides, source.path)
    lines = [f"encoder exported from {card.get('source')} (its {card.get('network')} network)"]
    loaded = load_file_encoders(source.file, card["encoder"], lines)
    loaded.step, loaded.data = card.get("step"), card.get("data")
    return loaded


def load_random(source: Source, options: Options) -> Loaded:
    """Build a model with random weights. Raises UserError where nothing says which."""
    if options.build is None:
        raise UserError(f"checkpoint={source.name} needs the configuration of a model")
    return Loaded(
        options.build(),
        options.build,
        ["random weights"],
        {"random": True},
        image_size=options.image_size,
        channels=options.channels,
    )


RANDOM = Adapter("random", lambda source: source.name == "random", load_random)
RUN = Adapter("run", lambda source: source.file.run is not None, load_run, run_config, load_run_into)
EXPORT = Adapter("export", lambda source: source.file.card is not None, load_export, export_config)
