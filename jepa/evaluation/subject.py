"""What is scored: a network, or the raw input, seen as a source of features."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jepa.evaluation.cache import FeatureCache
from jepa.evaluation.features import (
    EvaluationData,
    Split,
    TokenStore,
    check_finite,
    collect,
    evaluation_mode,
    pool_input,
)
from jepa.types import StepRandomness
from jepa.utils.errors import UserError
from jepa.utils.random import derive_seed
from jepa.utils.tensors import masked_max, masked_mean, token_valid

POOLINGS = {"mean": masked_mean, "max": masked_max}  # (B, N, D) and what is not padding (B, N) -> (B, D)

LAST_BLOCKS = {"last_four": 4}


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """How features are made; `FrozenEvaluation` describes the fields. Raises ValueError for values outside these."""

    network: Literal["target", "context"] = "target"
    pooling: Literal["mean", "max"] = "mean"
    layers: Literal["last", "last_four"] = "last"
    raw_input_size: int = 32
    batch_size: int = 256
    max_train_samples: int | None = None
    max_test_samples: int | None = None
    token_memory_gib: float = 4.0

    def __post_init__(self) -> None:
        if self.network not in ("target", "context"):
            raise ValueError(f"evaluation.network: got {self.network!r}, expected 'target' or 'context'")
        if self.pooling not in POOLINGS:
            raise ValueError(f"evaluation.pooling: got {self.pooling!r}, expected one of {list(POOLINGS)}")
        if self.layers not in ("last", *LAST_BLOCKS):
            raise ValueError(f"evaluation.layers: got {self.layers!r}, expected 'last' or 'last_four'")
        for name in ("raw_input_size", "batch_size", "max_train_samples", "max_test_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"evaluation.{name} must be at least 1, got {value}")
        if self.token_memory_gib <= 0:
            raise ValueError(f"evaluation.token_memory_gib must be above 0, got {self.token_memory_gib}")

    def limit(self, split: str) -> int | None:
        """At most so many samples of a split; None for all."""
        return self.max_train_samples if split == "train" else self.max_test_samples

    def limited(self, train: int, test: int) -> Extraction:
        """The same with no more than so many samples."""
        return replace(
            self,
            max_train_samples=min(train, self.max_train_samples or train),
            max_test_samples=min(test, self.max_test_samples or test),
        )


class Subject:
    """One row of the results: gives the features of a network, or of the raw input, and keeps them.

    name: of the row. model: None for the raw input. seed: what the weights depend on, where they do.
    tokens: keep the tokens beside the pooled features; raw input has none.
    cache: where features are looked up before the network runs.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module | None,
        data: EvaluationData,
        extraction: Extraction,
        *,
        device: torch.device,
        seed: int | None = None,
        tokens: bool = False,
        cache: FeatureCache | None = None,
    ) -> None:
        self.name = name
        self.model = model
        self.data = data
        self.extraction = extraction
        self.device = device
        self.seed = seed
        self.keeps_tokens = tokens and model is not None
        self.cache = cache
        self._splits: dict[str, Split | None] = {}

    @property
    def pool(self) -> Callable[[Tensor, Tensor | None], Tensor]:
        """Tokens (b, T, D), and which of them are not padding, to vectors (b, D)."""
        return POOLINGS[self.extraction.pooling]

    def split(self, split: str) -> Split | None:
        """The features of "train" or "test", extracted at the first call; None for an empty split.

        Raises UserError when they are NaN or infinite, or the network cannot give the layers.
        """
        if split not in self._splits:
            if self.cache is None:
                self._splits[split] = self._extract(split)
            else:
                what = {
                    **asdict(self.extraction),
                    "split": split,
                    "seed": self.seed,
                    "tokens": self.keeps_tokens,
                    "autocast": self._autocast(),
                }
                self._splits[split] = self.cache.get(
                    f"{self.name}-{split}", what, lambda: self._extract(split), self.device
                )
        return self._splits[split]

    def _extract(self, split: str) -> Split | None:
        name = f"{self.name} ({split} split)"
        limit = self.extraction.limit(split)
        batches = self.data.evaluation_batches(split, batch_size=self.extraction.batch_size, limit=limit)
        if self.model is None:
            return collect(self._raw, batches, device=self.device, name=name)
        store = None
        if self.keeps_tokens:
            size = self.data.spec.num_train if split == "train" else self.data.spec.num_test
            store = TokenStore(
                samples=size if limit is None else min(size, limit),
                limit_bytes=self.extraction.token_memory_gib * 2**30,
                name=name,
            )
        encode = token_encoder(self.model, self.extraction)
        with evaluation_mode(self.model):
            return collect(
                encode,
                batches,
                pool=self.pool,
                valid=lambda x: token_valid(self.model.encoder, x),
                device=self.device,
                name=name,
                tokens=store,
            )

    def embeddings(self, *, samples: int, views: int, seed: int) -> Tensor | None:
        """Embeddings (n, q, D) of `views` augmented views of n training samples, each masked as in training.

        q is views times masks; `views` for raw input. None when the data or the model has no such views.
        """
        if not hasattr(self.data, "view_batches") or not (self.model is None or hasattr(self.model, "prepare")):
            return None
        seed = derive_seed(seed, "evaluation/views")
        batch_size = max(1, self.extraction.batch_size // views)
        batches = self.data.view_batches("train", views=views, batch_size=batch_size, limit=samples, seed=seed)
        found = []
        for step, batch in enumerate(batches):
            x = batch["views"].to(self.device, non_blocking=True)  # (b, views, C, *S)
            if self.model is None:
                found.append(self._raw(x.flatten(0, 1)).unflatten(0, x.shape[:2]))
                continue
            with evaluation_mode(self.model):
                rng = StepRandomness(seed=seed, step=step, total=len(x), start=0, count=len(x))
                embeddings = self.model(self.model.prepare({"views": x}, rng)).embeddings  # (V, b, D)
            if embeddings is None:
                return None
            found.append(embeddings.transpose(0, 1).float())
        if not found:
            return None
        embeddings = torch.cat(found)
        check_finite(embeddings, f"{self.name} (views of the train split)")
        return embeddings

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens (b, T, D) of inputs on the device, and which of them are not padding; the network is in its mode."""
        return token_encoder(self.model, self.extraction)(x), token_valid(self.model.encoder, x)

    def encoder(self) -> nn.Module:
        """A copy of the encoder, which may be trained. Raises UserError where there is none that can be copied."""
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

    def _autocast(self) -> str | None:
        kind = self.device.type
        return str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None


def token_encoder(model: Any, extraction: Extraction) -> Callable[[Tensor], Tensor]:
    """The network as (b, C, *S) -> (b, T, D), D being that of all asked layers side by side.

    Raises UserError when several layers are asked for and the encoder is too shallow or cannot give them.
    """
    encode = model.encode_target if extraction.network == "target" else model.encoder
    if extraction.layers == "last":
        return encode
    blocks, depth = LAST_BLOCKS[extraction.layers], getattr(model.encoder, "depth", None)
    signature = inspect.signature(encode.forward if isinstance(encode, nn.Module) else encode)
    if depth is None or "layers" not in signature.parameters:
        raise UserError(
            f"evaluation.layers={extraction.layers}: the {extraction.network} network of {type(model).__name__} gives "
            "its last layer only: use evaluation.layers=last"
        )
    if depth < blocks:
        raise UserError(
            f"evaluation.layers={extraction.layers}: the encoder has {depth} blocks, expected at least {blocks}: "
            "use evaluation.layers=last"
        )
    layers = list(range(depth - blocks, depth))
    return lambda x: torch.cat(encode(x, layers=layers), dim=-1)
