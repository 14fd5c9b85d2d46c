"""Atomic writing of files, and checks of where they go."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from jepa.utils.errors import UserError, reason

RUN_FILES = ("results.json", "metrics.jsonl", "config.yaml")


def check_output(path: Path, source: str | None, key: str = "output") -> None:
    """Raise UserError for an output that would replace a folder, its source, or a file of a run.

    Call it before the output is computed. source: the checkpoint that the output is made from, if any.
    """
    check_not_folder(path, key)
    full = path.resolve()
    is_run_file = full.parent.name == "checkpoints" or (
        full.name in RUN_FILES and (full.parent / "checkpoints").is_dir()
    )
    if is_run_file:
        raise UserError(f"{key}={path} is a run's own file, or would lie among them: give another name or folder")
    if source and Path(source).exists() and full == Path(source).resolve():
        raise UserError(f"{key}={path} is the checkpoint itself: give another name")


def write_atomic(path: Path, write: Callable[[Path], None], key: str = "output") -> None:
    """Call `write` with a path of that name in a temporary folder, then move the file to `path`, whose folder is made.

    Other files that `write` puts beside its file, which may refer to them, are moved before it.

    Raises UserError when it cannot be written; an existing file at path is kept.
    """
    check_not_folder(path, key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing.") as folder:
            write(Path(folder) / path.name)
            for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
                os.replace(file, path.with_name(file.name))
    except OSError as error:
        raise UserError(f"cannot write {key}={path}: {reason(error, path)}") from error


def open_locked(path: Path, output: Path) -> IO[str]:
    """Return a new file that keeps out other processes, but for those that this one starts, until it is closed.

    output: what is written meanwhile. Raises UserError while another process holds the file. Windows has no such lock.
    """
    file = open(path, "w")  # noqa: SIM115
    try:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except (BlockingIOError, PermissionError):
        raise UserError(f"output={output} is being written by another process: give another name") from None
    return file


def check_not_folder(path: Path, key: str) -> None:
    """Raise UserError if the path of a file is a folder."""
    if path.is_dir():
        raise UserError(f"{key}={path} is a folder: give the name of a file")


def write_text(path: Path, text: str, key: str = "output") -> None:
    """Write a text file atomically. Raises UserError as `write_atomic` does."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), key)
