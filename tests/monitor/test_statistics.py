"""Statistics of latents against closed forms."""

from __future__ import annotations

import pytest
import torch

from jepa.monitor import Rows, statistics, take_rows
from jepa.monitor.statistics import (
    explained_variance,
    mean_pair_cosine,
    relative_spread,
    shared_variance,
    view_variance,
)
from jepa.types import Latents, Mask, WorldLatents


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_normal_features_are_spread_in_all_dimensions():
    values = statistics(Rows(embeddings=normal(2, 100, 8), targets=normal(300, 8, seed=1)))
    assert values["train/embedding_std"] == pytest.approx(1, abs=0.1)
    assert values["train/target_std"] == pytest.approx(1, abs=0.1)
    assert values["monitor/embedding_rank"] == pytest.approx(8, abs=0.2)
    assert values["monitor/embedding_dimensions"] == pytest.approx(8, abs=0.2)
    assert values["monitor/target_spread"] == pytest.approx(1, abs=0.02)
    assert values["monitor/embedding_cosine"] == pytest.approx(0, abs=0.05)
    assert values["monitor/dead_features"] == 0
    assert values["monitor/view_variance"] == pytest.approx(1, abs=0.15)  # the views have nothing in common


def test_constant_features():
    values = statistics(Rows(embeddings=torch.ones(2, 10, 4), targets=torch.ones(20, 4), predictions=torch.ones(5, 4)))
    for name in ("train/embedding_std", "train/target_std", "train/prediction_std", "monitor/target_spread"):
        assert values[name] == 0
    assert values["monitor/embedding_rank"] == pytest.approx(1, abs=1e-3)
    assert values["monitor/embedding_cosine"] == pytest.approx(1)
    assert values["monitor/dead_features"] == 1


def test_projections():
    values = statistics(Rows(projections=3 + 2 * normal(2, 400, 4)))
    assert values["train/projection_std"] == pytest.approx(2, abs=0.1)
    assert values["monitor/projection_spread"] == pytest.approx((4 / 13) ** 0.5, abs=0.02)


def test_half_of_the_features_dead():
    rows = normal(1, 50, 8)
    rows[..., 4:] = 3.0
    assert statistics(Rows(embeddings=rows))["monitor/dead_features"] == 0.5


def test_what_cannot_be_said_is_left_out():
    assert statistics(Rows()) == {}
    assert statistics(Rows(targets=torch.ones(1, 4))) == {}
    assert statistics(Rows(embeddings=torch.full((1, 9, 4), torch.nan))) == {}
    assert "monitor/view_variance" not in statistics(Rows(embeddings=normal(1, 9, 4)))


def test_a_cosine_is_that_of_all_pairs():
    rows = normal(7, 3)
    unit = rows / rows.norm(dim=1, keepdim=True)
    pairs = [unit[i] @ unit[j] for i in range(7) for j in range(i)]
    assert mean_pair_cosine(rows) == pytest.approx(torch.stack(pairs).mean().item(), abs=1e-6)


def test_spread_is_a_share():
    assert relative_spread(torch.tensor([[3.0], [5.0]])) == pytest.approx((1 / 17) ** 0.5)
    assert relative_spread(torch.zeros(3, 2)) == 0


def test_the_place_of_a_target():
    places = torch.arange(200) % 4
    of_the_place = normal(4, 5)[places]
    assert explained_variance(of_the_place + 0.01 * normal(200, 5, seed=1), places) > 0.99
    assert explained_variance(normal(200, 5, seed=2), places) == pytest.approx(0, abs=0.05)
    both = explained_variance(of_the_place + of_the_place.std() * normal(200, 5, seed=3), places)
    assert 0.35 < both < 0.65
    assert explained_variance(normal(9, 5), torch.arange(9)) is None


def test_overlapping_blocks_of_few_samples_are_no_places():
    # Two samples of which every token lies in each of four blocks: 256 rows of 64 tokens, with nothing in common.
    tokens = normal(2, 1, 32, 5)
    index = torch.arange(32).expand(2, 4, 32)
    for weights in (None, [(index % 2 == 0).float()]):  # of those that count, rows are picked twice
        latents = Latents(targets=[tokens.expand(2, 4, 32, 5)], target_weights=weights)
        rows = take_rows(latents, {"masks": [Mask(context=index[:, 0], targets=index)]}, 512)
        assert (rows.positions >= 0).sum() == (64 if weights is None else 32)
        assert explained_variance(rows.targets, rows.positions) is None or (
            explained_variance(rows.targets, rows.positions) == pytest.approx(0, abs=0.2)
        )


def test_views_and_likeness():
    sample = normal(1, 40, 6)
    assert view_variance(sample.expand(3, 40, 6)) == 0
    assert shared_variance(sample[0, :1].expand(10, 6)) == pytest.approx(1)
    assert shared_variance(sample[0]) < 0.2
    assert shared_variance(normal(3, 1000)) < 0.05  # of a small micro-batch
    assert shared_variance(torch.zeros(4, 3)) == 1


def test_rows_are_few_and_those_that_count():
    x = torch.arange(10.0).view(10, 1, 1).expand(10, 3, 1)
    weights = torch.zeros(10, 1, 3)
    weights[4:] = 1
    index = torch.arange(3).expand(10, 1, 3)
    latents = Latents(
        targets=[x.unsqueeze(1)],
        predictions=[x.unsqueeze(1)],
        target_weights=[weights],
        embeddings=x.transpose(0, 1),
        global_views=2,
    )
    batch = {"masks": [Mask(context=index[:, 0], targets=index)], "x": torch.ones(10, 1, 4, 4)}
    rows = take_rows(latents, batch, 12)
    assert rows.embeddings.shape == (2, 6, 1)
    assert rows.targets.shape == rows.predictions.shape == (12, 1)
    assert rows.targets.min() >= 4
    assert rows.predictions.min() >= 4
    assert rows.positions.unique().tolist() == [0, 1, 2]
    assert rows.inputs.shape == (1, 10, 16)
    assert take_rows(latents, torch.ones(3), 12).inputs is None


def test_a_micro_batch_of_one(recwarn):
    latents = Latents(predictions=[torch.ones(1, 1, 1, 4)], embeddings=torch.ones(2, 1, 4))
    assert statistics(take_rows(latents, {}, 100)) == {}
    assert not recwarn.list


def test_latents_are_not_kept():
    tensor = normal(4, 2, 3, 5).requires_grad_()
    rows = take_rows(Latents(targets=[tensor]), {}, 6)
    assert not rows.targets.requires_grad
    assert rows.targets.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


def test_states_of_world_models_in_time():
    """States that do not move, that move by a tenth of their variance in each of a few steps, and without order."""
    base = normal(1, 400, 8)
    for noise, expected in ((0.0, 0.0), (0.5, 0.5 / 1.5), (30.0, 1.0)):
        states = base + noise**0.5 * normal(4, 400, 8, seed=1)  # (T, B, D)
        still = WorldLatents(
            embeddings=states,
            target_states=states.transpose(0, 1),
            one_step=states.transpose(0, 1)[:, :-1],
        )
        values = statistics(take_rows(still, {}, 2000))
        assert values["monitor/step_change"] == pytest.approx(expected, abs=0.05)
        assert values["monitor/motion_predicted"] == pytest.approx(0.0 if noise else 1.0)
    states = still.target_states
    rolled = WorldLatents(embeddings=still.embeddings, target_states=states, history=2)
    rolled.targets = [states[:, 2:].unsqueeze(1)]
    rolled.predictions = [(0.5 * states[:, 1:2] + 0.5 * states[:, 2:]).unsqueeze(1)]
    assert statistics(take_rows(rolled, {}, 2000))["monitor/motion_predicted"] == pytest.approx(0.75)
