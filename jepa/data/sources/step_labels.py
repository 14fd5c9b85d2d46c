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

    Classes, int64, -1 where missing, are text, true and false, or up to MOST_WHOLE_NUMBERS different whole numbers.
    Other numbers are float32, NaN where missing, without names. Raises DataError for one class or over MOST_CLASSES.
    """
    import pandas

    every = pandas.concat(columns, ignore_index=True).dropna()
    numbers = all(column.dtype.kind in "iuf" for column in columns)
    if numbers and (every.nunique() > MOST_WHOLE_NUMBERS or (every % 1 != 0).any()):
        truths = [torch.from_numpy(column.to_numpy(np.float32, copy=True)) for column in columns]
        return truths, None, f"step labels: numbers from {every.min():g} to {every.max():g}"
    text = (lambda cell: str(int(cell))) if numbers else (lambda cell: str(cell).strip())
    columns = [column.map(text, na_action="ignore") for column in columns]
    names = sort_classes(name for column in columns for name in column.dropna().unique())
    if not 2 <= len(names) <= MOST_CLASSES:
        raise DataError(
            f"{where}: data.source.step_labels has {len(names)} different labels ({first_few(names)}), expected 2 to "
            f"{MOST_CLASSES} classes, or numbers: name another column, or set data.source.step_labels=null"
        )
    codes = [pandas.Categorical(column, categories=names).codes.astype(np.int64) for column in columns]
    return list(map(torch.from_numpy, codes)), names, f"step labels: {len(names)} classes, {first_few(names)}"
