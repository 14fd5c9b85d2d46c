"""Episodes in files: arrays of observations and actions, and windows of them.

A file, .npz or HDF5, has arrays with a row per step, of one episode or of several one after another: `observations`
(N, C, H, W) or (N, H, W, C) pictures, or (N, d) numbers, `actions` (N, A) floats, where action t leads from observation
t to t + 1 and the last one of an episode is not read, and optional `states` (N, s). Episodes are told by `ep_len` and
`ep_offset`, as in files of stable-worldmodel and LeWM, or by their number, `ep_idx` (N,) and ends such as `terminated`.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa.data.sources.splits import Splits, check_fraction, first_few, hold_out
from jepa.data.stream import UnfitSample, UnreadableSample, blamed
from jepa.utils.errors import DataError
from jepa.utils.lazy_import import require

HDF5 = (".h5", ".hdf5")
NAMES = {
    "observations": ("observations", "pixels", "observation", "obs", "images"),
    "actions": ("actions", "action"),
    "states": ("states", "state", "pos_agent", "proprio"),
}
"""What arrays are called, the first that there is."""
ENDS = ("episode_ends", "terminated", "truncated", "terminations", "truncations", "dones", "done", "terminals")
ENDS += ("timeouts",)
NUMBERS = "ep_idx", "episode_idx", "episode_index"  # of the episode of each row
SAME = {"observation_shape": "observations of", "dtype": "observations of type"}
SAME |= {"action_dim": "actions of width", "state_dim": "states of width"}
SAME |= {"names": "arrays called", "channels_last": "channels last:"}
OPEN_FILES = 32
MOST_SHOWN = 8  # widths of actions in the table


@dataclass(frozen=True)
class Layout:
    """What all files have in common: names of arrays, shapes of a step, and the type of the observations."""

    names: Mapping[str, str]
    observation_shape: tuple[int, ...]
    dtype: np.dtype
    channels_last: bool
    action_dim: int
    state_dim: int

    def differs(self, other: Layout) -> str | None:
        """Return what another file has that this one has otherwise; None for nothing."""
        for name, what in SAME.items():
            if getattr(self, name) != getattr(other, name):
                return f"it has {what} {getattr(self, name)}, the others {getattr(other, name)}"
        return None


@dataclass(frozen=True)
class Episode:
    """An episode: the number of its file, its first row there and its rows, and the actions between these."""

    layout: Layout
    file: int
    start: int
    length: int
    actions: np.ndarray


class EpisodeWindows:
    """Windows of `frames` observations, every `frame_skip` steps, of episodes; items are (arrays, None).

    An item has `observations` (frames, C, H, W) or (frames, d), `actions` (frames - 1, A * frame_skip), those between
    two frames one after another, and `states` (frames, s) where there are any.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        episodes: Sequence[Episode],
        *,
        statistics: Mapping[str, np.ndarray],
        frames: int,
        frame_skip: int,
    ) -> None:
        self.files = np.array([os.fsencode(path) for path in paths])
        self.rows = np.array([(each.file, each.start, each.length) for each in episodes])
        self.layout, self.frames, self.frame_skip = episodes[0].layout, frames, frame_skip
        self.action_statistics, self.span = statistics, (frames - 1) * frame_skip + 1
        self.ends = np.cumsum(self.rows[:, 2] - self.span + 1)
        self.observation_shape, self.state_dim = self.layout.observation_shape, self.layout.state_dim
        self.is_pixels = self.layout.dtype == np.uint8

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def wholes(self) -> np.ndarray:
        """The number of the episode of each window."""
        return np.repeat(np.arange(len(self.rows)), np.diff(self.ends, prepend=0))

    def place(self, index: int) -> tuple[str, int]:
        """Return the file of a window, and its first row there."""
        episode = int(np.searchsorted(self.ends, index, side="right"))
        file, start, _ = self.rows[episode].tolist()
        return os.fsdecode(self.files[file].item()), start + index - int(self.ends[episode - 1] if episode else 0)

    def describe(self, index: int) -> str:
        """Return the place of a window, for messages."""
        return "{}, row {}".format(*self.place(index))

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], None]:
        path, first = self.place(index)
        columns, names = open_columns(path, os.getpid()), self.layout.names
        rows = slice(first, first + self.span)
        found = np.asarray(columns[names["observations"]][rows])[:: self.frame_skip]
        if self.layout.channels_last:
            found = np.moveaxis(found, -1, 1)
        actions = np.asarray(columns[names["actions"]][first : first + self.span - 1], dtype=np.float32)
        if len(found) != self.frames or len(actions) != self.span - 1:
            raise UnreadableSample(self.describe(index), "the file is shorter than it was")
        item = {"observations": tensor(found), "actions": tensor(actions.reshape(self.frames - 1, -1))}
        if self.state_dim:
            states = np.asarray(columns[names["states"]][rows], dtype=np.float32)[:: self.frame_skip]
            item["states"] = tensor(states.reshape(self.frames, -1))
        return item, None


def tensor(array: np.ndarray) -> Tensor:
    """Return an array, which may be a read-only view of a file, as a tensor of its own."""
    return torch.from_numpy(np.array(array, order="C"))


def episode_files(
    *,
    root: str,
    frames: int,
    frame_skip: int,
    max_bad_share: float,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    observations: str | None = None,
    actions: str | None = None,
    states: str | None = None,
) -> Splits:
    """Windows of the episodes in the files of a folder, or in one file; a share of the episodes is the test split.

    observations, actions, states: what the arrays are called; None finds them by their usual names.
    Files that cannot be read and episodes with NaN among their actions are left out, up to the share max_bad_share.

    Raises DataError for what is missing or damaged beyond that, and where no episode is as long as a window.
    """
    check_fraction("data.source.val_fraction", val_fraction)
    paths, span = list_files(Path(root)), (frames - 1) * frame_skip + 1
    bad: dict[str, str] = {}
    found = usable(paths, {"observations": observations, "actions": actions, "states": states}, bad)
    long = [each for each in found if each.length >= span]
    if len(bad) > (max(1, max_bad_share * (len(found) + len(bad))) if max_bad_share else 0) or not found:
        first = "".join(f"\n  {name} ({reason})" for name, reason in list(bad.items())[:3])
        some = f"{len(bad)} files or episodes cannot be used (data.max_bad_share={max_bad_share:g})"
        raise DataError(f"data.root={root}: {some}:{first}")
    if not long:
        window = f"a window of {span} steps (data.history + data.horizon = {frames}, data.frame_skip={frame_skip})"
        raise DataError(f"data.root={root}: all {len(found)} episodes are shorter than {window}: lower these")
    parts = hold_out(long, val_fraction, split_seed, where=f"data.root={root}, counted in episodes,")
    statistics = statistics_of(*(np.concatenate([each.actions for each in part]) for part in (long, parts[0])))
    make = partial(EpisodeWindows, paths, statistics=statistics, frames=frames, frame_skip=frame_skip)
    splits = Splits(*map(make, parts))
    lines = table(splits, root)
    if short := len(found) - len(long):
        lines.append(f"left out {short} episodes shorter than a window of {span} steps: lower data.horizon for more")
    lines += [f"left out {first_few([f'{name} ({reason})' for name, reason in bad.items()])}"] if bad else []
    return replace(splits, lines=tuple(lines))


def usable(paths: Sequence[Path], names: Mapping[str, str | None], bad: dict[str, str]) -> list[Episode]:
    """Return the episodes of all files; `bad` gets the names of files and episodes that cannot be used, and why."""
    layout, found = None, []
    for number, path in enumerate(paths):
        try:
            own, episodes, steps = read_file(path, names)
            if layout is not None and (problem := own.differs(layout)):
                raise UnfitSample(problem)
        except Exception as error:
            name, reason = blamed(error, path.name)
            bad[name] = reason
            continue
        layout = layout or own
        for start, length in episodes:
            used = steps[start : start + length - 1]
            finite = np.isfinite(used).all(1)
            if finite.all():
                found.append(Episode(own, number, start, length, used))
            else:
                reason = f"the action of step {start + int(finite.argmin())} is NaN or infinite"
                bad[f"{path.name}, steps {start} to {start + length - 1}"] = reason
    return found


def list_files(root: Path) -> list[Path]:
    """Return the files of episodes in a folder, or the one file. Raise DataError where there are none."""
    endings = (".npz", *HDF5)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise DataError(f"data.root={root} is neither a folder nor a file: give one of episodes ({', '.join(endings)})")
    paths = sorted(path for path in root.iterdir() if path.suffix.lower() in endings and path.name[0] != ".")
    if not paths:
        raise DataError(f"data.root={root} holds no episodes ({', '.join(endings)}): scripts/collect.py records some")
    return paths


def read_file(path: Path, names: Mapping[str, str | None]) -> tuple[Layout, list[tuple[int, int]], np.ndarray]:
    """Return what a file has, its episodes as (first row, rows), and its actions (N, A) float32.

    Raises UnfitSample, or an error of what reads it, for a file that holds something else or is cut.
    """
    columns = open_columns(str(path), os.getpid())
    chosen = {what: find(columns, what, name) for what, name in names.items()}
    observations, actions = columns[chosen["observations"]], columns[chosen["actions"]]
    shape, count = tuple(observations.shape), observations.shape[0] if observations.shape else 0
    if len(shape) not in (2, 4) or observations.dtype.kind not in "uif" or not count:
        expected = "expected pictures (T, C, H, W) or numbers (T, d), at least one"
        raise UnfitSample(f"its {chosen['observations']} are {observations.dtype} of shape {shape}; {expected}")
    if actions.dtype.kind != "f" or len(actions.shape) not in (1, 2):
        expected = "expected floats (T, A); choices as one-hot vectors"
        raise UnfitSample(f"its {chosen['actions']} are {actions.dtype} of shape {tuple(actions.shape)}; {expected}")
    steps = np.asarray(actions[:], dtype=np.float32).reshape(len(actions), -1)
    if len(steps) == count - 1:
        steps = np.concatenate((steps, np.full_like(steps[:1], np.nan)))
    if len(steps) != count:
        raise UnfitSample(f"it has {count} {chosen['observations']}, but {len(steps)} {chosen['actions']}")
    states = columns[chosen["states"]] if chosen["states"] else None
    if states is not None and (states.dtype.kind not in "uif" or states.shape[0] != count):
        raise UnfitSample(
            f"its {chosen['states']} are {states.dtype} of shape {tuple(states.shape)}, for {count} steps"
        )
    last = len(shape) == 4 and shape[3] < shape[1]
    layout = Layout(
        names=chosen,
        observation_shape=(shape[3], *shape[1:3]) if last else shape[1:],
        dtype=np.dtype(observations.dtype),
        channels_last=last,
        action_dim=steps.shape[1],
        state_dim=0 if states is None else int(np.prod(states.shape[1:])),
    )
    return layout, episodes_of(columns, count), steps


def find(columns: Mapping[str, Any], what: str, name: str | None) -> str | None:
    """Return the name of an array. Raise UnfitSample where a file lacks one that is needed."""
    if name is not None and name not in columns:
        raise UnfitSample(f"it has no array {name} (data.source.{what}), but {first_few(sorted(columns))}")
    found = name or next((each for each in NAMES[what] if each in columns), None)
    if found is None and what != "states":
        expected = f"expected {' or '.join(NAMES[what])}; data.source.{what} names another"
        raise UnfitSample(f"it has no {what}, but {first_few(sorted(columns)) or 'nothing'}; {expected}")
    return found


def episodes_of(columns: Mapping[str, Any], count: int) -> list[tuple[int, int]]:
    """Return the episodes in `count` rows as (first row, rows). Raise UnfitSample for more than the file has."""
    if "ep_len" in columns:
        lengths = np.asarray(columns["ep_len"][:]).ravel().astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        if "ep_offset" in columns:
            starts = np.asarray(columns["ep_offset"][:]).ravel().astype(np.int64)
    else:
        ends = np.arange(count) == count - 1
        for column in (columns[name] for name in ENDS if name in columns):
            ends |= np.asarray(column[:]).ravel().astype(bool)
        for column in (columns[name] for name in NUMBERS if name in columns):
            ends[:-1] |= np.diff(np.asarray(column[:]).ravel()) != 0
        last = np.flatnonzero(ends)
        starts, lengths = np.concatenate(([0], last[:-1] + 1)), np.diff(last, prepend=-1)
    if len(starts) != len(lengths) or (lengths < 1).any() or (starts < 0).any() or (starts + lengths > count).any():
        raise UnfitSample(f"its episodes (ep_offset, ep_len) do not lie within its {count} rows")
    order = np.argsort(starts)
    if ((starts + lengths)[order][:-1] > starts[order][1:]).any():
        raise UnfitSample("its episodes (ep_offset, ep_len) overlap")
    return list(zip(starts.tolist(), lengths.tolist()))


@lru_cache(maxsize=OPEN_FILES)
def open_columns(path: str, process: int) -> Mapping[str, Any]:
    """Return the arrays of a file by name, read when they are indexed; of compressed .npz files read at once.

    process: that of the caller, as an open HDF5 file must not be shared with workers.
    """
    if path.lower().endswith(HDF5):
        file = require("h5py", extra="world", purpose=f"reading {path}").File(path, "r")
        return {name: item for name, item in file.items() if hasattr(item, "shape")}
    columns = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for member in archive.infolist():
            columns[member.filename.removesuffix(".npy")] = _mapped(archive, member, file)
    return columns


def _mapped(archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: Any) -> np.ndarray:
    with archive.open(member) as content:
        read: Callable[..., Any] = np.lib.format.read_array_header_1_0
        if np.lib.format.read_magic(content) != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(content)
        start = content.tell()
    if dtype.hasobject:
        raise UnfitSample(f"its {member.filename} holds Python objects, which are not read")
    if member.compress_type != zipfile.ZIP_STORED or fortran or 0 in shape:
        with archive.open(member) as content:
            return np.lib.format.read_array(content, allow_pickle=False)
    file.seek(member.header_offset + 26)  # the lengths of what stands between the header and the content
    start += member.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
    return np.memmap(archive.filename, dtype, "r", start, shape)


def statistics_of(every: np.ndarray, training: np.ndarray) -> dict[str, np.ndarray]:
    """Return the least and largest of all actions, and mean and deviation of those that are trained on, each (A,).

    The deviation of what is always the same is 1.
    """
    training = training.astype(np.float64)
    std = np.where(np.ptp(training, axis=0) > 0, training.std(0), 1.0)
    return {"low": every.min(0), "high": every.max(0), "mean": training.mean(0), "std": std}


def table(splits: Splits, root: str) -> list[str]:
    """Return what was found, as lines."""
    train, test, layout = splits.train, splits.test, splits.train.layout
    lengths = np.concatenate((train.rows[:, 2], test.rows[:, 2]))
    shape = " x ".join(map(str, layout.observation_shape))
    lines = [
        f"{root}: {len(lengths):,} episodes of {lengths.min()} to {lengths.max()} frames, {lengths.sum():,} in all; "
        f"{len(train.rows):,} to train on ({len(train):,} windows), {len(test.rows):,} kept aside ({len(test):,})",
        f"  {layout.names['observations']:<14}{shape} {layout.dtype}" + ", channels last" * layout.channels_last,
        f"  {layout.names['states']:<14}{layout.state_dim}" if layout.state_dim else "  no states",
    ]
    columns = [np.asarray(train.action_statistics[name]) for name in ("low", "high", "mean", "std")]
    for number, (low, high, mean, std) in enumerate(list(zip(*columns))[:MOST_SHOWN]):
        name = f"{layout.names['actions']}[{number}]"
        lines.append(f"  {name:<14}{low:.4g} to {high:.4g}, mean {mean:.4g}, deviation {std:.4g}")
    if layout.action_dim > MOST_SHOWN:
        lines.append(f"  ... {layout.action_dim} in all")
    return lines
