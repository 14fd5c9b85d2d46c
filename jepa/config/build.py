"""From a configuration to a trainer: the one place that knows all packages, and the only one that sees a config."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException
from torch import nn

from jepa.checkpoint.saver import find_checkpoint
from jepa.config.auto_size import auto_hints, chosen_hints
from jepa.config.auto_size import describe as describe_choice
from jepa.config.check import check_config, source_of
from jepa.config.compose import default_run_dir
from jepa.config.mistakes import explain, with_fitting_model
from jepa.config.notes import notes, padding_notes
from jepa.config.overrides import literal
from jepa.distributed.collectives import (
    TIMEOUT_SECONDS,
    broadcast_from_rank0,
    init_process_group,
    local_rank0_first,
    propagate_failure,
)
from jepa.distributed.launch import read_launch, report_on_rank0
from jepa.optim import parameter_groups, plan
from jepa.trainer import Trainer
from jepa.trainer.precision import resolve_device
from jepa.types import RunLength, StepRandomness
from jepa.utils.errors import UserError
from jepa.utils.lazy_import import keep_dynamo_out
from jepa.utils.nested import flatten
from jepa.utils.random import seeded


def build_trainer(config: DictConfig) -> Trainer:
    """The trainer of a composed configuration, ready for `fit()`.

    Raises UserError for a key, type or value that does not fit, before any data is read.
    """
    with report_on_rank0():
        whole = filled(config, ANY_FOUND | ANY_HINTS)
        check_config(to_plain(whole), source=functools.partial(source_of, whole))
    settings = config.trainer
    device = resolve_device(settings.get("device", "auto"), read_launch().local_rank)
    init_process_group(device, settings.get("backend"), settings.get("timeout_seconds", TIMEOUT_SECONDS))
    with propagate_failure():
        return _build_trainer(config)


def _build_trainer(config: DictConfig) -> Trainer:
    run_dir = broadcast_from_rank0(lambda: Path(config.run_dir or default_run_dir()))
    config = copy.deepcopy(config)
    with open_dict(config):
        config.run_dir = literal(str(run_dir))  # for what the data keeps there: the same folder on every rank
    config, data = settled(config)
    config, model = built_model(config)
    untrained = config
    if getattr(model, "teachers", None):
        from jepa.config.teacher import with_out_dims, without_teachers  # imports timm and the formats of others

        config = with_out_dims(config, model)
        untrained = without_teachers(config)
    keep_dynamo_out()
    optimizer = convert_errors("optimizer", build(config, "optimizer"))(parameter_groups(model))
    scheduler = convert_errors("scaling", build(config, "scaling"))(scheduler=build(config, "scheduler"))
    loggers = build(config, "logger") if "logger" in config else None  # logger=[]
    evaluation = build(config, "evaluation")
    online = getattr(evaluation, "online", None)
    monitor = build(config, "monitor") or None
    visualise = (build(config, "visualise") or None) if "visualise" in config else None
    make_trainer = build(config, "trainer", partial=True)
    data = build_data(config) if data is None else data
    check_input(model, data, getattr(evaluation, "probes", {}).values())
    if config.init_from is not None and not resumes(config, run_dir):  # the file may be gone by then
        from jepa.interop import load_into  # imports the formats of others

        load_into(model, config.init_from)
    momentum = getattr(model, "momentum_schedule", None)

    def describe(run_length: RunLength) -> list[str]:
        of_data = [*getattr(data, "lines", ()), *padding_notes(data)]
        return [*notes(config), *of_data, *plan(run_length, scheduler, momentum)]

    def show(trainer: Trainer) -> None:
        from jepa.report.dry_run import preview  # for trainer.dry_run alone

        preview(trainer, plan=trainer.describe())

    return convert_errors("trainer", make_trainer)(
        model=model,
        data=data,
        optimizer=optimizer,
        scheduler=scheduler,
        loggers=loggers,
        callbacks={**(build(config, "callbacks") or {}), **({} if online is None else {"online probes": online})},
        evaluation=evaluation,
        monitor=monitor,
        visualise=visualise,
        random_init=functools.partial(build_model, untrained),
        plan=describe,
        preview=show,
        run_dir=run_dir,
        resume=config.resume,
        config=to_plain(config),
    )


def built_model(config: DictConfig) -> tuple[DictConfig, nn.Module]:
    """Return a configuration, with the encoder of a checkpoint where it wants a frozen one, and its model.

    Raises UserError for a model of ours that predicts under no actions, of data that have them.
    """
    weights, target = None, str(config.model._target_)
    if "action_dim" in config.data and target.startswith("jepa.") and not hasattr(get_object(target), "rollout"):
        raise UserError(f"this model does not take these data: {with_fitting_model(config)}")
    if OmegaConf.select(config, "model.encoder._target_") == "jepa.config.teacher.frozen_encoder":
        from jepa.config.teacher import with_frozen_encoder  # imports timm and the formats of others

        config, weights = convert_errors("model.encoder", with_frozen_encoder)(config)
    model = build_model(config)
    if weights is not None:
        model.encoder.load_state_dict(weights)
    return config, model


FOUND_BY_DATA = ("channels", "image_size", "length", "vocab_size", "mean", "std")
OF_ACTIONS = ("action_low", "action_high", "action_mean", "action_std")
FOUND_BY_DATA += ("action_dim", *OF_ACTIONS)
"""What a configuration of data may leave open for the data to find out: sizes, with which the model is then built, by
null; mean and std, also of data within data, by auto."""


ANY_HINTS = {"size": "toy", "patch_size": 1}  # values of the right types for the hints that may be auto
ANY_FOUND = dict.fromkeys(FOUND_BY_DATA, 8) | {key: [1.0] for key in OF_ACTIONS}  # the same for what data find out


def settled(config: DictConfig) -> tuple[DictConfig, Any]:
    """The configuration with what it leaves open taken from its data, and these data; None where nothing is open."""
    if not left_open(config):
        return config, None
    data = build_data(config)
    config = filled(config, data.spec.found)
    if auto_hints(config):
        chosen = chosen_hints(config, data.spec)
        config = filled(config, chosen)
        data.lines = [*getattr(data, "lines", ()), describe_choice(chosen, data.spec)]
    return config, data


def left_open(config: DictConfig) -> list[str]:
    """The keys of data, of those that may be, which are left open, such as `channels` or `parts.a.mean`."""
    sizes = [key for key in FOUND_BY_DATA if key in config.data and config.data[key] is None]
    plain = OmegaConf.to_container(config.data, resolve=False)
    values = flatten(plain)
    statistics = [key for key, value in values.items() if value == "auto"]
    sizes += [key for key, value in values.items() if value is None and f".{key}".endswith(".source.columns")]
    of_data = [key for key in statistics if key.rpartition(".")[2] in ("mean", "std")]
    return sizes + of_data + [f"hints.{name}" for name in auto_hints(config)]


def filled(config: DictConfig, found: Mapping[str, Any]) -> DictConfig:
    """The configuration with what its data leaves open taken from `found`, where that has it; itself if nothing is.

    found: the longest end of a key counts, `a.mean` before `mean` for `parts.a.mean`.
    """
    values = {}
    for key in left_open(config):
        ends = [end for end in found if f".{key}".endswith(f".{end}")]
        if ends:
            values[key] = found[max(ends, key=len)]
    if not values:
        return config
    config = copy.deepcopy(config)
    with open_dict(config):
        for key, value in values.items():
            OmegaConf.update(config.data, key, value)
    return config


def build_data(config: DictConfig) -> Any:
    """The data of a configuration."""
    with local_rank0_first():  # it may download
        return build(config, "data")


def resumes(config: DictConfig, run_dir: Path) -> bool:
    """Whether the run goes on from a checkpoint of its own."""
    if config.resume == "auto":
        folder = Path(config.trainer.get("checkpoint_dir") or run_dir / "checkpoints")
        return broadcast_from_rank0(lambda: find_checkpoint(folder) is not None)
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


def check_input(model: nn.Module, data: Any, probes: Iterable[Any] = ()) -> None:
    """Pass two blank samples through model and loss, so that what does not fit is found before training.

    probes: of the evaluation, of which those that have a `check` are asked, too.

    Raises UserError when inputs do not fit the encoder, masks its grid, or the batch the loss.
    """
    batch = data.blank_batch(2)

    @torch.no_grad()
    def try_once() -> None:
        # A user's own model may have nothing but the parts of the step.
        step = getattr(model, "training_step", lambda batch, rng: model.loss(model(model.prepare(batch, rng))))
        step(batch, StepRandomness(seed=0, step=0, total=2, start=0, count=2))

    model.eval()
    convert_errors("model", try_once)()
    for probe in probes:
        if hasattr(probe, "check"):
            probe.check(model, data)
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
            if isinstance(cause, UserError) and ".parts." not in full_key:
                raise cause from None
            if isinstance(cause, (UserError, ValueError, TypeError)):
                raise UserError(behind(full_key, cause)) from error
            raise
        except ValueError as error:
            raise UserError(behind(key, error)) from error

    return call


def behind(key: str, error: BaseException) -> str:
    """The message of an error behind a key, unless it begins with that key."""
    return str(error) if str(error).startswith((f"{key}.", f"{key}=", f"{key}:")) else f"{key}: {error}"


def to_plain(config: DictConfig) -> dict[str, Any]:
    """The configuration with everything resolved, as dicts and lists. Raises UserError for a missing value."""
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except InterpolationKeyError as error:
        if "'data." not in str(error) or str(error.full_key).startswith("data."):
            raise UserError(f"{error.full_key}: {explain(error)}") from error
        raise UserError(f"this model does not take these data: {with_fitting_model(config)}") from error
    except OmegaConfBaseException as error:
        key, first = getattr(error, "full_key", None), str(error).splitlines()[0]
        if "while resolving interpolation: " in first:  # raised by a resolver
            raise UserError(f"{key}: {first.partition('while resolving interpolation: ')[2]}") from error
        raise UserError(f"{key} is not set: give it on the command line, {key}=...") from error
