"""VISReg: the scale, the shape and the centre of projections, each a term (Wu et al. 2026, arXiv 2606.02572).

As in HaiyuWu/visreg `losses/visreg.py`, but for `detach_scale`. Statistics are over the samples of all ranks, per view,
and the terms are means over views. Unlike SIGReg, of which a collapsed batch has almost no gradient, `Scale` pulls with
the same force however small the spread is; `SlicedWasserstein` does not see the scale.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jepa.distributed.collectives import all_gather_rows, mean_over_ranks
from jepa.losses.objective import Term
from jepa.losses.vicreg import centred
from jepa.types import Latents
from jepa.utils.errors import check_at_least

MIN_VARIANCE = 1e-12  # a feature that varies less is standardised as if it had this one, as published


class Scale(Term):
    """Mean over features of (1 - std(z_j))^2, std with N, of the projections (V, B, E)."""

    prevents_collapse = True
    batch_statistics = True
    needs = ("projections",)

    def forward(self, latents: Latents) -> Tensor:
        x, _ = centred(latents.projections)
        variance, _ = mean_over_ranks(x.square().sum(dim=1), x.shape[1])  # (V, E)
        return (1 - variance.clamp(min=MIN_VARIANCE).sqrt()).square().mean()


class Center(Term):
    """Mean over features of mean(z_j)^2, of the projections (V, B, E)."""

    batch_statistics = True
    needs = ("projections",)

    def forward(self, latents: Latents) -> Tensor:
        x = latents.projections.float()
        return mean_over_ranks(x.sum(dim=1), x.shape[1])[0].square().mean()


class SlicedWasserstein(Term):
    """The squared 2-Wasserstein distance of standardised projections (V, B, E) to N(0, 1), on random lines.

    Mean over lines and i of (y_i - q_i)^2, where y are the N samples on a line, sorted, and q_i the quantile of N(0, 1)
    at i / (N + 1). Every feature is centred and divided by its deviation. The ranks exchange their projections.

    num_slices: random lines of each step, the same on every rank; 4096 in the published runs.
    detach_scale: no gradient through the deviation, as in the released code. Then the term is not blind to the scale:
        sorted samples that are not Gaussian yet lie closer to the quantiles when they shrink, with a force that grows
        as 1 / deviation, beyond that of `Scale`, so that a collapsed batch stays collapsed (scripts/reproduce.py
        recovery).
    """

    batch_statistics = True
    needs = ("projections",)

    def __init__(self, *, num_slices: int = 256, detach_scale: bool = False) -> None:
        super().__init__()
        check_at_least("loss.terms.shape.term", 1, num_slices=num_slices)
        self.num_slices, self.detach_scale = num_slices, detach_scale

    def forward(self, latents: Latents) -> Tensor:
        samples = all_gather_rows(latents.projections.float().transpose(0, 1))  # (N, V, E)
        count, device = len(samples), samples.device
        generator = None if latents.rng is None else latents.rng.generator(device, "visreg")
        directions = torch.randn(samples.shape[-1], self.num_slices, device=device, generator=generator)
        quantiles = torch.arange(1, count + 1, device=device) / (count + 1)
        quantiles = torch.erfinv(2 * quantiles - 1) * math.sqrt(2)
        with torch.autocast(device.type, enabled=False):
            x = samples - samples.mean(dim=0)
            std = x.square().mean(dim=0).clamp(min=MIN_VARIANCE).sqrt()  # (V, E)
            lines = (x / (std.detach() if self.detach_scale else std)) @ (
                directions / directions.norm(dim=0)
            )  # (N, V, S)
            return (lines.sort(dim=0).values - quantiles[:, None, None]).square().mean()
