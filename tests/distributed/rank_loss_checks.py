"""Loss terms over the batch in two ranks against one process that holds all samples: values and gradients.

Called as rank_checks.py is.
"""

from __future__ import annotations

import sys
from functools import partial

import torch
from rank_checks import EVEN, UNEVEN, gradients_of, main, mine, randn, same
from torch import nn

from jepa.distributed.collectives import no_collectives
from jepa.losses import Center, Covariance, InfoNCE, Objective, Scale, SIGReg, SlicedWasserstein, Variance
from jepa.types import Latents, StepRandomness

BATCH, BLOCKS, TOKENS, VIEWS, DIM, WIDTH = 16, 2, 3, 2, 6, 5
DRAW = StepRandomness(seed=3, step=5, total=BATCH, start=0, count=BATCH)


class Network(nn.Module):
    """Linear maps to predictions, targets (which learn too, as with a shared encoder) and projections."""

    def __init__(self, weighted: bool = False) -> None:
        super().__init__()
        self.maps = nn.ParameterList([0.5 * randn(DIM, WIDTH) + 0.3 * number for number in range(3)])
        generator = torch.Generator().manual_seed(0)
        shape = (BATCH, BLOCKS, TOKENS)
        self.x = [torch.randn(*shape, DIM, generator=generator) for _ in range(2)]
        self.views = torch.randn(BATCH, VIEWS, DIM, generator=generator)
        self.positions = torch.randint(0, 3, (*shape, 2), generator=generator)  # blocks overlap
        weight = torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) > 0.3)
        self.weights = weight / weight.mean() if weighted else None

    def forward(self, sizes: tuple[int, int] | None = None) -> Latents:
        """Latents of this rank's samples, or of all."""

        def part(tensor):
            return tensor if sizes is None else mine(tensor, sizes)

        embeddings = (part(self.views) @ self.maps[2]).transpose(0, 1)
        return Latents(
            predictions=[part(self.x[0]) @ self.maps[0]],
            targets=[part(self.x[1]) @ self.maps[1]],
            target_weights=None if self.weights is None else [part(self.weights)],
            positions=[part(self.positions)],
            embeddings=embeddings,
            projections=embeddings,
            rng=DRAW,
        )


def agrees(term: nn.Module, weighted: bool = False) -> None:
    """Value and gradients of a term in two ranks are those of one process, for even and uneven shares."""
    network = Network(weighted)
    parameters = [network.maps[2]] if term.needs == ("projections",) else list(network.maps[:2])
    with no_collectives():
        expected = term(network())
        gradients = torch.autograd.grad(expected, parameters)
    assert all(gradient.abs().max() > 1e-3 for gradient in gradients)
    for sizes in (EVEN, UNEVEN, (1, 15)):
        loss = term(network(sizes))
        same(loss, expected)
        for one, whole in zip(gradients_of(loss, parameters), gradients):
            torch.testing.assert_close(one, whole, rtol=1e-5, atol=2e-6)


def check_infonce_over_tokens():
    agrees(InfoNCE())
    agrees(InfoNCE(temperature=0.5))


def check_infonce_over_weighted_tokens():
    agrees(InfoNCE(temperature=0.5), weighted=True)


def check_infonce_of_drawn_negatives():
    agrees(InfoNCE(temperature=0.5, negative_samples=10))
    agrees(InfoNCE(temperature=0.5, negative_samples=10), weighted=True)
    agrees(InfoNCE(temperature=0.5, negative_samples=90), weighted=True)  # more than there are of weight above 0


def check_infonce_over_embeddings():
    agrees(InfoNCE(over="embeddings"))
    agrees(InfoNCE(over="embeddings", temperature=0.5, negative_samples=7))


def check_variance():
    agrees(Variance(margin=3.0))


def check_covariance():
    agrees(Covariance())
    agrees(Covariance(divisor="pairs"))


def check_statistics_of_large_means():
    """Sums of squares about 0 would cancel here."""
    for term in (Variance(margin=10.0), Covariance()):
        x = (randn(VIEWS, BATCH, WIDTH) + 3000).float()
        with no_collectives():
            expected, centred = (term(Latents(projections=views)) for views in (x, x - 3000))
        part = mine(x.transpose(0, 1), UNEVEN).transpose(0, 1)
        torch.testing.assert_close(term(Latents(projections=part)), expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(expected, centred, rtol=1e-2, atol=1e-2)


def check_sigreg():
    agrees(SIGReg(num_slices=16))


def check_visreg():
    for term in (Scale(), Center(), SlicedWasserstein(num_slices=16)):
        agrees(term)


def check_a_sum_of_terms():
    """Each rank's loss is one number, and DDP's mean of gradients is that of the sum of all terms."""
    terms = {
        "contrastive": {"weight": 0.5, "term": InfoNCE(negative_samples=20)},
        "variance": {"weight": 25.0, "term": Variance(margin=3.0)},
        "covariance": {"weight": 2.0, "term": Covariance()},
        "sigreg": {"weight": 0.05, "term": SIGReg(num_slices=8)},
    }
    network = Network(weighted=True)
    objective = Objective(terms=terms, embedding_dim=WIDTH, projector=partial(head, out_dim=4))
    parameters = [*network.parameters(), *objective.parameters()]
    with no_collectives():
        expected = objective(network())
        gradients = torch.autograd.grad(expected["loss"], parameters)
    values = objective(network(UNEVEN))
    for name, value in values.items():
        same(value, expected[name])
    for one, whole in zip(gradients_of(values["loss"], parameters), gradients):
        torch.testing.assert_close(one, whole, rtol=1e-5, atol=2e-5)


def head(in_dim: int, out_dim: int) -> nn.Module:
    """A linear projector, the same in every rank."""
    linear = nn.Linear(in_dim, out_dim)
    with torch.no_grad():
        linear.weight.copy_(randn(out_dim, in_dim))
        linear.bias.zero_()
    return linear


CHECKS = {name.removeprefix("check_"): function for name, function in globals().items() if name.startswith("check_")}


if __name__ == "__main__":
    main(sys.argv[1], CHECKS)
