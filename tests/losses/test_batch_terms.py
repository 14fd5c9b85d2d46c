"""InfoNCE, VICReg's terms and the invariances against numbers by hand, in one process."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from jepa.distributed.collectives import all_gather_rows, row_offset
from jepa.losses import (
    MSE,
    Covariance,
    InfoNCE,
    Invariance,
    InverseDynamics,
    OneStep,
    SIGReg,
    Smoothness,
    Variance,
)
from jepa.types import Latents, StepRandomness, WorldLatents


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(predictions, targets, positions=None, weights=None, step=0) -> Latents:
    """Latents of one mask, (B, M, P, D), on a line of tokens: by default no two are at the same place."""
    if positions is None:
        positions = torch.arange(math.prod(targets.shape[1:3])).view(targets.shape[1:3]).expand(targets.shape[:3])
    rng = StepRandomness(seed=0, step=step, total=len(targets), start=0, count=len(targets))
    return Latents(
        predictions=[predictions],
        targets=[targets],
        positions=[positions.unsqueeze(-1)],
        target_weights=None if weights is None else [weights],
        rng=rng,
    )


def test_infonce_of_orthogonal_tokens_in_closed_form():
    """K keys at right angles, each found: log(1 + (K - 1) e^(-1 / t)); lengths do not count."""
    keys = torch.eye(12).view(3, 2, 2, 12)
    for temperature in (0.1, 0.5, 1.0):
        expected = math.log1p(11 * math.exp(-1 / temperature))
        assert InfoNCE(temperature=temperature)(tokens(7 * keys, 3 * keys)).item() == pytest.approx(expected, rel=1e-5)


def test_infonce_of_collapsed_tokens_in_closed_form():
    same = torch.ones(3, 2, 2, 5)
    assert InfoNCE()(tokens(same, same)).item() == pytest.approx(math.log(12), rel=1e-5)
    # Of 12 keys 4 are drawn: 4 queries find themselves among them, which leaves these 3 negatives.
    expected = (4 * math.log(1 + 3) + 8 * math.log(1 + 4)) / 12
    assert InfoNCE(negative_samples=4)(tokens(same, same)).item() == pytest.approx(expected, rel=1e-5)


def reference(given: Latents, temperature: float) -> float:
    """Query by query, in loops."""
    (predictions,), (targets,), (positions,) = given.predictions, given.targets, given.positions
    weights = torch.ones(targets.shape[:3]) if given.target_weights is None else given.target_weights[0]
    entries = [(b, m, p) for b, m, p in torch.cartesian_prod(*map(torch.arange, targets.shape[:3])).tolist()]
    losses = []
    for b, m, p in entries:

        def score(key, query=predictions[b, m, p]):
            return math.exp(F.cosine_similarity(query, targets[key], dim=0).item() / temperature)

        negatives = [
            score(k)
            for k in entries
            if weights[k] > 0 and not (k[0] == b and torch.equal(positions[k], positions[b, m, p]))
        ]
        positive = score((b, m, p))
        losses.append(-math.log(positive / (positive + sum(negatives))) * weights[b, m, p].item())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("weighted", [False, True])
def test_infonce_of_overlapping_blocks_is_that_of_loops(weighted):
    positions = torch.randint(0, 4, (3, 2, 3), generator=torch.Generator().manual_seed(1))  # many coincide
    weights = torch.tensor([[[0.0, 1.0, 2.0], [1.0, 1.0, 0.0]]]).repeat(3, 1, 1) * 18 / 15 if weighted else None
    given = tokens(randn(3, 2, 3, 4), randn(3, 2, 3, 4, seed=1), positions, weights)
    assert InfoNCE(temperature=0.3)(given).item() == pytest.approx(reference(given, 0.3), rel=1e-5)


def test_infonce_masks_are_averaged_and_places_may_have_several_axes():
    one, two = (tokens(randn(2, 1, n, 4), randn(2, 1, n, 4, seed=n)) for n in (2, 5))
    both = Latents(
        predictions=one.predictions + two.predictions,
        targets=one.targets + two.targets,
        positions=[torch.cat([p, p % 2], dim=-1) for p in (*one.positions, *two.positions)],
    )
    assert torch.allclose(InfoNCE()(both), (InfoNCE()(one) + InfoNCE()(two)) / 2)


def test_tokens_of_weight_0_are_no_part_of_infonce():
    weights = torch.tensor([2.0, 0.0, 2.0, 0.0]).view(1, 1, 4).expand(3, 1, 4)
    predictions, targets = randn(3, 1, 4, 8).requires_grad_(), randn(3, 1, 4, 8, seed=1).requires_grad_()
    kept = tokens(predictions[:, :, ::2], targets[:, :, ::2])
    for term in (InfoNCE(), InfoNCE(negative_samples=6), InfoNCE(negative_samples=10)):
        given = tokens(predictions, targets, weights=weights)
        assert torch.allclose(term(given), InfoNCE()(kept), rtol=1e-5)
    gradients = torch.autograd.grad(InfoNCE(negative_samples=6)(given), [predictions, targets])
    for gradient in gradients:
        assert gradient[:, :, 1::2].abs().max() == 0
        assert gradient[:, :, ::2].abs().min() > 0


def test_negative_samples_are_drawn_by_seed_and_step_alone():
    predictions, targets = randn(4, 2, 3, 8), randn(4, 2, 3, 8, seed=1)

    def value(step: int, **options) -> float:
        torch.randn(3)  # the global generator plays no part
        return InfoNCE(**options)(tokens(predictions, targets, step=step)).item()

    few = [value(step, negative_samples=5) for step in range(40)]
    assert few[0] == value(0, negative_samples=5)
    assert len(set(few)) > 30
    assert value(0, negative_samples=24) == value(1) == value(2, negative_samples=100)
    assert max(few) < value(0)


def test_a_lone_sample_without_negatives_has_no_loss_and_no_gradient():
    views = randn(2, 1, 4).requires_grad_()
    loss = InfoNCE(over="embeddings")(Latents(projections=views))
    assert loss.item() == 0
    assert torch.equal(torch.autograd.grad(loss, views)[0], torch.zeros(2, 1, 4))


def test_infonce_of_views_is_nt_xent():
    """Two views: cross-entropy over the 2 N - 1 other views, as SimCLR has it."""
    projections = randn(2, 5, 6)
    z = F.normalize(projections.flatten(0, 1), dim=-1)
    logits = (z @ z.T / 0.2).fill_diagonal_(-math.inf)
    expected = F.cross_entropy(logits, torch.arange(10).roll(5))
    assert torch.allclose(InfoNCE(over="embeddings", temperature=0.2)(Latents(projections=projections)), expected)


def test_infonce_of_several_views_in_closed_form():
    """Views of a sample alike, samples at right angles: 1 positive against V (B - 1) negatives, for every pair."""
    projections = torch.eye(4).expand(3, 4, 4)
    expected = math.log1p(3 * 3 * math.exp(-10))
    term = InfoNCE(over="embeddings")
    assert term(Latents(projections=projections)).item() == pytest.approx(expected, rel=1e-4)
    # One view of 12 is not drawn: its sample has the 9 views of others for negatives, all others have 8.
    collapsed = InfoNCE(over="embeddings", negative_samples=11)(Latents(projections=torch.ones(3, 4, 4)))
    assert collapsed.item() == pytest.approx((math.log(1 + 9) + 3 * math.log(1 + 8)) / 4, rel=1e-5)
    with pytest.raises(ValueError, match=r"there is one: set data\.views=2"):
        term(Latents(projections=projections[:1]))


def test_infonce_says_what_it_reads():
    assert InfoNCE().needs == ("predictions", "targets", "positions")
    assert InfoNCE(over="embeddings").needs == ("projections",)


def test_infonce_gradient_spreads_collapsed_views():
    views = (torch.ones(2, 16, 4) + 1e-2 * randn(2, 16, 4)).requires_grad_()
    term = InfoNCE(over="embeddings", temperature=0.5)
    for _ in range(100):
        [gradient] = torch.autograd.grad(term(Latents(projections=views)), views)
        views = (views - 2 * gradient).detach().requires_grad_()
    assert F.normalize(views, dim=-1).std(dim=1).min() > 0.2


def test_variance_by_hand():
    """Columns 0, 2 (variance 2 over n - 1) and 1, 1 (variance 0); a second view that has spread enough."""
    views = torch.tensor([[[0.0, 1.0], [2.0, 1.0]], [[0.0, 9.0], [5.0, 0.0]]])
    first = (max(0, 1.5 - math.sqrt(2 + 1e-4)) + 1.5 - 1e-2) / 2
    assert Variance(margin=1.5)(Latents(projections=views)).item() == pytest.approx(first / 2, rel=1e-5)
    assert Variance()(Latents(projections=views[1:])).item() == 0
    assert Variance(eps=1e-2)(Latents(projections=torch.ones(1, 5, 3))).item() == pytest.approx(0.9)
    assert Variance()(Latents(projections=torch.ones(1, 1, 3))).item() == pytest.approx(0.99)  # a lone sample


def test_covariance_by_hand():
    """Rows (1, 1, 0), (-1, -1, 0), (0, 0, 3), (0, 0, -3): C = [[2, 2, 0], [2, 2, 0], [0, 0, 18]] / 3."""
    rows = torch.tensor([[1.0, 1.0, 0.0], [-1.0, -1.0, 0.0], [0.0, 0.0, 3.0], [0.0, 0.0, -3.0]])
    shifted = rows + torch.tensor([100.0, -50.0, 7.0])  # means do not count
    squares = 2 * (2 / 3) ** 2
    for view in (rows, shifted):
        one = Latents(projections=view[None])
        assert Covariance()(one).item() == pytest.approx(squares / 3, rel=1e-5)
        assert Covariance(divisor="pairs")(one).item() == pytest.approx(squares / 6, rel=1e-5)
    both = torch.stack([rows, torch.zeros(4, 3)])
    assert Covariance()(Latents(projections=both)).item() == pytest.approx(squares / 6, rel=1e-5)
    assert Covariance()(Latents(projections=torch.ones(2, 1, 3))).item() == 0


def test_variance_and_covariance_are_torchs():
    views = randn(3, 20, 6) * 0.5
    stds = (views.var(dim=1) + 1e-4).sqrt()
    assert torch.allclose(Variance()(Latents(projections=views)), (1 - stds).relu().mean())
    squares = [(torch.cov(view.T) - torch.cov(view.T).diag().diag()).square().sum() / 6 for view in views]
    assert torch.allclose(Covariance()(Latents(projections=views)), torch.stack(squares).mean())


def test_variance_and_covariance_make_features_vary_and_differ():
    views = (1 + 0.1 * randn(1, 64, 1) + 0.01 * randn(1, 64, 4, seed=1)).requires_grad_()
    for _ in range(200):
        given = Latents(projections=views)
        [gradient] = torch.autograd.grad(25 * Variance()(given) + 10 * Covariance()(given), views)
        views = (views - 0.5 * gradient).detach().requires_grad_()
    assert views.std(dim=1).min() > 0.9
    assert torch.corrcoef(views[0].T).fill_diagonal_(0).abs().max() < 0.3


def test_invariance_references():
    views = randn(4, 3, 5)

    def value(reference: str, **others) -> torch.Tensor:
        return Invariance(reference=reference)(Latents(projections=views, **others))

    pairs = [(views[v] - views[u]).square().mean() for v in range(4) for u in range(v)]
    assert torch.allclose(value("pairs"), torch.stack(pairs).mean())
    assert torch.allclose(value("global", global_views=2), (views - views[:2].mean(0)).square().mean())
    assert torch.allclose(value("global"), value("mean"))
    assert torch.allclose(value("mean", global_views=2), (views - views.mean(0)).square().mean())
    two = Invariance(reference="pairs")(Latents(projections=views[:2]))
    assert torch.allclose(two, F.mse_loss(views[0], views[1]))
    by_hand = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[2.0, 0.0], [1.0, 1.0]]])
    assert Invariance()(Latents(projections=by_hand)).item() == pytest.approx(2 / 8)


def test_rows_of_one_process_are_its_own():
    rows = randn(5, 2).requires_grad_()
    assert row_offset(5) == (0, 5)
    assert all_gather_rows(rows) is rows
    picked = all_gather_rows(rows, torch.tensor([3, 0, 3]))
    assert torch.equal(picked, rows[[3, 0, 3]])
    assert torch.autograd.grad(picked.sum(), rows)[0][:, 0].tolist() == [1, 0, 0, 2, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InfoNCE(temperature=0.0), "temperature: got 0.0, expected a number above 0"),
        (lambda: SIGReg(num_slices=0), "num_slices=0"),
        (lambda: Invariance()(Latents(projections=torch.zeros(1, 2, 2))), r"there is one: set data\.views=2"),
        (lambda: InfoNCE(over="pixels"), "over: got 'pixels', expected one of tokens, embeddings"),
        (lambda: InfoNCE(negative_samples=0), "negative_samples: got 0, expected at least 1, or null"),
        (lambda: Variance(margin=0.0), "got margin=0.0, eps=0.0001, expected both above 0"),
        (lambda: Covariance(divisor="samples"), "divisor: got 'samples', expected one of"),
        (lambda: Invariance(reference="first"), "reference: got 'first', expected one of"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("term", [Variance, Covariance, SIGReg])
def test_views_together_are_one_view_of_all(term):
    views, rng = randn(3, 5, 4), StepRandomness(seed=0, step=0, total=5, start=0, count=5)
    together = term(views_together=True)(Latents(projections=views, rng=rng))
    assert torch.equal(together, term()(Latents(projections=views.flatten(0, 1).unsqueeze(0), rng=rng)))


def test_terms_of_world_models_in_closed_form():
    """States that move by their action, at first one off."""
    actions = torch.tensor([[[1.0, 2.0], [0.0, -1.0]]])
    states = torch.tensor([[[0.0, 0.0], [1.0, 2.0], [1.0, 1.0]]])
    made = WorldLatents(states=states, target_states=states, one_step=states[:, 1:] + 0.5, actions=actions)
    assert Smoothness()(made).item() == pytest.approx((1 + 4 + 0 + 1) / 4)
    assert OneStep(distance=MSE())(made).item() == pytest.approx(0.25)
    inverse = InverseDynamics(in_dim=2, out_dim=2, hidden=[])
    with torch.no_grad():
        inverse.layers[0].weight.copy_(torch.tensor([[-1.0, 0.0, 1.0, 0.0], [0.0, -1.0, 0.0, 1.0]]))
        inverse.layers[0].bias.copy_(torch.tensor([0.0, 2.0]))
    assert inverse(made).item() == pytest.approx(2.0)  # 2 off in one of two values
