"""What depends on the GPU in a training: formats, kernels, memory, streams, NCCL.

python -m pytest -m gpu runs these, and the parity tests of tests/interop, on CUDA; JEPA_TEST_DEVICE=cpu on the CPU.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from jepa import build_trainer, load_config
from jepa.data import Augment, ImageData
from jepa.data.sources import digits
from jepa.tools.find_batch_size import find_batch_size
from jepa.trainer import Logger, measurements
from jepa.trainer.prefetch import prefetch
from jepa.utils.errors import NonFiniteError, UserError
from jepa.utils.memory import keep_freed_memory, peak_memory

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]
BARE = ("~logger.console", "~logger.jsonl", "~logger.tensorboard", "evaluation=none", "visualise=none")
DEEP = ("data.image_size=32", "model.encoder.depth=4", "model.encoder.embed_dim=64", "data.batch_size=128")


class Losses(Logger):
    """Keeps the losses of steps."""

    def __init__(self):
        self.losses = []

    def log(self, metrics, step):
        self.losses += [metrics["train/loss"]] * ("train/loss" in metrics)


@pytest.fixture
def make(tiny, tmp_path, gpu):
    """Make a trainer of a tiny run on the GPU, by name of its folder; its losses are kept as `losses`."""

    def trainer(name, *overrides):
        options = [*tiny, *BARE, f"trainer.device={gpu}", f"run_dir={tmp_path / name}", *overrides]
        made = build_trainer(load_config(options))
        made.loggers["kept"] = kept = Losses()
        made.losses = kept.losses
        return made

    return trainer


@pytest.fixture
def fitted(make):
    """As `make`, but fitted."""

    def trainer(name, *overrides):
        made = make(name, *overrides)
        made.fit()
        return made

    return trainer


@pytest.fixture
def little_memory(gpu):
    """At most 1 GiB of the GPU beside what is taken, so that its edge is met soon."""
    if gpu.type == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(gpu).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(gpu) + 2**30) / total, gpu)
    yield
    if gpu.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)


def on_gpu_only(gpu):
    if gpu.type != "cuda":
        pytest.skip("the CPU has no such thing")


@pytest.fixture
def eager(fitted):
    """A run in fp32, to compare with."""
    return fitted("eager")


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        (["trainer.precision=bf16"], 3e-2),
        (["trainer.precision=fp16"], 3e-2),
        (["trainer.tf32=true"], 1e-2),
        (["trainer.compile=true"], 1e-3),
        (["trainer.activation_checkpointing=true"], 1e-4),
        (["trainer.attention=math"], 1e-3),
        (["trainer.attention=efficient"], 1e-3),
        (["trainer.attention=flash", "trainer.precision=bf16"], 3e-2),
        (["trainer.micro_batch_size=8"], 1e-3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_of_computing_give_the_losses_of_the_plain_run(fitted, eager, gpu, options, tolerance):
    if "trainer.attention=efficient" in options:
        on_gpu_only(gpu)
    run = fitted("other", *options)
    assert len(run.losses) == 6
    assert run.losses == pytest.approx(eager.losses, rel=tolerance)
    assert next(run.model.parameters()).device == gpu
    if "trainer.precision=fp16" in options:
        assert run.precision.scaler.get_scale() > 1
    if "trainer.compile=true" in options:
        torch._dynamo.reset()


def test_activation_checkpointing_lowers_the_peak_of_memory(make, gpu):
    def peak(name, *options):
        trainer = make(name, *DEEP, *options)
        with closing(trainer._batches()) as batches:
            batch = next(batches)
        trainer.forward_backward(batch)
        if gpu.type == "cuda":
            torch.cuda.reset_peak_memory_stats(gpu)
            before = torch.cuda.memory_allocated(gpu)
            trainer.forward_backward(batch)
            return torch.cuda.max_memory_allocated(gpu) - before
        saved = []  # bytes that the backward pass keeps, as a process keeps memory that it has freed
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
            trainer.forward_backward(batch)
        return sum(saved)

    assert peak("less", "trainer.activation_checkpointing=true") < 0.6 * peak("more")


def test_batches_come_over_unchanged_on_their_own_stream(make, gpu):
    """Also where the work on one batch is still under way when the memory of the one before is freed."""
    data = make("run", "data.batch_size=64").data
    data.finish_on = None  # which the trainer has set
    steps = {"seed": 0, "start_step": 0, "stop_step": 12}
    wanted = [batch["x"].clone() for batch in data.train_batches(**steps)]
    sums, pinned = [], []

    def watched(batches):
        for batch in batches:
            pinned.append(batch["x"].is_pinned())
            yield batch

    for batch in prefetch(watched(data.train_batches(**steps)), gpu):
        assert batch["x"].device == gpu
        busy = torch.ones(1500, 1500, device=gpu)
        for _ in range(4 if gpu.type == "cuda" else 0):
            busy = busy @ busy * 1e-4
        sums.append(batch["x"].clone())
        del batch, busy
    assert len(sums) == len(wanted) == 12
    assert all(torch.equal(got.cpu(), x) for got, x in zip(sums, wanted))
    assert set(pinned) == {gpu.type == "cuda"}


def test_views_made_on_the_gpu_are_those_of_the_cpu(gpu):
    every = {"crop_scale": (0.3, 1.0), "horizontal_flip": 0.5, "rotation": 10, "translate": 0.1}
    settings = {"image_size": 16, "channels": 3, "mean": [0.0], "std": [1.0], "views": 2, "batch_size": 64}
    data = ImageData(source=digits, augment=Augment(**every, color_jitter=0.5, blur=0.5), **settings)
    wanted = next(data.train_batches(seed=0, start_step=1, stop_step=2))["views"]
    data.finish_on = gpu
    found = next(data.train_batches(seed=0, start_step=1, stop_step=2))["views"]
    assert found.device == gpu
    # TF32 may round a value to the next of 256 levels, and the noise of a level is amplified by jitter.
    assert (found.cpu() - wanted).abs().max() < 4 / 255


@pytest.mark.parametrize(
    "options",
    [[], ["loss=contrastive", "data.views=2"], ["trainer.precision=bf16", "trainer.compile=true"]],
    ids=["plain", "contrastive", "compiled"],
)
def test_a_step_that_nobody_looks_at_does_not_wait(make, gpu, options):
    trainer = make("run", *options, "trainer.log_every=100", "trainer.max_steps=40", "monitor=none")
    trainer.guard.may_lag = True
    with closing(trainer._batches()) as batches:
        for batch in batches:
            if gpu.type == "cuda" and trainer.step == 30:  # all shapes of masks have been met, and compiled
                assert trainer.lags_at(trainer.step + 1)
                torch.cuda.set_sync_debug_mode("error")
            try:
                trainer.log_step(trainer.train_step(batch))
            finally:
                if gpu.type == "cuda" and trainer.step == 31:
                    torch.cuda.set_sync_debug_mode("default")
    assert trainer.step == 40
    torch._dynamo.reset()


@pytest.mark.faults
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_weights_are_kept_from_what_is_not_finite(make, gpu, precision):
    def stopped(name, *options):
        trainer = make(name, f"trainer.precision={precision}", "trainer.deterministic=true", *options)
        forward_backward = trainer.forward_backward

        def bad(batch):
            values = forward_backward(batch)
            return {**values, "train/loss": values["train/loss"] * (math.nan if trainer.step == 3 else 1)}

        trainer.forward_backward = bad
        with pytest.raises(NonFiniteError, match="not finite at step 4: train/loss=nan"):
            trainer.fit()
        assert trainer.step == 3
        return {**trainer.model.state_dict(), **moments(trainer)}

    read, unread = stopped("read"), stopped("unread", "trainer.log_every=100", "monitor=none")
    for name, value in read.items():
        assert torch.equal(unread[name], value), name


def moments(trainer):
    return {
        f"{number}/{name}": value
        for number, entry in trainer.optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_goes_on_exactly(fitted, tmp_path, deterministic, precision):
    options = [f"trainer.deterministic={str(deterministic).lower()}", f"trainer.precision={precision}"]
    whole = fitted("whole", *options, "trainer.snapshot_every_steps=3")
    again = fitted("again", *options, f"resume={tmp_path / 'whole' / 'checkpoints' / 'step_00000003.pt'}")
    assert again.losses == pytest.approx(whole.losses[3:], rel=0 if deterministic else 1e-3)
    bounds = {"rtol": 0, "atol": 0} if deterministic else {"rtol": 1e-2, "atol": 1e-4}
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], weight, **bounds)


@pytest.fixture
def one_rank(gpu):
    """A group of this process alone, over NCCL on a GPU."""
    backend = "gloo" if gpu.type == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_process_of_a_group(eager, strategy, make, request, tmp_path):
    request.getfixturevalue("one_rank")  # after the run without
    trainer = make(strategy, f"trainer.strategy={strategy}", "trainer.grad_clip_norm=1000")
    assert trainer.parallel.name == strategy
    trainer.fit()
    assert trainer.losses == pytest.approx(eager.losses, rel=1e-3)
    going_on = make("more", f"resume={tmp_path / strategy}", "trainer.max_steps=8", f"trainer.strategy={strategy}")
    going_on.fit()
    assert (going_on.step, len(going_on.losses)) == (8, 2)


@pytest.mark.usefixtures("little_memory")
def test_the_largest_batch_that_fits(make, gpu):
    keep_freed_memory()
    with peak_memory() as resident:
        limit = {} if gpu.type == "cuda" else {"limit_gib": resident() / 2**30 + 0.5}
    found = find_batch_size(make("run", *DEEP), max_size=8192, repeats=1, **limit)
    refused = [trial for trial in found.trials if not trial.fits]
    assert found.largest >= 64
    assert refused
    assert found.largest < min(trial.size for trial in refused) <= found.largest * 1.2
    assert all(trial.tried for trial in refused) or gpu.type == "cpu"


@pytest.mark.usefixtures("little_memory")
def test_a_step_that_runs_out_of_memory_says_what_takes_less(make, gpu):
    on_gpu_only(gpu)
    trainer = make("run", *DEEP, "data.batch_size=16384")
    words = r"out of memory at step 1 on cuda:0, with micro-batches of 16384 .* trainer\.micro_batch_size=8192"
    with pytest.raises(UserError, match=words):
        trainer.fit()
    torch.cuda.empty_cache()
    assert make("cut", *DEEP, "data.batch_size=512", "trainer.micro_batch_size=32").fit()


def test_the_default_run_with_its_evaluation(tiny, gpu, tmp_path):
    """As a user starts it: precision, pictures, the online probe, the evaluation of frozen features and the report."""
    kept = [override for override in tiny if not override.startswith(("trainer.precision", "trainer.device"))]
    options = [*kept, "trainer.max_steps=30", "trainer.validate_every_steps=15", "evaluation=online"]
    # Not by the server that forks runs: a process that has asked for GPUs cannot use them in a fork.
    command = [sys.executable, str(ROOT / "train.py"), *options, f"trainer.device={gpu}", "hydra.run.dir=run"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=500)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    metrics = {name: value for line in lines for name, value in line.items()}
    assert {"val/loss", "eval/trained/knn", "eval/trained/linear", "eval/random_init/knn"} <= metrics.keys()
    assert all(math.isfinite(value) for value in metrics.values() if isinstance(value, float))
    assert metrics["eval/trained/linear"] > 0.5  # of ten classes
    assert ("memory_peak_gib" in metrics) == (gpu.type == "cuda")
    assert (tmp_path / "run" / "report.html").is_file()


def test_features_of_a_checkpoint_are_evaluated_alike(make, gpu):
    """The evaluation of the same weights, on the device and on the CPU."""
    probes = ["evaluation=frozen", "~evaluation.probes.linear", "~evaluation.probes.lidar"]
    probes += ["evaluation.max_train_samples=400", "evaluation.max_test_samples=200"]
    here, there = make("here", *probes), make("there", *probes, "trainer.device=cpu")
    there.model.load_state_dict(here.model.state_dict())
    one, two = (measurements.evaluate(trainer) for trainer in (here, there))
    assert one.keys() == two.keys()
    for name, value in two.items():
        assert one[name] == pytest.approx(value, rel=0.03, abs=0.02), name
