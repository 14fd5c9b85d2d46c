"""Several views of a sample: global, local, and those for evaluation."""

from __future__ import annotations

import pytest
import torch
from data_helpers import CROPS, folder_data, same, write_classes, write_image

from jepa.data import Augment

LOCAL = {"local_views": 3, "local_size": 4, "local_augment": Augment(crop_scale=(0.05, 0.3), horizontal_flip=0.5)}


@pytest.fixture
def pictures(tmp_path):
    for seed in range(40):
        write_image(tmp_path / f"{seed}.png", seed=seed)
    return tmp_path


def test_local_views_come_beside_the_global_ones(pictures):
    data = folder_data(pictures, augment=CROPS, views=2, **LOCAL)
    batch = next(data.train_batches(seed=0, start_step=0, stop_step=1))
    assert batch["views"].shape == (4, 2, 3, 8, 8)
    assert batch["local_views"].shape == (4, 3, 3, 4, 4)
    assert not torch.equal(batch["local_views"][:, 0], batch["local_views"][:, 1])
    blank = data.blank_batch(2)
    assert {name: value.shape[1:] for name, value in blank.items()} == {
        name: batch[name].shape[1:] for name in ("views", "local_views")
    }


def test_local_views_leave_the_global_ones_as_they_were(pictures):
    def first(**settings):
        data = folder_data(pictures, augment=CROPS, **settings)
        return next(data.train_batches(seed=0, start_step=3, stop_step=4))

    assert torch.equal(first(views=2)["views"], first(views=2, **LOCAL)["views"])
    assert torch.equal(first()["x"], first(**LOCAL)["views"][:, 0])


def test_local_views_do_not_depend_on_workers(pictures):
    batches = [
        list(
            folder_data(pictures, augment=CROPS, views=2, num_workers=workers, **LOCAL).train_batches(
                seed=0, start_step=1, stop_step=3
            )
        )
        for workers in (0, 2)
    ]
    assert same(*batches)


def test_validation_shows_augmented_views_that_stay_the_same(pictures):
    data = folder_data(pictures, augment=CROPS, views=2)
    first, again = ([*data.validation_batches(batch_size=4)] for _ in range(2))
    assert same(first, again)
    assert not torch.equal(first[0]["views"][:, 0], first[0]["views"][:, 1])
    single = next(iter(folder_data(pictures, augment=CROPS).validation_batches(batch_size=4)))
    plain = next(iter(data.evaluation_batches("test", batch_size=4)))
    assert torch.equal(single["x"], plain["x"])


def test_views_for_evaluation_are_of_the_samples_asked_for(pictures):
    data = folder_data(pictures, augment=CROPS, **LOCAL)
    [batch] = data.view_batches("train", views=5, batch_size=8, limit=3, seed=1)
    assert batch["views"].shape == (3, 5, 3, 8, 8)
    assert "local_views" not in batch
    assert same(data.view_batches("train", views=5, batch_size=8, limit=3, seed=1), [batch])
    [other] = data.view_batches("train", views=5, batch_size=8, limit=3, seed=2)
    assert not torch.equal(other["views"], batch["views"])


def test_without_augmentation_views_are_copies(tmp_path):
    data = folder_data(write_classes(tmp_path), views=2)
    [batch] = data.view_batches("train", views=3, batch_size=16)
    assert torch.equal(batch["views"][:, 0], batch["views"][:, 2])


@pytest.mark.parametrize("missing", ["local_size", "local_augment"])
def test_local_views_need_a_size_and_an_augmentation(pictures, missing):
    with pytest.raises(ValueError, match=r"data.local_views=3 needs data.local_size"):
        folder_data(pictures, **{**LOCAL, missing: None})
