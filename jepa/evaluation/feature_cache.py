"""A cache of extracted features on disk, so that probing a checkpoint again runs no network."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa.checkpoint.load import read_file
from jepa.evaluation.features import Features, Split
from jepa.utils.errors import CheckpointError, reason

log = logging.getLogger("jepa")


class FeatureCache:
    """A folder of files, one per network and split, each named after a hash of all that its features depend on.

    key: identifies what evaluation cannot see: the checkpoint, the data and its transform. It has to change with the
        weights, so use a hash of the file or its time and size.

    For a single process: of several ranks that share a sharded network, all have to run it, or none.
    """

    def __init__(self, folder: str | os.PathLike, key: str) -> None:
        self.folder = Path(folder)
        self.key = key

    def path(self, name: str, settings: Mapping[str, Any]) -> Path:
        """Return the file of features that depend on these settings (JSON values) and the key."""
        text = json.dumps({"key": self.key, "name": name, **settings}, sort_keys=True)
        return self.folder / f"{name}-{hashlib.blake2b(text.encode(), digest_size=12).hexdigest()}.pt"

    def get(
        self, name: str, settings: Mapping[str, Any], compute: Callable[[], Split | None], device: torch.device
    ) -> Split | None:
        """Return the features of that name, read from their file, or computed and written to it.

        A damaged file is computed again and one that cannot be written is skipped, both with a warning.
        """
        path = self.path(name, settings)
        if path.is_file():
            try:
                return _read(path, device)
            except CheckpointError as error:
                log.warning("evaluation: the features in %s are damaged (%s): computed again", path, error)
        split = compute()
        if split is not None:
            try:
                _write(path, split)
            except (OSError, RuntimeError) as error:  # torch turns a full disk into the latter
                log.warning("evaluation: features are not kept in %s: %s", path, reason(error, path))
        return split


def _read(path: Path, device: torch.device) -> Split:
    content = read_file(path)
    tensors = content.get("tensors") if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or "pooled.x" not in tensors:
        raise CheckpointError("it holds something else")
    if content.get("checksum") != _checksum(tensors):
        raise CheckpointError("its checksum does not fit")

    def features(name: str) -> Features | None:
        x, labels = tensors.get(f"{name}.x"), tensors.get(f"{name}.labels")
        return None if x is None else Features(x.to(device), None if labels is None else labels.to(device))

    return Split(features("pooled"), features("tokens"))


def _write(path: Path, split: Split) -> None:
    """Write atomically: to a temporary file that is renamed."""
    tensors = {}
    for name, features in {"pooled": split.pooled, "tokens": split.tokens}.items():
        if features is not None:
            tensors[f"{name}.x"] = features.x.cpu().contiguous()
            if features.labels is not None:
                tensors[f"{name}.labels"] = features.labels.cpu()
    path.parent.mkdir(parents=True, exist_ok=True)
    number, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(number, "wb") as file:
            torch.save({"tensors": tensors, "checksum": _checksum(tensors)}, file)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    """Return a CRC of names and contents, as torch's reader does not notice a flipped bit."""
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].contiguous().view(torch.uint8).numpy(), zlib.crc32(name.encode(), total))
    return total
