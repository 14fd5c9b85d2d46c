"""Frozen evaluation: probes of the features of a network, and of two baselines.

    python train.py evaluation.every_epochs=10

The baselines are the raw input and a randomly initialised network: training has helped where "trained" beats both.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from rich.table import Table
from torch import Tensor, nn

from jepa.evaluation.feature_cache import FeatureCache
from jepa.evaluation.feature_source import Extraction, FeatureSource, random_model
from jepa.evaluation.features import EvaluationData, Features, evaluation_mode
from jepa.evaluation.modalities import evaluate_pairs, quick_pairs
from jepa.evaluation.nearest_neighbours import KNNProbe
from jepa.evaluation.online import OnlineProbes
from jepa.evaluation.probe import Probe, named_scores, needs, uses_seed
from jepa.evaluation.results import Results, compared, format_table
from jepa.types import Grid
from jepa.utils.errors import UserError, check_at_least
from jepa.utils.tensors import feature_std, rankme

log = logging.getLogger("jepa")

LABEL_FREE = {"rankme": rankme, "feature_std": feature_std}
FEW_SAMPLES = 50  # fewer test samples decide accuracy by chance: one of them is more than 2 %


@dataclass(kw_only=True, eq=False)
class FrozenEvaluation:
    """Scores frozen features by probes and, with or without labels, by their rank and standard deviation.

    network: "target", the network that makes the targets, or "context", the trained encoder.
    pooling: of a sample's tokens to one vector, "mean" or "max".
    layers: "last", or "last_four": the last four blocks, each through the final norm, concatenated.
    probes: name -> `Probe`; None removes one. All but LiDAR and forecasts need labels.
    seeds: repetitions of what depends on the seed, with seed, seed + 1, ...: the results are means, and `std` holds the
        standard deviations. Weights of random_init are drawn for each seed.
    raw_input_size: each axis of the raw input is averaged to at most so many pixels (or steps).
    batch_size: samples encoded at a time.
    max_train_samples, max_test_samples: use only so many samples of a split; None for all.
    token_memory_gib: limit for the tokens of a split, in fp16; beyond it, probes of tokens get a random part of the
        samples, which is logged.
    every_epochs, every_steps: how often the trainer evaluates during training, at most one of them; None for never.
        at_end: also after the last step; at_start: before the first, as the row "initial". online_every_epochs,
        online_every_steps: how often it calls `quick`, at most one of them. Read by the trainer only.
    online_train_samples, online_test_samples: the most that `quick` uses.
    online: probes that are trained along with the run, a callback of the trainer.

    Raises ValueError for invalid values.
    """

    network: Literal["target", "context"] = "target"
    pooling: Literal["mean", "max"] = "mean"
    layers: Literal["last", "last_four"] = "last"
    probes: Mapping[str, Probe | None]
    seeds: int = 1
    raw_input_size: int = 32
    batch_size: int = 256
    max_train_samples: int | None = None
    max_test_samples: int | None = None
    token_memory_gib: float = 4.0
    every_epochs: int | None = None
    every_steps: int | None = None
    at_end: bool = True
    at_start: bool = False
    online_every_epochs: int | None = None
    online_every_steps: int | None = None
    online_train_samples: int = 2000
    online_test_samples: int = 1000
    online: OnlineProbes | None = None

    def __post_init__(self) -> None:
        self.extraction = Extraction(**{each.name: getattr(self, each.name) for each in fields(Extraction)})
        if taken := LABEL_FREE.keys() & self.probes.keys():
            raise ValueError(f"evaluation.probes: {sorted(taken)} name built-in metrics, rename the probes")
        for prefix in ("", "online_"):
            if None not in (getattr(self, f"{prefix}every_epochs"), getattr(self, f"{prefix}every_steps")):
                raise ValueError(f"evaluation: set {prefix}every_epochs or {prefix}every_steps, not both")
        counts = ("every_epochs", "every_steps", "online_every_epochs", "online_every_steps")
        counts += ("seeds", "online_train_samples", "online_test_samples")
        check_at_least("evaluation", 1, **{name: getattr(self, name) for name in counts})
        self.online_extraction = self.extraction.limited(self.online_train_samples, self.online_test_samples)
        self.probes = {name: probe for name, probe in self.probes.items() if probe is not None}
        self.std: Results = {}
        self._samples: int | None = None  # of the test split, that were used
        self._baselines: Results = {}
        self._baselines_of: tuple[EvaluationData | None, int] = (None, 0)
        self._grid: Grid | None = None  # of the network's tokens, for patches of raw input
        self._warned: set[str] = set()
        self.of_modality: dict[str, FrozenEvaluation] = {}

    def table(self, results: Results) -> Table:
        """Return the results as a table that rich prints, with deviations over seeds and what `compared` says."""
        said = compared(results, self.std, seeds=self.seeds, samples=self._samples)
        return format_table(results, self.std, said)

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
        """Return the metrics of the trained network and of the two baselines; sets `std`.

        model: on the device, with `encode_target(x)` and `encoder(x)`, both (B, C, *S) -> (B, N, D); None for the
            baselines alone. Features are extracted under the caller's autocast, probes compute in fp32.
        random_init: returns a new model of the same kind; called with `seed=` if it takes that. The baselines depend on
            data and seed only and are computed again only when one of these changes.
        cache: where extracted features are kept between processes; None for nowhere.

        Keeps the modules' modes and torch's random state. Raises UserError when features are NaN or infinite, or when
        the data is empty.
        """
        device, total = torch.device(device), data.spec.num_test
        self._samples = min(total, self.max_test_samples or total)
        if hasattr(data, "modalities"):
            return evaluate_pairs(self, model, data, random_init=random_init, device=device, seed=seed)
        tokens = data.spec.classes is not None and any(needs(p) == "tokens" for p in self.probes.values())
        new_source = functools.partial(
            FeatureSource, data=data, extraction=self.extraction, device=device, tokens=tokens, cache=cache
        )

        def random_source(seed: int) -> FeatureSource:
            return new_source("random_init", random_model(random_init, seed, device), seed=seed)

        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            results = {}
            if model is not None:
                results["trained"] = self._row("trained", lambda _: new_source("trained", model), seed)
            known_data, known_seed = self._baselines_of
            if known_data is not data or known_seed != seed:
                self._baselines = {
                    "random_init": self._row("random_init", random_source, seed, source_per_seed=True),
                    "raw_input": self._row("raw_input", lambda _: new_source("raw_input", None), seed),
                }
                self._baselines_of = (data, seed)
        return results | {name: dict(metrics) for name, metrics in self._baselines.items()}

    def quick(
        self, model: nn.Module, data: EvaluationData, *, device: torch.device | str, seed: int = 0
    ) -> dict[str, float]:
        """Return `knn` and `rankme` of the network on few samples, without baselines.

        k-NN is that of `probes.knn` where there is one; without labels there is only the rank. Nothing is random, so
        the seed changes nothing. Keeps modes and random state.
        """
        device = torch.device(device)
        if hasattr(data, "modalities"):
            return quick_pairs(self, model, data, device=device, seed=seed)
        source = FeatureSource("online", model, data, self.online_extraction, device=device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            train, test = self._features(source)
            knn = self.probes.get("knn")
            probe = knn if isinstance(knn, KNNProbe) else KNNProbe()
            with torch.autocast(device.type, enabled=False):
                scores = {} if train is None else {"knn": probe(train, test, classes=data.spec.classes, seed=seed)}
                return {**scores, **self._label_free(test, ["rankme"])}

    def _row(
        self, name: str, make_source: Callable[[int], FeatureSource], seed: int, source_per_seed: bool = False
    ) -> dict[str, float]:
        """Return the means of the metrics over the seeds, and set `std` of the row.

        source_per_seed: make a source for each seed. Otherwise metrics that do not depend on the seed are computed once
        and have no deviation.
        """
        values: dict[str, list[float]] = {}
        source = None
        for current in range(seed, seed + self.seeds):
            repeated = source is not None and not source_per_seed
            if not repeated:
                source = None  # frees its features before the next are extracted
                source = make_source(current)
            for metric, value in self._measure(source, current, repeated).items():
                values.setdefault(metric, []).append(value)
        self.std.pop(name, None)
        if std := {metric: statistics.stdev(many) for metric, many in values.items() if len(many) > 1}:
            self.std[name] = std
        return {metric: statistics.fmean(many) for metric, many in values.items()}

    def _measure(self, source: FeatureSource, seed: int, repeated: bool) -> dict[str, float]:
        """Return all metrics of a source; repeated: only those that depend on the seed."""
        train, test = self._features(source)
        scores: dict[str, float] = {}
        for name, probe in self.probes.items():
            if repeated and not uses_seed(probe):
                continue
            score = self._score(name, probe, source, train, test, seed)
            if score is not None:
                scores |= named_scores(name, score)
        if taken := LABEL_FREE.keys() & scores.keys():
            raise UserError(f"evaluation.probes: {sorted(taken)} name built-in metrics, rename the probes")
        if repeated:
            return scores
        with torch.autocast(source.device.type, enabled=False):
            return scores | self._label_free(test, LABEL_FREE)

    def _label_free(self, features: Features, names: Iterable[str]) -> dict[str, float]:
        """Return metrics of LABEL_FREE; none of a single sample, whose rank of 1 and deviation of 0 say nothing."""
        if len(features) < 2:
            self._warn_once(f"no {' and '.join(LABEL_FREE)}, as there is only 1 test sample")
            return {}
        return {name: LABEL_FREE[name](features.x) for name in names}

    def _score(
        self, name: str, probe: Any, source: FeatureSource, train: Features | None, test: Features, seed: int
    ) -> Any:
        """Return a probe's score, None where it has none. train: None without usable labels."""
        kind, data, extraction = needs(probe), source.data, source.extraction
        if kind == "windows":
            return self._forecast(name, probe, source)
        if kind in ("truth", "motion"):
            return self._truth(name, kind, probe, source)
        if kind == "trajectories":
            return self._of_trajectories(name, probe, source, seed)
        if kind == "views":
            embeddings = source.embeddings(samples=probe.samples, views=probe.views, seed=seed)
            if embeddings is None:
                self._warn_once(f"no {name}, as {type(data).__name__} or the model gives no augmented views")
                return None
            with torch.autocast(source.device.type, enabled=False):
                return probe(embeddings)
        # Data that reach this are a single modality, and raw input has features alone.
        if kind == "pairs" or train is None or (kind != "features" and source.model is None):
            return None
        settings = {"classes": data.spec.classes, "seed": seed}
        with torch.autocast(source.device.type, enabled=False):
            if kind == "encoder":
                settings |= {"pool": source.pool, "device": source.device}
                settings |= {"batch_size": extraction.batch_size, "limit": extraction.limit("test")}
                return probe(source.copy_encoder(), data, **settings)
            if kind == "tokens":
                train, test = (source.split(split).tokens for split in ("train", "test"))
            return probe(train, test, **settings)

    def _forecast(self, name: str, probe: Any, source: FeatureSource) -> Any:
        """Return the score of a probe of windows; None for data without."""
        if not hasattr(source.data, "windows"):
            return None
        encode = None if source.model is None else source.encode
        with contextlib.nullcontext() if encode is None else evaluation_mode(source.model):
            score = probe(encode, source.data, device=source.device, batch_size=source.extraction.batch_size)
        if score is None:
            self._warn_once(f"no {name}, as this data is no long series that goes on after a window")
        return score

    def _truth(self, name: str, kind: str, probe: Any, source: FeatureSource) -> Any:
        """Return the score of a probe of what is known of places or motion; None for data that know nothing."""
        if not (hasattr(source.data, "has_truth") and source.data.has_truth(kind)):
            known = {
                "truth": "masks (data=segmentation_folder), data.source.step_labels (series_csv) or label_tracks "
                "(audio_folder)",
                "motion": "known motion, as data=moving_mnist has",
            }
            self._warn_once(f"no {name}, as the data has no {known[kind]}")
            return None
        source.grid = source.grid or self._grid
        encode = source.encode_grid if kind == "truth" else source.encode_pooled
        autocast = torch.is_autocast_enabled(source.device.type)

        def encoded(x: Tensor) -> tuple[Tensor, Tensor | None]:
            with torch.autocast(source.device.type, enabled=autocast):
                return encode(x)

        mode = contextlib.nullcontext() if source.model is None else evaluation_mode(source.model)
        with mode, torch.autocast(source.device.type, enabled=False):
            score = probe(encoded, source.data, batches=source.truth_batches)
        self._grid = source.grid
        return score

    def _of_trajectories(self, name: str, probe: Any, source: FeatureSource, seed: int) -> Any:
        """Return the score of a probe of roll-outs, in fp32; None for raw input, and models and data without."""
        if source.model is None:
            return None
        if not hasattr(source.model, "rollout") or "action_dim" not in source.data.spec.found:
            self._warn_once(f"no {name}, as the model predicts under no actions, or the data has none")
            return None
        with evaluation_mode(source.model), torch.autocast(source.device.type, enabled=False):
            return probe(source.model, source.data, batches=source.truth_batches, device=source.device, seed=seed)

    def _features(self, source: FeatureSource) -> tuple[Features | None, Features]:
        """Return train features, None where probes cannot run on them, and the features of label-free metrics.

        The latter are those of the test split, or of the train split where that is empty.
        """
        test = source.split("test")
        obstacle = _obstacle_to_probes(test and test.pooled, source.data.spec.classes)
        if obstacle:
            if any(needs(probe) in ("features", "tokens", "encoder") for probe in self.probes.values()):
                self._warn_once(f"label-free metrics only, as {obstacle}")
            if test is not None:
                return None, test.pooled
        train = source.split("train")
        if train is None:
            raise UserError(f"evaluation: {type(source.data).__name__} gave no samples of the train split")
        if test is None:
            return None, train.pooled
        if (count := len(test.pooled)) < FEW_SAMPLES:
            only = f"only {count} test sample{'s' * (count > 1)}"
            self._warn_once(f"{only}, of which one is {1 / count:.1%} of accuracy: scores differ by chance")
        return train.pooled, test.pooled

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            log.warning("evaluation: %s", message)
            self._warned.add(message)


def _obstacle_to_probes(test: Features | None, classes: int | None) -> str | None:
    """Return why accuracy cannot be measured on the test features; None when it can."""
    if test is None:
        return "the test split is empty"
    if classes is None or test.labels is None:
        return "the data has no labels"
    if len(test.labels.unique()) < 2:
        return "the test split holds a single class"
    return None
