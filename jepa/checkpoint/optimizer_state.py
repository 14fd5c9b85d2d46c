"""Whether the optimizer state in a checkpoint is of the optimizer that goes on, told before the first step fails."""

from __future__ import annotations

import contextlib
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jepa.checkpoint.plain import is_plain
from jepa.utils.errors import CheckpointError

SCHEDULED = {"params", "lr", "weight_decay", "decays", "initial_lr"}
"""What differs between groups of one optimizer without changing what it keeps."""


def check_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any] | None, path: Path) -> None:
    """Raise CheckpointError when there is no optimizer state, or it is damaged or of another optimizer."""
    if state is None:
        raise CheckpointError(f"{path} holds no optimizer state: use init_from=, or load with load_optimizer=False")
    groups = state["param_groups"]
    stored = [len(group["params"]) for group in groups]
    own = [len(group["params"]) for group in optimizer.param_groups]
    if stored != own:
        raise CheckpointError(f"{path} has optimizer groups of {stored} parameters, this run of {own}")
    missing = set(optimizer.param_groups[0]) - set(groups[0])
    if missing:
        raise CheckpointError(
            f"{path} is of another optimizer than {type(optimizer).__name__}: its groups lack {sorted(missing)}"
        )
    if unknown := [number for number in state["state"] if number >= sum(own)]:
        raise CheckpointError(f"{path} is damaged: it has an optimizer state of parameter {unknown[0]} of {sum(own)}")
    number = 0
    for group, before in zip(optimizer.param_groups, groups):
        expected: dict[int, dict[str, Any]] = {}
        for parameter in group["params"]:
            entry = state["state"].get(number)
            if entry:
                axes = parameter.dim()
                if axes not in expected:
                    expected[axes] = _state_after_a_step(optimizer, group, parameter)
                changed = [name for name in group if name not in SCHEDULED and before.get(name) != group[name]]
                settings = {name: (group[name], before.get(name)) for name in changed}
                _check_entry(entry, expected[axes], parameter, optimizer, settings, path)
            number += 1


def _check_entry(
    entry: Mapping[str, Any],
    expected: Mapping[str, Any],
    parameter: Tensor,
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, tuple[Any, Any]],
    path: Path,
) -> None:
    """Raise CheckpointError unless the state of one parameter is as expected. settings: name -> now, before."""
    if missing := sorted(expected.keys() - entry.keys()):
        changed = ", ".join(f"optimizer.{name}={now} (before {then})" for name, (now, then) in settings.items())
        raise CheckpointError(
            f"{path} lacks the optimizer state {', '.join(missing)} that {type(optimizer).__name__} needs"
            + (f" with {changed}: leave that as it was" if changed else ", it is damaged: use another checkpoint")
            + f", or start a new run from its weights with init_from={path}"
        )
    for name, value in expected.items():
        if not isinstance(value, Tensor):
            continue
        found = entry[name]
        like = tuple(parameter.shape) if value.dim() == parameter.dim() else tuple(value.shape)
        fits = isinstance(found, Tensor) and found.dim() == len(like)
        if not (fits and all(size in (1, own) for size, own in zip(found.shape, like))):
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise CheckpointError(
                f"{path} is damaged: the optimizer state {name} of a parameter {tuple(parameter.shape)} is {what}"
            )
        if not _is_usable(name, found):
            raise CheckpointError(
                f"{path} is damaged: the optimizer state {name} of a parameter {tuple(parameter.shape)} holds values "
                "that are not finite, or negative where none can be"
            )


def _is_usable(name: str, found: Tensor) -> bool:
    """Return whether a state is finite, and steps and means of squares are not negative."""
    found = found.to_local() if hasattr(found, "to_local") else found
    finite = is_plain(found) and bool(torch.isfinite(found).all())
    return finite and not (found.numel() and (name == "step" or "_sq" in name) and float(found.min()) < 0)


def _state_after_a_step(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], parameter: Tensor
) -> dict[str, Any]:
    """Return what the optimizer keeps of one number with as many axes as a parameter of this group.

    Nothing where it cannot step on one number alone, as a user's own that wants a closure.
    """
    number = nn.Parameter(torch.zeros((1,) * parameter.dim(), dtype=parameter.dtype, device=parameter.device))
    number.grad = torch.zeros_like(number)
    probe = object.__new__(type(optimizer))
    probe.__dict__.update(optimizer.__dict__)
    probe.param_groups, probe.state = [{**group, "params": [number]}], defaultdict(dict)
    probe._optimizer_step_pre_hooks = probe._optimizer_step_post_hooks = OrderedDict()
    with contextlib.suppress(Exception):
        type(optimizer).step(probe)
    return dict(probe.state[number])
