"""Clipping, norms of gradients and the size of updates, as tensors on the device; nothing here waits for it.

Parameters and gradients may be DTensors, as under FSDP2: norms are those of the whole tensor, with one all-reduce
per call, so every rank must make the same calls. Gradients of DDP are the same on every rank and need none.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jepa.distributed.collectives import get_world_size
from jepa.utils.tensors import is_dtensor, sample_entries

PREFIX = "grad_norm/"
WRAPPERS = ("_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "_orig_mod.")
"""What activation checkpointing, FSDP and torch.compile put into the names of parameters."""


def clip_gradients(
    model: nn.Module, norm: float | None, value: float | None, apart: Sequence[str] | None = None
) -> Tensor:
    """Clip gradients by value, then by norm; return the total norm before either, a scalar tensor.

    Of a sharded model it is the norm over all ranks. apart: top-level modules that are clipped to the norm each by
    itself; the others are so together.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    total = torch.nn.utils.get_total_norm(gradients)
    if value is not None:
        torch.nn.utils.clip_grad_value_(model.parameters(), value)
    if norm is not None and (value is not None or apart):
        groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in trained_parameters(model).items():
            top = name.partition(".")[0]
            groups.setdefault(top if top in (apart or ()) else "", []).append(parameter)
        for parameters in groups.values():
            torch.nn.utils.clip_grad_norm_(parameters, norm)
    elif norm is not None:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), norm, total)
    return total


@torch.no_grad()
def gradient_norms(model: nn.Module, *, of_parameters: bool = False) -> dict[str, Tensor]:
    """Return {"grad_norm/<module>": norm of its gradients} of every top-level module that is trained, fp32 scalars.

    A parameter of the model itself is its own entry; one that modules share counts in the first of them.
    of_parameters: also {"grad_norm/<parameter>": ...} of every trained parameter, 0 for one without gradient.
    """
    trained = trained_parameters(model)
    if not trained:
        return {}
    squares = gradient_squares(trained.values())
    groups = [(top, len(list(names))) for top, names in itertools.groupby(name.partition(".")[0] for name in trained)]
    sums = torch.stack([part.sum() for part in squares.split([count for _, count in groups])])
    norms = {f"{PREFIX}{top}": norm for (top, _), norm in zip(groups, sums.sqrt().unbind())}
    if of_parameters:
        norms |= {f"{PREFIX}{name}": norm for name, norm in zip(trained, squares.sqrt().unbind())}
    return norms


class UpdateRatio:
    """||change of the weights|| / ||weights|| of an optimizer step, estimated from a few entries per parameter.

    A healthy value is near 1e-3. Of each parameter (each rank's shard of it) every n-th entry is looked at, so that
    there are at most `sample` of them, each counted n times; 2048 make 2 MB for the 250 parameters of a large ViT.

        ratio = UpdateRatio(model); optimizer.step(); values["update_ratio"] = ratio.read()
    """

    def __init__(self, model: nn.Module, *, sample: int = 2048) -> None:
        self._parameters, self._sample = list(trained_parameters(model).values()), sample
        self._before = [entries.clone() for entries in sample_entries(self._parameters, sample)]

    @torch.no_grad()
    def read(self) -> Tensor:
        """Return the ratio since this was made, an fp32 scalar."""
        after = sample_entries(self._parameters, self._sample)
        changes = torch._foreach_sub(after, self._before)
        sharded, world = any(is_sharded(p) for p in self._parameters), get_world_size()
        # One number per parameter, of the change and of the weights.
        factors = [
            local(p.detach()).numel() / entries.numel() * share(p, sharded, world)
            for p, entries in zip(self._parameters, after)
        ]
        change, weight = (torch.stack(squares(tensors, factors)).sum() for tensors in (changes, self._before))
        change, weight = reduce_if_sharded([change, weight], sharded).unbind()
        return (change / weight.clamp(min=torch.finfo(torch.float32).tiny)).sqrt()


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that take gradients, each once, by names without what wrappers put into them."""
    named = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            for wrapper in WRAPPERS:
                name = name.replace(wrapper, "")
            named[name] = parameter
    return named


def gradient_squares(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the sum of squares of each parameter's whole gradient, (parameters,) in fp32; 0 without a gradient."""
    parameters = list(parameters)
    gradients = [p.grad if p.grad is not None else local(p.detach()).new_zeros(1) for p in parameters]
    # A parameter without gradient lacks it on every rank, so that they agree on what is sharded.
    sharded, world = any(is_sharded(gradient) for gradient in gradients), get_world_size()
    factors = [share(gradient, sharded, world) for gradient in gradients]
    return reduce_if_sharded(squares([local(gradient) for gradient in gradients], factors), sharded)


def squares(tensors: Sequence[Tensor], factors: Sequence[float]) -> list[Tensor]:
    """Return the sum of squares of each tensor times its factor, fp32 scalars."""
    filled = [tensor if tensor.numel() else tensor.new_zeros(1) for tensor in tensors]  # a rank's shard may be empty
    norms = torch._foreach_norm(filled, 2, dtype=torch.float32)
    return torch._foreach_mul(torch._foreach_mul(norms, norms), list(factors))


def reduce_if_sharded(sums: Sequence[Tensor], sharded: bool) -> Tensor:
    """Return the stacked scalars, added up over all ranks where what they were taken from was sharded."""
    stacked = torch.stack(list(sums))
    if sharded:
        dist.all_reduce(stacked)
    return stacked


def is_sharded(tensor: Tensor) -> bool:
    """Return whether this rank holds only a part of it."""
    return is_dtensor(tensor) and any(placement.is_shard() for placement in tensor.placements)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of it."""
    if not is_dtensor(tensor):
        return tensor
    if any(placement.is_partial() for placement in tensor.placements):
        return tensor.full_tensor()
    return tensor.to_local()


def share(tensor: Tensor, sharded: bool, world: int) -> float:
    """Return what this rank's part counts in a sum over all ranks: 1 / (number of ranks that hold the same part)."""
    if not sharded:
        return 1.0
    parts = 1
    if is_sharded(tensor):
        sizes = zip(tensor.device_mesh.shape, tensor.placements)
        parts = math.prod(size for size, placement in sizes if placement.is_shard())
    return parts / world
