"""SIGReg: the distance of projections to an isotropic Gaussian (LeJEPA, arXiv 2511.08544).

The Epps-Pulley statistic of random one-dimensional projections, for the empirical characteristic function phi_N of
the samples on a line and that of N(0, 1), phi(t) = exp(-t^2 / 2):

    N * integral over the whole line of |phi_N(t) - phi(t)|^2 w(t) dt,   w(t) = exp(-t^2 / 2)

by the trapezoid rule on knots from 0 to `last_knot`, doubled by symmetry, as in the LeJEPA reference: N samples of all
ranks in one view, mean over slices and views. eb_jepa has no factor N (and larger coefficients), and stable-pretraining
takes the samples of all views together (`views_together`). For samples of N(0, I) its expectation is sqrt(2 pi) *
(1 - 1 / sqrt(3)) = 1.06 for any N; a batch that has collapsed to 0 has 0.41 N.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.distributed.collectives import mean_over_ranks
from jepa.losses.objective import Term, grouped
from jepa.types import Latents


class SIGReg(Term):
    """Sliced Epps-Pulley distance of the projections (V, B, E) to N(0, I).

    num_slices: random directions of each step, the same on every rank. knots: points of the trapezoid rule, both ends
    included. Memory is a few times V * B * num_slices * knots numbers.
    """

    prevents_collapse = True
    batch_statistics = True
    needs = ("projections",)

    def __init__(
        self, *, num_slices: int = 256, knots: int = 17, last_knot: float = 3.0, views_together: bool = False
    ) -> None:
        super().__init__()
        if num_slices < 1 or knots < 2 or last_knot <= 0:
            raise ValueError(
                f"got num_slices={num_slices}, knots={knots}, last_knot={last_knot}, expected >= 1, >= 2, > 0"
            )
        self.num_slices = num_slices
        self.views_together = views_together
        t = torch.linspace(0, last_knot, knots)
        gaussian = torch.exp(-t.square() / 2)  # characteristic function of N(0, 1), and the window
        trapezoid = torch.full_like(t, 2 * last_knot / (knots - 1))
        trapezoid[[0, -1]] /= 2
        self.register_buffer("knots", t, persistent=False)
        self.register_buffer("gaussian", gaussian, persistent=False)
        self.register_buffer("weights", trapezoid * gaussian, persistent=False)

    def forward(self, latents: Latents) -> Tensor:
        samples = grouped(latents.projections, self.views_together)
        generator = None if latents.rng is None else latents.rng.generator(samples.device, "sigreg")
        directions = torch.randn(samples.shape[-1], self.num_slices, device=samples.device, generator=generator)
        with torch.autocast(samples.device.type, enabled=False):
            return self.statistic(samples.float() @ (directions / directions.norm(dim=0))).mean()

    def statistic(self, x: Tensor) -> Tensor:
        """Return the Epps-Pulley statistic (..., S) of N samples, of all ranks, on S lines, x (..., N, S)."""
        angles = x.unsqueeze(-1) * self.knots  # (..., N, S, T)
        sums = torch.stack([angles.cos().sum(dim=-3), angles.sin().sum(dim=-3)])  # (2, ..., S, T)
        (real, imaginary), samples = mean_over_ranks(sums, x.shape[-2])
        error = (real - self.gaussian).square() + imaginary.square()
        return samples * (error @ self.weights)
