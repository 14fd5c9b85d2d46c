"""What a checkpoint holds of a trainer, and putting it back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from jepa.checkpoint import plain as checkpoint
from jepa.checkpoint.load import check_state, load_state
from jepa.distributed.parallel import placed

if TYPE_CHECKING:
    from jepa.trainer.trainer import Trainer


def state_of(trainer: Trainer) -> dict[str, Any]:
    """The nested state, with tensors that are the trainer's own, sharded ones as this rank's part."""
    return {
        "step": trainer.step,
        "train_seconds": trainer.train_seconds,
        "pending": trainer.pending,
        "ended": trainer.stopped,
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.precision.scaler.state_dict(),
        "best": trainer.best.state_dict(),
        "metrics": dict(trainer.metrics),
        "callbacks": {name: callback.state_dict() for name, callback in trainer.callbacks.items()},
        "loggers": {name: logger.state_dict() for name, logger in trainer.loggers.items()},
        "monitor": None if trainer.monitor is None else trainer.monitor.state_dict(),
        "rollbacks": list(trainer.rollbacks),
        "config": trainer.folder.config,
    }


def restore(trainer: Trainer, path: Path, load_optimizer: bool) -> None:
    """Put a checkpoint of either format into a trainer on any number of ranks; see `Trainer.load_checkpoint`."""
    if path.is_dir():
        from jepa.checkpoint.sharded import read as read_sharded  # takes a second to import

        content = read_sharded(path, lambda keys: _counterpart(trainer, keys))
        checkpoint.check(content, path)
    else:
        content = checkpoint.read(path)
    check_state(trainer.model, content["model"], path)
    if load_optimizer:
        checkpoint.check_optimizer(trainer.optimizer, content["optimizer"], path)
    own = trainer.model.state_dict()
    load_state(trainer.model, {name: placed(value, own[name]) for name, value in content["model"].items()}, path)
    if load_optimizer:
        _restore_optimizer(trainer, content)
    trainer.best.load_state_dict(content["best"])
    for kind, mine in (("callbacks", trainer.callbacks), ("loggers", trainer.loggers)):
        for name in mine.keys() & content[kind].keys():
            mine[name].load_state_dict(content[kind][name])
    if trainer.monitor is not None and content.get("monitor"):
        trainer.monitor.load_state_dict(content["monitor"])
    trainer.rollbacks = list(content.get("rollbacks", []))
    trainer.step, trainer.pending = content["step"], content["pending"]
    trainer.stopped = content["ended"] if _ends_alike(trainer, content["config"]) else None
    trainer.metrics = dict(content["metrics"])
    trainer.train_seconds = content.get("train_seconds", 0.0)


def _ends_alike(trainer: Trainer, config: Mapping[str, Any]) -> bool:
    """Whether a run that was stopped early stays so: not with other callbacks, monitor or length."""

    own = trainer.folder.config

    def ending(config: Mapping[str, Any]) -> list[Any]:
        lengths = [config.get("trainer", {}).get(name) for name in ("max_epochs", "max_steps", "max_samples")]
        monitor = config.get("monitor", own.get("monitor"))  # a run from before there was one was stopped by another
        return [config.get("callbacks"), monitor, *lengths]

    return ending(config) == ending(own)


def _restore_optimizer(trainer: Trainer, content: Mapping[str, Any]) -> None:
    optimizer = trainer.optimizer
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    parameters = _parameters(trainer)
    state = {
        number: {k: placed(v, parameters[number]) if _fits(v, parameters[number]) else v for k, v in entry.items()}
        for number, entry in content["optimizer"]["state"].items()
    }
    optimizer.load_state_dict({**content["optimizer"], "state": state})
    for group, now in zip(optimizer.param_groups, settings):
        group.update(now)  # what this run was given wins over what the file remembers
    if content["scaler"]:  # a run in another precision leaves none
        trainer.precision.scaler.load_state_dict(content["scaler"])


def _counterpart(trainer: Trainer, keys: tuple) -> Tensor | None:
    """The tensor of this run that one in a sharded checkpoint goes into."""
    if keys[0] == "model":
        return trainer.model.state_dict().get(keys[1])
    if keys[:2] == ("optimizer", "state"):
        parameters = _parameters(trainer)
        return parameters[keys[2]] if keys[2] < len(parameters) else None
    return None


def _parameters(trainer: Trainer) -> list[Tensor]:
    """Parameters in the order in which the optimizer's state numbers them."""
    return [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]


def _fits(value: Any, parameter: Tensor) -> bool:
    """Whether an entry of the optimizer's state has the shape of its parameter, and so is sharded like it."""
    return isinstance(value, Tensor) and value.shape == parameter.shape
