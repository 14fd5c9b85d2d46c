"""A cache of extracted features on disk, so that probing a checkpoint again runs no network."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
import tokenize
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jepa.evaluation.features import Features, Split
from jepa.utils.errors import UserError, first_line
from jepa.utils.files import write_atomic
from jepa.utils.read_data import printable

log = logging.getLogger("jepa")

UNREADABLE = (OSError, EOFError, LookupError, RuntimeError, TypeError, ValueError, ArithmeticError, MemoryError)
UNREADABLE += (SyntaxError, struct.error, tokenize.TokenError, zipfile.BadZipFile)
"""Errors of a damaged file of arrays."""


class FeatureCache:
    """A folder of files, one per network and split, each named after a hash of all that its features depend on.

    key: identifies what evaluation cannot see: the checkpoint, the data and its transform. It has to change with the
        weights, so use a hash of the file or its time and size.

    For a single process: of several ranks that share a sharded network, all have to run it, or none.
    """

    def __init__(self, folder: str | os.PathLike, key: str) -> None:
        self.folder = Path(folder)
        self.key = key

    def get(
        self, name: str, settings: Mapping[str, Any], compute: Callable[[], Split | None], device: torch.device
    ) -> Split | None:
        """Return the features that depend on these settings (JSON values): from their file, or computed and written.

        A damaged file is computed again and one that cannot be written is skipped, both with a warning.
        """
        text = json.dumps({"key": self.key, "name": name, **settings}, sort_keys=True)
        path = self.folder / f"{name}-{hashlib.blake2b(text.encode(), digest_size=12).hexdigest()}.npz"
        if path.is_file():
            try:
                return _read(path, device)
            except UNREADABLE as error:
                reason = printable(first_line(error))[:200]
                log.warning("evaluation: the features in %s are damaged (%s): computed again", path, reason)
        split = compute()
        if split is not None:
            try:
                write_atomic(path, lambda temporary: _write(temporary, split), key="features")
            except UserError as error:
                log.warning("evaluation: features are not kept: %s", error)
        return split


def _read(path: Path, device: torch.device) -> Split:
    """Read a file of `_write`. Raise one of UNREADABLE for any other, before it takes more memory than its own size."""
    with zipfile.ZipFile(path) as archive:
        if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
            raise ValueError("its arrays are compressed, which it would not have written")
    with np.load(path, allow_pickle=False) as file:  # checks the CRC of each array
        tensors = {name: torch.from_numpy(file[name]) for name in file.files}
    parts = {}
    for kind, axes in {"pooled": 2, "tokens": 3}.items():
        x, labels = tensors.get(f"{kind}.x"), tensors.get(f"{kind}.labels")
        if x is None and kind == "tokens":
            continue
        if x is None or x.ndim != axes or not x.is_floating_point():
            raise ValueError(f"{kind}.x holds no features")
        if labels is not None and (labels.ndim == 0 or len(labels) != len(x)):
            raise ValueError(f"{kind}.labels are not one for each sample")
        parts[kind] = Features(x.to(device), None if labels is None else labels.to(device))
    return Split(parts["pooled"], parts.get("tokens"))


def _write(path: Path, split: Split) -> None:
    arrays = {}
    for kind, features in {"pooled": split.pooled, "tokens": split.tokens}.items():
        for part in ("x", "labels"):
            if features is not None and getattr(features, part) is not None:
                arrays[f"{kind}.{part}"] = getattr(features, part).cpu().numpy()
    np.savez(path, **arrays)
