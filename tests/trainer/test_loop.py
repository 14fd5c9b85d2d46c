"""One optimizer step: accumulation, clipping, finiteness, schedules, a user's own step."""

from __future__ import annotations

import json
import re
from functools import partial

import pytest
import torch
from toy import ToyData, toy_trainer

from jepa import build_trainer, load_config
from jepa.monitor import CollapseMonitor
from jepa.optim import Cosine, Linear
from jepa.trainer import JSONLines, Logger, Trainer
from jepa.trainer.gradients import clip_gradients
from jepa.trainer.precision import resolve_device, resolve_precision
from jepa.types import StepRandomness
from jepa.utils.errors import NonFiniteError, UserError
from jepa.utils.run_status import read_status

PLAIN = (
    "data.batch_size=24",
    "optimizer._target_=torch.optim.SGD",
    "scheduler=constant",
    "optimizer.lr=0.05",
    "~logger.console",
    "~logger.jsonl",
    "~logger.tensorboard",
    "evaluation=none",
)


class Memory(Logger):
    """Keeps what it is told."""

    def __init__(self):
        self.lines, self.messages, self.closed = [], [], False

    def log(self, metrics, step):
        self.lines.append({"step": step, **metrics})

    def message(self, text):
        self.messages.append(str(text))

    def close(self):
        self.closed = True

    def values(self, name):
        return [line[name] for line in self.lines if name in line]


def fit(tmp_path, **settings):
    """The losses and the trainer of a fitted toy."""
    memory = Memory()
    trainer = toy_trainer(tmp_path / str(len(list(tmp_path.iterdir()))), loggers=[memory], **settings)
    if trainer.precision.name == "fp16":
        trainer.precision.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)  # the usual one overflows the toy
    trainer.fit()
    return memory.values("train/loss"), trainer


def weights_of(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


# Accumulation.


@pytest.mark.slow
def test_micro_batches_equal_the_whole_batch(tiny, tmp_path):
    """The real model: masks, losses and weights do not depend on how the batch is cut."""
    runs = []
    for size in (24, 6):
        options = ["trainer.max_steps=5", f"trainer.micro_batch_size={size}", f"run_dir={tmp_path}/{size}"]
        trainer, memory = build_trainer(load_config([*tiny, *PLAIN, *options])), Memory()
        trainer.loggers["memory"] = memory
        trainer.fit()
        runs.append((memory.values("train/loss"), memory.values("grad_norm"), trainer))
    (losses, norms, whole), (other_losses, other_norms, other) = runs
    assert len(losses) == len(set(losses)) == 5
    assert other_losses == pytest.approx(losses, rel=2e-6)
    assert other_norms == pytest.approx(norms, rel=2e-5)
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(other.model.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    assert other.validate() == pytest.approx(whole.validate(), rel=1e-5)


def test_each_micro_batch_takes_its_slice_of_the_draw(tmp_path):
    losses, whole = fit(tmp_path)
    part_losses, parts = fit(tmp_path, micro_batch_size=4)
    assert part_losses == pytest.approx(losses, rel=1e-6)
    torch.testing.assert_close(parts.model.weight, whole.model.weight, rtol=1e-6, atol=1e-7)
    draws = parts.model.prepared[:3]
    assert [(d.step, d.total, d.start, d.count) for d in draws] == [(0, 12, start, 4) for start in (0, 4, 8)]
    assert parts.validate() == pytest.approx(whole.validate(), rel=1e-6)


@pytest.mark.parametrize("size", [0, 5])
def test_a_micro_batch_that_does_not_divide_names_those_that_do(tmp_path, size):
    message = rf"micro_batch_size={size} does not divide data.batch_size=12.*\[1, 2, 3, 4, 6, 12\]"
    with pytest.raises(UserError, match=message):
        toy_trainer(tmp_path, micro_batch_size=size)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["loss=invariance_sigreg"], r"loss\.terms\.sigreg \(SIGReg\), the batch norm of loss\.projector\."),
        (["loss=contrastive", "data.views=2"], r"loss\.terms\.\w+ \(InfoNCE\)\."),
    ],
)
def test_batch_statistics_refuse_micro_batches_and_name_three_ways_out(tiny, tmp_path, options, what):
    overrides = [*tiny, *options, *PLAIN[-4:], "trainer.micro_batch_size=8", f"run_dir={tmp_path}"]
    with pytest.raises(UserError, match=rf"trainer\.micro_batch_size=8 would split .* of the batch: {what}") as error:
        build_trainer(load_config(overrides))
    ways = re.findall(r"[\w.]+=\w+", str(error.value))[1:]
    assert [way.partition("=")[0] for way in ways] == [
        *("trainer.micro_batch_size", "trainer.activation_checkpointing", "data.batch_size"),
        "trainer.allow_microbatch_statistics",
    ]
    for options in (ways[:2], ways[2:3], ways[3:]):
        build_trainer(load_config([*overrides, *options]))
    trainer = build_trainer(load_config([*overrides, ways[3]]))
    assert trainer.micro_batch_size == 8
    assert build_trainer(load_config([*overrides, "trainer.micro_batch_size=32"])).micro_batch_size == 32


# Clipping.


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.fixture
def linear():
    model = torch.nn.Linear(3, 2)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 3
    return model


def test_clipping_in_closed_form(linear):
    before = gradients(linear).clone()
    assert clip_gradients(linear, None, None).item() == pytest.approx(before.norm().item())
    assert torch.equal(gradients(linear), before)
    assert clip_gradients(linear, 1e6, 1e6).item() == pytest.approx(before.norm().item())
    torch.testing.assert_close(gradients(linear), before)
    assert clip_gradients(linear, 0.5, None).item() == pytest.approx(before.norm().item())
    torch.testing.assert_close(gradients(linear), before * (0.5 / (before.norm() + 1e-6)))


def test_clipping_by_value_comes_before_the_norm(linear):
    before = gradients(linear).clone()
    assert before.abs().max() > 1
    assert clip_gradients(linear, 0.5, 1.0).item() == pytest.approx(before.norm().item())
    clamped = before.clamp(-1, 1)
    torch.testing.assert_close(gradients(linear), clamped * (0.5 / (clamped.norm() + 1e-6)))


@pytest.mark.parametrize("value", [None, 1.0])
def test_parts_are_clipped_apart(linear, value):
    model = torch.nn.ModuleDict({"encoder": linear, "head": torch.nn.Linear(2, 1), "loss": torch.nn.Linear(1, 1)})
    for p in [*model["head"].parameters(), *model["loss"].parameters()]:
        p.grad = torch.full_like(p, 0.4)
    before = gradients(model)
    assert clip_gradients(model, 0.5, value, ["encoder"]).item() == pytest.approx(before.norm().item())
    parts = before.clamp(-(value or torch.inf), value or torch.inf).split([8, 5])  # head and loss together
    expected = torch.cat([part * (0.5 / (part.norm() + 1e-6)) for part in parts])
    torch.testing.assert_close(gradients(model), expected)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"grad_clip_norm": 0.01}, lambda g: g * (0.01 / (g.norm() + 1e-6))),
        ({"grad_clip_value": 0.2}, lambda g: g.clamp(-0.2, 0.2)),
    ],
)
def test_the_loop_clips(tmp_path, setting, expected):
    trainer = toy_trainer(tmp_path, max_steps=1, lr=1.0, **setting)
    before = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
    free = toy_trainer(tmp_path / "free", max_steps=1, lr=1.0)
    free.fit()
    gradient = before - torch.cat([p.detach().flatten() for p in free.model.parameters()])
    trainer.fit()
    moved = before - torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    torch.testing.assert_close(moved, expected(gradient), rtol=1e-4, atol=1e-6)
    assert trainer.metrics["grad_norm"] == pytest.approx(gradient.norm().item(), rel=1e-4)


# Finiteness and fp16.


@pytest.mark.faults
def test_a_non_finite_loss_stops_before_the_weights_move(tmp_path):
    trainer = toy_trainer(tmp_path, data=ToyData(poison=2))
    healthy = toy_trainer(tmp_path / "healthy", max_steps=2)
    healthy.fit()
    with pytest.raises(NonFiniteError, match=r"not finite at step 3: .*train/loss=(inf|nan)"):
        trainer.fit()
    assert trainer.step == 2
    for name, value in weights_of(healthy).items():
        assert torch.equal(weights_of(trainer)[name], value)


class Poisoned(ToyData):
    """Infinite at step 3 while the seed of steps is below `cured_by`."""

    def __init__(self, cured_by):
        super().__init__()
        self.cured_by = cured_by

    def train_batches(self, *, seed, **steps):
        self.poison = 3 if seed < self.cured_by else None
        return super().train_batches(seed=seed, **steps)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.faults
def test_a_non_finite_loss_goes_back_where_the_monitor_does(tmp_path, precision):
    def rolling_back(name, cured_by):
        monitor = CollapseMonitor(on_collapse="rollback", max_rollbacks=2)
        settings = {"monitor": monitor, "precision": precision, "save_every_steps": 2}
        trainer = toy_trainer(tmp_path / name, data=Poisoned(cured_by), loggers=[Memory(), JSONLines()], **settings)
        if precision == "fp16":
            trainer.precision.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        return trainer

    cured = rolling_back("cured", 2)
    cured.fit()
    assert cured.step == 5
    assert [(back["from"], back["to"]) for back in cured.state.rollbacks] == [(3, 2)] * 2
    assert "not finite at step 4: rollback 1 of at most 2, back from step 3 to 2" in cured.loggers["0"].messages[3]
    lines = [json.loads(line) for line in (tmp_path / "cured" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4, 5]
    assert [line["lr"] for line in lines if "train/loss" in line] == [0.1] * 2 + [0.025] * 3
    hopeless = rolling_back("hopeless", 9)
    with pytest.raises(NonFiniteError, match=r"not finite at step 4: .*train/loss=.*\(after 2 rollbacks\)"):
        hopeless.fit()
    status = read_status(tmp_path / "hopeless")
    assert (status.state, status.verdict, status.step) == ("failed", "diverged", 3)


class InfiniteGradient(Trainer):
    """Overflows the gradient, not the loss, in the steps of `overflows`."""

    overflows = (1,)

    def training_step(self, batch, step):
        loss = self.criterion(self.model(self.prepare_batch(batch)))["loss"]
        if step in self.overflows:
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss


@pytest.mark.faults
def test_a_non_finite_gradient_stops_fp32(tmp_path):
    with pytest.raises(NonFiniteError, match="at step 2"):
        fit(tmp_path, kind=InfiniteGradient)


def test_fp16_skips_a_step_that_overflows(tmp_path):
    seen = []

    class Watch(InfiniteGradient):
        def train_step(self, batch):
            values = super().train_step(batch)
            seen.append((self.precision.scaler.get_scale(), self.model.weight.detach().clone()))
            return values

    _, trainer = fit(tmp_path, kind=Watch, precision="fp16", max_steps=3)
    scales, weights = zip(*seen)
    assert trainer.precision.scaler.is_enabled()
    assert torch.equal(weights[1], weights[0])
    assert not torch.equal(weights[2], weights[1])
    assert scales[1] == scales[0] / 2 == scales[2]
    assert trainer.model.updates == [0, 2]
    assert trainer.step == 3


def test_fp16_counts_good_steps_anew_after_a_skipped_one(tmp_path):
    class Third(InfiniteGradient):
        overflows = (2,)

    memory = []
    trainer = toy_trainer(tmp_path, kind=Third, precision="fp16", max_steps=4)
    trainer.precision.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=3)
    step = trainer.train_step

    def watch(batch):
        values = step(batch)
        memory.append(trainer.precision.scaler.get_scale())
        return values

    trainer.train_step = watch
    trainer.fit()
    assert memory == [256, 256, 128, 128]


def test_fp16_gives_up_after_many_skipped_steps(tmp_path):
    class Always(InfiniteGradient):
        overflows = range(100)

    with pytest.raises(NonFiniteError, match="at step 21"):
        fit(tmp_path, kind=Always, precision="fp16", max_steps=100)


def test_fp16_scaling_cancels(tmp_path):
    losses, _ = fit(tmp_path)
    scaled, trainer = fit(tmp_path, precision="fp16")
    assert scaled == pytest.approx(losses, rel=1e-2)
    assert trainer.metrics["grad_norm"] < 100


def test_resuming_fp32_in_fp16(tmp_path):
    first = toy_trainer(tmp_path, max_steps=2)
    first.fit()
    second = toy_trainer(tmp_path, max_steps=4, precision="fp16", resume="auto")
    second.fit()
    assert second.step == 4


def test_names_of_devices_and_precisions():
    with pytest.raises(UserError, match=r"trainer.device=cudda cannot be used here"):
        resolve_device("cudda")
    with pytest.raises(UserError, match=r"trainer.precision=fp8: expected auto, fp32, bf16, fp16"):
        resolve_precision("fp8", torch.device("cpu"))
    assert resolve_precision("auto", torch.device("cpu")) in ("bf16", "fp32")


# Schedules.


def test_schedules_reach_the_optimizer(tmp_path):
    seen = []

    class Watch(torch.optim.SGD):
        def step(self, closure=None):
            seen.append([(group["lr"], group["weight_decay"]) for group in self.param_groups])
            return super().step(closure)

    memory = Memory()
    trainer = toy_trainer(tmp_path, optimizer=Watch, loggers=[memory], max_steps=4)
    lr, decay = Linear(start=0.0, final=0.4), Cosine(start=0.1, final=0.3)
    trainer.scheduler = {"lr": lr, "weight_decay": decay}
    trainer.fit()
    expected = [(lr(n, trainer.run_length), decay(n, trainer.run_length)) for n in (0, 1, 2, 3)]
    assert [first for first, _ in seen] == expected
    assert [second for _, second in seen] == [(rate, 0.0) for rate, _ in expected]
    assert memory.values("lr") == [rate for rate, _ in expected] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert memory.values("weight_decay") == [value for _, value in expected]
    assert memory.values("momentum") == [0.5] * 4
    assert trainer.model.updates == [0, 1, 2, 3]


def test_the_length_of_a_run(tmp_path):
    assert toy_trainer(tmp_path, max_steps=None, max_epochs=4).run_length.max_steps == 10  # 4 * 30 / 12
    assert toy_trainer(tmp_path, max_steps=7, max_epochs=4).run_length.max_steps == 7
    none = {"max_steps": None, "max_epochs": None}
    for wrong in (none, {"max_steps": 0}, {**none, "max_epochs": -1}):
        with pytest.raises(UserError, match=r"trainer.max_"):
            toy_trainer(tmp_path, **wrong)
    with pytest.raises(UserError, match="log_every"):
        toy_trainer(tmp_path, log_every=0)


# A user's own step.


class OwnDict(Trainer):
    """A step that gives a dict."""

    def training_step(self, batch, step):
        prepared = self.prepare_batch(batch)
        assert self.prepare_batch(prepared) is prepared
        loss = self.criterion(self.model(prepared))["loss"]
        return {"loss": 2 * loss, "half": loss / 2, "count": step}


class OwnBare(Trainer):
    """A step that gives a scalar."""

    def training_step(self, batch, step):
        return 2 * self.criterion(self.model(self.prepare_batch(batch)))["loss"]


def test_own_training_steps(tmp_path):
    losses, _ = fit(tmp_path, max_steps=1)
    doubled, own = fit(tmp_path, kind=OwnDict, max_steps=1, micro_batch_size=4)
    bare, _ = fit(tmp_path, kind=OwnBare, max_steps=1)
    assert doubled == pytest.approx([2 * losses[0]], rel=1e-6)
    assert bare == pytest.approx(doubled)
    assert own.metrics["train/half"] == pytest.approx(losses[0] / 2, rel=1e-6)
    assert own.metrics["train/count"] == 0


class OwnCriterion(Trainer):
    """Parts of the step, which the stock step and validation use."""

    @property
    def criterion(self):
        return lambda latents: {"loss": 3 * super(OwnCriterion, self).criterion(latents)["loss"]}


class OwnBatches(Trainer):
    """A batch of its own making."""

    def prepare_batch(self, batch):
        prepared = super().prepare_batch(batch)
        return {**prepared, "x": 0 * prepared["x"]}


def test_own_parts_of_the_step(tmp_path):
    losses, _ = fit(tmp_path, max_steps=1)
    tripled, own = fit(tmp_path, kind=OwnCriterion, max_steps=1, lr=0.0, micro_batch_size=4)
    assert tripled == pytest.approx([3 * losses[0]], rel=1e-6)
    still = toy_trainer(tmp_path / "still", max_steps=1)
    assert own.validate() == pytest.approx(3 * still.validate(), rel=1e-6)
    empty = ToyData(scale=0.0)
    assert fit(tmp_path, kind=OwnBatches, max_steps=1)[0] == fit(tmp_path, data=empty, max_steps=1)[0]


def test_a_model_of_parts_alone(tmp_path):
    """One that has `prepare`, `forward` and `loss`, but no step of its own."""
    losses, _ = fit(tmp_path)
    trainer, memory = toy_trainer(tmp_path / "parts"), Memory()
    trainer.loggers["memory"] = memory
    whole, trainer.model.__class__ = type(trainer.model), type("Parts", (torch.nn.Module,), {})
    for name in ("prepare", "forward", "set_step", "update_target"):
        setattr(trainer.model, name, partial(getattr(whole, name), trainer.model))
    trainer.fit()
    assert memory.values("train/loss") == losses


def test_a_step_is_one_call_of_the_model(tmp_path):
    trainer = toy_trainer(tmp_path)
    batch, rng = {"x": torch.ones(12, 3)}, StepRandomness(seed=0, step=0, total=12, start=0, count=12)
    once = trainer.model.training_step(batch, rng)
    assert once.keys() == {"loss", "loss/square"}
    assert trainer.training_step(batch, 0)["loss"] == once["loss"]
    assert trainer.training_step(trainer.prepare_batch(batch), 0)["loss"] == once["loss"]


def test_prepare_batch_outside_the_loop(tmp_path):
    trainer = toy_trainer(tmp_path)
    batch = {"x": torch.zeros(12, 3)}
    once = trainer.prepare_batch(batch)
    assert once["noise"].shape == (12, 2)
    assert torch.equal(once["noise"], trainer.prepare_batch(batch)["noise"])
    assert trainer.prepare_batch(once) is once
    trainer.state.step = 1
    assert not torch.equal(once["noise"], trainer.prepare_batch(batch)["noise"])


# Validation and words.


def test_validation_is_the_same_every_time_and_moves_nothing(tiny, tmp_path):
    trainer = build_trainer(load_config([*tiny, *PLAIN[-4:], "model.encoder.dropout=0.1", f"run_dir={tmp_path}"]))
    before = {name: t.clone() for name, t in trainer.model.state_dict().items()}
    random_state = torch.get_rng_state()
    first = trainer.validate()
    assert torch.equal(torch.get_rng_state(), random_state)
    torch.rand(5)
    trainer.state.step = 3
    assert trainer.validate() == first
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert trainer.step == 3
    assert not list(tmp_path.rglob("*.pt"))


def test_validating_does_not_change_training(tmp_path):
    losses, plain = fit(tmp_path)
    watched, other = fit(tmp_path, validate_every_steps=1)
    assert watched == losses
    assert torch.equal(other.model.weight, plain.model.weight)
    assert other.metrics["val/loss"] == other.validate()


def test_what_a_run_says_and_logs(tmp_path):
    memory = Memory()
    trainer = toy_trainer(tmp_path, loggers=[memory], log_every=2, validate_every_steps=5, micro_batch_size=6)
    metrics = trainer.fit()
    assert memory.closed
    assert memory.messages[0] == f"training from scratch in {tmp_path}"
    assert "5 steps of 12 (2 x 6) on cpu in fp32" in memory.messages[1]
    training = [line["step"] for line in memory.lines if "train/loss" in line]
    assert training == [1, 2, 4, 5]
    assert [line["step"] for line in memory.lines if "val/loss" in line] == [5]
    last = next(line for line in memory.lines if line["step"] == 5)
    assert {"train/loss/square", "grad_norm", "samples_per_second", "data_wait"} <= set(last)
    assert last["epoch"] == 2.0
    assert all(type(value) in (int, float) for line in memory.lines for value in line.values())
    assert metrics["train/loss"] == last["train/loss"]


def test_loggers_are_closed_when_a_run_fails(tmp_path):
    memory = Memory()
    with pytest.raises(NonFiniteError):
        toy_trainer(tmp_path, data=ToyData(poison=0), loggers=[memory]).fit()
    assert memory.closed
