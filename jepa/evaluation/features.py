"""Frozen features of one split: a vector per sample, and its tokens where a probe asks for them."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.types import DataSpec
from jepa.utils.errors import UserError
from jepa.utils.random import generator

log = logging.getLogger("jepa")


@dataclass(frozen=True)
class Features:
    """Features x (N, D) float32, or tokens x (N, T, D) float16, and labels (N,) int64, None for data without."""

    x: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, samples: Tensor) -> Features:
        """Some samples, by index or by a mask (N,) bool."""
        return Features(self.x[samples], None if self.labels is None else self.labels[samples])


@dataclass(frozen=True)
class Split:
    """What was extracted of one split; tokens, of all samples or of a random part, only where asked for."""

    pooled: Features
    tokens: Features | None = None


class EvaluationData(Protocol):
    """What evaluation asks of data: every sample of a split once, in a fixed order, without augmentation.

    More is used where it is there: `view_batches` for LiDAR, `train_batches` for fine-tuning, `windows` for forecasts,
    and `raw_features(x, size) -> (b, F)`, which says what raw input is for this data in place of `pool_input`.
    """

    spec: DataSpec

    def evaluation_batches(self, split: str, *, batch_size: int, limit: int | None) -> Iterable[dict[str, Any]]:
        """Batches {"x": (b, C, *S) float32, "label": (b,) int64 or absent} of "train" or "test"."""


class TokenStore:
    """Tokens in half precision within a bound on memory: of all samples, or of a random subset that fits.

    fp16 keeps three decimal digits, and what a final layer norm puts out is far below its largest number, 65,504.

    samples: how many will come. limit_bytes: what the tokens may take, 2 bytes a number; at least one is kept.
    name: whose they are, for the message that says how many of them are used.
    """

    def __init__(self, *, samples: int, limit_bytes: float, name: str) -> None:
        self.samples = samples
        self.limit_bytes = limit_bytes
        self.name = name
        self._keep = torch.ones(samples, dtype=torch.bool)
        self._tokens: Tensor | None = None
        self._labels: list[Tensor] = []
        self._seen = self._kept = 0

    def add(self, tokens: Tensor, labels: Tensor | None) -> None:
        """Take what is kept of the next samples: tokens (b, T, D)."""
        if self._tokens is None:
            self._make_room(tokens)
        keep = self._keep[self._seen : self._seen + len(tokens)].nonzero().flatten().to(tokens.device)
        self._seen += len(tokens)
        self._tokens[self._kept : self._kept + len(keep)] = tokens[keep]
        self._kept += len(keep)
        if labels is not None:
            self._labels.append(labels[keep])

    def _make_room(self, tokens: Tensor) -> None:
        each = 2 * tokens[0].numel()
        fit = max(1, int(self.limit_bytes // each))
        if fit < self.samples:
            log.warning(
                "evaluation: %s: tokens of %d of %d samples are used (all would take %.2f GiB in half precision, "
                "evaluation.token_memory_gib=%g)",
                *(self.name, fit, self.samples, self.samples * each / 2**30, self.limit_bytes / 2**30),
            )
            order = torch.randperm(self.samples, generator=generator("cpu", 0, "evaluation/tokens"))
            self._keep[order[fit:]] = False
        # Allocated at once: joining batches at the end would need twice the memory.
        size = (min(fit, self.samples), *tokens.shape[1:])
        self._tokens = torch.empty(size, dtype=torch.float16, device=tokens.device)

    def features(self) -> Features:
        """All that was kept."""
        return Features(self._tokens[: self._kept], torch.cat(self._labels) if self._labels else None)


def collect(
    encode: Callable[[Tensor], Tensor],
    batches: Iterable[dict[str, Any]],
    *,
    pool: Callable[[Tensor, Tensor | None], Tensor] = lambda features, valid: features,
    valid: Callable[[Tensor], Tensor | None] = lambda x: None,
    device: torch.device,
    name: str,
    tokens: TokenStore | None = None,
) -> Split | None:
    """Features of all batches on the device; None when there are none.

    encode: (b, C, *S) -> (b, T, D). pool: that and what is not padding -> (b, D). valid: inputs -> (b, T) bool, False
    at padding, or None. tokens: keeps the tokens too, those of padding as zeros.
    name: whose features these are, for the message.
    Raises UserError when a feature is NaN or infinite.
    """
    features, labels = [], []
    for batch in batches:
        x = batch["x"].to(device, non_blocking=True)
        encoded, real = encode(x), valid(x)
        features.append(pool(encoded, real).float())
        label = batch["label"].to(device, non_blocking=True) if "label" in batch else None
        if label is not None:
            labels.append(label)
        if tokens is not None:
            tokens.add(encoded if real is None else encoded.masked_fill(~real.unsqueeze(-1), 0), label)
    if not features:
        return None
    x = torch.cat(features)
    check_finite(x, name)
    if tokens is not None:
        check_finite(tokens.features().x, f"{name}, tokens in half precision")
    return Split(
        Features(x, torch.cat(labels) if labels else None),
        None if tokens is None else tokens.features(),
    )


def check_finite(x: Tensor, name: str) -> None:
    """Raise UserError when features (N, ...) hold NaN or infinite values."""
    broken = int((~x.isfinite()).flatten(1).any(dim=1).sum())
    if broken:
        raise UserError(
            f"evaluation: {name}: the features of {broken} of {len(x)} samples hold NaN or infinite values. "
            "Check the input for such values, lower optimizer.lr, or use trainer.precision=fp32"
        )


MOST_RAW_FEATURES = 4096


def pool_input(x: Tensor, size: int) -> Tensor:
    """Raw input as features: (B, C, *S) -> (B, C * product of S), each axis in S averaged to at most `size`.

    Without the limit a 224 pixel picture would have 150,528 features, too many for any probe. S has one to three axes;
    where three of them would still give more than 4,096 features, `size` is lowered until they do not. Ids (B, L) int64
    become the logarithm of 1 + how often each occurs.
    """
    if not x.is_floating_point():
        return count_ids(x)
    shape = [min(length, size) for length in x.shape[2:]]
    while len(shape) > 2 and x.shape[1] * math.prod(shape) > MOST_RAW_FEATURES:
        shape = [min(length, max(shape) - 1) for length in shape]
    pool = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[x.ndim - 2]
    return pool(x, shape).flatten(1)


def count_ids(x: Tensor, buckets: int = 1024) -> Tensor:
    """Bags of ids (B, L) -> (B, buckets): log(1 + how often); ids share buckets modulo their number (feature hashing).

    Vocabularies put frequent tokens first, so that the ids which meet in a bucket are a frequent and some rare ones.
    """
    counts = torch.zeros(len(x), buckets, device=x.device)
    return counts.scatter_add_(1, x % buckets, torch.ones_like(x, dtype=counts.dtype)).log1p()


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Run a block with the model in evaluation mode and without gradients; restores each module's mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
