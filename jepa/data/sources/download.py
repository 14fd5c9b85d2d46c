"""Files of small public data sets: downloaded where they are missing, unpacked where they are packed."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import logging
import lzma
import os
import shutil
import tarfile
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO

from jepa.utils.errors import DataError, first_line
from jepa.utils.read_data import open_regular

log = logging.getLogger("jepa")
TIMEOUT = 5.0  # seconds without an answer after which a server counts as unreachable


def download_file(
    path: Path, *, urls: Sequence[str], md5: str | None, allowed: bool, name: str, root: Path, wanted: Sequence[str]
) -> None:
    """Download a file of the data set `name` from the first url that serves it with that md5 sum; None takes any.

    A failure leaves no file that looks whole. Raises DataError, which names the files `wanted`, if none is had.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    reason = "data.source.download=false"
    for url in urls if allowed else ():
        try:
            log.info("downloading %s", url)
            with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
                path.parent.mkdir(parents=True, exist_ok=True)
                with part.open("wb") as file:
                    shutil.copyfileobj(answer, file)
            if md5 is not None and hashlib.md5(part.read_bytes(), usedforsecurity=False).hexdigest() != md5:
                raise OSError(f"{url} sent something other than the published file (its md5 sum differs)")
            part.replace(path)
            return
        except (OSError, HTTPException) as error:  # URLError is an OSError
            reason = str(error)
        finally:
            part.unlink(missing_ok=True)
    advice = "Put these files there, or point data.root to a folder that holds them:\n  " + "\n  ".join(wanted)
    raise DataError(f"{name} is not in data.root={root} and was not downloaded ({reason}). {advice}")


def find_packed(folder: Path, name: str) -> Path | None:
    """The file of that name in a folder, or the same with .gz."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def memory_limit() -> int:
    """Return how many bytes a file may take once unpacked: half of what this process may have of the memory."""
    limits = [2**36]
    with contextlib.suppress(AttributeError, ImportError, OSError, ValueError):  # on systems without one of these
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        import resource

        limits.append(resource.getrlimit(resource.RLIMIT_AS)[0])
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))  # "max" where there is none
    return min(limit for limit in limits if limit > 0) // 2  # -1 stands for none


def read_packed(path: Path) -> bytes:
    """The content of a file, unpacked if its name ends in .gz. Raises DataError if it is damaged, or too large."""
    try:
        with open_regular(path, 2**62) as packed, gzip.open(packed) if path.suffix == ".gz" else packed as file:
            return read_all(file, path)
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        raise DataError(f"{path} cannot be read ({error or 'it does not fit in memory'}); get it again") from error


def read_all(file: BinaryIO, path: Path) -> bytes:
    """The rest of an open file, in steps, as `read(n)` takes n bytes at once. Raises DataError if it is too large."""
    content, limit = io.BytesIO(), memory_limit()
    while chunk := file.read(2**20):
        content.write(chunk)
        if content.tell() > limit:
            raise DataError(f"{path} cannot be read: it does not fit in memory once it is unpacked")
    return content.getvalue()


def read_archive(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Name -> content of the `wanted` files in a tar archive. Raises DataError if it is damaged, or too large."""
    try:
        with open_regular(path, 2**62) as file, tarfile.open(fileobj=file) as archive:
            members = [member for member in archive if member.isfile() and wanted(member.name)]
            if (size := sum(member.size for member in members)) > memory_limit():
                raise DataError(f"{path} claims files of {size / 2**30:,.0f} GiB: unpack it and give the folder")
            return {member.name: archive.extractfile(member).read() for member in members}
    except (tarfile.TarError, lzma.LZMAError, OSError, ValueError, EOFError, zlib.error, MemoryError) as error:
        reason = first_line(error).rstrip(": ")  # tarfile lists every compression it tried
        raise DataError(f"{path} is not a complete tar archive ({reason}); get it again") from error
