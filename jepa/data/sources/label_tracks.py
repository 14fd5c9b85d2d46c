"""Label tracks beside sounds, as Audacity exports them: what is heard from when to when."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jepa.data.sources.sound_files import Sound, SoundPart
from jepa.data.sources.splits import FileSamples, first_few, sort_classes
from jepa.utils.errors import DataError

NONE = "none"
TOLERANCE = 1e-3  # seconds by which labels that are drawn side by side may overlap

Label = tuple[float, float, str]
"""From when to when, in seconds of the sound, and what is heard."""


@dataclass(frozen=True)
class LabelTracks:
    """The labels of sounds, by the path of each, in order; None for a sound without a label track.

    names: of the classes; the first is NONE, of what is under no label.
    """

    labels: dict[str, list[Label] | None]
    names: tuple[str, ...]

    def __call__(self, times: Tensor, sound: Sound) -> Tensor:
        """Return the class (n,) at times of a sound, or part of one, in seconds; -1 where there is no label track."""
        part = isinstance(sound, SoundPart)
        labels = self.labels[(sound.whole if part else sound).name]
        if labels is None:
            return torch.full(times.shape, -1)
        times = times.numpy() + (sound.start / sound.rate if part else 0)
        starts, ends = (np.array([each[side] for each in labels] + [math.inf]) for side in (0, 1))
        classes = np.array([self.names.index(name) for _, _, name in labels] + [0])
        number = np.searchsorted(starts, times, side="right") - 1
        return torch.from_numpy(np.where((number >= 0) & (times < ends[number]), classes[number], 0))


def read_label_tracks(files: Sequence[FileSamples]) -> tuple[LabelTracks, str]:
    """Return the label tracks of files of sound, and what the first lines of a run say of them.

    That of a/b.wav is a/b.txt. Raises DataError where no sound has one or nothing is labelled, and for broken ones.
    """
    paths = [samples.describe(number) for samples in files for number in range(len(samples))]
    labels = {path: read_label_track(os.path.splitext(path)[0] + ".txt") for path in paths}
    lacking = [path for path in paths if labels[path] is None]
    names = sort_classes({name for each in labels.values() for _, _, name in each or ()} - {NONE})
    if not names:
        track = os.path.splitext(paths[0])[0] + ".txt"
        what = "no sound has a label track beside it" if len(lacking) == len(paths) else "the label tracks are empty"
        raise DataError(
            f"data.source.label_tracks=true, but {what}: expected for {paths[0]} the file {track} with lines of start, "
            "end (seconds) and label, as Audacity exports them"
        )
    line = f"label tracks: {len(names)} classes and {NONE}, {first_few(names)}"
    line += f"; {len(lacking)} of {len(paths)} sounds have none, which evaluation=dense leaves out" if lacking else ""
    return LabelTracks(labels, (NONE, *names)), line


def read_label_track(path: str) -> list[Label] | None:
    """Return the labels of a file in order, without those of no length; None where there is no such file.

    A label goes on where one of the same name begins within it. Raises DataError for lines that are no labels, and for
    different labels at the same time.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a label track in UTF-8: {error}") from error
    read = []
    for number, line in enumerate(lines, start=1):
        cells = line.split(None, 2)
        if not cells or cells[0].startswith("\\"):  # the band of frequencies of the label above
            continue
        try:
            start, end = (float(cell.replace(",", ".")) for cell in cells[:2])
            if not (math.isfinite(start) and start <= end < math.inf and len(cells) == 3):
                raise ValueError
        except ValueError:
            raise DataError(
                f"{path}: line {number} is {line[:80]!r}, expected a start, an end not before it, both in seconds, and "
                "a label, separated by tabs"
            ) from None
        read.append((start, end, cells[2].strip()))
    labels: list[Label] = []
    for start, end, name in sorted(label for label in read if label[0] < label[1]):
        before = labels[-1] if labels else (0.0, -math.inf, "")
        if start < before[1] and name == before[2]:
            labels[-1] = (before[0], max(end, before[1]), name)
        elif start < before[1] - TOLERANCE:
            raise DataError(
                f"{path}: {before[2]!r} goes on to {before[1]:g} s and {name!r} begins at {start:g} s: a frame can "
                "have one label alone, so end the first earlier, or keep each kind of labels in a folder of its own"
            )
        else:
            labels.append((start, end, name))
    return labels
