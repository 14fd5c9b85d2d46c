"""Text in tokens: ids to vectors, with padding left aside."""

from __future__ import annotations

from torch import Tensor, nn

from jepa.types import Grid


class TextStem(nn.Module):
    """A vector for every id, for `TransformerEncoder` to put positions to; inputs (B, L) int64, one token each.

    vocab_size: ids are 0 to this, excluded. padding_id: the one that marks padding.
    Vectors start at the unit variance over sqrt(D) that keeps them of length 1, well above positions learned from 0.02.

    Raises ValueError for a padding id outside the vocabulary.
    """

    def __init__(self, *, embed_dim: int, vocab_size: int, padding_id: int = 0) -> None:
        super().__init__()
        if not 0 <= padding_id < vocab_size:
            raise ValueError(f"model.encoder.stem.padding_id={padding_id} is not among the ids 0 to {vocab_size - 1}")
        self.vocab_size, self.padding_id = vocab_size, padding_id
        self.token_values: int = vocab_size
        self.embed = nn.Embedding(vocab_size, embed_dim)
        nn.init.normal_(self.embed.weight, std=embed_dim**-0.5)

    def grid(self, x: Tensor) -> Grid:
        """(L,) of ids (B, L). Raises ValueError for inputs of another form."""
        if x.ndim != 2 or x.is_floating_point():
            raise ValueError(
                f"expected ids (B, L) int64, got {tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}: model=text "
                "is for data=text_lines, text_csv, wikitext2 or a text column of data=hf"
            )
        return (x.shape[1],)

    def token_inputs(self, x: Tensor) -> Tensor:
        """The ids (B, L) themselves."""
        return x

    def token_valid(self, x: Tensor) -> Tensor:
        """Which tokens (B, L) bool are not padding."""
        return x != self.padding_id

    def forward(self, x: Tensor) -> Tensor:
        """Ids (B, L) to tokens (B, L, D)."""
        return self.embed(x)
