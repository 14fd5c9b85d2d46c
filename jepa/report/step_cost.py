"""Measure a training step on a small batch: shapes of the modules, operations, memory."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jepa.types import Batch, StepRandomness
from jepa.utils.linear_layer import operation_counter
from jepa.utils.tensors import batch_length, map_tensors, tensors_in

Shapes = list[tuple[int, ...]]


@dataclass(frozen=True)
class StepCost:
    """Cost of a training step, in floating-point operations and bytes.

    forward, total: operations per sample, without and with the backward pass; a multiply-add is two. They count
        matrix products, convolutions and attention.
    activations, constant: bytes kept for the backward pass, per sample and besides.
    trained, frozen, gradients, optimizer: bytes of parameters, gradients and optimizer state.
    checkpoint: bytes of model and optimizer on disk.
    """

    forward: float
    total: float
    activations: float
    constant: float
    trained: int
    frozen: int
    gradients: int
    optimizer: int
    checkpoint: int

    def memory(self, micro_batch_size: int) -> float:
        """Return the bytes in use while a micro-batch is computed."""
        fixed = self.trained + self.frozen + self.gradients + self.optimizer + self.constant
        return fixed + self.activations * micro_batch_size


def first_batch(trainer: Any) -> Batch:
    """Return the batch of the step that comes next."""
    steps = {"start_step": trainer.step, "stop_step": trainer.step + 1}
    with contextlib.closing(trainer.data.train_batches(seed=trainer.seed, **steps)) as batches:
        return next(batches)


def first_samples(batch: Batch, size: int, device: torch.device) -> Batch:
    """Return the first `size` samples of a batch on the device."""
    # Cloned, as a slice would keep the whole batch alive and be counted with it.
    return map_tensors(batch, lambda tensor: tensor[:size].clone().to(device))


def prepared(trainer: Any, batch: Batch, size: int) -> Batch:
    """Return the first `size` samples of a batch on the device, with the masks of training."""
    total = batch_length(batch)
    part = first_samples(batch, size, trainer.device)
    rng = StepRandomness(seed=trainer.seed, step=trainer.step, total=total, start=0, count=min(size, total))
    return {**trainer.model.prepare(part, rng), "rng": rng}


@torch.no_grad()
def module_shapes(trainer: Any, batch: Batch) -> tuple[Any, list[tuple[str, Shapes, Shapes, int]]]:
    """Return the latents of a prepared batch, and (name, inputs of the last call, outputs, calls) of its modules.

    These are the model's children, those of the loss, and those of a child that is not called itself, as the encoder in
    a target.
    """
    model = trainer.model
    watched = dict(model.named_children())
    for parent, module in model.named_children():
        watched |= {f"{parent}.{name}": child for name, child in module.named_children()}
    seen: dict[str, tuple[str, Shapes, Shapes, int]] = {}

    def note(name: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        calls = seen[name][3] + 1 if name in seen else 1
        seen[name] = (name, tensor_shapes([*args, *kwargs.values()]), tensor_shapes(output), calls)

    with contextlib.ExitStack() as hooks, trainer.precision.autocast():
        for name, child in watched.items():
            hook = child.register_forward_hook(functools.partial(note, name), with_kwargs=True)
            hooks.callback(hook.remove)
        latents = model(batch)
        model.loss(latents)
    parents = {name: name.partition(".")[0] for name in seen}
    return latents, [row for name, row in seen.items() if parents[name] in ("loss", name) or parents[name] not in seen]


def tensor_shapes(value: Any) -> Shapes:
    """Return the shapes of the tensors in a value: a tensor, or lists, dicts and dataclasses of tensors."""
    if isinstance(value, Tensor):
        return [tuple(value.shape)]
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, Mapping):
        value = list(value.values())
    return [shape for item in value for shape in tensor_shapes(item)] if isinstance(value, (list, tuple)) else []


def measure_cost(trainer: Any, batch: Batch) -> StepCost:
    """Return the cost of a step, measured by passes of two small sizes and an optimizer step.

    Changes gradients, optimizer state and weights: call it inside `preserved`.
    """
    total = batch_length(batch)
    small = min(2, total)
    large = min(2 * small, total)
    own = {tensor.untyped_storage().data_ptr() for tensor in [*trainer.model.parameters(), *trainer.model.buffers()]}
    kept = []
    for size in (small, large):
        part = first_samples(batch, size, trainer.device)
        saved: dict[int, int] = {}  # address -> bytes of each storage that the backward pass needs

        def note(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with operation_counter() as counter:
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), trainer.precision.autocast():
                outputs = trainer.training_step(part, trainer.step)
            loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
            forward = counter.get_total_flops()
            trainer.precision.scaler.scale(loss).backward()
        kept.append(sum(size for address, size in saved.items() if address not in own))
    slope = (kept[1] - kept[0]) / (large - small) if large > small else kept[0] / small
    trainer.optimizer.step()  # only a step allocates the state
    state = bytes_of(tensors_in(trainer.optimizer.state))
    parameters = list(trainer.model.parameters())
    trainable, frozen = ([p for p in parameters if p.requires_grad is wanted] for wanted in (True, False))
    return StepCost(
        forward=forward / large,
        total=counter.get_total_flops() / large,
        activations=slope,
        constant=max(0.0, kept[0] - slope * small),
        trained=bytes_of(trainable),
        frozen=bytes_of([*frozen, *trainer.model.buffers()]),
        gradients=bytes_of(p.grad for p in trainable if p.grad is not None),
        optimizer=state,
        checkpoint=bytes_of(tensors_in(trainer.model.state_dict())) + state,
    )


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of all tensors together."""
    return sum(tensor.nbytes for tensor in tensors)


def parameter_counts(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return module -> (trainable, frozen) parameters, of each child of the model and of the model itself."""
    rows, counted = {}, set()
    for name, module in [*model.named_children(), ("(model itself)", model)]:
        own = set(module.parameters()) - counted
        counted |= own
        if own:
            rows[name] = tuple(sum(p.numel() for p in own if p.requires_grad is wanted) for wanted in (True, False))
    return rows
