"""What the runs beside a run's folder have measured, read while they go on."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

FILE = "metrics.jsonl"
DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
"""Name of the folder in which single runs of a day stand: they have nothing to do with one another."""


class OtherRuns:
    """What the runs beside a run's folder have measured of a metric, read on as their files grow."""

    def __init__(self, folder: Path, metric: str) -> None:
        self.folder, self.metric = folder.resolve(), metric
        self._files: dict[Path, GrowingFile] = {}

    @property
    def in_sweep(self) -> bool:
        """Whether the folders beside it are runs of the same sweep; not in that of a day, where single runs stand."""
        return DAY.fullmatch(self.folder.parent.name) is None

    def values(self) -> dict[Path, dict[int, float | None]]:
        """For the folder of each other run that has measured the metric: step -> value, None if it was not finite."""
        if not self.in_sweep:
            return {}
        found = {path.parent.resolve() for path in self.folder.parent.glob(f"*/{FILE}")} - {self.folder}
        for folder in found - self._files.keys():
            self._files[folder] = GrowingFile(folder / FILE, self.metric)
        values = {folder: self._files[folder].read() for folder in sorted(found)}
        return {folder: curve for folder, curve in values.items() if curve}


class GrowingFile:
    """A metric in a file of JSON lines that another process may be writing; each line is read once."""

    def __init__(self, path: Path, metric: str) -> None:
        self.path, self.metric = path, metric
        self._start_over(None)

    def _start_over(self, identity: int | None) -> None:
        self._identity, self._position = identity, 0
        self._values: dict[int, float | None] = {}

    def read(self) -> dict[int, float | None]:
        """The metric's values by step; none where the file is gone."""
        try:
            file = open(self.path, "rb")  # noqa: SIM115 (closed below)
        except FileNotFoundError:
            return {}
        with file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._identity or status.st_size < self._position:  # a resumed run cuts it back
                self._start_over(status.st_ino)
            file.seek(self._position)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]  # the last line may still be being written
        self._position += len(whole)
        name = json.dumps(self.metric).encode()
        for line in whole.splitlines():
            if name in line:
                self._take(line.decode(errors="replace"))
        return self._values

    def _take(self, line: str) -> None:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # cut off when its run was killed, and still to be cut back by the next start
            return
        if isinstance(entry, dict) and self.metric in entry and "step" in entry:
            self._values[entry["step"]] = entry[self.metric]
