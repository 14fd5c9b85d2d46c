"""What a source returns, and what sources share."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from jepa.data.stream import Samples, UnreadableSample
from jepa.utils.errors import DataError
from jepa.utils.random import generator

T = TypeVar("T")
Listed = list[tuple[Any, str | None]]  # what is listed for each sample, such as its path, and its class, if any
NO_LABEL = "it has no label, or one that no training sample has"  # of a bad sample
VALIDATION_SHARE = 0.1  # of the training samples
LEAST_VALIDATION = 200  # samples, of which one is half a percent; of small data a third
MOST_LEFT_OUT = 0.1  # share of the entries of a list, or of the labels of a test split, that may be unusable
Make = Callable[[Sequence[Any], Sequence[int] | None], Samples]  # (what is listed, labels or None) -> samples


@dataclass(frozen=True)
class Splits:
    """Training and test samples, whose items are (input, label).

    An input is what the data class takes: of `ImageData` a PIL image, or a tensor (C, H, W) of uint8 or float32.
    class_names[label] names a label; None stands for data without labels, in which every label is None. lines: what the
    first lines of a run say of the samples. validation: samples that the data keeps aside itself; None for none.
    """

    train: Samples
    test: Samples
    class_names: tuple[str, ...] | None = None
    lines: tuple[str, ...] = ()
    validation: Samples | None = None


@dataclass(frozen=True)
class TensorImages:
    """Images uint8 (N, C, H, W) and labels int64 (N,) or None; all of one size, to be augmented as batches."""

    images: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int | None]:
        return self.images[index], None if self.labels is None else int(self.labels[index])


class ChosenSamples:
    """Some of the samples of a split, by their numbers (n,) int64."""

    def __init__(self, samples: Samples, numbers: Tensor) -> None:
        self.samples, self.numbers = samples, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[Any, int | None]:
        return self.samples[int(self.numbers[index])]

    def __getattr__(self, name: str) -> Any:
        if name in ("samples", "numbers"):  # being unpickled
            raise AttributeError(name)
        value = getattr(self.samples, name)
        if name == "labels" and value is not None:
            return torch.as_tensor(value)[self.numbers]
        if callable(value):  # describe, truth, motion
            # Truths of sounds take times in place of a sample's number.
            return lambda first, *rest: value(int(self.numbers[first]) if isinstance(first, int) else first, *rest)
        return value


@dataclass(frozen=True)
class KnownSamples:
    """Samples and the truth at their places (`DataModule.truth_batches`), by index, or times of sounds, and input."""

    samples: Samples
    truth: Callable[[Any, Any], Tensor]
    truth_names: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int | None]:
        return self.samples[index]

    def __getattr__(self, name: str) -> Any:
        if name == "samples":  # being unpickled
            raise AttributeError(name)
        return getattr(self.samples, name)


class FileSamples:
    """Files and their labels; items are (what `decode` makes of the file, label).

    paths: relative to `folder`. labels: one for each path, -1 for a bad sample; or None. contents: path -> content of
    files in memory. decode: called with a path, or a file in memory and its path.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: Sequence[int] | None,
        decode: Callable[..., Any],
        *,
        folder: str | Path = "",
        contents: Mapping[str, bytes] | None = None,
    ) -> None:
        # One block of bytes: workers would copy a million strings by touching their reference counts.
        self.paths = np.array([os.fsencode(path) for path in paths])
        self.labels = None if labels is None else np.array(labels)
        self.decode, self.folder, self.contents = decode, str(folder), contents

    def __len__(self) -> int:
        return len(self.paths)

    def describe(self, index: int) -> str:
        """Return the path of a sample, for messages."""
        return os.path.join(self.folder, os.fsdecode(self.paths[index].item()))

    def __getitem__(self, index: int) -> tuple[Any, int | None]:
        if self.labels is not None and self.labels[index] < 0:
            raise UnreadableSample(self.describe(index), NO_LABEL)
        value = self.decode(*self.file(index, self.describe(index)))
        return value, None if self.labels is None else int(self.labels[index])

    def file(self, index: int, name: str) -> tuple[Any, ...]:
        """Return what `decode` is called with. Raise UnreadableSample for a file that the contents lack."""
        if self.contents is None:
            return (name,)
        if (content := self.contents.get(os.fsdecode(self.paths[index].item()))) is None:
            raise UnreadableSample(name, "the archive does not hold it")
        return io.BytesIO(content), name


def hold_out(
    samples: Sequence[T], fraction: float, seed: int, *counters: int, where: str | Path | None = None
) -> tuple[list[T], list[T]]:
    """The training and the test samples, at least one each, by `seed`. Raise DataError for one sample with `where`."""
    count = len(samples)
    if where is not None and count < 2:
        raise DataError(f"{where} holds {count} samples; expected at least 2, of which one is kept aside for testing")
    held = min(max(round(fraction * count), 1), count - 1)
    order = torch.randperm(count, generator=generator("cpu", seed, "split", *counters)).tolist()
    return [samples[i] for i in sorted(order[held:])], [samples[i] for i in sorted(order[:held])]


def keep_aside(count: int, labels: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the samples to train on and of those to score, rising, the same in every run.

    A tenth is kept aside, at least LEAST_VALIDATION, or of small data a third. labels (count,): each class gives its
    share. Raises DataError for one sample.
    """
    if count < 2:
        few = f"the training split holds {count} samples, expected at least 2, of which one is kept aside"
        raise DataError(f"data.score_on=validation: {few}")
    held = max(round(VALIDATION_SHARE * count), min(LEAST_VALIDATION, count // 3), 1)
    order = torch.randperm(count, generator=generator("cpu", 0, "split")).numpy()
    if labels is not None:
        order = order[np.asarray(labels)[order].argsort(kind="stable")]
    is_held = np.zeros(count, dtype=bool)
    is_held[order[((np.arange(held) + 0.5) * count / held).astype(int)]] = True
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def scored_on_validation(splits: Splits) -> Splits:
    """Splits whose test samples are those of `validation`, or of the training samples, see `keep_aside`.

    Samples that have `wholes` (n,), the numbers of the files that they are pieces of, are chosen by file.
    """
    if (held := splits.validation) is not None:
        line = f"scored on the {len(held):,} samples of the validation split (data.score_on=validation)"
        return replace(splits, test=held, validation=None, lines=(*splits.lines, line))
    samples = splits.train
    labels, wholes = (getattr(samples, name, None) for name in ("labels", "wholes"))
    if wholes is None:
        train, held = keep_aside(len(samples), labels)
    else:
        files, first = np.unique(wholes, return_index=True)
        _, aside = keep_aside(len(files), None if labels is None else np.asarray(labels)[first])
        is_held = np.isin(wholes, files[aside])
        train, held = np.flatnonzero(~is_held), np.flatnonzero(is_held)

    def chosen(numbers: np.ndarray) -> Samples:
        index = torch.from_numpy(numbers)
        if isinstance(samples, TensorImages):
            return TensorImages(samples.images[index], None if samples.labels is None else samples.labels[index])
        return ChosenSamples(samples, index)

    line = f"scored on {len(held):,} samples kept aside from training (data.score_on=validation)"
    return replace(splits, train=chosen(train), test=chosen(held), lines=(*splits.lines, line))


def split_listed(
    train: Listed,
    test: Listed | None,
    make: Make,
    make_test: Make | None = None,
    *,
    classes: Sequence[str],
    fraction: float,
    seed: int,
    where: str,
    lines: Sequence[str] = (),
) -> Splits:
    """Listed samples. Without a test split, a `fraction` of each class is kept aside; a single sample stays in train.

    make, make_test: make the samples of a split, the same way for both unless the second is given. classes: in the
    order of their labels, empty for samples without. A sample without one of these classes has the label -1.
    where: what lists them, for messages. lines: see `Splits`, to which what is said of the classes is added.
    """
    index = None
    if classes:
        index, said = number_classes(classes, [name for _, name in test or [] if name], where=where)
        lines = (*lines, *said)
    if test is None:
        groups: dict[str | None, Listed] = {}
        for sample in train:
            groups.setdefault(None if index is None else sample[1], []).append(sample)
        halves = [hold_out(group, fraction, seed, number) for number, group in enumerate(groups.values())]
        train, test = ([sample for part in parts for sample in part] for parts in zip(*halves))
        if not test:
            raise DataError(f"{where} has no class with two samples, so none can be kept aside for the test split")
    samples = []
    for part, make_part in ((train, make), (test, make_test or make)):
        labels = None if index is None else [index.get(name, -1) for _, name in part]
        samples.append(make_part([item for item, _ in part], labels))
    return Splits(*samples, class_names=index and tuple(index), lines=tuple(lines))


def number_classes(
    names: Sequence[Any], test: Sequence[Any], *, where: str | Path
) -> tuple[dict[Any, int] | None, tuple[str, ...]]:
    """Class -> label, and what the first lines of a run say of the classes: the one place where labels become classes.

    None, for data without labels, where training has a single class: published lists label every sample 0.
    names: the classes of training, in order. test: those of the test samples that have one. where: what holds the data.
    Raises DataError where more than MOST_LEFT_OUT of the test samples have other classes; fewer are bad samples.
    """
    if len(names) < 2:
        what = f"all labels are alike ({first_few(names)})" if names else "no sample has a label"
        return None, (f"{where}: {what}, so this is data without labels",)
    known = set(names)
    unknown = [name for name in test if name not in known]
    if len(unknown) > MOST_LEFT_OUT * len(test):
        found = f"the classes {first_few(sorted(set(unknown)))} of the test split are not in train"
        raise DataError(f"{where}: {found}, which has {first_few(names)}")
    return {name: number for number, name in enumerate(names)}, ()


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """The different names in order, by number where all are whole numbers."""
    names = set(names)
    whole = all(name.removeprefix("-").isdecimal() for name in names)
    return tuple(sorted(names, key=int) if whole else sorted(names))


def check_fraction(name: str, fraction: float) -> None:
    """Raise ValueError unless 0 < fraction < 1. name: the key in the message."""
    if not 0 < fraction < 1:
        raise ValueError(f"{name}={fraction} is not between 0 and 1, both excluded")


def first_few(names: Iterable[object], most: int = 5) -> str:
    """Return the first `most` names and how many there are in all, for a message."""
    names = [name.name if isinstance(name, Path) else str(name) for name in names]
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


class Fence:
    """Tells the paths that leave all of some folders: by `..`, as absolute paths, or by links."""

    def __init__(self, folders: Sequence[str | Path]) -> None:
        self.folders = [os.path.join(os.path.realpath(folder), "") for folder in folders]
        self._parents: dict[str, str] = {}  # a list has few folders, and looking a link up takes many system calls

    def leaves(self, path: str) -> bool:
        """Return whether a path lies in none of the folders."""
        if "\0" in path:
            return True
        parent, name = os.path.split(path)
        if parent not in self._parents:
            self._parents[parent] = os.path.realpath(parent)
        place = os.path.join(self._parents[parent], name)
        if name in ("", ".", "..") or os.path.islink(place):
            place = os.path.realpath(place)
        return not any(os.path.join(place, "").startswith(folder) for folder in self.folders)


def check_inside(listed: Iterable[tuple[str, str]], folder: str | Path) -> None:
    """Raise DataError for the first path that leaves the folder of the data; listed: (what names it, path)."""
    fence = Fence([folder])
    for where, path in listed:
        if fence.leaves(path):
            problem = f"{path!r} leaves the folder {folder}, where the data is expected (data.root)"
            how = "by .., as an absolute path, or by a link. If you trust this list, set data.allow_outside=true"
            raise DataError(f"{where}: {problem}: {how}")
