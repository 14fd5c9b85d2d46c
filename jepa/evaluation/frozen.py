"""Frozen evaluation: features of a network that is not trained any more, scored by probes.

    python train.py evaluation.every_epochs=10

A number alone says little, so the same probes always run on two baselines: the raw input and a randomly
initialised network of the same kind. Training has only helped where "trained" beats both.
"""

from __future__ import annotations

import inspect
import logging
import statistics
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from rich.table import Table
from torch import nn

from jepa.evaluation.cache import FeatureCache
from jepa.evaluation.crossmodal import evaluate_pairs, is_paired, online_pairs
from jepa.evaluation.features import EvaluationData, Features, evaluation_mode
from jepa.evaluation.knn import KNNProbe
from jepa.evaluation.probe import Probe, named, needs, uses_seed
from jepa.evaluation.rank import feature_std, rankme
from jepa.evaluation.subject import Extraction, Subject
from jepa.evaluation.table import format_table
from jepa.utils.errors import UserError
from jepa.utils.random import seeded

log = logging.getLogger("jepa")

Results = dict[str, dict[str, float]]
"""Network ("trained", "random_init", "raw_input") -> metric -> value."""

_LABEL_FREE = {"rankme": rankme, "feature_std": feature_std}


class FrozenEvaluation:
    """Scores frozen features by probes and, with or without labels, by their rank and spread.

    network: whose features: "target", the one that makes the targets, or "context", the trained encoder.
    pooling: how a sample's tokens become one vector, "mean" or "max".
    layers: "last", or "last_four": the last four blocks, each through the final norm, side by side.
    probes: names to `Probe`s; one that is None is left out. All but LiDAR and forecasts need labels.
    seeds: how often what depends on the seed is repeated, with seed, seed + 1, ...: the results are means, and
        `spread` holds the standard deviations. Weights of random_init are drawn anew, trained ones stay.
    raw_input_size: pixels (or steps) to which each axis of the raw input is averaged down at most.
    batch_size: samples encoded at a time.
    max_train_samples, max_test_samples: use only so many samples of a split; None for all.
    token_memory_gib: what the tokens of a split may take, in half precision; where they would take more, probes
        that ask for tokens see a random part of the samples, which is logged.
    every_epochs, every_steps: how often the trainer evaluates during training, at most one of them; None for
        never. at_end: whether it does after the last step. online_every_epochs, online_every_steps: how often it
        calls `online`, at most one of them. The trainer reads these, nothing here does.
    online_train_samples, online_test_samples: the most that `online` uses.

    Raises ValueError for values outside these.
    """

    def __init__(
        self,
        *,
        network: Literal["target", "context"] = "target",
        pooling: Literal["mean", "max"] = "mean",
        layers: Literal["last", "last_four"] = "last",
        probes: Mapping[str, Probe | None],
        seeds: int = 1,
        raw_input_size: int = 32,
        batch_size: int = 256,
        max_train_samples: int | None = None,
        max_test_samples: int | None = None,
        token_memory_gib: float = 4.0,
        every_epochs: int | None = None,
        every_steps: int | None = None,
        at_end: bool = True,
        online_every_epochs: int | None = None,
        online_every_steps: int | None = None,
        online_train_samples: int = 2000,
        online_test_samples: int = 1000,
    ) -> None:
        self.extraction = Extraction(
            network=network,
            pooling=pooling,
            layers=layers,
            raw_input_size=raw_input_size,
            batch_size=batch_size,
            max_train_samples=max_train_samples,
            max_test_samples=max_test_samples,
            token_memory_gib=token_memory_gib,
        )
        if taken := _LABEL_FREE.keys() & probes.keys():
            raise ValueError(f"evaluation.probes: {sorted(taken)} name built-in metrics, rename the probes")
        if every_epochs is not None and every_steps is not None:
            raise ValueError("evaluation: set every_epochs or every_steps, not both")
        if online_every_epochs is not None and online_every_steps is not None:
            raise ValueError("evaluation: set online_every_epochs or online_every_steps, not both")
        counts = {
            "seeds": seeds,
            "every_epochs": every_epochs,
            "every_steps": every_steps,
            "online_every_epochs": online_every_epochs,
            "online_every_steps": online_every_steps,
            "online_train_samples": online_train_samples,
            "online_test_samples": online_test_samples,
        }
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"evaluation.{name} must be at least 1, got {value}")
        self.probes = {name: probe for name, probe in probes.items() if probe is not None}
        self.seeds = seeds
        self.every_epochs = every_epochs
        self.every_steps = every_steps
        self.at_end = at_end
        self.online_every_epochs = online_every_epochs
        self.online_every_steps = online_every_steps
        self.online_extraction = self.extraction.limited(online_train_samples, online_test_samples)
        self.spread: Results = {}
        self._baselines: Results = {}
        self._baselines_of: tuple[EvaluationData | None, int] = (None, 0)
        self._stated: set[str] = set()

    def table(self, results: Results) -> Table:
        """The results as a table that rich prints, with the spread over seeds where there are several."""
        return format_table(results, self.spread)

    def __call__(
        self,
        model: nn.Module | None,
        data: EvaluationData,
        *,
        random_init: Callable[..., nn.Module],
        device: torch.device | str,
        seed: int = 0,
        cache: FeatureCache | None = None,
    ) -> Results:
        """Metrics of the trained network and of the two baselines; `spread` then holds their deviations.

        model: on the device, with `encode_target(x)` and `encoder(x)`, both (B, C, *S) -> (B, N, D); None for the
            baselines alone. Mixed precision is the caller's autocast; it reaches the encoder, the probes compute in
            fp32.
        random_init: gives a fresh model of the same kind; called with `seed=` if it takes that. The baselines
            depend on data and seed only: they are computed, and this is called, only when one of these is not
            that of the last call.
        cache: where extracted features are kept between processes; None for nowhere.

        Leaves the modules' modes and torch's random state as they were. Raises UserError when features are
        NaN or infinite, or when the data is empty.
        """
        device = torch.device(device)
        if is_paired(data):
            return evaluate_pairs(self, model, data, random_init=random_init, device=device, seed=seed)
        wants_tokens = data.spec.classes is not None and any(needs(p) == "tokens" for p in self.probes.values())

        def subject(name: str, model: nn.Module | None, seed: int | None = None) -> Subject:
            return Subject(
                name, model, data, self.extraction, device=device, seed=seed, tokens=wants_tokens, cache=cache
            )

        def fresh(seed: int) -> Subject:
            with seeded(seed, "evaluation/random_init"):
                takes_seed = "seed" in inspect.signature(random_init).parameters
                made = random_init(seed=seed) if takes_seed else random_init()
            return subject("random_init", made.to(device), seed)

        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            results = (
                {} if model is None else {"trained": self._row("trained", lambda _: subject("trained", model), seed)}
            )
            known_data, known_seed = self._baselines_of
            if known_data is not data or known_seed != seed:
                self._baselines = {
                    "random_init": self._row("random_init", fresh, seed, anew=True),
                    "raw_input": self._row("raw_input", lambda _: subject("raw_input", None), seed),
                }
                self._baselines_of = (data, seed)
        return results | {name: dict(metrics) for name, metrics in self._baselines.items()}

    def online(
        self, model: nn.Module, data: EvaluationData, *, device: torch.device | str, seed: int = 0
    ) -> dict[str, float]:
        """`knn` and `rankme` of the network on few samples, for a look during training: no baselines, no fit.

        k-NN is that of `probes.knn` where there is one; without labels there is only the rank. Nothing is random, so
        the seed, there as in the full evaluation, changes nothing. Leaves modes and random state as they were.
        """
        device = torch.device(device)
        if is_paired(data):
            return online_pairs(self, model, data, device=device, seed=seed)
        subject = Subject("online", model, data, self.online_extraction, device=device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            train, test = self._features(subject)
            knn = self.probes.get("knn")
            probe = knn if isinstance(knn, KNNProbe) else KNNProbe()
            with torch.autocast(device.type, enabled=False):
                scores = {} if train is None else {"knn": probe(train, test, classes=data.spec.classes, seed=seed)}
                return {**scores, "rankme": rankme(test.x)}

    def _row(self, name: str, subject_of: Callable[[int], Subject], seed: int, anew: bool = False) -> dict[str, float]:
        """The means of a subject's metrics over the seeds; notes their spread.

        anew: take another subject for each seed. Otherwise what gives the same again is not repeated and has no spread.
        """
        values: dict[str, list[float]] = {}
        subject = None
        for each in range(seed, seed + self.seeds):
            repeated = subject is not None and not anew
            if not repeated:
                subject = None  # its features make room for the next ones
                subject = subject_of(each)
            for metric, value in self._measure(subject, each, repeated).items():
                values.setdefault(metric, []).append(value)
        self.spread.pop(name, None)
        if spread := {metric: statistics.stdev(many) for metric, many in values.items() if len(many) > 1}:
            self.spread[name] = spread
        return {metric: statistics.fmean(many) for metric, many in values.items()}

    def _measure(self, subject: Subject, seed: int, repeated: bool) -> dict[str, float]:
        """All metrics of a subject; repeated: only those that depend on the seed."""
        train, test = self._features(subject)
        scores: dict[str, float] = {}
        for name, probe in self.probes.items():
            if repeated and not uses_seed(probe):
                continue
            score = self._score(name, probe, subject, train, test, seed)
            if score is not None:
                scores |= named(name, score)
        if taken := _LABEL_FREE.keys() & scores.keys():
            raise UserError(f"evaluation.probes: {sorted(taken)} name built-in metrics, rename the probes")
        if repeated:
            return scores
        with torch.autocast(subject.device.type, enabled=False):
            return scores | {metric: measure(test.x) for metric, measure in _LABEL_FREE.items()}

    def _score(self, name: str, probe: Any, subject: Subject, train: Features | None, test: Features, seed: int) -> Any:
        """What a probe says of a subject, None where it cannot say anything. train: None without usable labels."""
        kind, classes = needs(probe), subject.data.spec.classes
        if kind == "views":
            embeddings = subject.embeddings(samples=probe.samples, views=probe.views, seed=seed)
            if embeddings is None:
                self._say_once(f"no {name}, as {type(subject.data).__name__} or the model gives no augmented views")
                return None
            with torch.autocast(subject.device.type, enabled=False):
                return probe(embeddings)
        if kind == "pairs":  # of several modalities, and this is one
            return None
        if kind == "windows":
            return self._forecast(name, probe, subject)
        if train is None or (kind != "features" and subject.model is None):
            return None
        with torch.autocast(subject.device.type, enabled=False):
            if kind == "encoder":
                return probe(
                    subject.encoder(),
                    subject.data,
                    pool=subject.pool,
                    classes=classes,
                    device=subject.device,
                    seed=seed,
                    batch_size=subject.extraction.batch_size,
                    limit=subject.extraction.limit("test"),
                )
            if kind == "tokens":
                train, test = (subject.split(split).tokens for split in ("train", "test"))
            return probe(train, test, classes=classes, seed=seed)

    def _forecast(self, name: str, probe: Any, subject: Subject) -> Any:
        """What a probe of windows says; None for data that has none."""
        score, batch_size = None, subject.extraction.batch_size
        if hasattr(subject.data, "windows"):
            if subject.model is None:
                score = probe(None, subject.data, device=subject.device, batch_size=batch_size)
            else:
                with evaluation_mode(subject.model):
                    score = probe(subject.encode, subject.data, device=subject.device, batch_size=batch_size)
        if score is None and hasattr(subject.data, "windows"):
            self._say_once(f"no {name}, as this data is no long series that goes on after a window")
        return score

    def _features(self, subject: Subject) -> tuple[Features | None, Features]:
        """Train features, None where probes cannot run on them, and those that label-free metrics are of.

        Test comes first, as it tells whether probes can run; where it is empty, train takes its place.
        """
        test = subject.split("test")
        obstacle = _obstacle_to_probes(test and test.pooled, subject.data.spec.classes)
        if obstacle:
            self._say_once(f"label-free metrics only, as {obstacle}")
            if test is not None:
                return None, test.pooled
        train = subject.split("train")
        if train is None:
            raise UserError(f"evaluation: {type(subject.data).__name__} gave no samples of the train split")
        return (None, train.pooled) if test is None else (train.pooled, test.pooled)

    def _say_once(self, message: str) -> None:
        if message not in self._stated:
            log.warning("evaluation: %s", message)
            self._stated.add(message)


def _obstacle_to_probes(test: Features | None, classes: int | None) -> str | None:
    """Why accuracy cannot be measured on the test features; None when it can."""
    if test is None:
        return "the test split is empty"
    if classes is None or test.labels is None:
        return "the data has no labels"
    if len(test.labels.unique()) < 2:
        return "the test split holds a single class"
    return None
