"""Steps that are not waited for: what is not finite is left out on the device, and raised with the next step."""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from toy import ToyData, assert_identical, toy_trainer

from jepa import build_trainer, load_config
from jepa.checkpoint import plain
from jepa.masks import MultiBlockMask, SpanMask
from jepa.models import EMATarget
from jepa.optim import Constant
from jepa.trainer import Callback, Trainer
from jepa.types import RunLength
from jepa.utils.errors import Interrupted, NonFiniteError

STEPS_ALONE = ("log_every=100", "max_steps=30", "save_every_epochs=null", "validate_every_epochs=null")
ALONE = {"save_every_epochs": None}
QUIET = ("evaluation=none", "visualise=none", "monitor=none", "~logger.console", "~logger.jsonl", "~logger.tensorboard")


class Lagging(Trainer):
    """Goes unread on the CPU too where it would on a GPU."""

    lagged = 0

    def lags_at(self, step):
        device, self.device = self.device, torch.device("cuda")
        lags = super().lags_at(step)
        self.device = device
        self.lagged += lags
        return lags


def adamw(groups, lr):
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def sgd(groups, lr):
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, fused=True)


def averaged(trainer):
    """Give the toy an average of its weights, updated as a model's target is."""
    model = trainer.model
    model.encoder = torch.nn.ParameterList([model.weight, model.bias])
    model.encoder.embed_dim, model.encoder.depth = 2, 0
    model.target = EMATarget(encoder=model.encoder, momentum=Constant(value=0.7))
    model.update_target = super(type(model), model).update_target
    return trainer


def content_of(trainer):
    content = trainer.checkpoints.content()
    return {name: content[name] for name in ("model", "optimizer", "step", "scaler")}


@pytest.mark.faults
@pytest.mark.parametrize("optimizer", [adamw, sgd])
@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_all_is_as_if_the_step_had_raised(tmp_path, optimizer, bad):
    def stopped(name, kind):
        class Bad(kind):
            def forward_backward(self, batch):
                values = super().forward_backward(batch)
                if self.step == 3 and bad == "gradient":
                    self.model.weight.grad[0, 0] = float("inf")
                return values

        poison = 3 if bad == "loss" else None
        settings = {"kind": Bad, "data": ToyData(poison=poison), "optimizer": optimizer, "log_every": 9, "max_steps": 8}
        settings |= ALONE
        trainer = averaged(toy_trainer(tmp_path / name, **settings))
        with pytest.raises(
            NonFiniteError, match=r"not finite at step 4: train/loss=\S+ .*grad_norm=(inf|nan)"
        ) as error:
            trainer.fit()
        return trainer, str(error.value)

    (read, said), (unread, said_later) = stopped("read", Trainer), stopped("unread", Lagging)
    assert unread.lagged >= 3
    assert unread.step == read.step == 3
    assert said_later == said
    assert_identical(content_of(unread), content_of(read))


@pytest.mark.parametrize("optimizer", [adamw, sgd])
def test_a_sound_run_is_the_same(tmp_path, optimizer):
    settings = {"optimizer": optimizer, "log_every": 5, "max_steps": 12, "grad_clip_norm": 0.5, **ALONE}
    read, unread = (
        averaged(toy_trainer(tmp_path / kind.__name__, kind=kind, **settings)) for kind in (Trainer, Lagging)
    )
    read.fit()
    unread.fit()
    assert unread.lagged == 8  # all but 1, 5, 10 and 12
    assert_identical(content_of(unread), content_of(read))


class Look(Callback):
    """Looks at every step."""


@pytest.mark.parametrize(
    ("settings", "lagged"),
    [
        ({}, 6),
        ({"optimizer": torch.optim.AdamW}, 0),  # not fused
        ({"callbacks": {"look": Look()}}, 0),
        ({"save_every_steps": 4}, 5),
        ({"validate_every_steps": 2}, 3),
        ({"precision": "fp16"}, 0),
    ],
)
def test_steps_that_somebody_looks_at_are_read(tmp_path, settings, lagged):
    options = {"optimizer": adamw, "log_every": 100, "max_steps": 8, **ALONE, **settings}
    trainer = averaged(toy_trainer(tmp_path, kind=Lagging, **options))
    trainer.fit()
    assert trainer.lagged == lagged
    assert trainer.guard.behind == 0


def test_a_target_of_a_user_is_waited_for(tmp_path):
    trainer = toy_trainer(
        tmp_path, kind=Lagging, optimizer=adamw, log_every=100, max_steps=8, **ALONE
    )  # updates without skip
    trainer.fit()
    assert trainer.lagged == 0


@pytest.mark.faults
def test_a_signal_stops_a_step_later_and_the_run_goes_on_exactly(tmp_path):
    class Stopped(Lagging):
        def forward_backward(self, batch):
            if self.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().forward_backward(batch)

    settings = {"optimizer": adamw, "log_every": 100, "max_steps": 8, **ALONE}
    whole = averaged(toy_trainer(tmp_path / "whole", **settings))
    whole.fit()
    with pytest.raises(Interrupted, match="stopped at step 5 of 8"):
        averaged(toy_trainer(tmp_path / "parts", kind=Stopped, **settings)).fit()
    assert plain.read(tmp_path / "parts" / "checkpoints" / "last.pt")["step"] == 5
    resumed = averaged(toy_trainer(tmp_path / "parts", kind=Lagging, resume="auto", **settings))
    resumed.fit()
    assert_identical(content_of(resumed), content_of(whole))


@pytest.mark.parametrize("skip", [0.0, 1.0])
def test_a_target_skips_on_the_device(skip):
    encoder = torch.nn.BatchNorm1d(4)
    encoder.embed_dim, encoder.depth = 4, 0
    target = EMATarget(encoder=encoder, momentum=Constant(value=0.6))
    with torch.no_grad():
        encoder.weight.add_(torch.randn(4))
        encoder.running_mean.add_(torch.randn(4))
    before = {name: value.clone() for name, value in target.encoder.state_dict().items()}
    run_length = RunLength(max_steps=3, steps_per_epoch=1)
    target.update(encoder, 0, run_length, skip=torch.tensor(skip))
    skipped = target.encoder.state_dict()
    skipped = {name: value.clone() for name, value in skipped.items()}
    if skip:
        assert_identical(skipped, before)
        return
    other = EMATarget(encoder=encoder, momentum=Constant(value=0.6))
    other.encoder.load_state_dict(before)
    other.update(encoder, 0, run_length)
    assert_identical(skipped, dict(other.encoder.state_dict()))
    assert not torch.equal(skipped["weight"], before["weight"])


@pytest.fixture
def one_rank():
    """A group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.faults
@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_sharded_weights_too(tiny, tmp_path, strategy):
    def stopped(kind):
        options = [f"trainer.strategy={strategy}", "trainer.log_every=100", f"run_dir={tmp_path / kind.__name__}"]
        config = load_config([*tiny, *QUIET, *options])
        config.trainer._target_ = f"{kind.__module__}.{kind.__name__}"
        trainer = build_trainer(config)
        forward_backward = trainer.forward_backward

        def bad(batch):
            values = forward_backward(batch)
            return {**values, "train/loss": values["train/loss"] * (float("nan") if trainer.step == 3 else 1)}

        trainer.forward_backward = bad
        with pytest.raises(NonFiniteError, match="not finite at step 4"):
            trainer.fit()
        content = trainer.checkpoints.content(gather=True)
        return trainer, {"model": content["model"], "moments": content["optimizer"]["state"], "step": content["step"]}

    (_, read), (trainer, unread) = stopped(Trainer), stopped(Lagging)
    assert trainer.lagged == 3
    assert trainer.parallel.name == strategy
    assert_identical(unread, read)


class NoWaiting(TorchDispatchMode):
    """Raises where a GPU would be waited for: values are read, sizes depend on them, or numbers are copied there."""

    WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique", "aten::unique")
    WAITING += ("aten::lift_fresh", "aten::is_nonzero", "aten::equal")

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.name()
        assert not name.startswith(self.WAITING), f"{name} waits for the device"
        if name.startswith("aten::index"):
            assert all(i is None or i.dtype != torch.bool for i in arguments[1]), f"{name} by bool waits for the device"
        return function(*arguments, **(options or {}))


SMALL = ("model.encoder.depth=1", "data.batch_size=8", "trainer.device=cpu", "trainer.precision=bf16")


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=vit", "model.predictor.depth=1"],
        ["model=vit", "model.predictor.depth=1", "loss=contrastive", "data.views=2"],
        ["model=lejepa", "data.views=2"],
        ["model=video", "data=moving_mnist", "data.root=SHARED/mnist", "data.source.train_clips=32"],
        ["experiment=series_ecg5000", "data.root=SHARED/ucr", "model/mask=span"],
    ],
    ids=["default", "contrastive", "lejepa", "video", "series"],
)
def test_a_step_that_nobody_looks_at_waits_for_no_device(shared_dir, tmp_path, monkeypatch, overrides):
    def on_the_host(function):
        def call(*arguments):
            with _disable_current_modes():
                return function(*arguments)

        return call

    # What these compute lies on the CPU, also of a training on a GPU.
    for masker, name in ((MultiBlockMask, "_draw_area"), (SpanMask, "sizes")):
        monkeypatch.setattr(masker, name, on_the_host(getattr(masker, name)))
    settings = [*SMALL, *(f"trainer.{setting}" for setting in STEPS_ALONE), f"run_dir={tmp_path}"]
    overrides = [override.replace("SHARED", str(shared_dir / "data")) for override in overrides]
    config = load_config([*overrides, *settings, *QUIET])
    config.trainer._target_ = f"{Lagging.__module__}.Lagging"
    trainer = build_trainer(config)
    trainer.guard.may_lag = True
    for batch in trainer.data.train_batches(seed=0, start_step=0, stop_step=16):
        # All areas of target blocks have been met by then.
        with NoWaiting() if trainer.step >= 12 else nullcontext():
            trainer.log_step(trainer.train_step(batch))
    assert trainer.lagged == 15
