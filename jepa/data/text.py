"""Text as ids, padded to one length.

python train.py model=text data=text_csv data.root=banking77 data.label_column=category
python train.py model=text data=text_lines data.root=corpus.txt
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from jepa.data.base import StreamData, check_counts, check_loading
from jepa.data.sources.base import Splits
from jepa.data.stream import Samples, UnreadableSample
from jepa.data.tokenizer import PADDING, Tokenizer, open_tokenizer
from jepa.utils.random import generator

MOST_BUCKETS = 1024
MOST_CHARACTERS = 4_000_000
"""That a tokenizer is trained on: more would take longer than it helps."""


class TextData(StreamData):
    """Texts as ids (max_length,) int64 with padding, id 0, at the end.

    source: called as source(root=root) and with the columns that are given; returns `Splits` of (text, label).
    text_column, label_column: of tables, by name or number.
    tokenizer: "train", a file or folder, or a pretrained name; tokenizer_folder: where it is kept, a run's folder, None
        for nowhere; lower_case: of one that is trained, on at most 4 million characters. See `open_tokenizer`.
    vocab_size: how many ids the model has; None takes as many as the tokenizer has, and says so in `spec.found`.
    max_length: tokens of a sample. Of a longer text, training takes so many in a row at a random place, a new one for
        every view, and evaluation the first.
    views: how often a training sample is prepared; short texts then come twice alike, and the masks differ.
    batch_size, num_workers, pin_memory, prefetch_factor, max_bad_share: as of all data, see `StreamData`.

    Raises ValueError for a wrong setting, DataError for data or a tokenizer that is missing or damaged.
    """

    def __init__(
        self,
        *,
        source: Callable[..., Splits],
        root: str | None = None,
        text_column: str | int | None = None,
        label_column: str | int | None = None,
        tokenizer: str = "train",
        tokenizer_folder: str | None = None,
        lower_case: bool = True,
        vocab_size: int | None = 4096,
        max_length: int = 64,
        views: int = 1,
        batch_size: int = 256,
        num_workers: int = 0,
        pin_memory: bool | Literal["auto"] = "auto",
        prefetch_factor: int = 2,
        max_bad_share: float = 0.1,
    ) -> None:
        loading = {
            "views": views,
            "batch_size": batch_size,
            "num_workers": num_workers,
            "pin_memory": pin_memory,
            "prefetch_factor": prefetch_factor,
            "max_bad_share": max_bad_share,
        }
        check_loading(**loading)  # before the source is read
        if max_length < 2:
            raise ValueError(f"data.max_length={max_length}: masks need at least 2 tokens")
        if vocab_size is not None:
            check_counts(vocab_size=vocab_size)
        given = {"root": None if root is None else os.path.expanduser(root)}
        given |= {"text_column": text_column, "label_column": label_column}
        splits = source(**{name: value for name, value in given.items() if value is not None})
        self.max_length = max_length
        self.tokenizer: Tokenizer = open_tokenizer(
            tokenizer,
            texts=_texts(splits.train),
            vocab_size=vocab_size,
            lower_case=lower_case,
            folder=None if tokenizer_folder is None else Path(tokenizer_folder),
        )
        self.vocab_size = vocab_size or self.tokenizer.vocab_size
        super().__init__(
            splits,
            prepare=self.to_ids,
            input_shape=(max_length,),
            found={"vocab_size": self.tokenizer.vocab_size},
            blank=torch.full((max_length,), PADDING + 1, dtype=torch.int64),
            **loading,
        )

    def to_ids(self, text: str, random: torch.Generator | None = None) -> Tensor:
        """Ids (max_length,) int64 of a text; random: where a window of a long one comes from, None for its start."""
        ids = torch.tensor(self.tokenizer.encode(text), dtype=torch.int64)
        surplus = len(ids) - self.max_length
        if surplus > 0:
            first = 0 if random is None else int(torch.randint(surplus + 1, (), generator=random))
            return ids[first : first + self.max_length]
        return torch.nn.functional.pad(ids, (0, -surplus), value=PADDING)

    def words(self, ids: Tensor) -> list[str]:
        """What each of the ids (L,) stands for, as previews show it; nothing for padding."""
        return self.tokenizer.words(ids.tolist())

    def raw_features(self, x: Tensor, size: int) -> Tensor:
        """Bags of tokens (b, F): log(1 + how often each id occurs), padding left out.

        Ids share at most 1,024 buckets modulo their number; frequent ids come first, so that those which meet are a
        frequent one and some rare ones. size: of other inputs; it means nothing here.
        """
        buckets = min(self.vocab_size, MOST_BUCKETS)
        counts = torch.zeros(len(x), buckets, device=x.device)
        return counts.scatter_add_(1, x % buckets, (x != PADDING).to(counts.dtype)).log1p()


def _texts(samples: Samples) -> Iterator[str]:
    """Texts to train a tokenizer on: all of a split, or as many, in random order, as it takes."""
    left = MOST_CHARACTERS
    for index in torch.randperm(len(samples), generator=generator("cpu", 0, "tokenizer")).tolist():
        try:
            text = samples[index][0]
        except UnreadableSample:
            continue
        yield text
        left -= len(text)
        if left < 0:
            return
