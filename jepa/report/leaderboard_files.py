"""Write a leaderboard as a CSV file and as an HTML page."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from pathlib import Path

from jepa.report.leaderboard import Leaderboard
from jepa.utils.errors import UserError


def write_files(board: Leaderboard, csv_path: Path, page_path: Path) -> list[str]:
    """Write both files; return a line for each. Without plotly the page is left out, and its line says so."""
    write_csv(board, csv_path)
    try:
        import plotly  # noqa: F401
    except ModuleNotFoundError:
        return [str(csv_path), f"{page_path.name} is not written, as it needs plotly: pip install 'jepa[report]'"]
    write_page(board, page_path)
    return [str(csv_path), str(page_path)]


def write_csv(board: Leaderboard, path: Path) -> None:
    """Write all runs with all options and metrics in full precision. Raise UserError if that fails."""
    rows, text = board.rows(), io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), restval="")
    writer.writeheader()
    writer.writerows(rows)
    _write_text(path, text.getvalue(), "csv")


def write_page(board: Leaderboard, path: Path) -> None:
    """Write a page with tables and figures that needs no network. Needs plotly. Raise UserError if that fails."""
    from jepa.report.leaderboard_page import page

    _write_text(path, page(board), "html")


def _write_text(path: Path, text: str, key: str) -> None:
    """Write a file atomically, and make its folder. Raise UserError that names the key."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", newline="")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write {key}={path}: {error.strerror}: give another {key}=<file>") from error
