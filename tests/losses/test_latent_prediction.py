"""Lp, cosine and multi-scale regression, and reconstruction, against numbers by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from jepa.losses import L1, MSE, Cosine, Lp, MultiScale, Reconstruction, SmoothL1
from jepa.losses.multiscale import group_equal
from jepa.types import Latents
from jepa.utils.tensors import position_ids


def pair(prediction, target, **others) -> Latents:
    """Latents of one mask, one sample and one block; (P, D) each."""
    shaped = [torch.as_tensor(t, dtype=torch.float32)[None, None] for t in (prediction, target)]
    return Latents(predictions=[shaped[0]], targets=[shaped[1]], **others)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("exponent", "expected"), [(1.0, 1.0), (2.0, 10 / 8), (3.0, 28 / 12), (0.5, 1.366025)])
def test_lp_by_hand(exponent, expected):
    given = pair([[1.0, 0.0], [0.0, 2.0]], [[0.0, 0.0], [0.0, -1.0]])  # errors 1, 0, 0, 3
    assert Lp(loss_exponent=exponent)(given).item() == pytest.approx(expected, rel=1e-5)


def test_lp_is_l1_and_half_the_mse_and_its_gradient_is_finite_at_0():
    given = pair(randn(5, 8), randn(5, 8, seed=1))
    assert Lp()(given).item() == pytest.approx(L1()(given).item(), rel=1e-6)
    assert Lp(loss_exponent=2.0)(given).item() == pytest.approx(MSE()(given).item() / 2, rel=1e-6)
    prediction = torch.zeros(3, 4, requires_grad=True)
    Lp(loss_exponent=0.5)(Latents(predictions=[prediction[None, None]], targets=[torch.zeros(1, 1, 3, 4)])).backward()
    assert torch.equal(prediction.grad, torch.zeros(3, 4))


def test_cosine_by_hand():
    target = [[1.0, 0.0]] * 4
    given = pair([[3.0, 0.0], [0.0, 0.1], [-2.0, 0.0], [1.0, 1.0]], target)  # 0, 1, 2, 1 - 1 / sqrt(2)
    assert Cosine()(given).item() == pytest.approx((4 - math.sqrt(0.5)) / 4, rel=1e-6)
    weights = [torch.tensor([[[0.0, 4.0, 0.0, 0.0]]])]
    assert Cosine()(pair(given.predictions[0][0, 0], target, target_weights=weights)).item() == pytest.approx(1.0)


def test_places_and_groups():
    positions = torch.tensor([[[0, 1], [2, 0], [0, 1], [1, 3]]])
    numbers = position_ids(positions)
    assert numbers.tolist() == [[1, 8, 1, 7]]
    assert group_equal(numbers).tolist() == [[0, 2, 0, 1]]


def square(side: int, corner: tuple[int, int] = (0, 0)) -> torch.Tensor:
    """Positions (1, 1, side^2, 2) of a square block."""
    axes = torch.meshgrid(*(torch.arange(side) + c for c in corner), indexing="ij")
    return torch.stack(axes, dim=-1).view(1, 1, -1, 2)


def test_multiscale_by_hand():
    """A 2 x 2 block of one feature: errors 4, 0, 0, -2 token by token, and 1/2 in the mean."""
    given = pair([[4.0], [0.0], [0.0], [-2.0]], [[0.0]] * 4, positions=[square(2)])
    assert MultiScale(scales=[1], distance=MSE())(given).item() == pytest.approx(20 / 4)
    assert MultiScale(scales=[2], distance=MSE())(given).item() == pytest.approx(0.25)
    assert MultiScale(scales=[1, 2], distance=MSE())(given).item() == pytest.approx((5 + 0.25) / 2)
    assert MultiScale(scales=[1, 2], weights=[1.0, 3.0], distance=MSE())(given).item() == pytest.approx(5.75)
    assert MultiScale(scales=[2, 1])(given).item() == pytest.approx((0.125 + (3.5 + 1.5) / 4) / 2)  # smooth-L1


def test_multiscale_cells_are_those_of_the_grid():
    """The same block one row down and right straddles four cells of 2 x 2: each token is alone in its own."""
    values = [[4.0], [0.0], [0.0], [-2.0]]
    straddling = pair(values, [[0.0]] * 4, positions=[square(2, (1, 1))])
    assert MultiScale(scales=[2], distance=MSE())(straddling).item() == pytest.approx(5.0)
    row = pair(values, [[0.0]] * 4, positions=[square(2, (1, 0))])  # two cells of two tokens: means 2 and -1
    assert MultiScale(scales=[2], distance=MSE())(row).item() == pytest.approx((4 + 1) / 2)


def test_multiscale_weighs_cells_by_their_tokens():
    positions = torch.tensor([[[[0], [1], [2]]]])  # cells of 2: tokens 0 and 1; token 2
    given = pair([[1.0], [3.0], [5.0]], [[0.0]] * 3, positions=[positions])
    assert MultiScale(scales=[2], distance=MSE())(given).item() == pytest.approx((2 * 4 + 25) / 3)
    weights = [torch.tensor([[[0.5, 1.5, 1.0]]])]  # mean 2.5 in the first cell
    weighted = pair([[1.0], [3.0], [5.0]], [[0.0]] * 3, positions=[positions], target_weights=weights)
    assert MultiScale(scales=[2], distance=MSE())(weighted).item() == pytest.approx((2 * 6.25 + 25) / 3)
    ignored = [torch.tensor([[[0.0, 3.0, 0.0]]])]
    one = pair([[1e3], [3.0], [1e3]], [[0.0]] * 3, positions=[positions], target_weights=ignored)
    for scale in (1, 2, 4):
        assert MultiScale(scales=[scale], distance=MSE())(one).item() == pytest.approx(9.0)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_multiscale_is_average_pooling_on_aligned_blocks(axes):
    side = {1: 8, 2: 4, 3: 4}[axes]
    grid = torch.stack(torch.meshgrid(*[torch.arange(side)] * axes, indexing="ij"), dim=-1).flatten(0, -2)
    shuffled = grid[torch.randperm(len(grid), generator=torch.Generator().manual_seed(0))]
    maps = [randn(2, 3, *[side] * axes, 5, seed=seed) for seed in (1, 2)]  # (B, M, *grid, D)
    tokens = [m[(slice(None), slice(None), *shuffled.unbind(-1))] for m in maps]
    pool = getattr(F, f"avg_pool{axes}d")
    pooled = [pool(m.flatten(0, 1).movedim(-1, 1), 2) for m in maps]
    positions = shuffled.expand(2, 3, -1, -1)
    given = Latents(predictions=[tokens[0]], targets=[tokens[1]], positions=[positions])
    assert torch.allclose(MultiScale(scales=[2], distance=L1())(given), (pooled[0] - pooled[1]).abs().mean())
    assert torch.allclose(MultiScale(scales=[1], distance=Cosine())(given), Cosine()(given))


def test_multiscale_gradient_reaches_all_tokens_of_a_cell():
    prediction = torch.tensor([[4.0], [0.0], [0.0], [-2.0]], requires_grad=True)
    given = Latents(predictions=[prediction[None, None]], targets=[torch.zeros(1, 1, 4, 1)], positions=[square(2)])
    MultiScale(scales=[2], distance=MSE())(given).backward()
    assert torch.allclose(prediction.grad, torch.full((4, 1), 2 * 0.5 / 4))


def decode(values, predictions=None, weights=None, **options):
    """A reconstruction whose linear decoder is the identity, of one sample and block; (P, D) each."""
    values = torch.as_tensor(values)
    width = values.shape[-1] if values.is_floating_point() else predictions.shape[-1]
    term = Reconstruction(in_dim=width, out_dim=width, **options)
    with torch.no_grad():
        term.decoder[0].weight.copy_(torch.eye(width))
        term.decoder[0].bias.zero_()
    predictions = torch.zeros(len(values), width) if predictions is None else torch.as_tensor(predictions)
    return term(Latents(predictions=[predictions[None, None]], inputs=[values[None, None]], target_weights=weights))


def test_reconstruction_by_hand():
    values = torch.tensor([[1.0, 3.0], [-2.0, -2.0]])
    assert decode(values).item() == pytest.approx((1 + 9 + 4 + 4) / 4)
    assert decode(values, values).item() == 0
    assert decode(values, weights=[torch.tensor([[[2.0, 0.0]]])]).item() == pytest.approx(5.0)
    # Values 1, 3 have mean 2 and variance 2 (over n - 1): -1 and 1 over sqrt(2); a constant token is 0.
    assert decode(values, normalize=True).item() == pytest.approx(1 / 4, rel=1e-5)


def test_reconstruction_of_ids_is_cross_entropy():
    logits = torch.tensor([[math.log(2.0), 0.0, 0.0], [0.0, 0.0, math.log(6.0)]])
    expected = (math.log(2) + math.log(8 / 6)) / 2  # -log 2/4, -log 6/8
    assert decode(torch.tensor([0, 2]), logits).item() == pytest.approx(expected, rel=1e-6)
    one = decode(torch.tensor([0, 2]), logits, weights=[torch.tensor([[[2.0, 0.0]]])])
    assert one.item() == pytest.approx(math.log(2), rel=1e-6)


def test_reconstruction_of_collapsed_latents_costs_the_variance_of_the_inputs():
    inputs = randn(64, 1, 1, 4)
    term = Reconstruction(in_dim=8, out_dim=4, hidden=[16])
    given = Latents(predictions=[torch.ones(64, 1, 1, 8)], inputs=[inputs])
    optimizer = torch.optim.Adam(term.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        loss = term(given)
        loss.backward()
        optimizer.step()
    assert loss.item() == pytest.approx(inputs.var(dim=0, correction=0).mean().item(), rel=1e-2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SmoothL1(beta=-1), "beta must be positive, got -1"),
        (lambda: Lp(loss_exponent=0), "loss_exponent: got 0, expected a number above 0"),
        (lambda: Lp(loss_exponent=float("nan")), "loss_exponent: got nan"),
        (lambda: MultiScale(scales=[]), r"scales: got \[\], expected whole numbers"),
        (lambda: MultiScale(scales=[1, 0]), r"scales: got \[1, 0\]"),
        (lambda: MultiScale(scales=[1, 2], weights=[1.0]), r"weights: got \[1.0\] for the scales \[1, 2\]"),
        (lambda: MultiScale(scales=[1, 2], weights=[0.0, 0.0]), "not all 0"),
        (lambda: MultiScale(scales=[1, 2], weights=[1.0, -1.0]), "one number >= 0 for each"),
        (lambda: Reconstruction(in_dim=4, out_dim=None), r"token_values\): use an encoder that does"),
        (lambda: Reconstruction(in_dim=4, out_dim=1, normalize=True), "tokens of one value"),
        (
            lambda: Reconstruction(in_dim=4, out_dim=3)(
                Latents(predictions=[torch.zeros(1, 1, 2, 4)], inputs=[torch.zeros(1, 1, 2, 5)])
            ),
            r"got inputs of \(1, 1, 2, 5\) for decoded tokens of \(1, 1, 2, 3\)",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
