"""The finders: what they find on problems with a known answer, and that they leave no trace."""

from __future__ import annotations

import contextlib
import copy
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from toy import ToyData, ToyModel, toy_trainer

import jepa
from jepa import find_batch_size, learning_rate_range_test
from jepa.optim import Constant
from jepa.tools.find_batch_size import resized
from jepa.trainer import Trainer
from jepa.utils.errors import UserError
from jepa.utils.snapshot import preserved


class Quadratic(ToyModel):
    """Loss of curvature L = 4 in its only parameter: gradient descent diverges above a rate of 2 / L = 0.5."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), 3.0))
        self.bias = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, batch):
        return SimpleNamespace(values=self.weight * 2**0.5)


def trainer_of(model, folder, optimizer, data=None):
    """A trainer of the model's trained parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    settings = {"max_steps": 5, "device": "cpu", "precision": "fp32", "run_dir": folder}
    optimizer, scheduler = optimizer([{"params": trained, "decays": True}], lr=0.1), {"lr": Constant(value=0.1)}
    return Trainer(model=model, data=data or ToyData(), optimizer=optimizer, scheduler=scheduler, **settings)


def quadratic_trainer(folder):
    return trainer_of(Quadratic(), folder, torch.optim.SGD)


class Rich(ToyModel):
    """With a buffer that changes, one outside the state dict, a frozen part and dropout."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("passes", torch.zeros(()), persistent=False)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, batch):
        self.passes += 1
        latents = super().forward(batch)
        latents.values = self.dropout(self.norm(latents.values)) * self.frozen
        return latents

    def update_target(self, step, run_length):
        self.frozen.data.lerp_(self.bias.data, 0.1)
        return super().update_target(step, run_length)


def rich_trainer(folder):
    return trainer_of(Rich(), folder, torch.optim.AdamW)


def everything(trainer):
    """All that must come back, as values that can be compared."""
    gradients = [None if p.grad is None else p.grad.clone() for p in trainer.model.parameters()]
    return copy.deepcopy(
        {
            "model": trainer.model.state_dict(),
            "buffers": dict(trainer.model.named_buffers()),
            "gradients": gradients,
            "modes": [module.training for module in trainer.model.modules()],
            "optimizer": trainer.optimizer.state_dict(),
            "scaler": trainer.precision.scaler.state_dict(),
            "attributes": {
                name: value
                for name, value in vars(trainer).items()
                if isinstance(value, (int, float, str, dict, list, tuple, type(None)))
            },
            "state": vars(trainer.state),
            "random": (torch.get_rng_state(), np.random.get_state()[1], random.getstate()),
        }
    )


def assert_equal(one, other, where=""):
    if isinstance(one, (torch.Tensor, np.ndarray)):
        assert np.array_equal(np.asarray(one), np.asarray(other)), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other)):
            assert_equal(*pair, f"{where}/{number}")
    else:
        assert one == other, where


def used(trainer, steps=2):
    """The trainer after some steps, with gradients lying about."""
    for batch in trainer.data.train_batches(seed=trainer.seed, start_step=0, stop_step=steps):
        trainer.train_step(batch)
    next(trainer.model.parameters()).grad = torch.ones_like(next(trainer.model.parameters()))
    return trainer


def test_a_quadratic_diverges_above_two_over_its_curvature(tmp_path):
    found = learning_rate_range_test(quadratic_trainer(tmp_path), min_lr=1e-4, max_lr=100, steps=120)
    assert found.ended == "diverged"
    assert 0.5 < found.learning_rates[-1] < 5  # it has to grow again from next to nothing
    assert 0.005 < found.suggestion < 0.5
    assert found.suggestion < found.lowest
    assert len(found.learning_rates) == len(found.losses) == len(found.smoothed)
    ratios = np.diff(np.log(found.learning_rates))
    np.testing.assert_allclose(ratios, np.log(1e6) / 119)
    assert found.losses[0] == pytest.approx(18.0)


def test_the_range_is_gone_through_to_its_end(tmp_path):
    found = learning_rate_range_test(quadratic_trainer(tmp_path), min_lr=1e-4, max_lr=0.3, steps=40)
    assert found.ended == "max_lr"
    assert (found.learning_rates[0], found.learning_rates[-1]) == (pytest.approx(1e-4), pytest.approx(0.3))


def test_it_trains_with_those_rates_on_the_batches_that_come_next(tmp_path, monkeypatch):
    trainer = used(toy_trainer(tmp_path))
    seen = []
    monkeypatch.setattr(trainer.optimizer, "step", lambda: seen.append(trainer.optimizer.param_groups[0]["lr"]))
    found = learning_rate_range_test(trainer, min_lr=1e-5, max_lr=1e-2, steps=10)
    assert seen == pytest.approx(found.learning_rates)
    assert [draw.step for draw in trainer.model.prepared[-10:]] == list(range(2, 12))


def test_no_suggestion_where_nothing_is_learned(tmp_path):
    found = learning_rate_range_test(toy_trainer(tmp_path), min_lr=1e-12, max_lr=1e-11, steps=20)
    assert found.suggestion is None
    assert found.ended == "max_lr"


def test_a_loss_that_is_not_finite_ends_the_test(tmp_path):
    found = learning_rate_range_test(toy_trainer(tmp_path, data=ToyData(poison=7)), max_lr=1e-3, steps=30)
    assert found.ended == "not finite"
    assert len(found.losses) == 7
    with pytest.raises(UserError, match=r"not finite even at the lowest.*find_lr\.min_lr"):
        learning_rate_range_test(toy_trainer(tmp_path, data=ToyData(poison=0)), steps=30)


@pytest.mark.parametrize("start", [lambda trainer: trainer, used])
@pytest.mark.parametrize(
    "find", [lambda t: learning_rate_range_test(t, steps=30, max_lr=10.0), lambda t: find_batch_size(t, max_size=24)]
)
def test_everything_is_put_back(tmp_path, start, find):
    trainer = start(rich_trainer(tmp_path))
    trainer.model.norm.eval()
    before = everything(trainer)
    find(trainer)
    assert_equal(before, everything(trainer))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("find", [lambda t: learning_rate_range_test(t, steps=30), find_batch_size])
def test_everything_is_put_back_after_an_error(tmp_path, monkeypatch, error, find):
    trainer = used(rich_trainer(tmp_path))
    before = everything(trainer)
    forward, calls = trainer.model.loss.forward, []

    def failing(latents):
        calls.append(1)
        if len(calls) == 4:
            raise error("here")
        return forward(latents)

    monkeypatch.setattr(trainer.model.loss, "forward", failing)
    with pytest.raises(error, match="here"):
        find(trainer)
    assert_equal(before, everything(trainer))


def test_a_run_after_the_finders_is_the_run_without_them(tmp_path):
    plain = rich_trainer(tmp_path / "plain")
    plain.fit()
    trainer = rich_trainer(tmp_path / "found")
    learning_rate_range_test(trainer, steps=15)
    find_batch_size(trainer, max_size=8)
    trainer.fit()
    assert_equal(plain.model.state_dict(), trainer.model.state_dict())
    assert_equal(plain.optimizer.state_dict(), trainer.optimizer.state_dict())


def test_preserved_keeps_the_scaler_and_what_objects_hold(tmp_path):
    trainer = toy_trainer(tmp_path)
    trainer.precision.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before, loggers = trainer.precision.scaler.state_dict(), trainer.loggers
    with contextlib.suppress(KeyError), preserved(trainer):
        scaler = trainer.precision.scaler
        scaler.scale(trainer.model.weight.sum()).backward()
        scaler.unscale_(trainer.optimizer)
        scaler._growth_tracker.fill_(5)
        trainer.loggers["more"] = "one more"
        trainer.new = 1
        raise KeyError
    assert not hasattr(trainer, "new")
    assert trainer.precision.scaler.state_dict() == before
    assert trainer.loggers is loggers
    assert loggers == {}
    trainer.precision.scaler.scale(trainer.model.weight.sum()).backward()
    trainer.precision.scaler.unscale_(trainer.optimizer)  # would refuse a second time


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"min_lr": 0.0}, r"find_lr\.min_lr=0"),
        ({"min_lr": 1.0, "max_lr": 0.1}, r"find_lr\.max_lr=0\.1"),
        ({"steps": 3}, r"find_lr\.steps=3"),
        ({"divergence": 1.0}, r"find_lr\.divergence=1"),
        ({"smoothing": -1.0}, r"find_lr\.smoothing=-1"),
    ],
)
def test_settings_that_make_no_range_test(tmp_path, settings, words):
    with pytest.raises(UserError, match=words):
        learning_rate_range_test(toy_trainer(tmp_path), **settings)


# The batch size.


class Hungry(ToyModel):
    """Takes 4 MiB per sample for the backward pass, or runs out of `room` samples as a GPU does."""

    def __init__(self, room=None):
        super().__init__()
        self.room, self.sizes = room, []

    def forward(self, batch):
        latents = super().forward(batch)
        samples = len(latents.values)
        self.sizes.append(samples)
        if self.room is not None and samples > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        if self.room is None:
            big = latents.values[:, :1].expand(samples, 2**20).exp()  # 4 MiB each, kept for the backward pass
            latents.values = latents.values + 0 * big.mean()
        return latents


def hungry_trainer(folder, *, total=96, room=None):
    return trainer_of(Hungry(room), folder, torch.optim.AdamW, ToyData(batch_size=total))


def test_running_out_of_memory_is_caught_and_the_largest_size_found(tmp_path):
    found = find_batch_size(hungry_trainer(tmp_path, room=37))
    assert 35 <= found.largest <= 37
    assert found.suggestion == 32  # of 96
    assert found.overrides == ["trainer.micro_batch_size=32"]
    by_size = {trial.size: trial for trial in found.trials}
    assert by_size[32].fits
    assert by_size[32].samples_per_second > 0
    assert not by_size[64].fits
    assert by_size[64].tried
    assert by_size[64].samples_per_second is None
    assert list(by_size) == sorted(by_size)


def test_other_errors_are_not_taken_for_memory(tmp_path, monkeypatch):
    trainer = hungry_trainer(tmp_path)

    def broken(latents):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(trainer.model.loss, "forward", broken)
    with pytest.raises(RuntimeError, match="do not match"):
        find_batch_size(trainer)


def test_a_memory_limit_is_kept_without_trying_what_would_break_it(tmp_path):
    import psutil

    from jepa.utils.memory import release_freed_memory

    trainer = hungry_trainer(tmp_path)
    release_freed_memory()
    now = psutil.Process().memory_info().rss / 2**30
    limit = now + 0.4  # about 50 samples at 8 MiB
    found = find_batch_size(trainer, limit_gib=limit, repeats=0)
    assert 8 <= found.largest < 96
    assert found.suggestion <= found.largest
    assert 96 % found.suggestion == 0
    assert max(trainer.model.sizes) == found.largest  # nothing that does not fit was run
    assert all(trial.memory_gib < limit for trial in found.trials if trial.fits)
    assert [trial.tried for trial in found.trials if not trial.fits] != []
    assert found.limit_gib == pytest.approx(limit)


def test_a_limit_below_what_the_process_holds_is_refused(tmp_path):
    trainer = hungry_trainer(tmp_path)
    before = everything(trainer)
    with pytest.raises(UserError, match=r"no micro-batch fits: the process holds .* GiB .*limit_gib is 0\.01"):
        find_batch_size(trainer, limit_gib=0.01)
    assert_equal(before, everything(trainer))
    with pytest.raises(UserError, match="optimizer state alone take more than there is"):
        find_batch_size(hungry_trainer(tmp_path, room=0))
    with pytest.raises(UserError, match="a micro-batch of 1 takes more than there is"):
        find_batch_size(full_trainer(tmp_path))


def full_trainer(folder):
    """A trainer whose optimizer has its state, on a device with no room for a sample."""
    trainer = used(hungry_trainer(folder, room=200), steps=1)
    trainer.model.room = 0
    return trainer


def test_the_whole_batch_fits(tmp_path):
    found = find_batch_size(hungry_trainer(tmp_path, total=6, room=1000))
    assert (found.suggestion, found.largest) == (6, 24)
    found = find_batch_size(hungry_trainer(tmp_path, total=6, room=1000), max_size=5)
    assert (found.suggestion, found.largest) == (3, 5)
    assert {trial.size for trial in found.trials} >= {1, 2, 3, 4, 5}


def test_statistics_over_a_batch_need_two_samples_and_are_announced(tmp_path, monkeypatch):
    trainer = hungry_trainer(tmp_path, room=10)
    monkeypatch.setattr(type(trainer.model.loss), "batch_statistics", True)
    found = find_batch_size(trainer)
    assert min(trial.size for trial in found.trials) == 2
    assert found.overrides == ["trainer.micro_batch_size=8", "trainer.allow_microbatch_statistics=true"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"limit_gib": 0.0}, "limit_gib=0"), ({"max_size": 0}, "max_size=0"), ({"repeats": -1}, "repeats=-1")],
)
def test_settings_that_make_no_search(tmp_path, settings, words):
    with pytest.raises(UserError, match=words):
        find_batch_size(toy_trainer(tmp_path), **settings)


def test_batches_are_resized_by_repeating_samples():
    batch = {"x": torch.arange(3)}
    assert resized(batch, 2, "cpu")["x"].tolist() == [0, 1]
    assert resized(batch, 7, "cpu")["x"].tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_finders_that_give_numbers(tmp_path):
    """By the names that guides use."""
    rate = jepa.find_learning_rate(quadratic_trainer(tmp_path), min_lr=1e-4, max_lr=100, steps=120)
    found = learning_rate_range_test(quadratic_trainer(tmp_path), min_lr=1e-4, max_lr=100, steps=120)
    assert isinstance(rate, float)
    assert rate == found.suggestion
    with pytest.raises(UserError, match=r"never fell by more than its noise between min_lr=1e-12 and max_lr=1e-11"):
        jepa.find_learning_rate(toy_trainer(tmp_path), min_lr=1e-12, max_lr=1e-11, steps=20)
    size = jepa.find_optimal_batch_size(hungry_trainer(tmp_path, room=37))
    assert isinstance(size, int)
    assert size == find_batch_size(hungry_trainer(tmp_path, room=37)).largest
    for batch in ({"x": torch.randn(16, 3)}, torch.randn(16, 3), (torch.randn(16, 3), torch.zeros(16))):
        assert jepa.find_optimal_batch_size(Hungry(37), [batch], device="cpu") == size
    for wrong in ((Hungry(37),), (nn.Linear(3, 2), [torch.randn(16, 3)])):
        with pytest.raises(UserError, match=r"expected a trainer, or a model with its loss .* and a dataloader"):
            jepa.find_optimal_batch_size(*wrong)
    with pytest.raises(UserError, match="the loader yields str, expected"):
        jepa.find_optimal_batch_size(Hungry(37), ["x"], device="cpu")
    assert jepa.find_batch_size is find_batch_size
