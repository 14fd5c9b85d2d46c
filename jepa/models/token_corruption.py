"""Corruption of the context encoder's input; the targets are computed from the original input."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.types import StepRandomness


class RandomTokens:
    """Replace tokens by random ones (as BERT does with a tenth of those it predicts, arXiv 1810.04805, section 3.1).

    random_token_prob: probability of each token to be replaced.
    vocab_size: ids are 0 to vocab_size - 1. padding_id: padding is never replaced, and no token is replaced by it.

    Raises ValueError for a probability outside 0 to 1, or a vocabulary of fewer than 2 ids.
    """

    def __init__(self, *, vocab_size: int, random_token_prob: float = 0.0, padding_id: int = 0) -> None:
        if not 0 <= random_token_prob <= 1:
            raise ValueError(f"model.corruption.random_token_prob={random_token_prob}: expected a share from 0 to 1")
        if vocab_size < 2:
            raise ValueError(f"model.corruption.vocab_size={vocab_size}: expected at least 2, one of which is padding")
        self.vocab_size, self.random_token_prob, self.padding_id = vocab_size, random_token_prob, padding_id

    def __call__(self, x: Tensor, rng: StepRandomness, views: int = 1) -> Tensor:
        """Return corrupted ids (B * views, L) of x, the samples of `rng`; the same for any number of ranks."""
        if self.random_token_prob == 0:
            return x
        generator = rng.generator(x.device, "corruption")
        shape = (rng.total * views, x.shape[1])
        replaced = torch.rand(shape, device=x.device, generator=generator) < self.random_token_prob
        ids = torch.randint(self.vocab_size - 1, shape, device=x.device, generator=generator)
        ids = ids + (ids >= self.padding_id)  # any id but that of padding
        local = slice(rng.samples.start * views, rng.samples.stop * views)
        return torch.where(replaced[local] & (x != self.padding_id), ids[local], x)
