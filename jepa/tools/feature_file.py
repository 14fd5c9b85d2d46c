"""A file of features that grows on the disk, goes on after a kill, and ends as .npz, .parquet or .zarr."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jepa.utils.errors import UserError, reason
from jepa.utils.files import open_locked, write_atomic
from jepa.utils.lazy_import import require


@dataclass(frozen=True)
class Format:
    """A kind of file. method: of `FeatureFile`, which writes it. package, extra: what that needs.

    tokens: whether it takes a matrix for each sample. any_name: whether it takes names that are not UTF-8.
    """

    method: str
    package: str | None = None
    extra: str = ""
    tokens: bool = True
    any_name: bool = False


FORMATS = {
    ".npz": Format("_npz", any_name=True),
    ".parquet": Format("_parquet", "pyarrow", "export", tokens=False),
    ".zarr": Format("_zarr", "zarr", "zarr"),
}
"""Suffix -> format; `scripts/extract.py` takes and refuses what this table says."""

SAVED_EVERY = 5.0  # seconds between two states from which the writing goes on
CHUNK_BYTES = 2**25
MOST_ROWS = 10_000  # of features and rows that are copied at once


class FeatureFile:
    """Rows of text and numbers, and features of each, float32; kept in the folder `<path>.part` until it is finished.

    settings: what the features depend on. Where the folder was left by a writer of the same settings, `done` samples
    and `notes` are those it has got to; else they begin anew. None of the features stay in memory. Raise UserError for
    what cannot be written, and while another process writes there.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.folder = path, path.with_name(f"{path.name}.part")
        self.settings = json.loads(json.dumps(settings, default=str))
        self.done, self.rows = 0, 0
        self.notes: dict[str, Any] = {}
        self.shapes: dict[str, list[int]] = {}
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = open_locked(self.folder / "lock", path)
            state = self._stored()
            if state is None:
                for file in set(self.folder.iterdir()) - {self.folder / "lock"}:
                    file.unlink()
            else:
                self.done, self.rows, self.notes, self.shapes = map(state.get, ("done", "rows", "notes", "shapes"))
                for name, size in state["sizes"].items():
                    os.truncate(self.folder / name, size)
            self.files = {name: open(self.folder / name, "ab") for name in ("rows", *self.shapes)}  # noqa: SIM115
            self.sizes = {name: file.tell() for name, file in self.files.items()}
        self._saved = time.monotonic()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write output={self.path}: {self.folder}: {reason(error, self.path)}") from error

    def _stored(self) -> dict[str, Any] | None:
        """Return the state that a writer of the same settings has left whole."""
        try:
            state = json.loads((self.folder / "state.json").read_text())
            whole = all((self.folder / name).stat().st_size >= size for name, size in state["sizes"].items())
        except (OSError, ValueError):
            return None
        return state if whole and state["settings"] == self.settings else None

    def add(self, rows: Sequence[Mapping[str, Any]], features: Mapping[str, np.ndarray], *, samples: int) -> None:
        """Add rows, with features (n, ...) of each by name, that came of so many more samples."""
        with self._writing():
            for name, values in features.items():
                if name not in self.files:
                    self.shapes[name] = list(values.shape[1:])
                    self.files[name] = open(self.folder / name, "ab")  # noqa: SIM115
                self.files[name].write(np.ascontiguousarray(values, np.float32).data)
            self.files["rows"].write("".join(f"{json.dumps(row)}\n" for row in rows).encode())
        self.rows += len(rows)
        self.done += samples
        self.sizes = {name: file.tell() for name, file in self.files.items()}  # where this was ended, none changes
        if time.monotonic() - self._saved > SAVED_EVERY:
            self.save()

    def save(self) -> None:
        """Write the state from which the writing goes on."""
        with self._writing():
            [file.flush() for file in self.files.values()]
        state = {name: getattr(self, name) for name in ("settings", "done", "rows", "notes", "sizes")}
        state["shapes"] = {name: shape for name, shape in self.shapes.items() if name in self.sizes}
        write_atomic(self.folder / "state.json", lambda temporary: temporary.write_text(json.dumps(state)))
        self._saved = time.monotonic()

    def finish(self) -> None:
        """Write the file, and remove the folder. Raise UserError when it cannot be written."""
        self.save()
        write_atomic(self.path, getattr(self, FORMATS[self.path.suffix].method))
        self.discard()

    def discard(self) -> None:
        """Remove the folder."""
        for file in (self.lock, *self.files.values()):
            file.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _chunks(self) -> Iterator[tuple[slice, dict[str, list[Any]], dict[str, np.ndarray]]]:
        """Yield consecutive rows, column by column, with their features, as many as CHUNK_BYTES have."""
        sizes = {name: int(np.prod(shape)) for name, shape in self.shapes.items()}
        size = max(1, min(MOST_ROWS, CHUNK_BYTES // (4 * sum(sizes.values()))))
        with contextlib.ExitStack() as stack:
            files = {name: stack.enter_context(open(self.folder / name, "rb")) for name in ("rows", *sizes)}
            for start in range(0, self.rows, size):
                rows = [json.loads(line) for line in itertools.islice(files["rows"], size)]
                values = {
                    name: np.fromfile(files[name], np.float32, len(rows) * each).reshape(-1, *self.shapes[name])
                    for name, each in sizes.items()
                }
                yield slice(start, start + len(rows)), {name: [row[name] for row in rows] for name in rows[0]}, values

    def _npz(self, temporary: Path) -> None:
        parts: dict[str, list[np.ndarray]] = {}
        for _, columns, _ in self._chunks():
            for name, values in columns.items():
                parts.setdefault(name, []).append(np.array(values))
        features = {
            name: np.memmap(self.folder / name, np.float32, "r", shape=(self.rows, *shape))
            for name, shape in self.shapes.items()
        }
        with open(temporary, "wb") as file:  # which NumPy writes piece by piece
            np.savez(file, **{name: np.concatenate(values) for name, values in parts.items()}, **features)

    def _parquet(self, temporary: Path) -> None:
        pa = require("pyarrow", extra="export", purpose=f"output={self.path}")
        import pyarrow.parquet as pq

        writer = None
        for _, columns, features in self._chunks():
            arrays: dict[str, Any] = {name: pa.array(values) for name, values in columns.items()}
            for name, values in features.items():
                arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
            table = pa.table(arrays)
            writer = writer or pq.ParquetWriter(temporary, table.schema)
            writer.write_table(table)
        writer.close()

    def _zarr(self, temporary: Path) -> None:
        zarr = require("zarr", extra="zarr", purpose=f"output={self.path}")
        group, arrays = zarr.create_group(store=str(temporary)), {}
        for part, columns, features in self._chunks():
            for name, values in {**columns, **features}.items():
                values = np.asarray(values)
                if name not in arrays:
                    kind = str if values.dtype.kind == "U" else values.dtype
                    shape, chunks = (self.rows, *values.shape[1:]), values.shape
                    arrays[name] = group.create_array(name, shape=shape, chunks=chunks, dtype=kind)
                arrays[name][part] = values
