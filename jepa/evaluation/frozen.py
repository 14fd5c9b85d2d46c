"""Frozen evaluation: features of a network that is not trained any more, scored by probes.

    python train.py evaluation.every_epochs=10

A number alone says little, so the same probes always run on two baselines: the raw input and a randomly
initialised network of the same kind. Training has only helped where "trained" beats both.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from rich.table import Table
from torch import Tensor, nn

from jepa.evaluation.features import EvaluationData, Features, Probe, collect, evaluation_mode, pool_input
from jepa.evaluation.rank import feature_std, rankme
from jepa.evaluation.table import format_table
from jepa.utils.errors import UserError
from jepa.utils.random import seeded
from jepa.utils.tensors import masked_mean

log = logging.getLogger("jepa")

Results = dict[str, dict[str, float]]
"""Network ("trained", "random_init", "raw_input") -> metric -> value."""

_POOLINGS = {"mean": masked_mean, "max": lambda tokens: tokens.amax(dim=1)}  # (B, N, D) -> (B, D)

_LABEL_FREE = {"rankme": rankme, "feature_std": feature_std}


class FrozenEvaluation:
    """Scores frozen features by probes and, with or without labels, by their rank and spread.

    network: whose features: "target", the one that makes the targets, or "context", the trained encoder.
    pooling: how a sample's tokens become one vector, "mean" or "max".
    probes: names to `Probe`s, run where there are labels.
    raw_input_size: pixels (or steps) to which each axis of the raw input is averaged down at most.
    batch_size: samples encoded at a time.
    max_train_samples, max_test_samples: use only so many samples of a split; None for all.
    every_epochs, every_steps: how often the trainer evaluates during training, at most one of them; None for
        never.
    at_end: whether it does after the last step. The trainer reads these three, nothing here does.

    Raises ValueError for values outside these.
    """

    def __init__(
        self,
        *,
        network: Literal["target", "context"] = "target",
        pooling: Literal["mean", "max"] = "mean",
        probes: Mapping[str, Probe],
        raw_input_size: int = 32,
        batch_size: int = 256,
        max_train_samples: int | None = None,
        max_test_samples: int | None = None,
        every_epochs: int | None = None,
        every_steps: int | None = None,
        at_end: bool = True,
    ) -> None:
        if network not in ("target", "context"):
            raise ValueError(f"evaluation.network: got {network!r}, expected 'target' or 'context'")
        if pooling not in _POOLINGS:
            raise ValueError(f"evaluation.pooling: got {pooling!r}, expected one of {list(_POOLINGS)}")
        if taken := _LABEL_FREE.keys() & probes.keys():
            raise ValueError(f"evaluation.probes: {sorted(taken)} name built-in metrics, rename the probes")
        if every_epochs is not None and every_steps is not None:
            raise ValueError("evaluation: set every_epochs or every_steps, not both")
        counts = {
            "raw_input_size": raw_input_size,
            "batch_size": batch_size,
            "max_train_samples": max_train_samples,
            "max_test_samples": max_test_samples,
            "every_epochs": every_epochs,
            "every_steps": every_steps,
        }
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"evaluation.{name} must be at least 1, got {value}")
        self.network = network
        self.pooling = pooling
        self.probes = dict(probes)
        self.raw_input_size = raw_input_size
        self.batch_size = batch_size
        self.limits = {"train": max_train_samples, "test": max_test_samples}
        self.every_epochs = every_epochs
        self.every_steps = every_steps
        self.at_end = at_end
        self._baselines: Results = {}
        self._baselines_of: tuple[EvaluationData | None, int] = (None, 0)
        self._stated_obstacle: str | None = None

    @staticmethod
    def table(results: Results) -> Table:
        """The results as a table that rich prints."""
        return format_table(results)

    def __call__(
        self,
        model: nn.Module,
        data: EvaluationData,
        *,
        random_init: Callable[[], nn.Module],
        device: torch.device | str,
        seed: int = 0,
    ) -> Results:
        """Metrics of the trained network and of the two baselines.

        model: on the device, with `encode_target(x)` and `encoder(x)`, both (B, C, *S) -> (B, N, D). Mixed
            precision is the caller's autocast; it reaches the encoder, the probes compute in fp32.
        random_init: gives a fresh model of the same kind. The baselines depend on data and seed only: they
            are computed, and this is called, only when one of these is not that of the last call.

        Leaves the modules' modes and torch's random state as they were. Raises UserError when features are
        NaN or infinite, or when the data is empty.
        """
        device = torch.device(device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            results = {"trained": self._evaluate_model("trained", model, data, device, seed)}
            known_data, known_seed = self._baselines_of
            if known_data is not data or known_seed != seed:
                with seeded(seed, "evaluation/random_init"):
                    fresh = random_init().to(device)
                self._baselines = {
                    "random_init": self._evaluate_model("random_init", fresh, data, device, seed),
                    "raw_input": self._evaluate("raw_input", self._encode_raw, data, device, seed),
                }
                self._baselines_of = (data, seed)
        return results | {name: dict(metrics) for name, metrics in self._baselines.items()}

    def _evaluate_model(
        self, name: str, model: nn.Module, data: EvaluationData, device: torch.device, seed: int
    ) -> dict[str, float]:
        network = model.encode_target if self.network == "target" else model.encoder
        pool = _POOLINGS[self.pooling]
        with evaluation_mode(model):
            return self._evaluate(name, lambda x: pool(network(x)), data, device, seed)

    def _encode_raw(self, x: Tensor) -> Tensor:
        return pool_input(x, self.raw_input_size)

    def _evaluate(
        self,
        name: str,
        encode: Callable[[Tensor], Tensor],
        data: EvaluationData,
        device: torch.device,
        seed: int,
    ) -> dict[str, float]:
        """Collect features, test first as they tell whether probes can run, then score them."""

        def features(split: str) -> Features | None:
            batches = data.evaluation_batches(split, batch_size=self.batch_size, limit=self.limits[split])
            return collect(encode, batches, device=device, name=f"{name} ({split} split)")

        test = features("test")
        obstacle = _obstacle_to_probes(test, data.spec.classes)
        if obstacle and obstacle != self._stated_obstacle:
            log.warning("evaluation: label-free metrics only, as %s", obstacle)
            self._stated_obstacle = obstacle
        train = None if obstacle and test is not None else features("train")
        if train is None and (test is None or not obstacle):
            raise UserError(f"evaluation: {type(data).__name__} gave no samples of the train split")
        measured = train if test is None else test
        probes = {} if obstacle else self.probes
        with torch.autocast(device.type, enabled=False):
            scores = {
                metric: probe(train, test, classes=data.spec.classes, seed=seed) for metric, probe in probes.items()
            }
            return scores | {metric: measure(measured.x) for metric, measure in _LABEL_FREE.items()}


def _obstacle_to_probes(test: Features | None, classes: int | None) -> str | None:
    """Why accuracy cannot be measured on the test features; None when it can."""
    if test is None:
        return "the test split is empty"
    if classes is None or test.labels is None:
        return "the data has no labels"
    if len(test.labels.unique()) < 2:
        return "the test split holds a single class"
    return None
