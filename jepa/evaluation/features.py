"""Frozen features of a split: a vector per sample, and its tokens where a probe needs them."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.types import DataSpec, Grid
from jepa.utils.errors import UserError
from jepa.utils.random import generator

log = logging.getLogger("jepa")

MAX_RAW_FEATURES = 4096


@dataclass(frozen=True)
class Features:
    """Features x (N, D) float32, or tokens x (N, T, D) float16, and labels (N,) int64; None without labels."""

    x: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, samples: Tensor) -> Features:
        """Return some samples, by index or by a mask (N,) bool."""
        return Features(self.x[samples], None if self.labels is None else self.labels[samples])


@dataclass(frozen=True)
class Split:
    """The features of one split; tokens, of all samples or of a random part, only where a probe needs them."""

    pooled: Features
    tokens: Features | None = None


class EvaluationData(Protocol):
    """Data as evaluation reads it: every sample of a split once, in a fixed order, without augmentation.

    Optional: `view_batches` for LiDAR, `train_batches` for fine-tuning, `windows` for forecasts, and
    `raw_features(x, size) -> (b, F)`, the raw input as features, in place of `pool_input`.
    """

    spec: DataSpec

    def evaluation_batches(self, split: str, *, batch_size: int, limit: int | None) -> Iterable[dict[str, Any]]:
        """Yield batches {"x": (b, C, *S) float32, "label": (b,) int64 or absent} of "train" or "test"."""


class TokenStore:
    """Tokens in fp16 within a memory limit: of all samples, or of a random subset that fits.

    The output of a final layer norm is far below the largest fp16, 65,504.

    samples: of the split. limit_bytes: of the tokens, 2 bytes a number; at least one sample is kept.
    name: of the features, for the warning that says how many samples are used.
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
        """Add tokens (b, T, D) of the next samples, as far as these are kept."""
        if self._tokens is None:
            self._allocate(tokens)
        keep = self._keep[self._seen : self._seen + len(tokens)].nonzero().flatten().to(tokens.device)
        self._seen += len(tokens)
        self._tokens[self._kept : self._kept + len(keep)] = tokens[keep]
        self._kept += len(keep)
        if labels is not None:
            self._labels.append(labels[keep])

    def _allocate(self, tokens: Tensor) -> None:
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
        """Return the tokens that were kept."""
        return Features(self._tokens[: self._kept], torch.cat(self._labels) if self._labels else None)


def check_finite(x: Tensor, name: str) -> None:
    """Raise UserError when features (N, ...) hold NaN or infinite values."""
    broken = int((~x.isfinite()).flatten(1).any(dim=1).sum())
    if broken:
        raise UserError(
            f"evaluation: {name}: the features of {broken} of {len(x)} samples hold NaN or infinite values. "
            "Check the input for such values, lower optimizer.lr, or use trainer.precision=fp32"
        )


def pool_input(x: Tensor, size: int) -> Tensor:
    """Return raw input as features: (B, C, *S) -> (B, C * product of S), each axis in S averaged to at most `size`.

    Without the limit a 224 pixel image would have 150,528 features, too many for any probe. S has one to three axes;
    `size` is lowered until three axes have at most 4,096 features. Ids (B, L) int64 become `count_ids`.
    """
    if not x.is_floating_point():
        return count_ids(x)
    shape = [min(length, size) for length in x.shape[2:]]
    while len(shape) > 2 and x.shape[1] * math.prod(shape) > MAX_RAW_FEATURES:
        shape = [min(length, max(shape) - 1) for length in shape]
    pool = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[x.ndim - 2]
    return pool(x, shape).flatten(1)


def patches(x: Tensor, grid: Grid) -> Tensor:
    """Return the pixels of each token's patch: (b, C, *S) -> (b, *grid, C * pixels of a patch), NaN as 0.

    Axes that the grid does not divide are enlarged first.
    """
    size = [-(-length // tokens) * tokens for length, tokens in zip(x.shape[2:], grid, strict=True)]
    x = x.nan_to_num(0.0)
    if tuple(size) != tuple(x.shape[2:]):
        x = F.interpolate(x, size=size, mode="nearest-exact")
    for axis, tokens in enumerate(grid):
        x = x.unflatten(2 + 2 * axis, (tokens, -1))  # (b, C, n, p, m, q, ...)
    axes = len(grid)
    order = [0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2)]
    return x.permute(order).flatten(1 + axes)


def count_ids(x: Tensor, buckets: int = 1024) -> Tensor:
    """Return log(1 + count) of ids (B, L) as (B, buckets); ids are hashed to buckets by their remainder.

    Vocabularies put frequent tokens first, so that a bucket holds one frequent id and some rare ones.
    """
    counts = torch.zeros(len(x), buckets, device=x.device)
    return counts.scatter_add_(1, x % buckets, torch.ones_like(x, dtype=counts.dtype)).log1p()


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """A context in evaluation mode and without gradients; restores each module's mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def stratified_holdout(labels: Tensor, every: int, seed: int) -> Tensor:
    """Return (N,) bool, True for each `every`-th sample of a class, shuffled."""
    shuffled = torch.randperm(len(labels), generator=generator("cpu", seed, "evaluation/held_out"))
    order = shuffled[labels.cpu()[shuffled].argsort(stable=True)]
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[order[::every]] = True
    return held_out.to(labels.device)


def stratified_subset(labels: Tensor, share: float, seed: int, repeat: int = 0) -> Tensor:
    """Return (N,) bool, True for a random share of each class, rounded, at least one sample of it."""
    rng = generator("cpu", seed, "evaluation/few_shot", repeat)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        of_class = (labels == label).nonzero().flatten().cpu()
        count = max(1, round(share * len(of_class)))
        chosen[of_class[torch.randperm(len(of_class), generator=rng)[:count]]] = True
    return chosen.to(labels.device)
