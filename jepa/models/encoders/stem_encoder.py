"""The base classes of stems, which turn inputs into tokens, and of encoders that start with one."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from jepa.types import Grid
from jepa.utils.tensors import gather_tokens, token_valid


class Stem(nn.Module):
    """Inputs to tokens on an n-D grid; completed with `embed_dim=`, the width of the tokens. Any module with these
    methods will do.

    A token depends on its own part of the input only, so that a hidden token cannot leak through others. A stem whose
    inputs may be padded also has `token_valid(x) -> (B, N) bool` (see `jepa.types.Encoder`).

    time_axis: of the grid, None where none is time. `forward` may take `keep`; without, all tokens are embedded first.
    """

    token_values: int
    time_axis: int | None = None

    def grid(self, x: Tensor) -> Grid:
        """Return the token grid of inputs x. Raise ValueError for inputs of another form."""
        raise NotImplementedError

    def token_inputs(self, x: Tensor) -> Tensor:
        """Return the input values at each token, (B, N, token_values), or ids (B, N) int64."""
        raise NotImplementedError

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return tokens (B, N, embed_dim), or those of `keep` (B, K) alone, without positions."""
        return self.project(kept(self.token_inputs(x), keep))


def kept(values: Tensor, keep: Tensor | None) -> Tensor:
    """Return the values (B, N, ...) of the tokens `keep` (B, K); None: of all."""
    if keep is None:
        return values
    return values.gather(1, keep) if values.ndim == 2 else gather_tokens(values, keep)


class StemEncoder(nn.Module):
    """The parts of `jepa.types.Encoder` that the stem answers. stem: called with `embed_dim=` to be completed."""

    def __init__(self, stem: Callable[..., nn.Module], embed_dim: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.stem = stem(embed_dim=embed_dim)
        self.token_values: int = self.stem.token_values

    def grid(self, x: Tensor) -> Grid:
        return self.stem.grid(x)

    def token_inputs(self, x: Tensor) -> Tensor:
        return self.stem.token_inputs(x)

    def token_valid(self, x: Tensor) -> Tensor | None:
        return token_valid(self.stem, x)
