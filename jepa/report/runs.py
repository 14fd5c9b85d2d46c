"""The runs of a sweep as plain data: options, states and metrics."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jepa.report.formatting import DEFAULT
from jepa.report.run_files import (
    current_status,
    find_runs,
    is_value,
    last_values,
    parse_content,
    read_content,
    read_once,
    read_results,
    result_values,
)
from jepa.utils.nested import flatten
from jepa.utils.read_data import printable
from jepa.utils.run_status import State, Status, is_collapse, is_overrides

SEED = "trainer.seed"  # the option in which repetitions of a setting differ
REMOVED = "(removed)"  # value of an option that a run deletes (`~key`)
SHOWN_METRICS = ("eval/trained/linear", "eval/trained/knn", "eval/trained/rankme", "val/loss")
"""Metrics that a table shows beside the objectives, if a run has them."""
CURVES = ("val/loss", "train/loss")  # drawn over the steps where the metric itself is measured at the end only
IGNORED = ("resume", "run_dir")  # options that say where a run is; ignored, as are those of Hydra


@dataclass(frozen=True)
class Run:
    """A run of a sweep.

    folder: its path relative to the sweep's. overrides: option -> value, of the options that differ between runs; all
    runs have the same keys. A run that does not set one has the value of its config.yaml, or DEFAULT.
    shared: the options that are the same in all runs. seed: None if unknown.
    metrics: metric -> last value; NaN if it is not finite.
    """

    folder: str
    path: Path
    status: Status
    overrides: dict[str, str]
    shared: dict[str, str]
    seed: str | None
    metrics: dict[str, float]

    @property
    def state(self) -> State:
        return self.status.state

    @property
    def collapsed(self) -> bool:
        """Whether the collapse monitor's verdict is a collapse or divergence."""
        return is_collapse(self.status.verdict)

    @property
    def bad(self) -> bool:
        """Whether it failed or collapsed, and so is left out of all means."""
        return self.state == "failed" or self.collapsed

    @property
    def setting(self) -> dict[str, str]:
        """Its options without the seed."""
        return {key: value for key, value in self.overrides.items() if key != SEED}

    @property
    def seconds(self) -> float | None:
        """Seconds of training."""
        seconds = self.status.train_seconds
        return self.metrics.get("cost/seconds") if seconds is None else seconds

    def value(self, metric: str) -> float | None:
        """Return the value that a sweep ranks it by: its objective, else the last value; None if not finite."""
        objective = self.status.objective.get(metric)
        value = self.metrics.get(metric) if objective is None else objective
        return value if is_value(value) else None

    def counts(self, metric: str) -> bool:
        """Return whether its value can be compared: it came to its end, did not collapse and has a finite value.

        A stopped run has only values of an earlier step, unless its objective is in its status.
        """
        ended = self.state == "done" or (self.state == "stopped" and metric in self.status.objective)
        return ended and not self.collapsed and self.value(metric) is not None


SWEEP = "the folder that the jobs of a sweep write to, as outputs/<date>/<time>-sweep"


def read_runs(
    folder: Path, queue: Mapping[str, str] | None = None, *, key: str = "sweep", give: str = SWEEP
) -> list[Run]:
    """Return the runs in a folder, sorted by name (2 before 10). queue: see `current_status`.

    Raise UserError, which names the folder's option and what to `give`, if it does not exist or has no runs.
    """
    paths = find_runs(folder, key, give)
    paths.sort(key=lambda path: natural_key(name_of(path, folder)))
    statuses = [current_status(path, queue) for path in paths]
    damaged: list[list[str]] = [[] for _ in paths]
    own = [parse_overrides(stored_overrides(*files)) for files in zip(paths, statuses, damaged)]
    # What is quick to read comes first, as there may be little time.
    results = [result_values(read_results(*files)) for files in zip(paths, damaged)]
    metrics = [last_values(*files) | values for *files, values in zip(paths, damaged, results)]
    keys = list(dict.fromkeys(key for options in own for key in options))
    # Reading a config.yaml is slow.
    configs = [
        {} if {*keys, SEED} <= options.keys() else config_values(path, notes)
        for path, options, notes in zip(paths, own, damaged)
    ]
    full = [{key: own_of.get(key) or config.get(key, DEFAULT) for key in keys} for own_of, config in zip(own, configs)]
    # A damaged run says nothing of what it shares with the others.
    known = [options for options, status in zip(full, statuses) if status.state != "damaged"] or full
    shared = {key: known[0][key] for key in keys if len({canonical(options[key]) for options in known}) == 1}
    runs = []
    for path, status, options, config, values, notes in zip(paths, statuses, full, configs, metrics, damaged):
        seed = options.get(SEED, config.get(SEED, DEFAULT))
        seed = None if seed == DEFAULT else canonical(seed)
        new = [note for note in dict.fromkeys(notes) if note not in (status.reason or "")]
        status = dataclasses.replace(status, reason="; ".join(filter(None, [*new, status.reason])) or None)
        differing = {key: value for key, value in options.items() if key not in shared}
        values.pop("step", None)
        runs.append(Run(name_of(path, folder), path, status, differing, shared, seed, values))
    return runs


def name_of(path: Path, folder: Path) -> str:
    """Return a run's path relative to a folder, printable in one line; its own name if it is that folder."""
    return printable(path.relative_to(folder).as_posix() if path != folder else path.resolve().name, keep="")


def natural_key(text: str) -> list[str | tuple[int, str]]:
    """Return a sort key by which "2" comes before "10"."""
    parts = re.split(r"0*([0-9]+)", text)  # numbers at odd places, compared by their length first
    return [(len(part), part) if place % 2 else part for place, part in enumerate(parts)]


def stored_overrides(path: Path, status: Status, damaged: list[str]) -> list[str]:
    """Return a run's overrides from the first of its files that has them."""
    if status.overrides:
        return status.overrides
    for name, stored in (
        ("overrides.yaml", read_content(path / ".hydra" / "overrides.yaml", list, damaged)),
        ("config.yaml", read_content(path / "config.yaml", dict, damaged).get("overrides")),
    ):
        if stored and is_overrides(stored):
            return stored
        if stored:
            damaged.append(f"{name} is damaged: its overrides are no list of texts")
    return []


def parse_overrides(overrides: list[str]) -> dict[str, str]:
    """Return option -> value, as text without quotes; the last value of an option that is set twice."""
    options = {}
    for override in overrides:
        key, _, value = override.partition("=")
        key = key.lstrip("+~")
        if key in IGNORED or key.startswith(("hydra.", "hydra/")):
            continue
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        options[key] = REMOVED if override.startswith("~") else value or "''"
    return options


def config_values(path: Path, damaged: list[str]) -> dict[str, str]:
    """Return the values of a run's config.yaml by dotted key, as on the command line; groups are no values."""
    path = path / "config.yaml"
    return read_once(path, dict, lambda notes: texts_of(parse_content(path, dict, notes)), damaged, made="texts")


def texts_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the values of a nested configuration by dotted key, as on the command line."""
    dumps = partial(json.dumps, separators=(",", ":"), default=str)
    return {key: value if isinstance(value, str) else dumps(value) for key, value in flatten(config).items()}


def as_number(text: str) -> float | None:
    """Return the finite number that a text is, None for other texts."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def canonical(text: str) -> str:
    """Return a value in one form for equal numbers: "1e-3" and "0.001"."""
    value = as_number(text)
    return text if value is None else f"{value:.12g}"
