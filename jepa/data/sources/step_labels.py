"""What a column of a table says of each step: a class, or a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from jepa.data.sources.splits import first_few, sort_classes
from jepa.utils.errors import DataError

if TYPE_CHECKING:
    import pandas

MOST_WHOLE_NUMBERS = 20  # more different ones are taken for numbers rather than classes
MOST_CLASSES = 1000


def step_truths(columns: Sequence[pandas.Series], where: str) -> tuple[list[Tensor], tuple[str, ...] | None, str]:
    """Return the labels (T,) of each table, the names of the classes, and what the first lines of a run say of them.

    Classes, int64 with -1 for a missing one, are text, true and false, or up to MOST_WHOLE_NUMBERS different whole
    numbers. Other numbers are float32, NaN for a missing one, and have no names (None).

    Raises DataError for a single class, and for more than MOST_CLASSES.
    """
    import pandas

    every = pandas.concat(columns, ignore_index=True).dropna()
    if numbers := all(column.dtype.kind in "iuf" for column in columns):
        whole = bool((every % 1 == 0).all())
        if not whole or every.nunique() > MOST_WHOLE_NUMBERS:
            truths = [torch.from_numpy(column.to_numpy(np.float32, copy=True)) for column in columns]
            return truths, None, f"step labels: numbers from {every.min():g} to {every.max():g}"

    def text(cells: pandas.Series) -> pandas.Series:
        return cells.map(lambda cell: str(int(cell)) if numbers else str(cell).strip(), na_action="ignore")

    columns = [text(column) for column in columns]
    names = sort_classes(name for column in columns for name in column.dropna().unique())
    if not 2 <= len(names) <= MOST_CLASSES:
        raise DataError(
            f"{where}: data.source.step_labels has {len(names)} different labels ({first_few(names)}), expected 2 to "
            f"{MOST_CLASSES} classes, or numbers: name another column, or set data.source.step_labels=null"
        )
    truths = [
        torch.from_numpy(pandas.Categorical(column, categories=names).codes.astype(np.int64)) for column in columns
    ]
    return truths, names, f"step labels: {len(names)} classes, {first_few(names)}"
