"""Where evaluated features come from: a network, or the raw input."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jepa.evaluation.feature_cache import FeatureCache
from jepa.evaluation.features import (
    EvaluationData,
    Features,
    Split,
    TokenStore,
    check_finite,
    evaluation_mode,
    patches,
    pool_input,
)
from jepa.types import Grid, StepRandomness
from jepa.utils.errors import UserError, check_at_least, check_choice
from jepa.utils.random import derive_seed, seeded
from jepa.utils.tensors import masked_max, masked_mean, token_valid

POOLINGS = {"mean": masked_mean, "max": masked_max}
"""Name -> function of tokens (B, N, D) and valid (B, N) that returns (B, D)."""

LAST_BLOCKS = {"last_four": 4}


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """How features are extracted; `FrozenEvaluation` describes the fields. Raises ValueError for invalid values."""

    network: Literal["target", "context"] = "target"
    pooling: Literal["mean", "max"] = "mean"
    layers: Literal["last", "last_four"] = "last"
    raw_input_size: int = 32
    batch_size: int = 256
    max_train_samples: int | None = None
    max_test_samples: int | None = None
    token_memory_gib: float = 4.0

    def __post_init__(self) -> None:
        check_choice("evaluation.network", self.network, ("target", "context"))
        check_choice("evaluation.pooling", self.pooling, POOLINGS)
        check_choice("evaluation.layers", self.layers, ("last", *LAST_BLOCKS))
        counts = ("raw_input_size", "batch_size", "max_train_samples", "max_test_samples")
        check_at_least("evaluation", 1, **{name: getattr(self, name) for name in counts})
        if self.token_memory_gib <= 0:
            raise ValueError(f"evaluation.token_memory_gib must be above 0, got {self.token_memory_gib}")

    def limit(self, split: str) -> int | None:
        """Return the most samples of a split to use; None for all."""
        return self.max_train_samples if split == "train" else self.max_test_samples

    def limited(self, train: int, test: int) -> Extraction:
        """Return a copy that uses no more than so many samples."""
        return replace(
            self,
            max_train_samples=min(train, self.max_train_samples or train),
            max_test_samples=min(test, self.max_test_samples or test),
        )


@dataclass(eq=False)
class FeatureSource:
    """The features of one row of the results, of a network or of the raw input; each split is extracted once.

    name: of the row. model: None for the raw input. seed: that of the weights, None where they depend on none.
    grid: of the tokens, found by `encode_grid`, which wants it for raw input.
    tokens: keep the tokens beside the pooled features; raw input has none.
    cache: where features are looked up before the network runs.
    """

    name: str
    model: nn.Module | None
    data: EvaluationData
    extraction: Extraction
    device: torch.device = field(kw_only=True)
    seed: int | None = None
    grid: Grid | None = None
    tokens: bool = False
    cache: FeatureCache | None = None

    def __post_init__(self) -> None:
        self.tokens = self.tokens and self.model is not None
        self.pool = POOLINGS[self.extraction.pooling]  # of tokens (b, T, D) and valid (b, T), returns (b, D)
        self._splits: dict[str, Split | None] = {}

    def split(self, split: str) -> Split | None:
        """Return the features of "train" or "test"; None for an empty split.

        Raises UserError when they are NaN or infinite, or the network cannot return the layers.
        """
        if split not in self._splits:
            if self.cache is None:
                self._splits[split] = self._extract(split)
            else:
                kind = self.device.type
                autocast = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None
                settings = {**asdict(self.extraction), "split": split, "seed": self.seed}
                settings |= {"tokens": self.tokens, "autocast": autocast}
                self._splits[split] = self.cache.get(
                    f"{self.name}-{split}", settings, lambda: self._extract(split), self.device
                )
        return self._splits[split]

    def _extract(self, split: str) -> Split | None:
        name = f"{self.name} ({split} split)"
        limit = self.extraction.limit(split)
        store = None
        if self.tokens:
            size = self.data.spec.num_train if split == "train" else self.data.spec.num_test
            limit_bytes = self.extraction.token_memory_gib * 2**30
            store = TokenStore(samples=min(size, limit or size), limit_bytes=limit_bytes, name=name)
        features, labels = [], []
        with contextlib.nullcontext() if self.model is None else evaluation_mode(self.model):
            for batch in self.data.evaluation_batches(split, batch_size=self.extraction.batch_size, limit=limit):
                x = batch["x"].to(self.device, non_blocking=True)
                label = batch["label"].to(self.device, non_blocking=True) if "label" in batch else None
                if label is not None:
                    labels.append(label)
                if self.model is None:
                    features.append(self._raw(x).float())
                    continue
                tokens, valid = self.encode(x)
                features.append(self.pool(tokens, valid).float())
                if store is not None:
                    store.add(tokens if valid is None else tokens.masked_fill(~valid.unsqueeze(-1), 0), label)
        if not features:
            return None
        pooled = Features(torch.cat(features), torch.cat(labels) if labels else None)
        check_finite(pooled.x, name)
        if store is None:
            return Split(pooled)
        check_finite(store.features().x, f"{name}, tokens in half precision")
        return Split(pooled, store.features())

    def embeddings(self, *, samples: int, views: int, seed: int) -> Tensor | None:
        """Return embeddings (n, q, D) of `views` augmented views of n training samples, each masked as in training.

        q is views times masks; `views` for raw input. None when the data or the model has no augmented views.
        """
        if not hasattr(self.data, "view_batches") or not (self.model is None or hasattr(self.model, "prepare")):
            return None
        seed = derive_seed(seed, "evaluation/views")
        batch_size = max(1, self.extraction.batch_size // views)
        batches = self.data.view_batches("train", views=views, batch_size=batch_size, limit=samples, seed=seed)
        parts = []
        for step, batch in enumerate(batches):
            x = batch["views"].to(self.device, non_blocking=True)  # (b, views, C, *S)
            if self.model is None:
                parts.append(self._raw(x.flatten(0, 1)).unflatten(0, x.shape[:2]))
                continue
            with evaluation_mode(self.model):
                rng = StepRandomness(seed=seed, step=step, total=len(x), start=0, count=len(x))
                embeddings = self.model(self.model.prepare({"views": x}, rng)).embeddings  # (V, b, D)
            if embeddings is None:
                return None
            parts.append(embeddings.transpose(0, 1).float())
        if not parts:
            return None
        embeddings = torch.cat(parts)
        check_finite(embeddings, f"{self.name} (views of the train split)")
        return embeddings

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return tokens (b, T, D) of inputs (b, C, *S) on the device, in the model's present mode, and valid (b, T).

        Several layers are concatenated in D. valid is False at padding, None without.
        """
        network = self.model.encode_target if self.extraction.network == "target" else self.model.encoder
        layers = self._layers(network)
        tokens = network(x) if layers is None else torch.cat(network(x, layers=layers), dim=-1)
        return tokens, token_valid(self.model.encoder, x)

    def encode_grid(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what `encode` does, as tokens (b, *grid, D) and valid (b, *grid); of raw input, patches of pixels."""
        if self.model is None:
            return patches(getattr(self.data, "raw_picture", lambda x: x)(x), self.grid), None
        tokens, valid = self.encode(x)
        self.grid = tuple(self.model.encoder.grid(x))
        return tokens.unflatten(1, self.grid), None if valid is None else valid.unflatten(1, self.grid)

    def encode_pooled(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what `encode` does; of raw input, all of it as one token."""
        return self.encode(x) if self.model is not None else (self._raw(x).float().unsqueeze(1), None)

    def truth_batches(self, split: str, what: str | None = None, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield the batches of `DataModule.truth_batches`, or without `what` of the data, `x` on the device."""
        limits = {each for each in (limit, self.extraction.limit(split)) if each is not None}
        settings = {"batch_size": self.extraction.batch_size, "limit": min(limits, default=None)}
        find = self.data.evaluation_batches if what is None else partial(self.data.truth_batches, what=what)
        for batch in find(split, **settings):
            yield batch | {"x": batch["x"].to(self.device, non_blocking=True)}

    def _layers(self, network: Callable[..., Any]) -> list[int] | None:
        """Return the blocks of `extraction.layers`; None for the last layer alone.

        Raises UserError when several are asked for and the encoder is too shallow or returns only the last.
        """
        key = f"evaluation.layers={self.extraction.layers}"
        if self.extraction.layers == "last":
            return None
        blocks, depth = LAST_BLOCKS[self.extraction.layers], getattr(self.model.encoder, "depth", None)
        signature = inspect.signature(network.forward if isinstance(network, nn.Module) else network)
        if depth is None or "layers" not in signature.parameters:
            raise UserError(
                f"{key}: the {self.extraction.network} network of {type(self.model).__name__} gives its last layer "
                "only: use evaluation.layers=last"
            )
        if depth < blocks:
            raise UserError(
                f"{key}: the encoder has {depth} blocks, expected at least {blocks}: use evaluation.layers=last"
            )
        return list(range(depth - blocks, depth))

    def copy_encoder(self) -> nn.Module:
        """Return a copy of the encoder, to be trained. Raises UserError where it cannot be copied."""
        encoder = self.model.encoder
        if self.extraction.network == "target":
            encoder = getattr(getattr(self.model, "target", None), "encoder", encoder)
        if not isinstance(encoder, nn.Module):
            raise UserError(
                f"evaluation.probes.fine_tuning: the encoder of {type(self.model).__name__} is not a module that "
                "can be copied (a sharded one is not): evaluate the checkpoint in one process, or remove the probe "
                "with evaluation.probes.fine_tuning=null"
            )
        return copy.deepcopy(encoder)

    def _raw(self, x: Tensor) -> Tensor:
        features = getattr(self.data, "raw_features", pool_input)
        return features(x, self.extraction.raw_input_size)


def random_model(random_init: Callable[..., nn.Module], seed: int, device: torch.device) -> nn.Module:
    """Return a randomly initialised model on the device; random_init is called with `seed=` if it takes that."""
    with seeded(seed, "evaluation/random_init"):
        takes_seed = "seed" in inspect.signature(random_init).parameters
        return (random_init(seed=seed) if takes_seed else random_init()).to(device)
