"""One process, DDP or FSDP2 around the same step; activation checkpointing and compilation, layer by layer.

What is wrapped is a `Step`, whose forward runs any function on the model's parts. So a `training_step` of a user that
calls submodules directly still synchronises gradients (DDP) and gathers weights (FSDP): both hang their hooks on that
forward alone.

A network keeps its layers in a `ModuleList` or `Sequential` called `blocks`, as timm's do. Working layer by layer keeps
compilation short (one graph serves all layers) and is where FSDP cuts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from jepa.distributed.collectives import (
    all_reduce_sum_with_gradient,
    get_rank,
    get_world_size,
    is_distributed,
    is_rank0,
)
from jepa.types import Batch, StepRandomness
from jepa.utils.errors import UserError
from jepa.utils.tensors import is_dtensor

StrategyName = Literal["auto", "ddp", "fsdp"]


class Step(nn.Module):
    """Runs functions that use the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


class Parallel:
    """How the step of one process joins those of the others.

    strategy: "ddp" keeps the whole model in every process; "fsdp" shards weights, gradients, optimizer state and the
        target's copy, layer by layer; "auto" is ddp. In a single process nothing is wrapped.
    optimizer: its parameters are replaced by the sharded ones.
    find_unused: let DDP accept parameters that take no part in a step.
    dtype: in which FSDP gathers the weights of layers; gradients are reduced in fp32.
    wrap: False leaves the model as it is among several processes too.

    Raises UserError for an unknown strategy and for fsdp on a model without layers.
    """

    def __init__(
        self,
        strategy: StrategyName,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        device: torch.device,
        find_unused: bool,
        dtype: torch.dtype = torch.float32,
        wrap: bool = True,
    ) -> None:
        if strategy not in ("auto", "ddp", "fsdp"):
            raise UserError(f"trainer.strategy={strategy}: expected auto, ddp or fsdp")
        self.name = "single" if not (is_distributed() and wrap) else "ddp" if strategy == "auto" else strategy
        self.model = model
        self._checked = self.name != "ddp" or find_unused
        self.step: nn.Module = Step(model)
        if self.name != "single":
            span_ranks(model)
        if self.name == "ddp":
            self.step = DistributedDataParallel(
                self.step, forward_sync_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=find_unused
            )
        if self.name == "fsdp":
            shard(self.step, device, dtype, optimizer)

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.step(function, *arguments)

    def synchronised(self, last: bool) -> AbstractContextManager:
        """A context for forward and backward; gradients are exchanged after the last micro-batch of a step alone."""
        if self.name == "fsdp":
            self.step.set_requires_gradient_sync(last)
        if self.name == "ddp" and not last:
            return self.step.no_sync()
        return contextlib.nullcontext()

    def check_gradients(self) -> None:
        """Raise UserError when a parameter took no part in the first step, which DDP would wait for in the second."""
        if self._checked:
            return
        self._checked = True
        unused = [n for n, p in self.model.named_parameters() if p.requires_grad and p.grad is None]
        if unused:
            raise UserError(
                f"{len(unused)} parameters took no part in the loss ({', '.join(unused[:4])}, ...), and DDP waits for "
                "all: set trainer.find_unused_parameters=true, or freeze them (requires_grad_(False))"
            )

    def networks(self) -> nn.Module:
        """The model for evaluation: with `encode_target` and `encoder` that may be called by themselves."""
        return _Networks(self, self.model) if self.name == "fsdp" else self.model


class _Networks(nn.Module):
    """A sharded model for evaluation: each call gathers the weights it needs.

    model: a part of `parallel`'s; of one that is several (`tasks`, name -> model) each is such a part.
    """

    def __init__(self, parallel: Callable[..., Any], model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._run = parallel
        if isinstance(tasks := getattr(model, "tasks", None), nn.ModuleDict):
            self.tasks = nn.ModuleDict({name: _Networks(parallel, task) for name, task in tasks.items()})
            self.model_of_task = dict(model.model_of_task)  # task -> the one whose model does it
        else:
            self.encoder = _Gathering(parallel, model.encoder)

    def encode_target(self, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        return self._run(lambda: self.model.encode_target(x, layers=layers))

    def embed(self, x: Mapping[str, Tensor], **options: Any) -> dict[str, Tensor]:
        return self._run(lambda: self.model.embed(x, **options))

    def prepare(self, batch: Batch, rng: StepRandomness) -> Batch:
        return self.model.prepare(batch, rng)

    def forward(self, batch: Batch) -> Any:
        return self._run(self.model, batch)


class _Gathering:
    def __init__(self, parallel: Callable[..., Any], encoder: nn.Module) -> None:
        self._run, self._encoder = parallel, encoder
        self.embed_dim, self.depth = getattr(encoder, "embed_dim", None), getattr(encoder, "depth", None)
        self.token_valid = getattr(encoder, "token_valid", lambda x: None)  # reads no weights

    def __call__(self, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        return self._run(lambda: self._encoder(x, layers=layers))


def blocks_of(model: nn.Module, setting: str) -> list[nn.Module]:
    """Return every layer in a model. Raise UserError, naming the setting that needs them, if there is none."""
    found = [block for blocks in block_lists(model) for block in blocks]
    if not found:
        raise UserError(
            f"{setting} works on layers, and {type(model).__name__} has none: keep them in a ModuleList or Sequential "
            "called `blocks`"
        )
    return found


def block_lists(model: nn.Module) -> list[nn.ModuleList | nn.Sequential]:
    """Return every list of layers in a model, once: networks may share theirs."""
    found = (getattr(module, "blocks", None) for module in model.modules())
    return [*dict.fromkeys(blocks for blocks in found if isinstance(blocks, (nn.ModuleList, nn.Sequential)))]


def change_layers(model: nn.Module, *, activation_checkpointing: bool, compile: bool | str) -> None:
    """Recompute activations of each trainable layer in the backward pass, and compile each, where asked for.

    compile may name a backend of torch. Sizes that change (masks, the last batch) become symbols after the first time.

    Raise UserError if the model has no layers, or torch does not know the backend.
    """
    if activation_checkpointing:
        from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper  # slow to import

        blocks_of(model, "trainer.activation_checkpointing=true")
        for blocks in block_lists(model):
            for number, block in enumerate(blocks):
                if any(p.requires_grad for p in block.parameters()):  # a frozen copy keeps no activations
                    blocks[number] = checkpoint_wrapper(block)
    if compile:
        backend = "inductor" if compile is True else compile
        if backend not in (known := torch._dynamo.list_backends(exclude_tags=())):
            raise UserError(f"trainer.compile={backend}: expected true, false or one of torch's backends {known}")
        for block in blocks_of(model, "trainer.compile=true"):
            block.compile(backend=backend)


def shard(step: nn.Module, device: torch.device, dtype: torch.dtype, optimizer: torch.optim.Optimizer) -> None:
    """Shard a step's model over all ranks, frozen copies like trained networks, and repoint the optimizer."""
    from torch.distributed.device_mesh import init_device_mesh  # these take a second to import
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (get_world_size(),))
    names = {id(parameter): name for name, parameter in step.named_parameters()}
    # Inputs keep their own format, as under autocast alone; what lies between the layers stays in fp32.
    low = None if dtype == torch.float32 or device.type == "cpu" else dtype
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks_of(step, "trainer.strategy=fsdp"):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(step, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
    sharded = dict(step.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [sharded[names[id(parameter)]] for parameter in group["params"]]
        if group.get("fused") and not isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
            group["fused"] = False  # torch has no fused kernel of the others for sharded tensors
            optimizer._step_supports_amp_scaling = False  # set by `fused`: the scaler of fp16 left its work to it


def gather_full_tensors(node: Any) -> Any:
    """A nested state with every sharded tensor gathered onto rank 0's CPU; empty on others, which write nothing."""
    if is_dtensor(node):
        full = node.full_tensor()
        return full.cpu() if is_rank0() else full.new_empty(0)
    if isinstance(node, dict):
        return {key: gather_full_tensors(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(map(gather_full_tensors, node))
    return node


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a full tensor sharded like another one; unchanged where the other is not sharded."""
    if not is_dtensor(like) or is_dtensor(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    tensor = tensor.to(like.device_mesh.device_type)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def full_scalar(tensor: Tensor) -> Tensor:
    """A norm over all ranks as a plain tensor."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


TORCHS_OWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class RankBatchNorm(_BatchNorm):
    """Batch norm whose statistics span the ranks; the same parameters, buffers and numbers as one process's."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected (B, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and is_distributed()):
            return super().forward(input)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        x = input.float()
        mean, square, count = x.mean(axes), (x - x.mean(axes, keepdim=True)).square().sum(axes), x.numel() / x.shape[1]
        mean, variance, count = _merge(mean, square, count)
        self._follow(mean, variance, count)
        shape = [1, -1] + [1] * (input.ndim - 2)
        normal = (x - mean.view(shape)) * torch.rsqrt(variance.view(shape) + self.eps)
        if self.affine:
            normal = normal * self.weight.float().view(shape) + self.bias.float().view(shape)
        return normal.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics, with the unbiased variance as torch does."""
        if not self.track_running_stats:
            return
        self.num_batches_tracked += 1
        share = 1.0 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        unbiased = variance * (count / (count - 1).clamp(min=1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


def _merge(mean: Tensor, square: Tensor, count: float) -> tuple[Tensor, Tensor, Tensor]:
    """Means (C,), sums of squared deviations (C,) and counts of the ranks -> mean, variance and count of all.

    Chan, Golub and LeVeque 1979: exact where sums of squares would cancel. One exchange: each rank fills its own row.
    """
    mine = torch.cat([mean, square, mean.new_full((1,), count)])
    rows = F.pad(mine[None], (0, 0, get_rank(), get_world_size() - 1 - get_rank()))  # (R, 2 C + 1)
    means, squares, counts = all_reduce_sum_with_gradient(rows).split([len(mean), len(mean), 1], dim=1)
    counts = counts.detach()
    all_mean = (means * counts).sum(0) / counts.sum()
    all_square = squares.sum(0) + ((means - all_mean).square() * counts).sum(0)
    return all_mean, all_square / counts.sum(), counts.sum()


def span_ranks(module: nn.Module) -> None:
    """Let every batch norm of a module take its statistics over all ranks; parameters stay the same objects.

    Raises UserError for a batch norm that does more than torch's own, which would be lost.
    """
    for name, norm in module.named_modules():
        if not isinstance(norm, _BatchNorm) or isinstance(norm, RankBatchNorm):
            continue
        if type(norm) not in TORCHS_OWN:
            raise UserError(
                f"{type(norm).__name__} ({name} of {type(module).__name__}) is a batch norm that is not torch's own, "
                "and cannot span several processes: use nn.BatchNorm1d, 2d or 3d, or another norm"
            )
        norm.__class__ = RankBatchNorm  # adds no state to torch's own
