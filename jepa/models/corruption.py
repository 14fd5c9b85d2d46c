"""What the context encoder is shown in place of the input, while targets are made of the input as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.types import StepRandomness


class RandomTokens:
    """Replaces ids at random by random ones (as BERT does with a tenth of those it predicts, arXiv 1810.04805, 3.1).

    random_token_prob: chance of each seen token to be replaced; 0 replaces none.
    vocab_size: ids are 0 to this, excluded. padding_id: padding stays, and nothing becomes it.

    Raises ValueError for a chance outside 0 to 1, and a vocabulary of fewer than 2 ids.
    """

    def __init__(self, *, vocab_size: int, random_token_prob: float = 0.0, padding_id: int = 0) -> None:
        if not 0 <= random_token_prob <= 1:
            raise ValueError(f"model.corruption.random_token_prob={random_token_prob}: expected a share from 0 to 1")
        if vocab_size < 2:
            raise ValueError(f"model.corruption.vocab_size={vocab_size}: expected at least 2, one of which is padding")
        self.vocab_size, self.random_token_prob, self.padding_id = vocab_size, random_token_prob, padding_id

    def __call__(self, x: Tensor, rng: StepRandomness, views: int = 1) -> Tensor:
        """Ids (B * views, L), views of a sample adjacent, of the draw's samples; the same whoever draws them."""
        if self.random_token_prob == 0:
            return x
        random = rng.generator(x.device, "corruption")
        shape = (rng.total * views, x.shape[1])
        chosen = torch.rand(shape, device=x.device, generator=random) < self.random_token_prob
        ids = torch.randint(self.vocab_size - 1, shape, device=x.device, generator=random)
        ids = ids + (ids >= self.padding_id)  # any id but that of padding
        mine = slice(rng.samples.start * views, rng.samples.stop * views)
        return torch.where(chosen[mine] & (x != self.padding_id), ids[mine], x)
