import pytest
import torch

from jepa.evaluation import Features, Retrieval, nearest_neighbours

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


def test_lengths_and_chunks_change_nothing(monkeypatch):
    monkeypatch.setattr(nearest_neighbours, "_CHUNK_ENTRIES", 12)
    lengths = torch.tensor([[1.0], [9.0], [0.1], [3.0], [50.0], [0.5]])
    assert recall(on_circle(ANGLES, LABELS, lengths), 1, 3) == recall(on_circle(ANGLES, LABELS), 1, 3)


def test_a_sample_is_not_its_own_neighbour_and_a_lone_one_finds_nothing():
    same = Features(torch.ones(4, 3), torch.tensor([0, 0, 0, 1]))
    assert recall(same, 3, 10) == {"at_3": 0.75, "at_10": 0.75}


def test_refuses_impossible_settings():
    for wrong in ((), (0, 5)):
        with pytest.raises(ValueError, match=r"recall\.at"):
            Retrieval(at=wrong)
