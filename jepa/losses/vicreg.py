"""Variance and covariance of projections over the batch (VICReg, Bardes et al. 2022, arXiv 2105.04906).

With `Invariance(reference="pairs")` they make VICReg. Statistics are over the samples of all ranks, per view, and both
terms are means over views; with `views_together` they are over the samples of all views at once, of a world model over
the states of all time steps. The released code adds up the covariance term of its two views, so its coefficients 25
(invariance), 25 (variance) and 1 (covariance) are 25, 25 and 2 here.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from jepa.distributed.collectives import mean_over_ranks
from jepa.losses.objective import Term, grouped
from jepa.types import Latents
from jepa.utils.errors import check_choice


class Variance(Term):
    """v(Z) = mean over features of max(0, margin - sqrt(Var(z_j) + eps)), Var with N - 1 (equations 1 and 2).

    Reads the projections (V, B, E). It prevents collapse: a collapsed batch has a loss of almost `margin`.
    """

    prevents_collapse = True
    batch_statistics = True
    needs = ("projections",)

    def __init__(self, *, margin: float = 1.0, eps: float = 1e-4, views_together: bool = False) -> None:
        super().__init__()
        if not (margin > 0 and eps > 0):
            raise ValueError(f"got margin={margin}, eps={eps}, expected both above 0 (VICReg has 1 and 1e-4)")
        self.margin = margin
        self.eps = eps
        self.views_together = views_together

    def forward(self, latents: Latents) -> Tensor:
        x, degrees = centred(grouped(latents.projections, self.views_together))
        variance = _over_degrees(x.square().sum(dim=1), x.shape[1], degrees)  # (V, E)
        return (self.margin - (variance + self.eps).sqrt()).relu().mean()


class Covariance(Term):
    """c(Z) = sum over i != j of C(Z)_ij^2 / E, C the covariance matrix with N - 1 (equations 3 and 4).

    Reads the projections (V, B, E); the ranks exchange the matrices (V, E, E). Zero for constant projections.

    divisor: "features", E, as in paper and code; "pairs", E (E - 1), the mean over the off-diagonal entries, as in
        facebookresearch/eb_jepa with coefficients of 10 to 100.
    """

    batch_statistics = True
    needs = ("projections",)

    def __init__(self, *, divisor: Literal["features", "pairs"] = "features", views_together: bool = False) -> None:
        super().__init__()
        check_choice("loss.terms.covariance.term.divisor", divisor, ("features", "pairs"))
        self.divisor = divisor
        self.views_together = views_together

    def forward(self, latents: Latents) -> Tensor:
        x, degrees = centred(grouped(latents.projections, self.views_together))
        with torch.autocast(x.device.type, enabled=False):
            covariance = _over_degrees(x.transpose(1, 2) @ x, x.shape[1], degrees)  # (V, E, E)
        width = x.shape[-1]
        diagonal = torch.eye(width, dtype=torch.bool, device=x.device)
        entries = width if self.divisor == "features" else max(width * (width - 1), 1)
        return covariance.masked_fill(diagonal, 0).square().sum(dim=(1, 2)).mean() / entries


def centred(projections: Tensor) -> tuple[Tensor, Tensor]:
    """Return projections (V, B, E) minus the mean over the samples of all ranks, in fp32, and N - 1, at least 1.

    Centred before squaring: the squares of large means would cancel.
    """
    x = projections.float()
    mean, count = mean_over_ranks(x.sum(dim=1), x.shape[1])
    return x - mean.unsqueeze(1), torch.as_tensor(count).sub(1).clamp(min=1)


def _over_degrees(sums: Tensor, count: int, degrees: Tensor) -> Tensor:
    """Return the sum over all ranks, divided by N - 1, of sums over this rank's samples."""
    mean, count = mean_over_ranks(sums, count)
    return mean * (count / degrees)
