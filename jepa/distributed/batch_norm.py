"""Batch norm over the samples of all ranks, on any device (torch's own works on GPUs alone)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from jepa.distributed.collectives import all_reduce_sum_with_gradient, get_rank, get_world_size, is_distributed
from jepa.utils.errors import UserError

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
