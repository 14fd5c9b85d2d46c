"""Text as ids, padded to one length.

python train.py model=text data=text_csv data.root=banking77 data.label_column=category
python train.py model=text data=text_lines data.root=corpus.txt
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from jepa.data.data_module import DataModule
from jepa.data.sources.splits import Splits
from jepa.data.sources.text_tables import MOST_CHARACTERS, TOO_LONG
from jepa.data.stream import Samples, blamed
from jepa.data.tokenizer import PADDING, Tokenizer, open_tokenizer
from jepa.utils.errors import check_at_least
from jepa.utils.random import generator

MOST_BUCKETS = 1024
MOST_TRAINED_ON = 4_000_000  # characters that a tokenizer is trained on: more would take longer than it helps
MOST_MEASURED = 200_000  # characters of the texts whose lengths in tokens are counted


@dataclass(kw_only=True, eq=False)
class TextData(DataModule):
    """Texts as ids (max_length,) int64 with padding, id 0, at the end.

    source: called as source(root=root) and with the columns that are set, of tables, by name or number; returns
        `Splits` of (text, label).
    tokenizer, tokenizer_folder, lower_case: see `open_tokenizer`; the attribute becomes the `Tokenizer`.
    vocab_size: how many ids the model has; None takes as many as the tokenizer has, as stated in `spec.found`.
    max_length: tokens of a sample. Of a longer text, training takes a window at a random place, a new one for every
        view, and evaluation the beginning. The views of a short text are equal, and the masks differ.
    """

    source: Callable[..., Splits]
    root: str | None = None
    text_column: str | int | None = None
    label_column: str | int | None = None
    tokenizer: str = "train"
    tokenizer_folder: str | None = None
    lower_case: bool = True
    vocab_size: int | None = 4096
    max_length: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length < 2:
            raise ValueError(f"data.max_length={self.max_length}: masks need at least 2 tokens")
        check_at_least("data", 1, vocab_size=self.vocab_size)
        columns = {"text_column": self.text_column, "label_column": self.label_column}
        splits = self.read_splits(self.source, root=self.root, **columns)
        self.tokenizer: Tokenizer = open_tokenizer(
            self.tokenizer,
            texts=_texts(splits.train, most=MOST_TRAINED_ON),
            vocab_size=self.vocab_size,
            lower_case=self.lower_case,
            folder=None if self.tokenizer_folder is None else Path(self.tokenizer_folder),
        )
        self.vocab_size = self.vocab_size or self.tokenizer.vocab_size
        self.setup(
            splits,
            prepare=self.to_ids,
            input_shape=(self.max_length,),
            found={"vocab_size": self.tokenizer.vocab_size},
            blank=torch.full((self.max_length,), PADDING + 1, dtype=torch.int64),
        )
        self.lines += self._cut(splits.train)

    def to_ids(self, text: str, random: torch.Generator | None = None) -> Tensor:
        """Ids (max_length,) int64 of a text; random: where a window of a long one comes from, None for its start.

        Raises ValueError for a text of more than MOST_CHARACTERS, as all of it is split into tokens.
        """
        if len(text) > MOST_CHARACTERS:
            raise ValueError(TOO_LONG)
        ids = torch.tensor(self.tokenizer.encode(text), dtype=torch.int64)
        surplus = len(ids) - self.max_length
        if surplus > 0:
            first = 0 if random is None else int(torch.randint(surplus + 1, (), generator=random))
            return ids[first : first + self.max_length]
        return torch.nn.functional.pad(ids, (0, -surplus), value=PADDING)

    def _cut(self, samples: Samples) -> tuple[str, ...]:
        lengths = [len(self.tokenizer.encode(text)) for text in _texts(samples, most=MOST_MEASURED)]
        if not (long := sum(length > self.max_length for length in lengths)):
            return ()
        seen = sum(min(length, self.max_length) for length in lengths) / sum(lengths)
        line = f"{long / len(lengths):.0%} of the texts are longer than data.max_length={self.max_length} tokens: of "
        line += f"them training takes a random window, evaluation the beginning, {seen:.0%} of all tokens"
        return (line,)

    def words(self, ids: Tensor) -> list[str]:
        """What each of the ids (L,) stands for, as previews show it; nothing for padding."""
        return self.tokenizer.words(ids.tolist())

    def raw_features(self, x: Tensor, size: int) -> Tensor:
        """Bags of tokens (b, F): log(1 + how often an id occurs), at most 1,024 ids; `size` means nothing here."""
        buckets = min(self.vocab_size, MOST_BUCKETS)
        counts = torch.zeros(len(x), buckets, device=x.device)
        return counts.scatter_add_(1, x % buckets, (x != PADDING).to(counts.dtype)).log1p()


def _texts(samples: Samples, *, most: int) -> Iterator[str]:
    """Texts in random order: all of a split, or as many as have `most` characters."""
    left = most
    for index in torch.randperm(len(samples), generator=generator("cpu", 0, "tokenizer")).tolist():
        try:
            text = samples[index][0]
        except Exception as error:
            blamed(error, f"sample {index}")
            continue
        if len(text) <= MOST_CHARACTERS:
            yield text
            left -= len(text)
        if left < 0:
            return
