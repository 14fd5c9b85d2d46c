"""Stems, which turn inputs into tokens, and the base class of encoders that start with one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from jepa.types import Grid
from jepa.utils.tensors import token_valid


class Stem(Protocol):
    """Inputs to tokens on an n-D grid; a module that is completed with `embed_dim=`, the width of the tokens.

    A token depends on its own part of the input only, so that a hidden token cannot leak through others. A stem whose
    inputs may be padded also has `token_valid(x) -> (B, N) bool` (see `jepa.types.Encoder`).
    """

    token_values: int

    def grid(self, x: Tensor) -> Grid:
        """Return the token grid of inputs x. Raise ValueError for inputs of another form."""

    def token_inputs(self, x: Tensor) -> Tensor:
        """Return the input values at each token, (B, N, token_values), or ids (B, N) int64."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return tokens (B, N, D), without positions."""


class StemEncoder(nn.Module):
    """The parts of `jepa.types.Encoder` that the stem answers. stem: called with `embed_dim=` to be completed."""

    def __init__(self, stem: Callable[..., nn.Module], embed_dim: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.stem = stem(embed_dim=embed_dim)
        self.token_values: int = self.stem.token_values

    def grid(self, x: Tensor) -> Grid:
        """Return the token grid of inputs x."""
        return self.stem.grid(x)

    def token_inputs(self, x: Tensor) -> Tensor:
        """Return the input values at each token, (B, N, token_values), or ids (B, N) int64."""
        return self.stem.token_inputs(x)

    def token_valid(self, x: Tensor) -> Tensor | None:
        """Return which tokens (B, N) bool are not padding; None if the stem takes no padding."""
        return token_valid(self.stem, x)
