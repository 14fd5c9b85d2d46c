"""Plain checkpoints: one file, written atomically, read with weights_only.

A checkpoint is a dict with `format`, `version`, `step`, `pending`, `ended`, `model`, `optimizer`, `scaler`, `best`,
`metrics` (the last value of each), `callbacks` and `loggers` (name -> state), `config` and `libraries`. As everything
random is a function of (seed, step), no random state is needed to resume exactly.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from jepa.checkpoint.load import read_file
from jepa.utils.errors import CheckpointError, reason

FORMAT = "jepa"
VERSION = 2
KEYS = ("step", "pending", "ended", "model", "optimizer", "scaler", "best", "metrics", "callbacks", "loggers", "config")


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically: to a temporary name beside it, flushed to disk, renamed.

    Raises CheckpointError when the disk is full or the folder cannot be written; an existing file at `path` is kept.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_flushed(with_format(state), temporary)
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # and so the renaming
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        temporary.unlink(missing_ok=True)
        intact = f"The checkpoint written before is intact: {path}"
        kept = intact if path.exists() else "No checkpoint was there before."
        raise CheckpointError(f"could not write the checkpoint {path}: {reason(error, path)}. {kept}") from error


def save_flushed(content: Any, path: Path) -> None:
    """Save by torch and flush to disk."""
    with open(path, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, on the CPU.

    Raises CheckpointError when the file is missing, cut short, not a checkpoint, or of another format or version.
    """
    content = read_file(path)
    check(content, path)
    return content


def with_format(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state with format, version and libraries."""
    libraries = {"python": platform.python_version(), "torch": str(torch.__version__), "timm": version("timm")}
    return {"format": FORMAT, "version": VERSION, **state, "libraries": libraries}


def check(content: Any, path: Path) -> None:
    """Raise CheckpointError unless this is the complete content of a checkpoint in our format."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"{path} is not a checkpoint of this project (it holds {found}): to start from the weights of a "
            "published file use init_from=<file>; to continue a run use resume=<its folder>"
        )
    if content.get("version") != VERSION:
        raise CheckpointError(f"{path} has format version {content.get('version')}, this code reads {VERSION}")
    if missing := [key for key in KEYS if key not in content]:
        raise CheckpointError(f"{path} lacks {missing}: it is damaged")
