"""What features are extracted of, as samples with a row each: files of every modality, or a run's own data."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa.config.encoder_inputs import EVALUATION, Inputs, series_place, sound_pieces
from jepa.data import AudioData, ImageData, SeriesData, TextData
from jepa.data.sources.decoders import is_frame_file
from jepa.data.sources.folders import IMAGES, SOUNDS, VIDEOS, FileKind, left_out
from jepa.data.sources.series_tables import find_tables
from jepa.data.sources.sound_files import SoundPart
from jepa.data.sources.text_files import find_texts, texts_of
from jepa.data.stream import Request, blamed
from jepa.utils.errors import DataError, UserError

Row = dict[str, Any]


class Samples:
    """Inputs of parts one after another, as of files: by index a row and an input, or what reading raises.

    name: in the plural. identity: by which the same samples are known. counts: inputs of each part.
    """

    name = "samples"

    def __init__(self, inputs: Inputs, identity: str, counts: Iterable[int]) -> None:
        self.inputs, self.identity = inputs, identity
        self.ends = np.cumsum(list(counts))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> tuple[Row, Tensor]:
        row, value = self.read(*self.place(index))
        return row, self.inputs.tensor(value, self.describe(index))

    def place(self, index: int) -> tuple[int, int]:
        """Return the part of an input, and its number there."""
        part = int(np.searchsorted(self.ends, index, side="right"))
        return part, index - (int(self.ends[part - 1]) if part else 0)

    def describe(self, index: int) -> str:
        """Return what an input is called in messages."""
        raise NotImplementedError

    def read(self, part: int, number: int) -> tuple[Row, Any]:
        """Return the row of an input, and what sources give for it."""
        raise NotImplementedError


def identity_of(paths: Iterable[str]) -> str:
    """Return by what files are known: their paths, sizes and times of writing."""
    found = hashlib.blake2b(digest_size=16)
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            status = os.stat(path)
            found.update(repr((os.path.abspath(path), status.st_size, status.st_mtime_ns)).encode())
    return found.hexdigest()


class FileSamples(Samples):
    """Files of one input each, or all pieces of sounds. folder: which the names are relative to."""

    def __init__(
        self, folder: Path, names: Sequence[str], inputs: Inputs, *, pieces: bool = False, stride: float | None = None
    ) -> None:
        self.folder, self.files, self.inputs = folder, np.array([os.fsencode(name) for name in names]), inputs
        self.spans = [self._spans(name, stride) for name in names] if pieces else None
        counts = [1] * len(names) if self.spans is None else map(len, self.spans)
        super().__init__(inputs, identity_of(os.path.join(folder, name) for name in names), counts)
        self.name = inputs.kind.name

    def _spans(self, name: str, stride: float | None) -> list[tuple[int, int]]:
        """Return first frame and length of the pieces of a sound; one piece of a damaged one, which fails when read."""
        try:
            parts = [part for _, part in sound_pieces(self._value(name), self.inputs.data.seconds, stride)]
        except Exception as error:
            blamed(error, name)
            return [(0, 0)]
        return [(part.start, part.frames) for part in parts]

    def _value(self, name: str) -> Any:
        return self.inputs.kind.value(os.path.join(self.folder, name), name, self.inputs)

    def describe(self, index: int) -> str:
        return os.fsdecode(self.files[self.place(index)[0]].item())

    def read(self, part: int, number: int) -> tuple[Row, Any]:
        name = os.fsdecode(self.files[part].item())
        value = self._value(name)
        if self.spans is None:
            return {"path": name}, value
        start, frames = self.spans[part][number]
        return {"path": name, "start": start / value.rate}, SoundPart(value, start, frames)


class SeriesWindows(Samples):
    """Windows of series in memory; series: (path, number in the file, values (C, T), times or None) of each."""

    name = "windows"

    def __init__(self, series: Sequence[tuple[str, int, Tensor, Any]], inputs: Inputs, stride: float | None) -> None:
        self.series, self.stride = series, stride
        steps = inputs.data.spec.input_shape[1]
        if short := [path for path, _, values, _ in series if values.shape[1] < steps]:
            raise DataError(f"{short[0]} has fewer than the {steps} steps of a window")
        self.paths = list(dict.fromkeys(path for path, *_ in series))
        counts = (len(inputs.starts(values, stride)) * inputs.channels(values) for *_, values, _ in series)
        super().__init__(inputs, identity_of(self.paths), counts)

    def describe(self, index: int) -> str:
        return self.series[self.place(index)[0]][0]

    def read(self, part: int, number: int) -> tuple[Row, Any]:
        path, in_file, values, times = self.series[part]
        window, channel = divmod(number, self.inputs.channels(values))
        place, value = self.inputs.window(values, self.inputs.starts(values, self.stride)[window], channel)
        time = "" if times is None else str(times.iloc[place["start"]])
        return {"path": path, "series": in_file} | place | {"time": time}, value


class TextRows(Samples):
    """Texts of files, a line or a row of a table each; empty ones fail when they are read."""

    name = "texts"

    def __init__(self, paths: Sequence[Path], column: str | int | None, inputs: Inputs) -> None:
        self.paths = list(map(str, paths))
        self.texts = [texts_of(path, column) for path in paths]
        super().__init__(inputs, identity_of(self.paths), map(len, self.texts))

    def describe(self, index: int) -> str:
        part, number = self.place(index)
        return self.texts[part].describe(number)

    def read(self, part: int, number: int) -> tuple[Row, Any]:
        return {"path": self.paths[part], "row": number + 1}, self.texts[part][number][0]


class SplitSamples(Samples):
    """The training and then the test samples of a run's own data, as evaluation prepares them."""

    def __init__(self, inputs: Inputs) -> None:
        self.splits = list(inputs.data.splits.items())
        counts = {name: len(samples) for name, samples in self.splits}
        super().__init__(inputs, repr(counts), counts.values())

    def describe(self, index: int) -> str:
        part, number = self.place(index)
        return self._describe(self.splits[part][0], number)

    def _describe(self, split: str, number: int) -> str:
        return self.inputs.data.describe(number, replace(EVALUATION, split=split))

    def read(self, part: int, number: int) -> tuple[Row, Any]:
        (split, samples), data = self.splits[part], self.inputs.data
        value, label = samples[number]
        row = {"path": self._describe(split, number), "split": split, "index": number}
        if isinstance(data, SeriesData):
            series, start, channel = series_place(data, split, number)
            if data.timelines:
                line = data.timelines[series]
                row |= {"path": line.path, "time": "" if line.times is None else str(line.times.iloc[start])}
            row |= {"series": series, "start": start, "channel": channel}
        names = data.spec.class_names
        return row | ({} if names is None else {"label": label, "class_name": names[label]}), value


def relative(path: str, folder: str | None) -> str:
    """Return a path relative to a folder, or of a file to that it lies in; as it is where it lies elsewhere."""
    try:
        inside = os.path.isdir(folder) and path != folder
        return str(Path(path).relative_to(folder if inside else os.path.dirname(folder)))
    except (TypeError, ValueError):
        return path


def read_samples(samples: Samples, request: Request, folder: str | None = None) -> dict[str, Any]:
    """Return rows, paths relative to a folder, and inputs "x" (n, *S), if any, and the "unreadable", name -> reason."""
    rows, x, unreadable = [], [], {}
    for index in request.indices:
        try:
            row, made = samples[index]
        except Exception as error:
            unreadable[samples.describe(index)] = blamed(error, "")[1]
            continue
        rows.append(row | {"path": relative(row["path"], folder)})
        x.append(made)
    found = {"x": torch.stack(x)} if x else {}
    return found | {"rows": rows, "unreadable": unreadable, "samples": len(request.indices)}


def samples_of(
    given: str | Sequence[str], inputs: Inputs, *, column: str | int | None, pieces: bool, stride: float | None
) -> tuple[Samples, list[str]]:
    """Return the samples of a folder, a file or several, and what to say of them.

    column: of texts in tables. pieces, stride: see `Encoder`; series always come in windows.

    Raise DataError for what is missing or holds nothing of the kind.
    """
    if not (paths := [given] if isinstance(given, str) else list(map(str, given))):
        raise DataError("input=[] names nothing: give a folder, a file, or several")
    if missing := [path for path in paths if not os.path.exists(path)]:
        raise DataError(f"input={missing[0]} is not a folder, nor a file")
    if pieces and not isinstance(inputs.data, (AudioData, SeriesData)):
        raise UserError(f"pieces=true is for sounds and series, not for {inputs.kind.name}")
    inputs.check_stride(stride)
    if isinstance(inputs.data, SeriesData):
        return SeriesWindows([each for path in paths for each in _series(path, inputs)], inputs, stride), []
    if isinstance(inputs.data, TextData):
        return TextRows([file for path in paths for file in find_texts(Path(path), column)], column, inputs), []
    if stride is not None and not pieces:
        raise UserError(f"stride={stride}: expected with pieces=true, of sounds or series")
    kind = IMAGES if isinstance(inputs.data, ImageData) else SOUNDS if isinstance(inputs.data, AudioData) else VIDEOS
    folder, names, lines = Path(), [], []
    for path in paths:
        below, said = [""], []
        if os.path.isdir(path) and not (kind.frames and _is_clip(path)):
            below, said = files_below(Path(path), kind, inputs.kind.name)
            folder = Path(path) if len(paths) == 1 else folder
        names += [os.path.relpath(os.path.join(path, name), folder) if name else path for name in below]
        lines += said
    if kind is SOUNDS and not pieces:
        lines += ["of a sound that is longer than data.seconds its middle is taken; pieces=true takes all of it"]
    return FileSamples(folder, names, inputs, pieces=pieces, stride=stride), lines


def _series(path: str, inputs: Inputs) -> list[tuple[str, int, Tensor, Any]]:
    """Return the series of a table, of a folder of tables, or of an array (C, T) or (n, C, T) in a .npy file."""
    value = partial(inputs.kind.value, inputs=inputs)
    if path.endswith(".npy"):
        try:
            items = inputs.items(np.load(path, allow_pickle=False))
        except (OSError, EOFError, ValueError) as error:
            raise DataError(f"{path} is no .npy file of numbers: {error}") from error
        return [(path, number, value(item, path), None) for number, item in enumerate(items)]
    tables = {each: inputs.table(each, each) for each in find_tables(path)[0]}
    return [(each, 0, value(table, each), table.times) for each, table in tables.items()]


def _is_clip(folder: str) -> bool:
    return any(map(is_frame_file, os.listdir(folder)))


def files_below(folder: Path, kind: FileKind, kind_name: str) -> tuple[list[str], list[str]]:
    """Return the files of a kind at any depth, relative to the folder, sorted, and how many others there are.

    Hidden ones are left out, links followed. Raise DataError where there is none.
    """
    found, others, seen = [], Counter(), set()
    for place, below, files in os.walk(folder, followlinks=True):
        status = os.stat(place)
        is_new = (status.st_dev, status.st_ino) not in seen  # not a link back
        seen.add((status.st_dev, status.st_ino))
        if kind.frames and is_new and _is_clip(place):
            found.append(os.path.relpath(place, folder))
            is_new = False
        below[:] = sorted(name for name in below if is_new and not name.startswith("."))
        for name in (name for name in files if is_new and not name.startswith(".")):
            if name.lower().endswith(kind.extensions):
                found.append(os.path.relpath(os.path.join(place, name), folder))
            else:
                others[os.path.splitext(name)[1].lower()] += 1
    if not found:
        there = f", but {left_out(others)[0].removesuffix(' left out')}" if others else ""
        raise DataError(f"input={folder} holds no {kind_name} ({', '.join(kind.extensions)}){there}")
    return sorted(found), [f"input={folder}: {line}" for line in left_out(others)]
