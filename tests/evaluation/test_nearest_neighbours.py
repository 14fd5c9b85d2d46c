import math

import pytest
import torch

from jepa.evaluation import CrossModalRetrieval, Features, KNNProbe, Retrieval, nearest_neighbours
from jepa.evaluation.nearest_neighbours import chance_recall

CLASSES = 5


@pytest.fixture
def splits() -> tuple[Features, Features]:
    generator = torch.Generator().manual_seed(0)

    def split(size: int) -> Features:
        labels = torch.randint(CLASSES, (size,), generator=generator)
        return Features(torch.randn(size, 6, generator=generator) + labels[:, None] / 3, labels)

    return split(120), split(60)


def naive_prediction(train: Features, x: torch.Tensor, k: int, temperature: float) -> list[int]:
    predictions = []
    for query in x.tolist():
        neighbours = []
        for row, label in zip(train.x.tolist(), train.labels.tolist()):
            dot = sum(a * b for a, b in zip(query, row))
            neighbours.append((dot / math.hypot(*query) / math.hypot(*row), label))
        votes = [0.0] * CLASSES
        for similarity, label in sorted(neighbours, reverse=True)[:k]:
            votes[label] += math.exp(similarity / temperature)
        predictions.append(votes.index(max(votes)))
    return predictions


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 10.0), (119, 0.5)])
def test_agrees_with_a_double_loop(splits, k, temperature):
    train, test = splits
    probe = KNNProbe(k=k, temperature=temperature)
    expected = naive_prediction(train, test.x, k, temperature)
    assert probe.predict(train, test.x, classes=CLASSES).tolist() == expected
    right = sum(p == label for p, label in zip(expected, test.labels.tolist()))
    assert probe(train, test, classes=CLASSES) == pytest.approx(right / len(test))


def test_chunks_change_nothing(splits, monkeypatch):
    train, test = splits
    whole = KNNProbe().predict(train, test.x, classes=CLASSES)
    monkeypatch.setattr(nearest_neighbours, "_CHUNK_ENTRIES", 7 * len(train))
    assert torch.equal(KNNProbe().predict(train, test.x, classes=CLASSES), whole)


def test_k_beyond_the_training_set_takes_all_and_says_so(splits, caplog):
    train, test = splits
    probe, expected = KNNProbe(k=500), naive_prediction(train, test.x, len(train), 0.07)
    for _ in range(2):  # as of several networks
        assert probe.predict(train, test.x, classes=CLASSES).tolist() == expected
    assert caplog.text.count("only 120 training samples") == 1


def test_a_low_temperature_is_the_nearest_neighbour(splits):
    train, test = splits
    cold = KNNProbe(k=20, temperature=1e-6).predict(train, test.x, classes=CLASSES)
    assert torch.equal(cold, KNNProbe(k=1).predict(train, test.x, classes=CLASSES))


# Recall.

# Angles in degrees and classes: the nearest other sample is of the own class for the first two only.
ANGLES = [0.0, 1.0, 10.0, 12.5, 30.0, 34.0]
LABELS = [0, 0, 1, 2, 1, 2]


def on_circle(angles: list[float], labels: list[int], lengths=1.0) -> Features:
    radians = torch.tensor(angles).deg2rad()
    return Features(torch.stack([radians.cos(), radians.sin()], dim=1) * lengths, torch.tensor(labels))


def recall(features: Features, *at: int) -> dict[str, float]:
    return Retrieval(at=at)(None, features, classes=3, seed=0)


def test_recall_of_a_set_made_by_hand():
    # 10 -> 12.5, 1, 0, 30: its class is fourth. 12.5 -> 10, 1, 0, 30, 34: fifth. 30 -> 34, 12.5, 10: third.
    # 34 -> 30, 12.5: second.
    expected = {"at_1": 2 / 6, "at_2": 3 / 6, "at_3": 4 / 6, "at_4": 5 / 6, "at_5": 1.0}
    assert recall(on_circle(ANGLES, LABELS), 1, 2, 3, 4, 5) == pytest.approx(expected)


def test_lengths_and_chunks_change_no_recall(monkeypatch):
    monkeypatch.setattr(nearest_neighbours, "_CHUNK_ENTRIES", 12)
    lengths = torch.tensor([[1.0], [9.0], [0.1], [3.0], [50.0], [0.5]])
    assert recall(on_circle(ANGLES, LABELS, lengths), 1, 3) == recall(on_circle(ANGLES, LABELS), 1, 3)


def test_a_sample_is_not_its_own_neighbour_and_a_lone_one_finds_nothing():
    same = Features(torch.ones(4, 3), torch.tensor([0, 0, 0, 1]))
    assert recall(same, 3, 10) == {"at_3": 0.75, "at_10": 0.75}


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
