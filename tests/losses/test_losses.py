from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from jepa.losses import (
    L1,
    MSE,
    Center,
    Invariance,
    Objective,
    Projector,
    Reconstruction,
    Scale,
    SIGReg,
    SlicedWasserstein,
    SmoothL1,
    Variance,
)
from jepa.types import Latents, RunLength, StepRandomness


def latents(weights=None) -> Latents:
    torch.manual_seed(0)
    shapes = [(3, 2, 4, 8), (3, 1, 5, 8)]
    return Latents(
        predictions=[2 * torch.randn(shape) for shape in shapes],
        targets=[torch.randn(shape) for shape in shapes],
        target_weights=weights,
    )


@pytest.mark.parametrize(
    ("term", "function"),
    [
        (SmoothL1(), F.smooth_l1_loss),
        (SmoothL1(beta=0.3), partial(F.smooth_l1_loss, beta=0.3)),
        (MSE(), F.mse_loss),
        (L1(), F.l1_loss),
    ],
)
def test_regression_is_the_mean_over_masks(term, function):
    given = latents()
    expected = [function(p, t) for p, t in zip(given.predictions, given.targets)]
    assert term(given).item() == pytest.approx(sum(expected).item() / 2, rel=1e-6)


def test_token_weights():
    ones = [torch.ones(3, 2, 4), torch.ones(3, 1, 5)]
    assert torch.allclose(MSE()(latents(ones)), MSE()(latents()))
    first = [torch.zeros(3, 2, 4), torch.ones(3, 1, 5)]
    first[0][1, 0, 2] = 24.0  # one token alone has all the weight of its mask
    given = latents(first)
    token = F.mse_loss(given.predictions[0][1, 0, 2], given.targets[0][1, 0, 2])
    rest = F.mse_loss(given.predictions[1], given.targets[1])
    assert MSE()(given).item() == pytest.approx((token + rest).item() / 2, rel=1e-5)


def sigreg(samples, **options):
    rng = StepRandomness(seed=0, step=0, total=len(samples), start=0, count=len(samples))
    return SIGReg(num_slices=128, **options)(Latents(projections=samples.unsqueeze(0), rng=rng)).item()


def test_visreg_in_closed_form():
    """Samples at the quantiles q of N(0, 1) on a line, moved and stretched: standardised they are q / s, s^2 = q's mean
    square, so that the shape has (1 - s)^2; scale and centre see the stretch and the move alone."""
    q = torch.distributions.Normal(0, 1).icdf(torch.arange(1, 101) / 101)
    s = q.square().mean().sqrt().item()
    mixed = q[torch.randperm(100)]
    one = Latents(projections=torch.stack([3 * mixed + 2, -1e-3 * mixed])[..., None])
    assert SlicedWasserstein()(one).item() == pytest.approx((1 - s) ** 2, rel=1e-3)
    assert Scale()(one).item() == pytest.approx(((1 - 3 * s) ** 2 + (1 - 1e-3 * s) ** 2) / 2, rel=1e-5)
    assert Center()(one).item() == pytest.approx(2**2 / 2, rel=1e-5)
    # All alike: a standardised batch is 0, whose distance is q's mean square, and what pulls them apart is finite.
    alike = torch.full((2, 100, 8), 5.0).requires_grad_()
    values = [term(Latents(projections=alike)) for term in (SlicedWasserstein(), Scale())]
    assert [value.item() for value in values] == pytest.approx([s**2, 1.0], rel=1e-4)
    assert torch.autograd.grad(sum(values), alike)[0].isfinite().all()
    with pytest.raises(ValueError, match="num_slices"):
        SlicedWasserstein(num_slices=0)


def test_the_shape_tells_gaussian_samples_from_others_whatever_their_scale():
    torch.manual_seed(0)
    noise = torch.randn(500, 6)
    samples = {
        "gaussian": noise,
        "small": 1e-3 * noise + 4,
        "uniform on a cube": torch.rand(500, 6),
        "two clusters": noise + 5 * (torch.arange(500) % 2)[:, None],
        "one dimension": noise[:, :1] + 1e-3 * noise,
    }
    found = {name: SlicedWasserstein()(Latents(projections=x[None])).item() for name, x in samples.items()}
    assert found["small"] == pytest.approx(found["gaussian"], rel=0.3)
    assert found["gaussian"] < 0.02 < 0.1 < found["two clusters"]
    assert found["one dimension"] > 0.1


def test_the_pull_of_a_collapsing_batch():
    """As the spread r falls, the gradient of SIGReg falls with it, that of the scale of VISReg stays."""
    torch.manual_seed(0)
    noise = torch.randn(1, 64, 8)

    def pull(term, spread: float) -> float:
        z = (spread * noise).requires_grad_()
        return torch.autograd.grad(term(Latents(projections=z)), z)[0].norm().item()

    def outwards(term) -> float:
        """How much faster than 0 the spread of a collapsed batch of other than Gaussian shape grows."""
        z = (1e-3 * noise.sign() * noise.square()).requires_grad_()
        return -(torch.autograd.grad(term(Latents(projections=z)), z)[0] * z).sum().item()

    assert outwards(Scale()) > 0
    assert outwards(SlicedWasserstein()) == pytest.approx(0, abs=1e-4)
    assert outwards(SlicedWasserstein(detach_scale=True)) < -10 * outwards(Scale())
    assert pull(Scale(), 1e-4) == pytest.approx(pull(Scale(), 1e-2), rel=0.05)
    assert pull(SIGReg(), 1e-4) < 0.02 * pull(SIGReg(), 1e-2)


def test_sigreg_of_a_collapsed_batch_in_closed_form():
    """All samples at 0, characteristic function 1: N * integral of (1 - e^(-t^2/2))^2 e^(-t^2/2)."""
    integral = math.sqrt(2 * math.pi) * (1 - 2 / math.sqrt(2) + 1 / math.sqrt(3))
    tail = 2 * 0.004  # the trapezoid rule stops at 3
    assert sigreg(torch.zeros(100, 8)) / 100 == pytest.approx(integral, abs=tail)
    assert sigreg(torch.zeros(100, 8), knots=201, last_knot=8.0) / 100 == pytest.approx(integral, abs=1e-4)


def test_sigreg_of_a_gaussian_in_closed_form():
    """For N(0, 1) samples E = integral of (1 - e^(-t^2)) e^(-t^2/2) whatever N is; far above for other laws."""
    expected = math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3))
    torch.manual_seed(0)
    values = [sigreg(torch.randn(256, 16)) for _ in range(30)]
    assert sum(values) / len(values) == pytest.approx(expected, rel=0.05)
    sample = torch.randn(256, 16)
    for other in (2 * sample, sample + 1, sample[:, :1].expand(256, 16), 0.1 * sample):
        assert sigreg(other) > 5 * expected


def test_sigreg_gradient_spreads_a_collapsed_batch():
    torch.manual_seed(0)
    samples = (1e-2 * torch.randn(64, 4)).requires_grad_()
    term = SIGReg(num_slices=32)
    for step in range(200):
        rng = StepRandomness(seed=0, step=step, total=64, start=0, count=64)
        [gradient] = torch.autograd.grad(term(Latents(projections=samples.unsqueeze(0), rng=rng)), samples)
        samples = (samples - 0.5 * gradient).detach().requires_grad_()
    assert samples.std(0).min() > 0.7


def test_sigreg_slices_follow_seed_and_step_alone():
    torch.manual_seed(0)
    samples = torch.randn(1, 32, 8)

    def value(**changes):
        rng = StepRandomness(**{"seed": 0, "step": 5, "total": 64, "start": 0, "count": 32, **changes})
        torch.randn(3)  # the global generator plays no part
        return SIGReg(num_slices=4)(Latents(projections=samples, rng=rng)).item()

    assert value() == value(start=32)
    assert value() != value(step=6)
    assert value() != value(seed=1)


def make(**changes) -> Objective:
    terms = {"prediction": {"weight": 0.5, "term": MSE()}, "other": {"weight": 2.0, "term": L1()}}
    return Objective(**{"terms": terms, "embedding_dim": 8, **changes})


def test_objective_is_the_weighted_sum():
    values = make()(latents())
    assert set(values) == {"loss", "loss/prediction", "loss/other"}
    assert values["loss"].item() == pytest.approx(
        (0.5 * values["loss/prediction"] + 2 * values["loss/other"]).item(), rel=1e-6
    )


def test_a_term_of_none_is_left_out():
    objective = make(terms={"prediction": {"weight": 1.0, "term": MSE()}, "sigreg": None})
    assert objective.term_names == ["prediction"]
    assert not objective.prevents_collapse
    assert not objective.batch_statistics


def test_terms_share_one_projector_that_is_part_of_the_module():
    terms = {
        "invariance": {"weight": 1.0, "term": Invariance()},
        "sigreg": {"weight": 0.1, "term": SIGReg(num_slices=4)},
    }
    objective = make(terms=terms, projector=partial(Projector, hidden=[16], out_dim=4))
    assert objective.prevents_collapse
    assert objective.batch_statistics
    embeddings = torch.randn(2, 6, 8)
    objective.eval()
    projections = objective.projector(embeddings)
    assert projections.shape == (2, 6, 4)
    value = objective(Latents(embeddings=embeddings))["loss/invariance"]
    assert torch.allclose(value, Invariance()(Latents(projections=projections)))
    assert any(name.startswith("projector") for name, _ in objective.named_parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terms": {}}, "loss.terms is empty"),
        ({"terms": {"a": {"weight": 1.0, "term": object()}}}, r"loss\.terms\.a\.term: got object, expected a torch"),
        (
            {"terms": {"a": {"weight": 1.0, "term": MSE}}},
            r"loss\.terms\.a\.term is partial, and completing it with in_d",
        ),
        ({"terms": {"a": {"weight": 1.0, "term": partial(Reconstruction)}}}, r"loss\.terms\.reconstruction=null"),
        ({"terms": {"a": {"wieght": 1.0, "term": MSE()}}}, "loss.terms.a has the keys"),
    ],
)
def test_bad_objectives(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize("attribute", ["prevents_collapse", "batch_statistics", "needs"])
def test_a_term_says_what_it_is(attribute):
    class Mine(torch.nn.Module):
        prevents_collapse = False
        batch_statistics = False
        needs = ("embeddings",)

    def build():
        return make(terms={"mine": {"weight": 1.0, "term": Mine()}})

    assert build().needs == ("embeddings",)
    delattr(Mine, attribute)
    with pytest.raises(
        ValueError, match=rf"loss\.terms\.mine\.term: Mine has no attribute {attribute}: .*{attribute} = "
    ):
        build()
    for needs in ("embeddings", ("predictions", "pixels")):
        Mine.prevents_collapse = Mine.batch_statistics = False
        Mine.needs = needs
        with pytest.raises(ValueError, match=r"Mine\.needs is .*expected fields of jepa\.types\.WorldLatents"):
            build()


def test_without_a_projector_projections_are_the_embeddings():
    objective = make(terms={"variance": {"weight": 1.0, "term": Variance()}})
    assert objective.projector is None
    embeddings = torch.randn(2, 6, 8)
    assert torch.equal(objective(Latents(embeddings=embeddings))["loss"], Variance()(Latents(projections=embeddings)))


def test_a_projector_that_no_term_reads_is_not_built():
    assert make(projector=partial(Projector, hidden=[16], out_dim=4)).projector is None


def test_a_partial_term_is_completed_with_the_widths():
    decoder = {"weight": 1.0, "term": partial(Reconstruction, hidden=[16])}
    objective = make(terms={"reconstruction": decoder}, token_values=3)
    assert [tuple(p.shape) for p in objective.parameters()] == [(16, 8), (16,), (3, 16), (3,)]
    assert objective.prevents_collapse
    assert not objective.batch_statistics


def test_what_a_model_makes_is_held_against_what_the_terms_read():
    terms = {
        "prediction": {"weight": 0.0, "term": MSE()},
        "sigreg": {"weight": 0.1, "term": SIGReg(num_slices=4)},
        "reconstruction": {"weight": 1.0, "term": partial(Reconstruction)},
    }
    objective = make(terms=terms, token_values=3)
    assert objective.needs == ("predictions", "targets", "inputs", "projections")
    objective.require({"predictions", "targets", "inputs", "embeddings"}, by="MaskedJEPA")
    with pytest.raises(ValueError, match="LeJEPA makes embeddings, projections, but") as caught:
        objective.require({"embeddings"}, by="LeJEPA")
    message = str(caught.value)
    assert "loss.terms.prediction reads predictions, targets; loss.terms.reconstruction reads" in message
    assert "(loss.terms.prediction=null loss.terms.reconstruction=null)" in message
    assert "sigreg" not in message


RUN = RunLength(max_steps=10, steps_per_epoch=5, batch_size=4)


def ramp(step, run_length):
    """A schedule from 0 to 2."""
    return 2 * step / run_length.max_steps


def test_a_weight_may_be_a_schedule():
    terms = {"prediction": {"weight": 0.5, "term": MSE()}, "other": {"weight": ramp, "term": L1()}}
    objective = make(terms=terms)
    for step, weight in ((None, 0.0), (0, 0.0), (5, 1.0), (10, 2.0), (2, 0.4)):
        if step is not None:
            assert objective.set_step(step, RUN) == {"weight/other": pytest.approx(weight)}
        values = objective(latents())
        expected = 0.5 * values["loss/prediction"] + weight * values["loss/other"]
        assert values["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert make().set_step(5, RUN) == {}


@pytest.mark.parametrize(
    ("weight", "prevents"), [(ramp, True), (lambda *_: 0.0, False), (lambda s, h: 1 - s / h.max_steps, True)]
)
def test_a_term_of_scheduled_weight_prevents_collapse_where_it_is_ever_positive(weight, prevents):
    terms = {"sigreg": {"weight": weight, "term": SIGReg(num_slices=4)}}
    assert make(terms=terms, projector=partial(Projector, hidden=[8], out_dim=4)).prevents_collapse is prevents


@pytest.mark.parametrize("weight", ["abc", None, True, float("nan"), {"start": 0.0}, lambda step, run_length: math.inf])
def test_bad_weights(weight):
    with pytest.raises(ValueError, match=r"loss\.terms\.a\.weight=.*: expected a number, or a schedule such as"):
        make(terms={"a": {"weight": weight, "term": MSE()}})
