"""Pictures in tar archives, read in place by an index of where each begins, kept in a hidden file beside them."""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jepa.data.sources.decoders import readable
from jepa.data.sources.image_files import IMAGE_EXTENSIONS
from jepa.data.sources.splits import FileSamples, first_few
from jepa.data.stream import UnreadableSample
from jepa.utils.errors import DataError, UserError, first_line
from jepa.utils.files import write_atomic
from jepa.utils.read_data import open_regular, parse_json

log = logging.getLogger("jepa")
VERSION = 1  # of the index; another one is found anew
MOST_INDEX = 2**33  # bytes of a kept index: of 100 million pictures
MOST_BYTES = 2**29  # of one picture, packed as it is
MOST_OPEN = 100  # archives at a time
MOST_HEADER = 2**20  # bytes of a header; long names are in headers of their own
MOST_LABEL = 2**16  # bytes of a file with a label
LABEL_KEYS = ("label", "cls", "class", "class_id", "wnid")
"""What may hold the label in a .json file, the first that is there."""
LONGEST = {"name": 255, "label": 64}  # bytes kept


@dataclass(frozen=True)
class Members:
    """Some members of archives, in their order. names: bytes (N,), of the archive inside an archive too.

    labels: bytes (N,), empty for none, or numbers. places: int64 (N, 3), number of the archive, first byte, and size.
    """

    archives: tuple[str, ...]
    names: np.ndarray
    labels: np.ndarray
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def check(self, sizes: Sequence[int], label_kind: str) -> None:
        """Raise ValueError for arrays of other kinds, and places beyond the ends of archives of these sizes."""
        names, labels, places = self.names, self.labels, self.places
        count = (len(names),)
        kinds = [names.dtype.kind, labels.dtype.kind, places.dtype.str[1:], names.shape, labels.shape, places.shape]
        if kinds != ["S", label_kind, "i8", count, count, (*count, 3)]:
            raise ValueError("its arrays are of other kinds")
        number, start, size = places.T
        if (places < 0).any() or (number >= len(sizes)).any() or (start > np.array(sizes)[number] - size).any():
            raise ValueError("it names places beyond the end of an archive")


class TarSamples(FileSamples):
    """Some of the members of archives and their labels, as `FileSamples`; rows: which members.

    most_in_memory: bytes of a file; a larger one is read as needed, or for None a bad sample if it has MOST_BYTES.
    """

    most_in_memory: int | None = None

    def __init__(
        self, rows: Sequence[int] | slice, labels: Sequence[int] | None, *, members: Members, decode: Callable[..., Any]
    ) -> None:
        super().__init__((), labels, decode)
        rows = rows if isinstance(rows, slice) else np.array(rows, dtype=np.int64)
        self.archives, self.paths, self.places = members.archives, members.names[rows], members.places[rows]
        self._opened: dict[int, BinaryIO] = {}  # where files are far away, opening one takes longer than reading

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_opened": {}}

    def describe(self, index: int) -> str:
        return os.path.join(self.archives[self.places[index][0]], super().describe(index))

    def file(self, index: int, name: str) -> tuple[io.BytesIO | io.BufferedReader, str]:
        archive, start, size = self.places[index].tolist()
        if size > MOST_BYTES and self.most_in_memory is None:
            raise UnreadableSample(name, f"it claims {size:,} bytes, more than {MOST_BYTES:,}")
        with readable(self.archives[archive], name):
            if archive not in self._opened:
                if len(self._opened) == MOST_OPEN:
                    self._opened.clear()
                self._opened[archive] = open(self.archives[archive], "rb", buffering=0)  # noqa: SIM115
            if self.most_in_memory is not None and size > self.most_in_memory:
                return io.BufferedReader(Part(self._opened[archive], start, size)), name
            content = read_at(self._opened[archive], size, start)
        if len(content) < max(size, 1):
            raise UnreadableSample(name, "the archive ends before it" if size else "the file is empty")
        return io.BytesIO(content), name


def index_tars(archives: Sequence[Path], kept: Path) -> tuple[Members, tuple[str, ...]]:
    """The pictures in archives, and what the first lines of a run say of the index; kept: the file that keeps it.

    A picture's label is what a .cls or .json file of the same name holds (webdataset), or else the name of the archive
    inside the archive that holds it. Raises DataError for an archive that is damaged, cut short, or compressed.
    """
    try:
        stats = [os.stat(path) for path in archives]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror})") from error
    files = [[path.name, stat.st_size, stat.st_mtime_ns] for path, stat in zip(archives, stats)]
    stamp = json.dumps([VERSION, files]).encode()
    paths = tuple(map(str, archives))
    lines = []
    if os.path.lexists(kept):
        try:
            if (members := _read_index(kept, stamp, paths, [stat.st_size for stat in stats])) is not None:
                return members, ()
        except Exception as error:  # NumPy and zipfile raise many kinds for a damaged file
            lines.append(f"{kept} cannot be used ({first_line(error)}), so the archives are indexed again")
    log.info("indexing %s", first_few(archives))
    found = [(number, *each) for number, path in enumerate(archives) for each in _pictures(path)]
    members = Members(
        paths,
        names=np.array([os.fsencode(name)[: LONGEST["name"]] for _, name, *_ in found], dtype=bytes),
        labels=np.array([label.encode() for _, _, label, *_ in found], dtype=bytes),
        places=np.array([(number, start, size) for number, _, _, start, size in found], dtype=np.int64).reshape(-1, 3),
    )
    arrays = {name: value for name, value in vars(members).items() if name != "archives"}
    try:
        write_atomic(kept, lambda path: np.savez(path, stamp=np.frombuffer(stamp, np.uint8), **arrays))
    except UserError as error:
        why = first_line(error.__cause__ or error)
        lines.append(f"{kept} cannot be written ({why}), so the archives are indexed at every start")
    return members, tuple(lines)


def _read_index(path: Path, stamp: bytes, archives: tuple[str, ...], sizes: Sequence[int]) -> Members | None:
    """The index in a file; None for that of other archives. Raises any error for one that is damaged."""
    with open_regular(path, MOST_INDEX) as file, np.load(file, allow_pickle=False) as stored:
        if any(each.file_size > os.path.getsize(path) for each in stored.zip.infolist()):
            raise ValueError("it claims more than it holds")
        if stored["stamp"].tobytes() != stamp:
            return None
        members = Members(archives, stored["names"], stored["labels"], stored["places"])
    members.check(sizes, "S")
    return members


def _pictures(path: Path) -> list[tuple[str, str, int, int]]:
    """(name, label, first byte, size) of each picture in an archive, and in the archives that it holds."""
    found: list[tuple[str, str, int, int]] = []
    labels: dict[str, str] = {}
    try:
        with open_regular(path, 2**62) as file:
            for member, start in members_of(file, 0, os.fstat(file.fileno()).st_size, str(path)):
                name = member.name.lower()
                if name.endswith(IMAGE_EXTENSIONS):
                    found.append((member.name, "", start, member.size))
                elif name.endswith(".tar"):
                    label = _usable(Path(member.name).stem)
                    for each, first in members_of(file, start, member.size, f"{path}/{member.name}"):
                        if each.name.lower().endswith(IMAGE_EXTENSIONS):
                            found.append((f"{member.name}/{each.name}", label, first, each.size))
                elif name.endswith(".cls") or (name.endswith(".json") and _key(member.name) not in labels):
                    content = read_at(file, member.size, start) if member.size <= MOST_LABEL else b""
                    labels[_key(member.name)] = _label(content, member.name)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from error
    return [(name, label or labels.get(_key(name), ""), *place) for name, label, *place in found]


def _key(name: str) -> str:
    """What the files of a sample share: the name up to the first dot."""
    folder, _, last = name.rpartition("/")
    return f"{folder}/{last.partition('.')[0]}"


def _label(content: bytes, name: str) -> str:
    text: Any = content.decode("utf-8", errors="replace").strip()
    if name.lower().endswith(".json"):
        try:
            value = parse_json(text, name)
        except UserError:  # a picture without a label
            return ""
        text = next((value[key] for key in LABEL_KEYS if key in value), "") if isinstance(value, dict) else value
        text = str(text) if isinstance(text, (str, int)) and not isinstance(text, bool) else ""
    return _usable(text.lstrip("0") or "0" if text.isdecimal() else text)


def _usable(label: str) -> str:
    """The label, or an empty one for what is too long or cannot be printed."""
    return label if label.isprintable() and len(label.encode()) <= LONGEST["label"] else ""


def members_of(file: BinaryIO, start: int, size: int, name: str) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """The files in an archive that is a part of a file, and their first bytes. Raises DataError for a damaged one."""
    part = _Headers(Part(file, start, size))
    last, before = "its beginning", 0
    try:
        with tarfile.open(fileobj=part, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # which would keep every header
                last = member.name
                if member.size < 0 or archive.offset <= before:  # else it could be read for ever
                    raise tarfile.ReadError(f"a header claims {member.size:,} bytes")
                before = archive.offset
                if member.isreg() and not member.issparse():
                    yield member, start + member.offset_data
            # Ends at empty blocks, or at what is no header, which is damage.
            part.seek(archive.offset)
            if part.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"byte {start + archive.offset:,} begins no file")
    except Exception as error:  # RecursionError and others, too, for bytes that are no archive
        part.seek(0)
        problem = f"is no complete tar archive after {last[:200]!r} ({first_line(error)}): get it again"
        if part.read(4).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd")):
            problem = "is compressed, and cannot be read by position: unpack it, such as with gzip -d"
        raise DataError(f"{name} {problem}") from error


def read_at(file: BinaryIO, count: int, start: int) -> bytes:
    """At most `count` bytes from `start` on, by position where that can be, as forked workers share an open file."""
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), count, start)
    file.seek(start)
    return file.read(count)


class Part(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, whole: BinaryIO, start: int, size: int) -> None:
        self.whole, self.start, self.size, self.place = whole, start, size, 0

    def readable(self) -> bool:
        return True

    seekable = readable

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        self.place = max(0, place + (0, self.place, self.size)[whence])
        return self.place

    def readinto(self, buffer: bytearray | memoryview) -> int:
        content = read_at(self.whole, max(0, min(len(buffer), self.size - self.place)), self.start + self.place)
        buffer[: len(content)] = content
        self.place += len(content)
        return len(content)


class _Headers:
    """A part of a file that tarfile reads headers from; refuses to read long ones."""

    def __init__(self, part: Part) -> None:
        self.part = io.BufferedReader(part)
        self.tell, self.seek = self.part.tell, self.part.seek

    def read(self, count: int) -> bytes:
        if not 0 <= count <= MOST_HEADER:
            raise tarfile.ReadError(f"a header claims {count:,} bytes")
        return self.part.read(count)
