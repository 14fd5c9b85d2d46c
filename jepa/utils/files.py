"""Writing small files whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from jepa.utils.errors import UserError
from jepa.utils.weights import reason


def write_whole(path: Path, write: Callable[[Path], None], key: str = "output") -> None:
    """Let `write` fill a temporary file beside path, then give it that name; makes the folder.

    Raises UserError when it cannot be written; what stood at path stays.
    """
    temporary = path.with_name(f".writing.{path.name}")  # the suffix stays, as some writers go by it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise UserError(f"{key}={path} is a folder: give the name of a file")
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {key}={path}: {reason(error, path)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, key: str = "output") -> None:
    """Write a text file whole or not at all. Raises UserError as `write_whole` does."""
    write_whole(path, lambda temporary: temporary.write_text(text), key)
