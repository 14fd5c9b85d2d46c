"""Mixed data: shares, order, ranks, and runs of train.py."""

from __future__ import annotations

import json

import pytest
import torch

from jepa.data import DataModule
from jepa.data.mixed_data import MixedData, MixedOrder, interleave
from jepa.data.sources import Splits
from jepa.data.stream import SampleOrder
from jepa.utils.errors import UserError


class Numbers(list):
    """Samples (number, label)."""

    def __init__(self, start: int, count: int) -> None:
        super().__init__((float(start + i), i % 2) for i in range(count))


def numbers(start: int, count: int, length: int = 3, **settings) -> DataModule:
    data = DataModule(**settings)
    data.setup(
        Splits(train=Numbers(start, count), test=Numbers(start, 4), class_names=("even", "odd")),
        prepare=lambda sample, random: torch.full((1, length), sample),
        input_shape=(1, length),
    )
    return data


def mixed(**settings) -> MixedData:
    return MixedData(parts={"a": numbers(0, 10), "b": numbers(100, 30), "c": None}, batch_size=8, **settings)


def stream(data, steps: int, start: int = 0, **where) -> torch.Tensor:
    batches = data.train_batches(seed=3, start_step=start, stop_step=steps, **where)
    return torch.stack([batch["x"][:, 0, 0] for batch in batches])


def test_shares_are_met_evenly():
    pattern = interleave([0.335, 0.1, 0.565], 1000)
    assert torch.bincount(pattern).tolist() == [335, 100, 565]
    for window in pattern.split(100):  # not only in the long run
        assert (torch.bincount(window, minlength=3) - torch.tensor([33.5, 10, 56.5])).abs().max() <= 1.5
    with pytest.raises(ValueError, match="less than 1 in 1000"):
        interleave([1, 1e-6], 1000)


def test_each_part_comes_in_its_own_order():
    """Also over more than one period, and more than one epoch of a part."""
    order = MixedOrder(sizes=[10, 30], weights=[1, 3], batch_size=8, seed=3)
    indices = torch.tensor([i for step in range(300) for i in order.request(step).indices])
    for part, (first, size) in enumerate([(0, 10), (10, 30)]):
        mine = indices[(indices >= first) & (indices < first + size)] - first
        alone = SampleOrder(num_samples=size, batch_size=len(mine), seed=3).request(0).indices
        assert mine.tolist() == alone
        assert abs(len(mine) / len(indices) - [0.25, 0.75][part]) < 1e-3


def test_ranks_and_restarts_change_nothing():
    data = mixed(weights={"a": 1, "b": 1})
    whole = stream(data, 6)
    halves = [stream(data, 6, rank=rank, world_size=2) for rank in (0, 1)]
    assert torch.equal(torch.cat(halves, dim=1), whole)
    assert torch.equal(stream(data, 6, start=4), whole[4:])
    assert ((whole >= 100).float().mean() - 0.5).abs() < 0.05
    by_size = stream(mixed(), 10)
    assert (by_size >= 100).float().mean() == pytest.approx(0.75, abs=0.02)


def test_evaluation_is_of_one_part():
    data = mixed(evaluate="b")
    train = torch.cat([b["x"] for b in data.evaluation_batches("train", batch_size=7)])
    assert train[:, 0, 0].tolist() == [100.0 + i for i in range(30)]
    assert data.spec.num_train == 40
    assert data.spec.num_test == 4
    assert data.spec.class_names == ("even", "odd")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weights": {"a": 1}}, ValueError, "share above 0 for each of data.parts"),
        ({"weights": {"a": 1, "b": 0}}, ValueError, "share above 0"),
        ({"evaluate": "z"}, ValueError, "data.evaluate='z'"),
        ({"channels": 3}, UserError, "data.channels=3, but the parts have"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        mixed(**change)


def test_parts_of_different_shapes_are_refused():
    with pytest.raises(UserError, match="different shapes"):
        MixedData(parts={"a": numbers(0, 10), "b": numbers(0, 10, length=4)})
    with pytest.raises(ValueError, match=r"data\.parts is empty"):
        MixedData(parts={})


@pytest.mark.slow
def test_a_run_on_a_mix(train, tmp_path, shared_dir):
    """From the command line: the model is sized by what the parts have."""
    run = train(
        *["data=mix", "+data@data.parts.small=digits", "+data@data.parts.clothes=fashion_mnist"],
        f"data.parts.clothes.root={shared_dir}/fashion_mnist",
        *["data.parts.clothes.image_size=8", "data.parts.small.views=1", "data.parts.clothes.views=1"],
        "data.weights={small: 3, clothes: 1}",
        "data.batch_size=16",
        *[
            "model.encoder.patch_size=2",
            "model.encoder.embed_dim=32",
            "model.encoder.depth=1",
            "model.encoder.num_heads=2",
        ],
        *["model.predictor.embed_dim=32", "model.predictor.depth=1"],
        *["model.mask.min_context=2", "model.mask.num_targets=2"],
        *["trainer.max_steps=3", "trainer.device=cpu", "trainer.precision=fp32"],
    )
    assert run.returncode == 0, run.stderr
    results = json.loads(next(tmp_path.glob("outputs/*/*/results.json")).read_text())
    assert results["trained"]["linear"] > 0.5  # of digits, the first part
