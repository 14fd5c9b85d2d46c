"""Downloads the files of small public data sets; where that fails, the error names the files to put in place."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

from jepa.utils.errors import DataError

log = logging.getLogger("jepa")
TIMEOUT = 5.0
"""Seconds without an answer after which a server counts as unreachable."""


def fetch(path: Path, *, urls: Sequence[str], md5: str | None) -> None:
    """Download a file from the first url that serves it with that md5 sum; None takes what comes.

    It is written under another name and renamed when complete, so a failure leaves no file that looks whole.
    Raises OSError with the last reason when no url works.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    reason: Exception = OSError("there is no address for it")
    for url in urls:
        try:
            log.info("downloading %s", url)
            path.parent.mkdir(parents=True, exist_ok=True)
            with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, part.open("wb") as file:
                shutil.copyfileobj(answer, file)
            if md5 is not None and hashlib.md5(part.read_bytes(), usedforsecurity=False).hexdigest() != md5:
                raise OSError(f"{url} sent something other than the published file (its md5 sum differs)")
            part.replace(path)
            return
        except (OSError, HTTPException) as error:  # URLError is an OSError
            reason = error
        finally:
            part.unlink(missing_ok=True)
    raise OSError(str(reason)) from reason


def download_file(
    path: Path, *, urls: Sequence[str], md5: str | None, allowed: bool, name: str, root: Path, wanted: Sequence[str]
) -> None:
    """`fetch` a file of the data set `name`. Raises DataError with what is `wanted` in root where that fails.

    allowed: False raises at once.
    """
    try:
        if not allowed:
            raise OSError("data.source.download=false")
        fetch(path, urls=urls, md5=md5)
    except OSError as error:
        listed = "".join(f"\n  {file}" for file in wanted)
        raise DataError(
            f"{name} is not in data.root={root} and was not downloaded ({error}). Put these files there, or "
            f"point data.root to a folder that holds them:{listed}"
        ) from error
