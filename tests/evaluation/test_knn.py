import math

import pytest
import torch

from jepa.evaluation import Features, KNNProbe, nearest_neighbours

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
    assert KNNProbe(k=500).predict(train, test.x, classes=CLASSES).tolist() == naive_prediction(
        train, test.x, len(train), 0.07
    )
    assert "only 120 training samples" in caplog.text


def test_a_low_temperature_is_the_nearest_neighbour(splits):
    train, test = splits
    cold = KNNProbe(k=20, temperature=1e-6).predict(train, test.x, classes=CLASSES)
    assert torch.equal(cold, KNNProbe(k=1).predict(train, test.x, classes=CLASSES))


@pytest.mark.parametrize("wrong", [{"k": 0}, {"temperature": 0.0}])
def test_refuses_impossible_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        KNNProbe(**wrong)
