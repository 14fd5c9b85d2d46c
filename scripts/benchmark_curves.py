"""How time and memory grow: with the batch, the tokens, the depth, the data set and the samples that are evaluated."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from benchmark_timing import STEPS_ALONE, seconds_of, trainer_of

from jepa.data.stream import SampleOrder
from jepa.evaluation import Features, KNNProbe, LinearProbe

SIZES = {
    "batch": [f"data.batch_size={size}" for size in (4, 8, 16, 32)],
    "image_size": [f"data.image_size={side}" for side in (48, 96, 144, 192)],
    "depth": [f"model.encoder.depth={depth}" for depth in (3, 6, 12, 24)],
}
PLAIN = ("experiment=ijepa_digits", "model/mask=multiblock", "data.image_size=96", "data.batch_size=8")
PLAIN += ("data.hints={size: tiny, patch_size: 8}", "logger=[jsonl]", "trainer.max_steps=1000", *STEPS_ALONE)
SAMPLES = (1_000, 10_000, 100_000, 1_000_000)
EVALUATED = (1_000, 10_000, 60_000)


def curves(rounds: int = 3) -> list[dict[str, Any]]:
    """A row for each point, measured in a process of its own: seconds, and MiB beyond what the process had before."""
    points: dict[str, Callable[[], float]] = {}
    for curve, overrides in SIZES.items():
        points |= {f"{curve}: {each}": partial(step_seconds, (*PLAIN, each), rounds) for each in overrides}
    points |= {f"epoch order: {count} samples": partial(order_seconds, count, rounds) for count in SAMPLES}
    points |= {f"linear probe: {count} samples": partial(probe_seconds, LinearProbe, count) for count in EVALUATED}
    points |= {f"k-NN: {count} samples": partial(probe_seconds, KNNProbe, count) for count in EVALUATED}
    context = multiprocessing.get_context("spawn")
    rows = []
    for name, measure in points.items():
        with context.Pool(1) as pool:
            seconds, memory = pool.apply(with_memory, (measure,))
        rows.append({"name": name, "seconds": seconds, "mib": memory})
    return rows


def with_memory(measure: Callable[[], float]) -> tuple[float, float]:
    """What it gives, and the memory in MiB that the process then had at most beyond what it had before."""
    before = peak_memory()
    return measure(), peak_memory() - before


def peak_memory() -> float:
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def step_seconds(overrides: tuple[str, ...], rounds: int) -> float:
    """Median of a training step of I-JEPA, ViT-Ti/8, 96 px and 8 pictures where nothing else is said."""
    with trainer_of(*overrides) as trainer:
        batch = next(trainer._batches())
        steps = [seconds_of(lambda: trainer.train_step(batch)) for _ in range(rounds + 1)]
        return statistics.median(steps[1:])


def order_seconds(count: int, rounds: int) -> float:
    """Median of the first step of an epoch: its permutation is drawn."""
    orders = [SampleOrder(num_samples=count, batch_size=256, seed=seed) for seed in range(rounds)]
    return statistics.median(seconds_of(lambda order=order: order.request(0)) for order in orders)


def probe_seconds(probe: type, count: int, width: int = 384, classes: int = 10) -> float:
    """Seconds of a probe that is fitted to so many samples and scores as many tenths."""
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, width, generator=random)

    def features(number: int) -> Features:
        labels = torch.randint(0, classes, (number,), generator=random)
        return Features(centres[labels] + 8 * torch.randn(number, width, generator=random), labels)

    train, test = features(count), features(count // 10)
    return seconds_of(lambda: probe()(train, test, classes=classes, seed=0))
