"""What needs a GPU, within a budget of minutes: the tests, then large models in bf16 on synthetic pictures."""

from __future__ import annotations

import gc
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch
from benchmark_step import device_name, published_step, synchronised
from benchmark_timing import ROOT, STEPS_ALONE, trainer_of
from torch.utils.flop_counter import FlopCounterMode

from jepa.tools.find_batch_size import unless_out_of_memory
from jepa.trainer import Trainer
from jepa.types import Batch, DataSpec

SHARE_OF_TESTS = 0.55  # of the budget, at most
SHORTEST = 15  # seconds that are left where something more is begun
SECONDS = 2.0  # of steps that are timed
GAIN = 1.02  # batches double until they raise the rate by less
SIZES = (128, 256, 512, 1024, 2048)  # batches
SIDE = 8192  # of the matrices whose product gives the machine's rate

MODELS = {
    "ijepa_vits16_224": (0.2, "model/encoder=vit_small", "model.predictor.depth=6"),
    "ijepa_vitb16_224": (0.25, "model/encoder=vit_base", "model.predictor.depth=6"),
    "ijepa_vitl16_224": (0.3, "model/encoder=vit_large", "model.predictor.depth=12"),
    "ijepa_vith14_224": (0.5, "model/encoder=vit_huge", "model.predictor.depth=12"),
}
"""The share of the time left then that each takes at most, and its overrides, with the published depths."""

OF_PICTURES = ("model=vit", "data.image_size=224", "data.channels=3", "data.hints={size: small, patch_size: 16}")
OF_PICTURES += ("model.predictor.embed_dim=384",)
"""Overrides of all models."""

COMPARED = ("ijepa_vits16_224", "ijepa_vitb16_224")
"""Models that are timed beside the step written the published way."""

TINY = ("data.image_size=32", "data.hints={size: toy, patch_size: 4}", "model/encoder=vit_toy")
TINY += ("model.predictor.depth=1", "model.predictor.embed_dim=32")


class Budget:
    """The time that is left."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def until(self, share: float) -> Callable[[], bool]:
        """A function that returns whether this share of the time left now has not passed."""
        end = time.monotonic() + share * self.left
        return lambda: time.monotonic() < end


class SyntheticPictures:
    """The same random pictures at every step, on the device."""

    def __init__(self, side: int, device: torch.device) -> None:
        self.spec = DataSpec(num_train=10**6, num_test=0, input_shape=(3, side, side), classes=None)
        self._device = device
        self.resize(1)

    def resize(self, batch_size: int) -> None:
        """Make a batch of another size."""
        self.batch_size = batch_size
        self.batch: Batch = {"x": torch.randn(batch_size, *self.spec.input_shape, device=self._device)}


def gpu(minutes: float = 6.0, *, device: str = "cuda", tiny: bool = False, tests: bool = True) -> list[dict[str, Any]]:
    """A row for the tests, and one for each model, batch size and way of computing that the budget reached.

    A measurement that has begun is finished. tiny: small models and batches, to run this on a CPU.
    """
    budget, place = Budget(minutes), torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("benchmark.py gpu: there is no GPU here (torch.cuda.is_available() is false)")
    rows = [run_tests(budget, place)] if tests else []
    say(rows)
    rate = matrix_rate(place, 256 if tiny else SIDE)
    rows.append({"name": "matrix_product", **where(place), "tflops": rate / 1e12})
    say(rows[-1:])

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        say([row])

    tried = {}
    for name, (share, *overrides) in MODELS.items():
        models = [*overrides, *(TINY if tiny else ())]
        tried[name] = models, sweep(name, models, budget.until(share), place, rate, (2, 4) if tiny else SIZES, add)
    for name, (models, best) in tried.items():
        add(compiled(f"{name}_compiled", models, best, place, rate, in_time=budget.left > SHORTEST))
    return rows


def sweep(
    name: str,
    overrides: list[str],
    in_time: Callable[[], bool],
    device: torch.device,
    rate: float,
    sizes: Sequence[int],
    add: Callable[[dict[str, Any]], None],
) -> dict[str, Any] | None:
    """Add a row for each batch size as long as they raise the rate, and for the published way; give the best."""
    if not in_time():
        add(skipped(name))
        return None
    best = None
    with made(overrides, device) as trainer:
        operations = flop_per_sample(trainer)
        for size in sizes:
            if not in_time():
                break
            row = unless_out_of_memory(lambda size=size: timed(trainer, size, operations, rate))
            if row is None:
                add({"name": name, **where(device), "batch_size": size, "skipped": "out of memory"})
                break
            add({"name": name, **row})
            before, best = best, row if best is None else max(best, row, key=lambda row: row["samples_per_second"])
            if before is not None and row["samples_per_second"] < GAIN * before["samples_per_second"]:
                break
        if name in COMPARED and best is not None:
            row = beside_published(trainer, best) if in_time() else {"skipped": "the budget is spent"}
            add({"name": f"{name}_published", **where(device), **row})
    release()
    return best


def compiled(
    name: str, overrides: list[str], best: dict[str, Any] | None, device: torch.device, rate: float, *, in_time: bool
) -> dict[str, Any]:
    """The row of a model at its best batch, with layers compiled."""
    if best is None or not in_time:
        return skipped(name)
    with made([*overrides, "trainer.compile=true"], device) as trainer:
        operations = 1e9 * best["gflop_per_sample"]
        row = unless_out_of_memory(lambda: timed(trainer, best["batch_size"], operations, rate))
    torch._dynamo.reset()
    release()
    return {"name": name, **(row or {"skipped": "out of memory"})}


def made(overrides: list[str], device: torch.device) -> Any:
    """A context with a trainer of pictures of 224 pixels."""
    options = [*OF_PICTURES, "logger=[jsonl]", "monitor=none", "visualise=none"]
    options += ["trainer.precision=bf16", f"trainer.device={device}", "trainer.max_steps=1000000"]
    options += ["trainer.log_every=1000000"]
    return trainer_of(*options, *STEPS_ALONE, *overrides)


def use(trainer: Trainer, batch_size: int) -> None:
    """Give a trainer synthetic pictures, in batches of a size."""
    if not isinstance(trainer.data, SyntheticPictures):
        trainer.data = SyntheticPictures(trainer.data.spec.input_shape[-1], trainer.device)
        trainer.guard.may_lag = True  # as in the loop
    trainer.data.resize(batch_size)
    trainer.micro_batch_size = batch_size


def flop_per_sample(trainer: Trainer, steps: int = 8, batch_size: int = 4) -> float:
    """Counted operations of a step per sample, over steps with blocks of several areas."""
    use(trainer, batch_size)
    with FlopCounterMode(display=False) as counted:
        for _ in range(steps):
            trainer.train_step(trainer.data.batch)
    return counted.get_total_flops() / steps / batch_size


def timed(trainer: Trainer, batch_size: int, operations: float, rate: float) -> dict[str, Any]:
    """Rate, utilisation and memory of steps of a batch size."""
    use(trainer, batch_size)
    if trainer.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(trainer.device)
    per_second = batch_size / step_seconds(lambda: trainer.train_step(trainer.data.batch), trainer.device)
    return {
        **where(trainer.device),
        "batch_size": batch_size,
        "samples_per_second": per_second,
        "gflop_per_sample": operations / 1e9,
        "utilisation": per_second * operations / rate,
        "peak_memory_gib": peak_memory_gib(trainer.device),
    }


def step_seconds(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of a step among many that are not waited for, after enough to meet all shapes of masks."""
    once = min(synchronised(step, device) for _ in range(12))
    steps = max(4, min(200, round(SECONDS / once)))

    def run() -> None:
        for _ in range(steps):
            step()

    return synchronised(run, device) / steps


def beside_published(trainer: Trainer, best: dict[str, Any]) -> dict[str, Any]:
    """Rate of the step written the published way at our best batch, or a smaller one if that takes too much memory."""
    step, size = published_step(trainer), best["batch_size"]
    while size >= 1:
        use(trainer, size)
        seconds = unless_out_of_memory(lambda: published_seconds(trainer, step))
        if seconds is not None:
            rate = size / seconds
            ratio = best["samples_per_second"] / rate
            return {"batch_size": size, "samples_per_second": rate, "ratio_to_published": ratio}
        release()
        size //= 2
    return {"skipped": "out of memory"}


def published_seconds(trainer: Trainer, step: Callable[..., None]) -> float:
    """Seconds of the published step, on masks of ours."""
    trainer.model.prepare(trainer.data.batch, trainer._randomness(trainer.data.batch))
    [mask], x = trainer.model.mask_sampler._cache[1], trainer.data.batch["x"]
    return step_seconds(lambda: step(x, mask), trainer.device)


def matrix_rate(device: torch.device, side: int) -> float:
    """Operations per second of the product of two large matrices in bf16: the median of several."""
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = [synchronised(lambda: one @ other, device) for _ in range(30)]
    return 2 * side**3 / statistics.median(seconds[10:])


def run_tests(budget: Budget, device: torch.device) -> dict[str, Any]:
    """Run the tests marked `gpu` in a process of their own; how many passed, and the output if not all did."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-o", "addopts=", "--durations=5", "-v"]
    environment = os.environ | ({} if device.type == "cuda" else {"JEPA_TEST_DEVICE": "cpu"})
    folders = ["tests/interop", "tests/gpu"]
    begun, limit = time.monotonic(), SHARE_OF_TESTS * budget.left
    try:
        done = subprocess.run(
            [*command, *folders], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit
        )
        text, code = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired as late:
        text, code = (late.stdout or b"").decode() + f"\nstopped after {limit:.0f} s", None
    counts = {
        kind: len(re.findall(rf"::.* {kind.upper()} ", text)) for kind in ("passed", "failed", "error", "skipped")
    }
    return {
        "name": "tests",
        "device": device_name(device),
        "exit_code": code,
        "seconds": time.monotonic() - begun,
        **counts,
        "output": text[-200:] if code == 0 else text[-20000:],
    }


def where(device: torch.device) -> dict[str, str]:
    return {"precision": "bf16", "device": device_name(device)}


def skipped(name: str) -> dict[str, str]:
    return {"name": name, "skipped": "the budget is spent"}


def peak_memory_gib(device: torch.device) -> float:
    """Peak of what tensors took on a GPU; elsewhere what the process has resident."""
    cuda = device.type == "cuda"
    return (torch.cuda.max_memory_allocated(device) if cuda else psutil.Process().memory_info().rss) / 2**30


def release() -> None:
    """Give the memory of what is gone back to the device."""
    gc.collect()
    torch.cuda.empty_cache()


def say(rows: list[dict[str, Any]]) -> None:
    """Show rows as they come, beside the JSON at the end."""
    for row in rows:
        print({key: value for key, value in row.items() if key != "output"}, file=sys.stderr, flush=True)
