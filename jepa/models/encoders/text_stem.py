"""The stem of text: one learned vector per token id."""

from __future__ import annotations

from torch import Tensor, nn

from jepa.models.encoders.stem_encoder import Stem, kept
from jepa.types import Grid


class TextStem(Stem):
    """Ids (B, L) int64 to tokens on a grid (L,).

    vocab_size: ids are 0 to vocab_size - 1. Vectors are initialised with standard deviation 1 / sqrt(embed_dim), which
    gives them length 1.
    """

    time_axis = 0

    def __init__(self, *, embed_dim: int, vocab_size: int, padding_id: int = 0) -> None:
        super().__init__()
        if not 0 <= padding_id < vocab_size:
            raise ValueError(f"model.encoder.stem.padding_id={padding_id} is not among the ids 0 to {vocab_size - 1}")
        self.vocab_size, self.padding_id = vocab_size, padding_id
        self.token_values: int = vocab_size
        self.embed = nn.Embedding(vocab_size, embed_dim)
        nn.init.normal_(self.embed.weight, std=embed_dim**-0.5)

    def grid(self, x: Tensor) -> Grid:
        if x.ndim != 2 or x.is_floating_point():
            raise ValueError(
                f"expected ids (B, L) int64, got {tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}: model=text "
                "is for data=text_lines, text_csv, wikitext2 or a text column of data=hf"
            )
        return (x.shape[1],)

    def token_inputs(self, x: Tensor) -> Tensor:
        return x

    def token_valid(self, x: Tensor) -> Tensor:
        return x != self.padding_id

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.embed(kept(x, keep))
