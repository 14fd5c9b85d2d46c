import math

import pytest
import torch

from jepa.evaluation import LiDAR, feature_std, lidar, rankme
from jepa.evaluation.features import Features
from scripts.reproduce_choice import AlphaReQ, correlations


def with_singular_values(values: list[float], rows: int = 50) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    columns = len(values)
    left = torch.linalg.qr(torch.randn(rows, columns, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(columns, columns, generator=generator)).Q
    return left * torch.tensor(values) @ right.T


def test_rankme_of_an_orthogonal_matrix_is_its_width():
    assert rankme(with_singular_values([3.0] * 12)) == pytest.approx(12, rel=1e-4)


def test_rankme_of_one_direction_is_one():
    assert rankme(torch.outer(torch.arange(1.0, 40), torch.arange(1.0, 9))) == pytest.approx(1, abs=1e-3)


def test_rankme_is_the_exponential_of_the_entropy_of_the_singular_values():
    shares = [0.5, 0.3, 0.15, 0.05]
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    assert rankme(with_singular_values([20 * p for p in shares])) == pytest.approx(expected, rel=1e-4)


def test_rankme_is_uncentred():
    features = with_singular_values([1.0] * 4)
    assert rankme(features + 100) < 1.2 < rankme(features)


def test_rankme_of_zeros_is_one():
    assert rankme(torch.zeros(10, 4)) == pytest.approx(1, abs=1e-3)


def test_feature_std_averages_over_features():
    features = torch.tensor([[0.0, 1.0, 5.0], [2.0, 1.0, 9.0]])  # stds 1, 0, 2
    assert feature_std(features) == pytest.approx(1.0)
    assert feature_std(features[:1]) == 0


def views_of(centres: torch.Tensor, noise: float, views: int = 6) -> torch.Tensor:
    """(n, views, D): the views of a sample lie around its centre and average to it."""
    offsets = torch.randn(len(centres), views, centres.shape[1], generator=torch.Generator().manual_seed(1))
    return centres[:, None] + noise * (offsets - offsets.mean(dim=1, keepdim=True))


def centred(values: list[float], rows: int = 50) -> torch.Tensor:
    """Rows whose scatter has these variances, along random directions."""
    x = torch.randn(rows, len(values), generator=torch.Generator().manual_seed(2))
    left = torch.linalg.qr(x - x.mean(dim=0)).Q
    right = torch.linalg.qr(torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(3))).Q
    return left * torch.tensor(values).sqrt() @ right * (rows - 1) ** 0.5


def test_lidar_of_samples_spread_alike_is_the_number_of_directions():
    assert lidar(views_of(centred([4.0] * 10), noise=1e-4)) == pytest.approx(10, rel=1e-3)


def test_lidar_of_one_sample_is_unknown():
    assert math.isnan(LiDAR()(torch.randn(1, 3, 8)))


def test_lidar_of_views_that_do_not_differ_is_the_rank_of_the_samples(caplog):
    shares = [0.5, 0.3, 0.15, 0.05]
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    assert lidar(views_of(centred(shares), noise=0.0)) == pytest.approx(expected, rel=1e-3)
    assert "same embedding" in caplog.text


def test_lidar_is_the_definition_with_explicit_inverse_roots():
    x = views_of(centred([3.0, 1.0, 0.5, 0.1, 2.0]), noise=0.7).double()
    n, q, width = x.shape
    centres = x.mean(dim=1)
    between = sum(torch.outer(c, c) for c in centres - centres.mean(dim=0)) / (n - 1)
    within = sum(torch.outer(e, e) for e in (x - centres[:, None]).flatten(0, 1)) / (n * (q - 1))
    values, vectors = torch.linalg.eigh(within + 0.01 * torch.eye(width))
    root = vectors * values.rsqrt() @ vectors.T
    p = torch.linalg.eigvalsh(root @ between @ root)
    p = p / p.sum()
    assert lidar(x, delta=0.01) == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-5)


def test_lidar_counts_only_directions_in_which_views_agree():
    """Between-sample scatter alike everywhere, of which half is drowned by the views."""
    x = views_of(centred([1.0] * 8), noise=0.0)
    right = torch.linalg.svd(x[:, 0], full_matrices=False).Vh
    noise = torch.randn(50, 6, 4, generator=torch.Generator().manual_seed(4)) @ right[:4]
    assert lidar(x + 30 * (noise - noise.mean(dim=1, keepdim=True))) == pytest.approx(4, rel=0.01)


def test_lidar_of_collapsed_embeddings_is_one_and_finite(caplog):
    assert lidar(torch.zeros(5, 3, 4)) == pytest.approx(1, abs=1e-3)
    assert lidar(torch.ones(5, 3, 4)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("size", [(1, 4, 3), (4, 1, 3)])
def test_lidar_needs_several_views_of_several_samples(size):
    with pytest.raises(ValueError, match="at least 2"):
        lidar(torch.zeros(size))


@pytest.mark.parametrize(("decay", "distance"), [(0.5, 0.0), (1.0, 1.0), (0.25, 0.5)])
def test_alpha_req_is_how_far_the_decay_of_eigenvalues_is_from_one(decay, distance):
    x = with_singular_values([k**-decay for k in range(1, 41)], rows=400)
    assert AlphaReQ()(Features(x), Features(x), classes=2, seed=0) == pytest.approx(distance, abs=0.05)


def test_a_number_that_orders_runs_as_the_probe_does_correlates_whatever_its_direction():
    constant = {"lidar": None, "alphareq": 1.0, "gaussianity": 1.0, "variant": "as it is"}
    runs = [{"score": k, "metric": "linear", "rankme": -k, "val/loss": -k, **constant} for k in range(5)]
    found = correlations(runs)
    assert (found["rankme"], found["val/loss"]) == (-1.0, 1.0)
    assert found["lidar"] is found["gaussianity"] is None
    assert correlations([{**run, "metric": "forecast/96/mse"} for run in runs])["rankme"] == 1.0
    others = [{**run, "variant": "variance 1"} for run in runs]
    assert correlations(others)["val/loss"] is None
