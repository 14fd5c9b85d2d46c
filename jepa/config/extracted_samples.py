"""What features are extracted of, as samples with a row each: files of every modality, or a run's own data."""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from jepa.config.encoder_inputs import EVALUATION, Inputs, sound_pieces
from jepa.data import AudioData, ImageData, SeriesData, TextData
from jepa.data.sources.folders import IMAGES, SOUNDS, VIDEOS, FileKind, left_out
from jepa.data.sources.image_files import FRAME_EXTENSIONS
from jepa.data.sources.series_tables import find_tables
from jepa.data.sources.sound_files import SoundFile, SoundPart
from jepa.data.sources.text_files import find_texts, texts_of
from jepa.data.stream import Request, blamed
from jepa.utils.errors import DataError, UserError

Row = dict[str, Any]


class Extracted(Protocol):
    """Samples: `len`, by index a row and an input, or what reading raises; `describe` names one in messages.

    name: in the plural. identity: by which the same samples are known.
    """

    name: str
    identity: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Row, Tensor]: ...

    def describe(self, index: int) -> str: ...


def identity_of(paths: Iterable[str]) -> str:
    """Return by what files are known: their paths, sizes and times of writing."""
    found = hashlib.blake2b(digest_size=16)
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            status = os.stat(path)
            found.update(repr((os.path.abspath(path), status.st_size, status.st_mtime_ns)).encode())
    return found.hexdigest()


class FileSamples:
    """Files of one input each. folder: which the names are relative to."""

    def __init__(self, folder: Path, names: Sequence[str], inputs: Inputs) -> None:
        self.folder, self.files, self.inputs = folder, np.array([os.fsencode(name) for name in names]), inputs
        self.name = inputs.kind.name
        self.identity = identity_of(os.path.join(folder, name) for name in names)

    def __len__(self) -> int:
        return len(self.files)

    def describe(self, index: int) -> str:
        return os.fsdecode(self.files[index].item())

    def value(self, name: str) -> Any:
        return self.inputs.kind.value(os.path.join(self.folder, name), name, self.inputs)

    def __getitem__(self, index: int) -> tuple[Row, Tensor]:
        name = self.describe(index)
        return {"path": name}, self.inputs.tensor(self.value(name), name)


class PiecesOfFiles(FileSamples):
    """Pieces of files of sound, whose headers are read at once. Those of damaged ones fail when they are read."""

    def __init__(self, folder: Path, names: Sequence[str], inputs: Inputs, stride: float | None) -> None:
        super().__init__(folder, names, inputs)
        self.pieces: list[tuple[int, int, int]] = []
        for number, name in enumerate(names):
            try:
                parts = [part for _, part in sound_pieces(self.value(name), inputs.data.seconds, stride)]
            except Exception as error:
                blamed(error, name)
                self.pieces.append((number, 0, 0))
            else:
                self.pieces += [(number, part.start, part.frames) for part in parts]

    def __len__(self) -> int:
        return len(self.pieces)

    def describe(self, index: int) -> str:
        return super().describe(self.pieces[index][0])

    def __getitem__(self, index: int) -> tuple[Row, Tensor]:
        name, (_, start, frames) = self.describe(index), self.pieces[index]
        sound: SoundFile = self.value(name)
        return {"path": name, "start": start / sound.rate}, self.inputs.tensor(SoundPart(sound, start, frames), name)


class SeriesWindows:
    """Windows of series in memory; series: (path, number in the file, values (C, T), times or None) of each."""

    name = "windows"

    def __init__(self, series: Sequence[tuple[str, int, Tensor, Any]], inputs: Inputs, stride: float | None) -> None:
        self.series, self.inputs, self.stride = series, inputs, stride
        steps = inputs.data.spec.input_shape[1]
        short = [path for path, _, values, _ in series if values.shape[1] < steps]
        if short:
            raise DataError(f"{short[0]} has fewer than the {steps} steps of a window")
        counts = [len(inputs.starts(values, stride)) * inputs.channels(values) for *_, values, _ in series]
        self.ends = list(itertools.accumulate(counts))
        self.paths = list(dict.fromkeys(path for path, *_ in series))
        self.identity = identity_of(self.paths)

    def __len__(self) -> int:
        return self.ends[-1]

    def describe(self, index: int) -> str:
        return self.series[bisect.bisect_right(self.ends, index)][0]

    def __getitem__(self, index: int) -> tuple[Row, Tensor]:
        which = bisect.bisect_right(self.ends, index)
        path, number, values, times = self.series[which]
        window, channel = divmod(index - (self.ends[which - 1] if which else 0), self.inputs.channels(values))
        place, part = self.inputs.window(values, self.inputs.starts(values, self.stride)[window], channel)
        time = "" if times is None else str(times.iloc[place["start"]])
        return {"path": path, "series": number} | place | {"time": time}, self.inputs.tensor(part, path)


class TextRows:
    """Texts of files, a line or a row of a table each; empty ones fail when they are read."""

    name = "texts"

    def __init__(self, paths: Sequence[Path], column: str | int | None, inputs: Inputs) -> None:
        self.paths, self.inputs = [str(path) for path in paths], inputs
        self.texts = [texts_of(path, column) for path in paths]
        self.ends = list(itertools.accumulate(map(len, self.texts)))
        self.identity = identity_of(self.paths)

    def __len__(self) -> int:
        return self.ends[-1]

    def _place(self, index: int) -> tuple[int, int]:
        which = bisect.bisect_right(self.ends, index)
        return which, index - (self.ends[which - 1] if which else 0)

    def describe(self, index: int) -> str:
        which, row = self._place(index)
        return self.texts[which].describe(row)

    def __getitem__(self, index: int) -> tuple[Row, Tensor]:
        which, row = self._place(index)
        x = self.inputs.tensor(self.texts[which][row][0], self.describe(index))
        return {"path": self.paths[which], "row": row + 1}, x


class SplitSamples:
    """The training and then the test samples of a run's own data, as evaluation prepares them."""

    name = "samples"

    def __init__(self, inputs: Inputs) -> None:
        self.inputs, self.splits = inputs, inputs.data.splits
        self.identity = repr({name: len(samples) for name, samples in self.splits.items()})

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))

    def _place(self, index: int) -> tuple[str, int]:
        train = len(self.splits["train"])
        return ("train", index) if index < train else ("test", index - train)

    def describe(self, index: int) -> str:
        split, number = self._place(index)
        return self.inputs.data.describe(number, replace(EVALUATION, split=split))

    def __getitem__(self, index: int) -> tuple[Row, Tensor]:
        split, number = self._place(index)
        value, label = self.splits[split][number]
        row = {"path": self.describe(index), "split": split, "index": number}
        if isinstance(self.inputs.data, SeriesData):
            window, channel = divmod(number, self.splits[split].channels)
            series, start = self.splits[split].places[window]
            if self.inputs.data.timelines:  # of which a split is a part
                line = self.inputs.data.timelines[series]
                start += line.ends[0 if split == "train" else 2] - self.splits[split].series[series].shape[1]
                row |= {"path": line.path, "time": "" if line.times is None else str(line.times.iloc[start])}
            row |= {"series": series, "start": start, "channel": channel}
        names = self.inputs.data.spec.class_names
        row |= {} if names is None else {"label": label, "class_name": names[label]}
        return row, self.inputs.tensor(value, row["path"])


def relative(path: str, folder: str | None) -> str:
    """Return a path relative to a folder, or of a file to that it lies in; as it is where it lies elsewhere."""
    try:
        inside = os.path.isdir(folder) and path != folder
        return str(Path(path).relative_to(folder if inside else os.path.dirname(folder)))
    except (TypeError, ValueError):
        return path


def read_samples(samples: Extracted, request: Request, folder: str | None = None) -> dict[str, Any]:
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
) -> tuple[Extracted, list[str]]:
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
            below, said = files_below(Path(path), kind)
            folder = Path(path) if len(paths) == 1 else folder
        names += [os.path.relpath(os.path.join(path, name), folder) if name else path for name in below]
        lines += said
    if pieces:
        return PiecesOfFiles(folder, names, inputs, stride), lines
    if kind is SOUNDS:
        lines += ["of a sound that is longer than data.seconds its middle is taken; pieces=true takes all of it"]
    return FileSamples(folder, names, inputs), lines


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
    return any(name.lower().endswith(FRAME_EXTENSIONS) for name in os.listdir(folder))


def files_below(folder: Path, kind: FileKind) -> tuple[list[str], list[str]]:
    """Return the files of a kind at any depth, relative to the folder, sorted, and how many others there are.

    Hidden ones are left out, links followed. Raise DataError where there is none.
    """
    found, others, seen = [], Counter(), set()
    for place, below, files in os.walk(folder, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:  # a link back
            below[:] = []
            continue
        seen.add((status.st_dev, status.st_ino))
        if kind.frames and _is_clip(place):
            found.append(os.path.relpath(place, folder))
            below[:] = []
            continue
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in files:
            if name.lower().endswith(kind.extensions) and not name.startswith("."):
                found.append(os.path.relpath(os.path.join(place, name), folder))
            elif not name.startswith("."):
                others[os.path.splitext(name)[1].lower()] += 1
    if not found:
        there = f", but {left_out(others)[0].removesuffix(' left out')}" if others else ""
        name = "pictures" if kind is IMAGES else kind.name
        raise DataError(f"input={folder} holds no {name} ({', '.join(kind.extensions)}){there}")
    return sorted(found), [f"input={folder}: {line}" for line in left_out(others)]
