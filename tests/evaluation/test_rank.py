import math

import pytest
import torch

from jepa.evaluation import feature_std, rankme


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
