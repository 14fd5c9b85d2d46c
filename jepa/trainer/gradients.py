"""Norms of gradients and the size of updates, as tensors on the device; nothing here waits for it.

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
from jepa.distributed.parallel import is_dtensor

PREFIX = "grad_norm/"
WRAPPERS = ("_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "_orig_mod.")
"""What activation checkpointing, FSDP and torch.compile put into the names of parameters."""


@torch.no_grad()
def module_norms(model: nn.Module) -> dict[str, Tensor]:
    """{"grad_norm/<module>": norm of the gradients in it} of every top-level module that is trained, fp32 scalars.

    A parameter of the model itself is its own entry; one that modules share counts in the first of them.
    """
    trained = trained_parameters(model)
    if not trained:
        return {}
    groups = [(top, len(list(names))) for top, names in itertools.groupby(name.partition(".")[0] for name in trained)]
    squares = gradient_squares(trained.values()).split([count for _, count in groups])
    norms = torch.stack([part.sum() for part in squares]).sqrt()
    return {f"{PREFIX}{top}": norm for (top, _), norm in zip(groups, norms.unbind())}


@torch.no_grad()
def parameter_norms(model: nn.Module) -> dict[str, Tensor]:
    """{"grad_norm/<parameter>": norm of its gradient} of every trained parameter, fp32 scalars; 0 without one."""
    trained = trained_parameters(model)
    if not trained:
        return {}
    norms = gradient_squares(trained.values()).sqrt()
    return {f"{PREFIX}{name}": norm for name, norm in zip(trained, norms.unbind())}


class UpdateRatio:
    """||change of the weights|| / ||weights|| of an optimizer step, estimated from a few entries per parameter.

    A healthy value is near 1e-3. Of each parameter (each rank's shard of it) every n-th entry is looked at, so that
    there are at most `sample` of them, each counted n times; 2048 make 2 MB for the 250 parameters of a large ViT.

        ratio.keep(); optimizer.step(); values["update_ratio"] = ratio.read()
    """

    def __init__(self, model: nn.Module, *, sample: int = 2048) -> None:
        self._model, self._sample = model, sample
        self._before: list[Tensor] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Remember the weights as they are before the step."""
        self._before = [entries.clone() for entries, _ in self._entries()]

    @torch.no_grad()
    def read(self) -> Tensor:
        """The ratio since `keep`, an fp32 scalar, and forget the weights."""
        parameters = trained_parameters(self._model).values()
        after, factors = zip(*self._entries())
        changes = torch._foreach_sub(list(after), self._before)
        sharded, world = any(is_sharded(p) for p in parameters), get_world_size()
        # One number per parameter, of the change and of the weights.
        factors = [factor * share(p, sharded, world) for factor, p in zip(factors, parameters)]
        change, weight = (torch.stack(squares(tensors, factors)).sum() for tensors in (changes, self._before))
        self._before = []
        change, weight = reduce_if_sharded([change, weight], sharded).unbind()
        return (change / weight.clamp(min=torch.finfo(torch.float32).tiny)).sqrt()

    def _entries(self) -> list[tuple[Tensor, float]]:
        """The entries looked at of each parameter, and how many each stands for."""
        entries = []
        for parameter in trained_parameters(self._model).values():
            flat = local(parameter.detach()).reshape(-1)
            stride = max(1, math.ceil(flat.numel() / self._sample))
            looked_at = flat[::stride]
            entries.append((looked_at, flat.numel() / max(1, looked_at.numel())))
        return entries


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that take gradients, each once, by names without what wrappers put into them."""
    named = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            for wrapper in WRAPPERS:
                name = name.replace(wrapper, "")
            named[name] = parameter
    return named


def gradient_squares(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Sum of squares of the whole gradient of each parameter, (parameters,) in fp32; 0 without a gradient."""
    parameters = list(parameters)
    gradients = [p.grad if p.grad is not None else local(p.detach()).new_zeros(1) for p in parameters]
    # A parameter without gradient lacks it on every rank, so that they agree on what is sharded.
    sharded, world = any(is_sharded(gradient) for gradient in gradients), get_world_size()
    factors = [share(gradient, sharded, world) for gradient in gradients]
    return reduce_if_sharded(squares([local(gradient) for gradient in gradients], factors), sharded)


def squares(tensors: Sequence[Tensor], factors: Sequence[float]) -> list[Tensor]:
    """Sum of squares of each tensor times its factor, fp32 scalars."""
    filled = [tensor if tensor.numel() else tensor.new_zeros(1) for tensor in tensors]  # a rank's shard may be empty
    norms = torch._foreach_norm(filled, 2, dtype=torch.float32)
    return torch._foreach_mul(torch._foreach_mul(norms, norms), list(factors))


def reduce_if_sharded(sums: Sequence[Tensor], sharded: bool) -> Tensor:
    """The stacked scalars, added up over all ranks where what they were taken from was sharded."""
    stacked = torch.stack(list(sums))
    if sharded:
        dist.all_reduce(stacked)
    return stacked


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds only a part of it."""
    return is_dtensor(tensor) and any(placement.is_shard() for placement in tensor.placements)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of it."""
    if not is_dtensor(tensor):
        return tensor
    if any(placement.is_partial() for placement in tensor.placements):
        return tensor.full_tensor()
    return tensor.to_local()


def share(tensor: Tensor, sharded: bool, world: int) -> float:
    """What this rank's part counts in a sum over all ranks: 1 / (number of ranks that hold the same part)."""
    if not sharded:
        return 1.0
    parts = 1
    if is_sharded(tensor):
        sizes = zip(tensor.device_mesh.shape, tensor.placements)
        parts = math.prod(size for size, placement in sizes if placement.is_shard())
    return parts / world
