"""Whether the optimizer state in a checkpoint is of the optimizer that goes on, told before the first step fails."""

from __future__ import annotations

import contextlib
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jepa.checkpoint.plain import is_finite, is_plain
from jepa.utils.errors import CheckpointError

SCHEDULED = {"params", "lr", "weight_decay", "decays", "initial_lr"}
"""What differs between groups of one optimizer without changing what it keeps."""


def check_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any] | None, path: Path) -> None:
    """Raise CheckpointError when there is no optimizer state, or it is damaged or of another optimizer."""
    if state is None:
        raise CheckpointError(f"{path} holds no optimizer state: use init_from=, or load with load_optimizer=False")
    groups = state["param_groups"]
    stored, own = ([len(group["params"]) for group in each] for each in (groups, optimizer.param_groups))
    kind = type(optimizer).__name__
    if stored != own:
        raise CheckpointError(f"{path} has optimizer groups of {stored} parameters, this run of {own}")
    if missing := set(optimizer.param_groups[0]) - set(groups[0]):
        raise CheckpointError(f"{path} is of another optimizer than {kind}: its groups lack {sorted(missing)}")
    if unknown := [number for number in state["state"] if number >= sum(own)]:
        raise CheckpointError(f"{path} is damaged: it has an optimizer state of parameter {unknown[0]} of {sum(own)}")
    parameters = [(now, then, each) for now, then in zip(optimizer.param_groups, groups) for each in now["params"]]
    for number, (now, then, parameter) in enumerate(parameters):
        if not (entry := state["state"].get(number)):
            continue
        expected = _state_after_a_step(optimizer, now, parameter)
        if absent := sorted(expected.keys() - entry.keys()):
            names = [name for name in now if name not in SCHEDULED and then.get(name) != now[name]]
            changed = ", ".join(f"optimizer.{name}={now[name]} (before {then.get(name)})" for name in names)
            raise CheckpointError(
                f"{path} lacks the optimizer state {', '.join(absent)} that {kind} needs"
                + (f" with {changed}: leave that as it was" if changed else ", it is damaged: use another checkpoint")
                + f", or start a new run from its weights with init_from={path}"
            )
        for name, value in expected.items():
            if isinstance(value, Tensor) and (problem := _problem(name, entry[name], value, parameter)):
                raise CheckpointError(
                    f"{path} is damaged: the optimizer state {name} of a parameter {tuple(parameter.shape)} {problem}"
                )


def _problem(name: str, found: Any, expected: Tensor, parameter: Tensor) -> str | None:
    """Return what is wrong with a state, in words: its shape, or values that no optimizer makes."""
    like = parameter.shape if expected.dim() == parameter.dim() else expected.shape
    if not isinstance(found, Tensor):
        return f"is {type(found).__name__}"
    if found.dim() != len(like) or any(size not in (1, own) for size, own in zip(found.shape, like)):
        return f"is {tuple(found.shape)}"
    found = found.to_local() if hasattr(found, "to_local") else found
    usable = is_plain(found) and is_finite(found)
    if not usable or (found.numel() and (name == "step" or "_sq" in name) and float(found.min()) < 0):
        return "holds values that are not finite, or negative where none can be"
    return None


def _state_after_a_step(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], parameter: Tensor
) -> dict[str, Any]:
    """Return what the optimizer keeps of one number of as many axes; {} where it cannot step on that."""
    number = nn.Parameter(torch.zeros((1,) * parameter.dim(), dtype=parameter.dtype, device=parameter.device))
    number.grad = torch.zeros_like(number)
    probe = object.__new__(type(optimizer))
    probe.__dict__.update(optimizer.__dict__)
    probe.param_groups, probe.state = [{**group, "params": [number]}], defaultdict(dict)
    probe._optimizer_step_pre_hooks = probe._optimizer_step_post_hooks = OrderedDict()
    with contextlib.suppress(Exception):
        type(optimizer).step(probe)
    return dict(probe.state[number])
