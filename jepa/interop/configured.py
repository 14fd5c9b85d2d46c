"""A checkpoint opened as a script's configuration asks: what `checkpoint=`, `data=` and `model.*` mean together."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

from omegaconf import DictConfig, OmegaConf
from torch import nn

from jepa.interop.named import differing
from jepa.interop.opened import Opened
from jepa.interop.opening import find_source
from jepa.utils.check import check_config
from jepa.utils.errors import UserError
from jepa.utils.given import Given, given_model, with_stored
from jepa.utils.launch import read_launch

PICTURES = ("image_size", "mean", "std", "interpolation")
"""Keys of data that say how pictures become inputs."""


def open_configured(
    config: DictConfig,
    build_model: Callable[[DictConfig], nn.Module],
    *,
    data: Literal["splits", "pictures", "none"],
) -> tuple[Opened, DictConfig]:
    """The model of `checkpoint=`, and the configuration in force.

    A run brings its own model, loss, data, evaluation and precision, of which the command line may change all but the
    model and loss. What else brings no data needs `data=`.

    config: composed, with `checkpoint` and `overrides`. build_model: makes the model of a configuration.
    data: what the script does with it: reads its "splits", makes inputs of "pictures", or "none".

    Raises UserError for what is missing or contradicts the checkpoint, CheckpointError for what does not fit.
    """
    if OmegaConf.is_missing(config, "checkpoint") or not config.checkpoint:
        raise UserError(
            "checkpoint is not set: give checkpoint=<run folder or file>, timm:<name>, hf:<name or folder> or random"
        )
    if read_launch().world_size > 1:
        raise UserError("this script runs as one process: start it without torchrun or srun")
    given = Given(config.overrides)
    source = find_source(str(config.checkpoint))
    stored = source.config or {}
    joined = with_stored(config, stored, given)
    known = "data" in stored or given.option("data") or source.kind == "random"
    if not known:
        _check_data_given(data, given, source.name)
    own = source.kind in ("run", "random")
    plain = OmegaConf.to_container(joined, resolve=False)
    skipped = () if own else ("model", "loss")  # made from the file; the composed ones are of no use
    if data != "splits":
        skipped = (*skipped, "data", "evaluation")
    check_config({key: _resolved(joined, key) for key in plain if key not in skipped and isinstance(plain[key], dict)})
    told = known or bool(given.below("data"))
    opened = source.open(
        build=functools.partial(build_model, joined),  # a partial, so that a seed can be given where it takes one
        given=given_model(config, given) if source.kind != "random" else {},
        image_size=_size(joined) if known or "image_size" in given.below("data") else None,
        channels=joined.data.channels if told and (known or "channels" in given.below("data")) else None,
    )
    if told and data != "none":
        warnings = [differing(name, getattr(opened, name), joined.data[name]) for name in ("mean", "std")]
        opened.lines += [line for line in warnings if line]
        trained = stored.get("data") or {}
        opened.lines += [
            f"pictures are normalised with data.{name}={list(joined.data[name])}, in training {list(trained[name])}"
            for name in ("mean", "std")
            if name in trained and list(trained[name]) != list(joined.data[name])
        ]
    return opened, joined


def _resolved(config: DictConfig, key: str) -> object:
    """One section as plain values. Raises UserError for a value that is not set."""
    for name in OmegaConf.missing_keys(config[key]):
        raise UserError(f"{key}.{name} is not set: give it on the command line, {key}.{name}=...")
    return OmegaConf.to_container(config[key], resolve=True)


def _check_data_given(data: str, given: Given, name: str) -> None:
    """Raise UserError where inputs are needed and nothing says how they are made."""
    if data == "splits":
        raise UserError(f"data is not set: checkpoint={name} does not say what it was trained on; give data=<option>")
    if data == "pictures" and (missing := [key for key in PICTURES[:3] if key not in given.below("data")]):
        raise UserError(
            f"checkpoint={name} does not say how pictures become its inputs: give "
            + " ".join(f"data.{key}=..." for key in missing)
            + " or a data set with them, data=imagenet"
        )


def _size(config: DictConfig) -> tuple[int, int]:
    size = config.data.image_size
    return (size, size) if isinstance(size, int) else tuple(size)
