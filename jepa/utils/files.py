"""Writing small files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from jepa.checkpoint.load import reason
from jepa.utils.errors import UserError

RUN_FILES = ("results.json", "metrics.jsonl", "config.yaml")


def check_output(path: Path, source: str | None, key: str = "output") -> None:
    """Refuse an output before it is computed, which may take long.

    source: the checkpoint, where one is given.

    Raises UserError where it would replace a folder, the checkpoint it is made from, or what a run has written.
    """
    refuse_folder(path, key)
    full = path.resolve()
    of_a_run = full.parent.name == "checkpoints" or (full.name in RUN_FILES and (full.parent / "checkpoints").is_dir())
    if of_a_run:
        raise UserError(f"{key}={path} is a run's own file, or would lie among them: give another name or folder")
    if source and Path(source).exists() and full == Path(source).resolve():
        raise UserError(f"{key}={path} is the checkpoint itself: give another name")


def write_whole(path: Path, write: Callable[[Path], None], key: str = "output") -> None:
    """Let `write` fill a file of that name in a temporary folder, then move it to path; makes the folder of path.

    What else `write` puts beside its file, which may name it, is moved too, before the file itself.

    Raises UserError when it cannot be written; what stood at path stays.
    """
    refuse_folder(path, key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing.") as folder:
            write(Path(folder) / path.name)
            for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
                os.replace(file, path.with_name(file.name))
    except OSError as error:
        raise UserError(f"cannot write {key}={path}: {reason(error, path)}") from error


def refuse_folder(path: Path, key: str) -> None:
    """Raise UserError where a folder stands at the path of a file."""
    if path.is_dir():
        raise UserError(f"{key}={path} is a folder: give the name of a file")


def write_text(path: Path, text: str, key: str = "output") -> None:
    """Write a text file whole or not at all. Raises UserError as `write_whole` does."""
    write_whole(path, lambda temporary: temporary.write_text(text), key)
