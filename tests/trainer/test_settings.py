"""Settings of the trainer: lengths and limits, stopping, kernels, layers compiled or computed again."""

from __future__ import annotations

import json
import re

import pytest
import torch
from toy import ToyData, file_contents, toy_trainer

from jepa import build_trainer, load_config
from jepa.trainer import Callback, JSONLines, Logger, Trainer
from jepa.trainer.precision import Precision
from jepa.trainer.prefetch import prefetch, to_device
from jepa.utils.errors import UserError

REAL = ("evaluation=none", "~logger.console", "~logger.jsonl", "~logger.tensorboard", "trainer.save_every_epochs=null")


class Losses(Logger):
    """Keeps the losses and what is said."""

    def __init__(self):
        self.losses, self.words = [], []

    def log(self, metrics, step):
        if "train/loss" in metrics:
            self.losses.append(metrics["train/loss"])

    def message(self, text):
        self.words.append(str(text))


def fit_real(tiny, folder, *overrides):
    """The losses and the trainer of a real model after a few steps."""
    trainer, kept = build_trainer(load_config([*tiny, *REAL, f"run_dir={folder}", *overrides])), Losses()
    trainer.loggers["kept"] = kept
    trainer.fit()
    return kept.losses, trainer


# Lengths and limits.


def test_lengths_in_samples_and_limited_epochs(tmp_path):
    def run_length(**settings):
        return toy_trainer(tmp_path, **{"max_steps": None, **settings}).run_length

    assert run_length(max_samples=100).max_steps == 8  # of 12
    assert run_length(max_samples=1).max_steps == 1
    assert run_length(max_samples=100, max_steps=3).max_steps == 3
    assert run_length(max_samples=100, max_epochs=1).max_steps == 8
    limited = run_length(max_epochs=3, limit_train_batches=2)  # an epoch has 2.5 batches
    assert (limited.max_steps, limited.steps_per_epoch, limited.epoch(4)) == (6, 2, 2.0)
    assert run_length(max_epochs=2, limit_train_batches=9).max_steps == 5
    for name, message in (
        ("max_samples", "max_samples=0: expected a value above 0, or null"),
        ("limit_train_batches", "limit_train_batches=0: expected a value above 0"),
        ("limit_val_batches", "limit_val_batches=0: expected a value above 0, or null"),
        ("grad_clip_norm", "grad_clip_norm=0: expected a value above 0"),
    ):
        with pytest.raises(UserError, match=f"trainer.{message}"):
            run_length(**{name: 0}, max_epochs=1)
    for part, message in (("encodr", r"a list of parts of the model \(loss\)"), ("loss", "set trainer.grad_clip_norm")):
        with pytest.raises(UserError, match=message):
            run_length(grad_clip_apart=[part], max_epochs=1)


def test_limited_epochs_and_validation_in_the_loop(tmp_path):
    seen = []

    class Data(ToyData):
        def validation_batches(self, *, batch_size):
            for batch in super().validation_batches(batch_size=batch_size):
                seen.append(len(batch["x"]))
                yield batch

    limits = {"limit_train_batches": 2, "limit_val_batches": 1}
    trainer = toy_trainer(
        tmp_path, data=Data(), max_steps=None, max_epochs=2, validate_every_epochs=1, save_every_epochs=None, **limits
    )
    trainer.fit()
    assert trainer.step == 4
    limited = trainer.validate()
    assert trainer.metrics["val/loss"] == limited
    taken = len(seen)
    trainer.limit_val_batches = 2
    assert trainer.validate() != limited
    assert sum(seen[taken:]) == 20  # all of it
    assert seen[:taken] == [12] * taken


# Stopping.


class StopAt(Callback):
    """Stops at a step."""

    def __init__(self, step):
        self.step, self.ended = step, 0

    def step_end(self, trainer):
        if trainer.step == self.step:
            trainer.stop("enough of it")

    def end(self, trainer):
        self.ended += 1


def test_a_stopped_run_ends_whole_and_stays_so(tmp_path):
    stopper = StopAt(3)
    settings = {"max_steps": 8, "validate_every_steps": 3, "save_every_steps": 5}
    trainer = toy_trainer(tmp_path, callbacks={"stop": stopper}, loggers=[JSONLines()], **settings)
    metrics = trainer.fit()
    assert trainer.step == 3
    (costs,) = (line for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if "cost/" in line)
    assert json.loads(costs) == {"step": 3, "epoch": 1.2, **{n: v for n, v in metrics.items() if n.startswith("cost/")}}
    assert (metrics["cost/samples"], metrics["cost/parameters"]) == (36, 8)
    assert stopper.ended == 1
    results = json.loads((tmp_path / "results.json").read_text())
    assert results == {"val/loss": metrics["val/loss"], "stopped": "enough of it", "step": 3}
    before = file_contents(tmp_path)
    kept = Losses()
    again = toy_trainer(tmp_path, resume="auto", loggers=[kept], **settings)
    assert again.fit() == metrics
    assert (again.step, kept.losses) == (3, [])
    assert re.search(r"resumed from .* at step 3 of 8: .*nothing is left to do", kept.words[0])
    assert file_contents(tmp_path) == before


@pytest.mark.parametrize("at", ["begin", "measured"])
def test_stopping_at_other_times(tmp_path, at):
    class Stop(Callback):
        def begin(self, trainer):
            if at == "begin":
                trainer.stop("at once")

        def measured(self, trainer, metrics):
            if at == "measured" and "val/loss" in metrics:
                trainer.stop("at validation")

    trainer = toy_trainer(tmp_path, callbacks={"stop": Stop()}, validate_every_steps=2)
    trainer.fit()
    assert trainer.step == {"begin": 0, "measured": 2}[at]
    if at == "measured":
        assert json.loads((tmp_path / "results.json").read_text())["stopped"] == "at validation"


# Batches on their way.


def test_prefetching_keeps_the_order_and_closes_the_source():
    closed = []

    def source():
        try:
            for number in range(5):
                yield {"x": torch.full((2,), number), "names": ["a", "b"]}
        finally:
            closed.append(True)

    batches = list(prefetch(source(), torch.device("cpu")))
    assert [batch["x"].tolist() for batch in batches] == [[n, n] for n in range(5)]
    assert all(batch["names"] == ["a", "b"] for batch in batches)
    assert to_device({"x": torch.ones(1)}, torch.device("meta"))["x"].device.type == "meta"


# Kernels.


def flags():
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn": torch.is_deterministic_algorithms_warn_only_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "kernels": (
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
        ),
        "tf32": torch.get_float32_matmul_precision(),
    }


@pytest.mark.parametrize("fails", [False, True])
def test_kernels_are_set_in_a_run_and_put_back(tmp_path, fails):
    inside = []

    class Watch(Trainer):
        def training_step(self, batch, step):
            inside.append(flags())
            if fails:
                raise KeyError("mine")
            return super().training_step(batch, step)

    before = flags()
    kernels = {"attention": "math", "deterministic": True, "detect_anomaly": True}
    trainer = toy_trainer(tmp_path, kind=Watch, max_steps=1, **kernels)
    assert flags() == before
    if fails:
        with pytest.raises(KeyError, match="mine"):
            trainer.fit()
    else:
        trainer.fit()
    assert flags() == before
    assert inside[0]["deterministic"]
    assert inside[0]["warn"]
    assert inside[0]["anomaly"]
    assert inside[0]["kernels"] == (False, False, True)


@pytest.mark.filterwarnings("ignore:Error detected")
def test_anomaly_detection_names_the_operation(tmp_path):
    class Bad(Trainer):
        def training_step(self, batch, step):
            return super().training_step(batch, step)["loss"] + (self.model.weight.sum() * 0).sqrt()

    with pytest.raises(RuntimeError, match="Function 'MulBackward0' returned nan"):
        toy_trainer(tmp_path, kind=Bad, detect_anomaly=True).fit()


def test_attention_that_there_is_not():
    with pytest.raises(UserError, match=r"trainer.attention=fast: expected auto, flash, efficient, math"):
        Precision("fp32", torch.device("cpu"), attention="fast")
    with pytest.raises(UserError, match=r"trainer.attention=efficient has no kernel for fp32 on cpu.*attention=auto"):
        Precision("fp32", torch.device("cpu"), attention="efficient")


def test_attention_kernels_agree(tiny, tmp_path):
    expected, whole = fit_real(tiny, tmp_path / "auto")
    for name in ("math", "flash"):
        losses, trainer = fit_real(tiny, tmp_path / name, f"trainer.attention={name}")
        assert losses == pytest.approx(expected, rel=1e-5)
        for mine, theirs in zip(trainer.model.parameters(), whole.model.parameters()):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


# Layers.

LAYERS = ("model.encoder.depth=2", "model.encoder.dropout=0.1")


@pytest.fixture(scope="module")
def eager(tiny, tmp_path_factory):
    """Losses, trainer and checkpointed names of a run with nothing done to its layers."""
    return fit_real(tiny, tmp_path_factory.mktemp("eager"), *LAYERS)


def assert_same_run(one, two, **tolerance):
    assert one[0] == pytest.approx(two[0], rel=1e-5)
    mine, theirs = one[1].model.state_dict(), two[1].model.state_dict()
    assert mine.keys() == theirs.keys()  # a checkpoint of one loads into the other
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], **tolerance)


def test_activation_checkpointing_changes_nothing(tiny, tmp_path, eager):
    run = fit_real(tiny, tmp_path, *LAYERS, "trainer.activation_checkpointing=true")
    assert_same_run(run, eager, rtol=0, atol=0)
    saved, calls = run[1], []
    block = saved.model.encoder.vit.blocks[0]
    block.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    inner = next(module for module in block.modules() if type(module).__name__ == "Attention")
    inner.register_forward_hook(lambda *_: calls.append("inner"))
    saved.forward_backward(next(saved.data.train_batches(seed=0, start_step=0, stop_step=1)))
    assert calls.count("inner") == 2 * calls.count(True)  # computed again in the backward pass


@pytest.mark.slow
def test_compiling_changes_nothing_and_ends(tiny, tmp_path, eager):
    """Sizes of masks change from step to step: a few graphs must do for all of them."""
    counters = torch._dynamo.utils.counters["stats"]
    torch._dynamo.reset()
    counters.clear()
    graphs = []

    class Count(Callback):
        def step_end(self, trainer):
            graphs.append(counters["unique_graphs"])

    overrides = [*LAYERS, "trainer.compile=aot_eager"]
    run = build_trainer(load_config([*tiny, *REAL, f"run_dir={tmp_path}", *overrides])), Losses()
    run[0].loggers["kept"], run[0].callbacks["count"] = run[1], Count()
    run[0].fit()
    assert_same_run((run[1].losses, run[0]), eager, rtol=1e-4, atol=1e-5)
    assert 0 < graphs[0] <= graphs[-1] == graphs[2], graphs
    torch._dynamo.reset()


def test_layers_that_there_are_not(tmp_path):
    for settings, words in (
        ({"activation_checkpointing": True}, "trainer.activation_checkpointing=true works on layers, and ToyModel has"),
        ({"compile": True}, "trainer.compile=true works on layers, and ToyModel has none"),
        ({"compile": "inductr"}, r"trainer.compile=inductr: expected true, false or one of .*'inductor'"),
        ({"strategy": "dpp"}, "trainer.strategy=dpp: expected auto, ddp or fsdp"),
    ):
        with pytest.raises(UserError, match=words):
            toy_trainer(tmp_path, **settings)
