"""What the benchmarks share: timing in turns, and trainers as a command makes them."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from jepa import build_trainer, load_config
from jepa.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
STEPS_ALONE = ("trainer.validate_every_epochs=null", "trainer.save_every_epochs=null", "evaluation=none")


def seconds_of(function: Callable[[], object]) -> float:
    """Wall time of a call."""
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def in_turns(measured: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each of several measurements gives, in turns, after one round to warm up."""
    found: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(rounds + 1):
        for name, measure in measured.items():
            found[name].append(measure())
    return {name: values[1:] for name, values in found.items()}


def medians(found: dict[str, list[float]]) -> dict[str, float]:
    """The median of each measurement."""
    return {name: statistics.median(values) for name, values in found.items()}


@contextlib.contextmanager
def trainer_of(*overrides: str) -> Iterator[Trainer]:
    """A trainer with a run folder for the time being and open loggers."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(load_config([*overrides, f"run_dir={folder}"]))
        trainer.meter.start()
        with trainer.run_log.open():
            yield trainer
