"""Label tracks beside sounds, as Audacity exports them: lines of start, end, both in seconds, and label."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from jepa.data.sources.sound_files import SoundFile, SoundPart
from jepa.data.sources.splits import FileSamples, KnownSamples, Splits, first_few, sort_classes
from jepa.utils.errors import DataError

NONE = "none"  # what is under no label
TOLERANCE = 1e-3  # seconds by which labels that are drawn side by side may overlap

Label = tuple[float, float, str]


def with_label_tracks(splits: Splits, files: Sequence[FileSamples]) -> Splits:
    """Return splits of files of sound, or of pieces of them, with the class of each time by a/b.txt beside a/b.wav.

    Raises DataError where no sound has one or nothing is labelled, and for broken ones.
    """
    paths = [samples.describe(number) for samples in files for number in range(len(samples))]
    tracks = {path: read_label_track(os.path.splitext(path)[0] + ".txt") for path in paths}
    lacking = sum(track is None for track in tracks.values())
    names = sort_classes({name for track in tracks.values() for *_, name in track or ()} - {NONE})
    if not names:
        what = "no sound has a label track beside it" if lacking == len(paths) else "the label tracks are empty"
        raise DataError(
            f"data.source.label_tracks=true, but {what}: expected for {paths[0]} the file "
            f"{os.path.splitext(paths[0])[0]}.txt with lines of start, end (seconds) and label, as of Audacity"
        )
    line = f"label tracks: {len(names)} classes and {NONE}, {first_few(names)}"
    line += f"; {lacking} of {len(paths)} sounds have none, which evaluation=dense leaves out" if lacking else ""
    known = partial(classes_at, tracks, (NONE, *names)), (NONE, *names)
    train, test = (KnownSamples(samples, *known) for samples in (splits.train, splits.test))
    return replace(splits, train=train, test=test, lines=(*splits.lines, line))


def classes_at(
    tracks: Mapping[str, list[Label] | None], names: Sequence[str], times: Tensor, sound: SoundFile | SoundPart
) -> Tensor:
    """Return the class (n,) at times (n,) of a sound, in seconds; -1 for a sound without a label track."""
    whole, start = (sound.whole, sound.start / sound.rate) if isinstance(sound, SoundPart) else (sound, 0)
    track, times = tracks[whole.name], times + start
    classes = torch.full(times.shape, -1 if track is None else 0)
    for begin, end, name in track or ():
        classes[(begin <= times) & (times < end)] = names.index(name)
    return classes


def read_label_track(path: str) -> list[Label] | None:
    """Return the labels of a file in order; None where there is no such file.

    Raises DataError for lines that are no labels, and for different labels at the same time.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a label track in UTF-8: {error}") from error
    track = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("\\"):  # the band of frequencies of the label above
            continue
        try:
            start, end, name = line.split(None, 2)
            track.append((float(start.replace(",", ".")), float(end.replace(",", ".")), name.strip()))
            if not -1 < track[-1][0] <= track[-1][1] < float("inf"):
                raise ValueError
        except ValueError:
            raise DataError(
                f"{path}: line {number} is {line[:80]!r}, expected a start, an end not before it, both in seconds, and "
                "a label, separated by tabs"
            ) from None
    track = sorted(label for label in track if label[0] < label[1])
    for (_, end, name), (start, _, other) in pairwise(track):
        if start < end - TOLERANCE and name != other:
            raise DataError(
                f"{path}: {name!r} goes on to {end:g} s and {other!r} begins at {start:g} s: a frame has one label "
                "alone, so end the first earlier, or keep each kind of labels in a folder of its own"
            )
    return track
