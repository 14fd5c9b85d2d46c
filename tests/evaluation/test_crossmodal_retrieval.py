"""Retrieval between modalities, and the chance beside it."""

from __future__ import annotations

import pytest
import torch

from jepa.evaluation.nearest_neighbours import CrossModalRetrieval, chance_recall


def test_equal_embeddings_find_each_other_and_permuted_ones_their_label():
    x = torch.eye(6)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    scores = CrossModalRetrieval(at=[1, 3])({"a": x, "b": x}, labels)
    assert scores["a_to_b/recall_at_1"] == scores["b_to_a/recall_at_1"] == 1.0
    partner = x[[1, 0, 3, 2, 5, 4]]  # each one's own label, another item
    assert CrossModalRetrieval(at=[1])({"a": x, "b": partner}, labels)["a_to_b/recall_at_1"] == 1.0
    assert CrossModalRetrieval(at=[1])({"a": x, "b": partner}, torch.arange(6))["a_to_b/recall_at_1"] == 0.0


def test_chance_is_that_of_drawing_without_replacement():
    assert chance_recall(torch.full((10,), 3), 30, 1) == pytest.approx(0.1)
    assert chance_recall(torch.full((10,), 3), 30, 5) == pytest.approx(
        1 - (27 * 26 * 25 * 24 * 23) / (30 * 29 * 28 * 27 * 26)
    )
    assert chance_recall(torch.ones(4), 4, 10) == pytest.approx(1.0)
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(2000) % 10
    a, b = (torch.randn(2000, 8, generator=random) for _ in range(2))
    scores = CrossModalRetrieval(at=[5])({"a": a, "b": b}, labels)
    assert scores["a_to_b/recall_at_5"] == pytest.approx(scores["a_to_b/recall_at_5_chance"], abs=0.04)


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match=r"retrieval\.at"):
        CrossModalRetrieval(at=[0])
