"""Encoders that share one trunk: the blocks and the final norm."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def same_trunk(first: nn.Module, other: nn.Module) -> bool:
    """Return whether the trunks of two encoders have the same parameters and number of heads."""
    return _trunk_shape(first) == _trunk_shape(other)


def share_trunk(encoders: Iterable[nn.Module]) -> None:
    """Replace the `blocks` and `norm` of all encoders by those of the first."""
    first, *others = encoders
    for other in others:
        other.blocks, other.norm = first.blocks, first.norm


def _trunk_shape(encoder: nn.Module) -> tuple[int | None, list[tuple[str, torch.Size]]]:
    trunk = nn.ModuleList([encoder.blocks, encoder.norm])
    return getattr(encoder, "num_heads", None), [(name, p.shape) for name, p in trunk.named_parameters()]
