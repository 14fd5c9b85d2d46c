"""Probes of places and of motion, on inputs whose truth is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from jepa.evaluation import DenseProbe, FrozenEvaluation, MotionProbe
from jepa.evaluation.dense import _ridge, mean_iou, ridge_regression
from jepa.evaluation.features import patches
from jepa.types import DataSpec
from jepa.utils.errors import UserError


class Places:
    """Inputs whose first channel tells the truth at each place: above 0 is class 1; or the number itself."""

    def __init__(self, shape=(8, 12), *, classes=True, ignored=0.0, samples=24):
        self.spec = DataSpec(samples, samples, (2, *shape), None)
        self.truth_names = ("a", "b") if classes else None
        random = torch.Generator().manual_seed(0)
        coarse = torch.randn(samples, *(length // 2 for length in shape), generator=random)
        for axis in range(1, coarse.ndim):  # the same for both pixels of a patch
            coarse = coarse.repeat_interleave(2, dim=axis)
        self.x = torch.stack([coarse, torch.randn(coarse.shape, generator=random)], dim=1)
        self.truth = (coarse > 0).long() if classes else coarse.clone()
        hidden = torch.rand(coarse.shape, generator=random) < ignored
        self.truth[hidden] = -1 if classes else float("nan")

    def has_truth(self, what):
        return what == "truth"

    def truth_batches(self, split, *, batch_size, limit, what):
        for first in range(0, len(self.x), batch_size):
            part = slice(first, first + batch_size)
            yield {"x": self.x[part], "truth": list(self.truth[part])}

    def evaluation_batches(self, split, *, batch_size, limit):
        for x in self.x.split(batch_size):
            yield {"x": x}


class Patches(nn.Module):
    """A network whose tokens are patches of 2 pixels a side, `noise` alone where it is blind."""

    def __init__(self, blind=False):
        super().__init__()
        self.blind = blind

    def grid(self, x):
        return tuple(length // 2 for length in x.shape[2:])

    def encode_target(self, x):
        tokens = patches(x[:, 1:] if self.blind else x, self.grid(x))
        return tokens.flatten(1, -2)

    @property
    def encoder(self):
        return self


def evaluate(data, model=None, **probes):
    evaluation = FrozenEvaluation(probes=probes or {"dense": DenseProbe()}, batch_size=10)
    return evaluation(model or Patches(), data, random_init=lambda: Patches(blind=True), device="cpu")


@pytest.mark.parametrize("shape", [(16,), (8, 12), (4, 6, 8)])
def test_classes_of_places(shape):
    results = evaluate(Places(shape, ignored=0.2))
    assert results["trained"]["dense/miou"] > 0.75  # outputs are enlarged smoothly, truth has edges
    assert results["trained"]["dense/accuracy"] > 0.85
    for name in ("dense/miou", "dense/accuracy"):
        assert results["raw_input"][name] == pytest.approx(results["trained"][name], abs=0.02)
    assert results["random_init"]["dense/accuracy"] < 0.65


def test_numbers_of_places():
    results = evaluate(Places(classes=False, ignored=0.1, samples=60))
    chance = 1.0
    assert results["trained"]["dense/rmse"] < 0.7 * chance
    assert results["random_init"]["dense/rmse"] == pytest.approx(chance, abs=0.1)


def test_truth_with_fewer_axes_is_that_of_the_last_ones():
    data = Places((4, 12), samples=40)
    data.truth = (data.x[:, 0].mean(dim=1) > 0).long()  # of each column
    results = evaluate(data)
    assert results["trained"]["dense/accuracy"] > 0.8 > results["random_init"]["dense/accuracy"]
    data.truth = data.truth[:, None, None].expand(-1, 2, 2, -1)
    with pytest.raises(UserError, match="the truth has 3 axes, the tokens have 2"):
        evaluate(data)


def test_masks_of_nothing(caplog):
    data = Places()
    data.truth[:] = -1
    with pytest.raises(UserError, match="labels of the train split hold nothing but ignored values"):
        evaluate(data)
    data.has_truth = lambda what: False
    results = evaluate(data)
    assert all(list(row) == ["rankme", "feature_std"] for row in results.values())
    assert caplog.text.count("no dense, as the data has no masks") == 1
    assert "label-free" not in caplog.text


def test_intersection_over_union():
    table = torch.tensor([[6, 2, 0], [1, 3, 0], [0, 0, 0]])  # the third class does not occur
    assert mean_iou(table) == pytest.approx((6 / 9 + 3 / 6) / 2)


def test_ridge_regression_agrees_with_the_plain_formula():
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 4, generator=random) * 3 + 1, torch.randn(50, 2, generator=random)
    scaled = (x - x.mean(0)) / x.std(0, correction=0)
    for penalty, found in zip((0.1, 10.0), _ridge(x, y.double(), [0.1, 10.0])):
        rows = torch.cat([scaled, (penalty * 50) ** 0.5 * torch.eye(4)])
        solution = torch.linalg.lstsq(rows, torch.cat([y - y.mean(0), torch.zeros(4, 2)])).solution
        torch.testing.assert_close(found(x), scaled @ solution + y.mean(0), atol=1e-4, rtol=1e-4)


def test_the_penalty_of_a_regression_fits_the_noise():
    random = torch.Generator().manual_seed(0)
    x, more = torch.randn(200, 100, generator=random), torch.randn(2000, 100, generator=random)
    for noise in (0.0, 30.0):
        y = (x[:, :1] + noise * torch.randn(200, 1, generator=random)).double()
        strong, weak = _ridge(x, y, [10.0, 1e-4])
        maps = (ridge_regression(x, y), strong, weak) if noise else (ridge_regression(x, y), weak, strong)
        error, least, most = ((each(more) - more[:, :1]).square().mean() for each in maps)
        assert error < least + 0.05 * (most - least)
    assert ridge_regression(x[:3], y[:3])(x).isfinite().all()  # nothing to hold out


def test_patches_hold_the_pixels_of_each_token():
    x = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    assert torch.equal(patches(x, (2, 3))[1, 0, 2], x[1, :, :2, 4:].flatten())
    assert patches(torch.randn(2, 1, 5, 6), (2, 3)).shape == (2, 2, 3, 6)


class Moving:
    """Clips of a dot that moves at random, of one channel; the truth is its motion."""

    def __init__(self, samples=300):
        self.spec = DataSpec(samples, samples, (1, 5, 16, 16), None)
        random = torch.Generator().manual_seed(0)
        angle, speed = 6.3 * torch.rand(samples, generator=random), 1 + torch.rand(samples, generator=random)
        self.velocity = torch.stack([angle.cos(), angle.sin()], dim=1) * speed[:, None]
        steps = torch.arange(-2.0, 3)[:, None]
        places = 8 + torch.rand(samples, 1, 2, generator=random) + steps * self.velocity[:, None]  # (n, 5, 2)
        axis = torch.arange(16.0)
        near = [(-((axis - places[..., i, None]) ** 2) / 2).exp() for i in (0, 1)]
        self.x = (near[1][..., :, None] * near[0][..., None, :])[:, None]

    def has_truth(self, what):
        return what == "motion"

    def truth_batches(self, split, *, batch_size, limit, what):
        for first in range(0, len(self.x), batch_size):
            part = slice(first, first + batch_size)
            yield {"x": self.x[part], "truth": list(self.velocity[part])}

    def evaluation_batches(self, split, *, batch_size, limit):
        for x in self.x.split(batch_size):
            yield {"x": x}


class FirstAndLast(nn.Module):
    """One token with the place of the dot in the first and in the last frame."""

    def encode_target(self, x):
        axis = torch.arange(16.0)
        mass = x[:, 0].sum(dim=(2, 3), keepdim=True)
        places = [((x[:, 0] / mass).sum(dim=d) * axis).sum(dim=-1) for d in (2, 3)]  # (b, 5)
        return torch.cat([each[:, [0, 4]] for each in places], dim=1).unsqueeze(1)

    @property
    def encoder(self):
        return self


def test_motion_is_told_from_clips_and_not_from_frames():
    evaluation = FrozenEvaluation(probes={"motion": MotionProbe()}, batch_size=64)
    results = evaluation(FirstAndLast(), Moving(), random_init=FirstAndLast, device="cpu")
    trained = results["trained"]
    assert trained["motion/direction_error"] < 10
    assert trained["motion/single_frame/direction_error"] == pytest.approx(90, abs=10)
    assert trained["motion/speed_rmse"] < 0.35
    assert results["raw_input"]["motion/direction_error"] < 45


def test_refuses_impossible_settings():
    with pytest.raises(ValueError, match="max_tokens"):
        DenseProbe(max_tokens=0)
