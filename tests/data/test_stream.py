"""The sample stream depends on the seed and the step, and on nothing else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings

import pytest
import torch
from data_helpers import folder_data, same, write_classes

from jepa.data import Augment, ImageData
from jepa.data.sources import Splits, TensorImages
from jepa.data.stream import SampleOrder, fixed_order
from jepa.utils.errors import UserError

AUGMENT = Augment(crop_scale=(0.3, 1.0), horizontal_flip=0.5, rotation=10, translate=0.1, color_jitter=0.5, blur=0.5)


def counted(number: int = 10) -> Splits:
    """Images whose pixels, and labels, are their index."""
    index = torch.arange(number)
    images = index.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 6, 6).contiguous()
    return Splits(train=TensorImages(images, index), test=TensorImages(images, index), class_names=("",) * number)


def tensor_data(**settings) -> ImageData:
    defaults = {
        "source": counted,
        "image_size": 6,
        "channels": 1,
        "mean": [0.0],
        "std": [1.0],
        "batch_size": 4,
    }
    return ImageData(**{**defaults, **settings})


def labels(data: ImageData, **stream) -> list[int]:
    return torch.cat([batch["label"] for batch in data.train_batches(**stream)]).tolist()


@pytest.mark.parametrize("batch_size", [3, 4, 10, 25])
def test_every_epoch_visits_every_sample_once_across_batches(batch_size):
    data = tensor_data(batch_size=batch_size)
    visited = labels(data, seed=1, start_step=0, stop_step=-(-30 // batch_size))
    epochs = [visited[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2], "each epoch has an order of its own"


def test_another_seed_gives_another_order():
    data = tensor_data()
    assert labels(data, seed=0, start_step=0, stop_step=2) != labels(data, seed=1, start_step=0, stop_step=2)


def test_images_keep_their_labels():
    for batch in tensor_data().train_batches(seed=0, start_step=0, stop_step=3):
        assert torch.equal((batch["x"][:, 0, 3, 3] * 255).round().long(), batch["label"])


@pytest.mark.parametrize("kind", ["tensors", "files", "files in memory"])
def test_stream_is_the_same_from_the_middle_with_workers_and_ranks(kind, tmp_path):
    settings = {"augment": AUGMENT, "views": 2}

    def build(**more):
        if kind == "tensors":
            return tensor_data(**settings, **more)
        return folder_data(tmp_path, **settings, **more, in_memory=kind != "files")

    write_classes(tmp_path)
    whole = list(build().train_batches(seed=3, start_step=0, stop_step=6))
    assert same(build().train_batches(seed=3, start_step=4, stop_step=6), whole[4:])
    assert same(build(num_workers=2).train_batches(seed=3, start_step=1, stop_step=6), whole[1:])
    ranks = [build().train_batches(seed=3, start_step=0, stop_step=6, rank=rank, world_size=2) for rank in range(2)]
    joined = [{key: torch.cat([a[key], b[key]]) for key in a} for a, b in zip(*ranks)]
    assert same(joined, whole)


def test_loading_leaves_the_global_generator_alone_and_does_not_warn():
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for workers in (0, 2, len(os.sched_getaffinity(0)) + 1):
            data = tensor_data(augment=AUGMENT, num_workers=workers, pin_memory=True, in_memory=False)
            list(data.train_batches(seed=0, start_step=0, stop_step=2))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.faults
def test_workers_leave_ctrl_c_to_the_main_process():
    batches = tensor_data(num_workers=2, in_memory=False).train_batches(seed=0, start_step=0, stop_step=20)
    next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)
    assert len(list(batches)) == 19
    assert multiprocessing.active_children() == []


@pytest.mark.faults
def test_an_iterator_left_early_ends_its_workers():
    batches = tensor_data(num_workers=2, in_memory=False).train_batches(seed=0, start_step=0, stop_step=1000)
    next(batches)
    batches.close()
    assert multiprocessing.active_children() == []


def test_ranks_that_cannot_share_a_batch_are_refused_at_once():
    with pytest.raises(UserError, match=r"data.batch_size=4 cannot be shared by 3 ranks.* 3 and 6"):
        tensor_data().train_batches(seed=0, start_step=0, stop_step=1, rank=0, world_size=3)


class Failing:
    """Samples that raise a user's error, as a broken archive would."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        raise UserError("the archive is locked; unlock it")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.faults
def test_an_error_for_the_user_keeps_its_message(workers):
    data = tensor_data(source=lambda: Splits(train=Failing(), test=Failing()), num_workers=workers)
    with pytest.raises(UserError) as error:
        next(data.train_batches(seed=0, start_step=0, stop_step=1))
    assert str(error.value) == "the archive is locked; unlock it"


def test_evaluation_runs_in_order_and_keeps_the_short_batch():
    batches = list(tensor_data(augment=AUGMENT, views=2).evaluation_batches("test", batch_size=4))
    assert [len(batch["x"]) for batch in batches] == [4, 4, 2]
    assert torch.cat([batch["label"] for batch in batches]).tolist() == list(range(10))
    assert batches[0]["x"].shape == (4, 1, 6, 6)


def test_limited_evaluation_is_a_fixed_subset_spread_over_the_split():
    chosen = [i for request in fixed_order(1000, batch_size=7, limit=100) for i in request.indices]
    again = [i for request in fixed_order(1000, batch_size=9, limit=100) for i in request.indices]
    assert chosen == again == sorted(set(chosen))
    assert len(chosen) == 100
    assert sum(i < 500 for i in chosen) in range(35, 66)
    assert len(next(fixed_order(5, batch_size=9, limit=100)).indices) == 5


def test_the_order_of_a_large_batch_crosses_several_epochs():
    request = SampleOrder(num_samples=3, batch_size=8, seed=0).request(1)
    assert list(request.counters) == list(range(8, 16))
    assert sorted(request.indices[1:4]) == sorted(request.indices[4:7]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batch_size": 0}, "data.batch_size must be at least 1, got 0"),
        ({"views": 0}, "data.views must be at least 1, got 0"),
        ({"num_workers": -1}, "data.num_workers must be at least 0, got -1"),
        ({"image_size": 0}, "data.image_size=0"),
        ({"image_size": [8, 8, 8]}, "data.image_size"),
        ({"prefetch_factor": 0}, "data.prefetch_factor must be at least 1, got 0"),
        ({"max_bad_share": 1.0}, "data.max_bad_share=1.0"),
        ({"pin_memory": "yes"}, "data.pin_memory=yes"),
        ({"interpolation": "cubic"}, "data.interpolation=cubic"),
        ({"mean": [0.1, 0.2]}, "data.mean has 2 values; expected 1"),
        ({"std": [0.0]}, "data.std"),
    ],
)
def test_a_wrong_setting_is_refused_before_data_is_read(setting, message):
    def source():
        raise AssertionError("data was read")

    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        tensor_data(source=source, **setting)
