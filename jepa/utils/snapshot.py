"""Trying something with a trainer and leaving it as it was."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


@contextlib.contextmanager
def preserved(trainer: Any, *, parameters: bool = True, optimizer: bool = True) -> Iterator[None]:
    """A context after which a trainer is as it was before, bit by bit, however the block is left.

    Restored are the model's parameters, gradients, buffers and modes (a target is part of the model), the optimizer's
    state and settings, the loss scaler, the trainer's own attributes and run state (schedules, step, ...), and the
    random state of torch, numpy and Python. The copies take that much memory more.

    parameters, optimizer: False where the block is known not to change them, which saves their copies.
    """
    model, own = trainer.model, dict(vars(trainer))
    run_state = copy.deepcopy(vars(trainer.state)) if hasattr(trainer, "state") else None
    containers = {name: value.copy() for name, value in own.items() if isinstance(value, (dict, list))}
    tensors = [*(model.parameters() if parameters else ()), *model.buffers()]  # also those outside the state dict
    kept = {tensor: tensor.detach().clone() for tensor in tensors}
    gradients = {p: None if p.grad is None else p.grad.detach().clone() for p in model.parameters()}
    modes = {module: module.training for module in model.modules()}
    groups = [group.copy() for group in trainer.optimizer.param_groups]
    state = {p: copy.deepcopy(of_p) for p, of_p in trainer.optimizer.state.items()} if optimizer else None
    scaler = trainer.precision.scaler.state_dict()
    try:
        with _same_random_state():
            yield
    finally:
        vars(trainer).clear()
        vars(trainer).update(own)
        if run_state is not None:
            vars(trainer.state).update(run_state)
        for name, content in containers.items():
            _refill(own[name], content)
        with torch.no_grad():
            for tensor, value in kept.items():
                tensor.copy_(value)
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        for module, mode in modes.items():
            module.training = mode
        for group, settings in zip(trainer.optimizer.param_groups, groups):
            _refill(group, settings)
        if state is not None:
            _refill(trainer.optimizer.state, state)
        trainer.precision.scaler.load_state_dict(scaler)
        # The scaler remembers until update() that gradients were unscaled; a block left in between skips that.
        getattr(trainer.precision.scaler, "_per_optimizer_states", {}).clear()


def _refill(container: dict | list, content: dict | list) -> None:
    """Put the old content back into the same object, which others may hold."""
    container.clear()
    container.update(content) if isinstance(container, dict) else container.extend(content)


@contextlib.contextmanager
def _same_random_state() -> Iterator[None]:
    of_numpy, of_python = np.random.get_state(), random.getstate()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)
