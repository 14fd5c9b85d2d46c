"""From a configuration to a trainer: the one place that knows all packages, and the only one that sees a config."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException
from torch import nn

from jepa.interop import load_pretrained
from jepa.optim import parameter_groups, plan
from jepa.report import preview
from jepa.trainer import Trainer
from jepa.trainer.precision import resolve_device
from jepa.trainer.saver import find_checkpoint
from jepa.types import Draw, Horizon
from jepa.utils.check import check_config
from jepa.utils.config import default_run_dir
from jepa.utils.distributed import TIMEOUT_SECONDS, first_on_each_machine, from_main, join, telling_others
from jepa.utils.errors import UserError
from jepa.utils.launch import read_launch, same_on_every_rank
from jepa.utils.random import seeded


def build_trainer(config: DictConfig) -> Trainer:
    """The trainer of a composed configuration, ready for `fit()`.

    Raises UserError for a key, type or value that does not fit, before any data is read.
    """
    with same_on_every_rank():
        plain = to_plain(config)
        check_config(to_plain(with_assumed(config)))
    settings = config.trainer
    device = resolve_device(settings.get("device", "auto"), read_launch().local_rank)
    join(device, settings.get("backend"), settings.get("timeout_seconds", TIMEOUT_SECONDS))
    with telling_others():
        return _build_trainer(config, plain)


def _build_trainer(config: DictConfig, plain: dict[str, Any]) -> Trainer:
    data = None
    if leaves_open(config.data):
        data = build_data(config)
        plain = to_plain(config)
    model = build_model(config)
    optimizer = convert_errors("optimizer", build(config, "optimizer"))(parameter_groups(model))
    scheduler = {name: node for name, node in build(config, "scheduler").items() if callable(node)}
    scheduler = convert_errors("scaling", build(config, "scaling"))(scheduler=scheduler)
    loggers = build(config, "logger")
    evaluation = build(config, "evaluation")
    monitor = build(config, "monitor") or None
    make_trainer = build(config, "trainer", partial=True)
    data = data or build_data(config)
    check_input(model, data)
    run_dir = from_main(lambda: Path(config.run_dir or default_run_dir()))
    if config.init_from is not None and not resumes(config, run_dir):  # the file may be gone by then
        load_pretrained(model, config.init_from)
    momentum = getattr(model, "momentum_schedule", None)

    def in_words(horizon: Horizon) -> list[str]:
        return plan(horizon, scheduler, momentum)

    return convert_errors("trainer", make_trainer)(
        model=model,
        data=data,
        optimizer=optimizer,
        scheduler=scheduler,
        loggers=loggers,
        callbacks=build(config, "callbacks"),
        evaluation=evaluation,
        monitor=monitor,
        random_init=functools.partial(build_model, config),
        plan=in_words,
        preview=lambda trainer: preview(trainer, plan=[*trainer.in_words(), *in_words(trainer.horizon)]),
        run_dir=run_dir,
        resume=config.resume,
        config=plain,
    )


FOUND_BY_DATA = ("channels", "length", "vocab_size")
"""What a configuration of data may leave open (null) for the data to find out; the model is then built with it."""


def leaves_open(data: DictConfig) -> bool:
    """Whether a configuration of data leaves anything to be found in the data."""
    return any(key in data and data[key] is None for key in FOUND_BY_DATA)


def with_assumed(config: DictConfig) -> DictConfig:
    """The configuration with a number for what the data has yet to find out: types are checked before it is read."""
    assumed = copy.deepcopy(config)
    with open_dict(assumed):
        for key in FOUND_BY_DATA:
            if key in assumed.data and assumed.data[key] is None:
                assumed.data[key] = 1
    return assumed


def build_data(config: DictConfig) -> Any:
    """The data of a configuration, into which what that left open is written."""
    with first_on_each_machine():  # it may download
        data = build(config, "data")
    for key in FOUND_BY_DATA:
        if key in config.data and config.data[key] is None and key in data.spec.found:
            with open_dict(config):
                config.data[key] = data.spec.found[key]
    return data


def resumes(config: DictConfig, run_dir: Path) -> bool:
    """Whether the run goes on from a checkpoint of its own."""
    if config.resume == "auto":
        folder = Path(config.trainer.checkpoint_dir or run_dir / "checkpoints")
        return from_main(lambda: find_checkpoint(folder) is not None)
    return config.resume is not None


def build_model(config: DictConfig, seed: int | None = None) -> nn.Module:
    """The model with its loss, freshly initialised from the seed; the same weights every time.

    seed: None takes trainer.seed.
    """
    with seeded(config.trainer.seed if seed is None else seed, "init"):
        loss = build(config, "loss")
        return convert_errors("model", build(config, "model", partial=True))(loss=loss)


def build(config: DictConfig, key: str, partial: bool = False) -> Any:
    """Instantiate one node; partial leaves the outermost call to be completed by the caller.

    Raises UserError for a value that its constructor refuses.
    """
    extra = {"_partial_": True} if partial else {}
    return convert_errors(key, functools.partial(instantiate, config[key], _convert_="all", **extra))()


def check_input(model: nn.Module, data: Any) -> None:
    """Pass two blank samples through model and loss, so that what does not fit is found before training.

    Raises UserError when inputs do not fit the encoder, masks its grid, or the batch the loss.
    """
    batch = data.blank_batch(2)

    @torch.no_grad()
    def try_once() -> None:
        model.loss(model(model.prepare(batch, Draw(seed=0, step=0, total=2, start=0, count=2))))

    model.eval()
    convert_errors("model", try_once)()
    model.train()


def convert_errors(key: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with a ValueError or TypeError of a constructor turned into a UserError that names the key."""

    @functools.wraps(getattr(function, "func", function))
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except InstantiationException as error:
            full_key = str(error).rpartition("full_key: ")[2] if "full_key: " in str(error) else key
            cause = error.__cause__
            if isinstance(cause, UserError):
                raise cause from None
            if isinstance(cause, (ValueError, TypeError)):
                raise UserError(f"{full_key}: {cause}") from error
            raise
        except ValueError as error:
            raise UserError(f"{key}: {error}") from error

    return call


def to_plain(config: DictConfig) -> dict[str, Any]:
    """The configuration with everything resolved, as dicts and lists. Raises UserError for a missing value."""
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except InterpolationKeyError as error:
        missing = str(error).splitlines()[0]
        raise UserError(
            f"{error.full_key}: {missing}: this option is for other data (model=vit takes pictures, model=series and "
            "model=temporal_cnn time series, and so on): choose a model= that fits data="
        ) from error
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise UserError(f"{key} is not set: give it on the command line, {key}=...") from error
