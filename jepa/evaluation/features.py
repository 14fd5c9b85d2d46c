"""Frozen features: one vector per sample, computed once and then shared by all probes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.types import DataSpec
from jepa.utils.errors import UserError


@dataclass(frozen=True)
class Features:
    """The features of one split: x (N, D) float32 and labels (N,) int64, None for data without."""

    x: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)


class Probe(Protocol):
    """Learns from the train features and gives the accuracy, in [0, 1], on the test features."""

    def __call__(self, train: Features, test: Features, *, classes: int, seed: int) -> float: ...


class EvaluationData(Protocol):
    """What evaluation asks of data: every sample of a split once, in a fixed order, without augmentation."""

    spec: DataSpec

    def evaluation_batches(self, split: str, *, batch_size: int, limit: int | None) -> Iterable[dict[str, Any]]:
        """Batches {"x": (b, C, *S) float32, "label": (b,) int64 or absent} of "train" or "test"."""


def collect(
    encode: Callable[[Tensor], Tensor], batches: Iterable[dict[str, Any]], *, device: torch.device, name: str
) -> Features | None:
    """Features of all batches on the device; None when there are none.

    encode: (b, C, *S) -> (b, D). name: whose features these are, for the message.
    Raises UserError when a feature is NaN or infinite.
    """
    features, labels = [], []
    for batch in batches:
        features.append(encode(batch["x"].to(device, non_blocking=True)).float())
        if "label" in batch:
            labels.append(batch["label"].to(device, non_blocking=True))
    if not features:
        return None
    x = torch.cat(features)
    broken = int((~x.isfinite()).any(dim=1).sum())
    if broken:
        raise UserError(
            f"evaluation: {name}: the features of {broken} of {len(x)} samples hold NaN or infinite values. "
            "Check the input for such values, lower optimizer.lr, or use trainer.precision=fp32"
        )
    return Features(x, torch.cat(labels) if labels else None)


def pool_input(x: Tensor, size: int) -> Tensor:
    """Raw input as features: (B, C, *S) -> (B, C * product of S), each axis in S averaged to at most `size`.

    Without the limit a 224 pixel picture would have 150,528 features, too many for any probe. S has one to
    three axes.
    """
    pool = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[x.ndim - 2]
    return pool(x, [min(length, size) for length in x.shape[2:]]).flatten(1)


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
