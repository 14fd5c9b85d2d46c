"""The runs of a sweep: their options, states and metrics, read from their folders while they may be under way."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jepa.config.overrides import override_key
from jepa.sweep.reading import current_status, last_values, read_json, read_yaml, result_values, run_folders, verdict_of
from jepa.sweep.wording import DEFAULT
from jepa.utils.run_status import State, Status, is_collapse

SEED = "trainer.seed"
"""The option that tells repetitions of a setting apart."""

REMOVED = "(removed)"
"""Value of an option that a run deletes (`~key`)."""

IGNORED = ("resume", "run_dir")
"""Options that tell where a run is, not what it is; those of Hydra are ignored too."""


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    folder: its name relative to the sweep; path: where it is. status: as it is now (`current_status`).
    overrides: option -> value of those that are not the same in all runs, for all runs in the same order. Where a run
        leaves one out it stands with the value in its config.yaml, or as "(default)".
    shared: the options that are the same in all runs. seed: of the run, None where that cannot be found out.
    metrics: the last value of every metric, by the name it is logged by; NaN where that is not finite.
    """

    folder: str
    path: Path
    status: Status
    overrides: dict[str, str]
    shared: dict[str, str]
    seed: str | None
    verdict: str | None
    metrics: dict[str, float]

    @property
    def state(self) -> State:
        """What it is doing."""
        return self.status.state

    @property
    def collapsed(self) -> bool:
        """Whether the collapse monitor has found its features worth nothing."""
        return is_collapse(self.verdict)

    @property
    def bad(self) -> bool:
        """Whether it went wrong, and so is in no mean."""
        return self.state == "failed" or self.collapsed

    @property
    def setting(self) -> dict[str, str]:
        """Its options but for the seed."""
        return {key: value for key, value in self.overrides.items() if key != SEED}

    @property
    def seconds(self) -> float | None:
        """Seconds of training."""
        spent = self.status.train_seconds
        return self.metrics.get("cost/seconds") if spent is None else spent

    def value(self, metric: str) -> float | None:
        """What it counts as by a metric: the objective where it is that, else the last value measured.

        None where it has none, or one that is not finite.
        """
        objective = self.status.objective.get(metric)
        value = self.metrics.get(metric) if objective is None else objective
        return value if value is not None and math.isfinite(value) else None

    def counts(self, metric: str) -> bool:
        """Whether its value is that of a sound run which has come to its end, and so can be compared.

        A run that was stopped has only values of an earlier step, unless its objective was told nevertheless.
        """
        ended = self.state == "done" or (self.state == "stopped" and metric in self.status.objective)
        return ended and not self.collapsed and self.value(metric) is not None


def collect(folder: Path, queue: Mapping[str, str] | None = None) -> list[Run]:
    """The runs in a folder, in the order of their names (2 before 10); none where there is no such folder.

    queue: job -> SLURM's state of it, see `current_status`.
    """
    paths = sorted(run_folders(folder), key=lambda path: natural(name_of(path, folder)))
    statuses = [current_status(path, queue) for path in paths]
    given = [parse(stored_overrides(path, status)) for path, status in zip(paths, statuses)]
    keys = list(dict.fromkeys(key for options in given for key in options))
    lacking = [any(key not in options for key in (*keys, SEED)) for options in given]
    configs = [(read_yaml(path / "config.yaml") if lacks else None) for path, lacks in zip(paths, lacking)]
    full = [
        {key: options.get(key) or configured(config, key) or DEFAULT for key in keys}
        for options, config in zip(given, configs)
    ]
    shared = {key: full[0][key] for key in keys if len({canonical(options[key]) for options in full}) == 1}
    runs = []
    for path, status, options, config in zip(paths, statuses, full, configs):
        results = read_json(path / "results.json")
        metrics = last_values(path) | result_values(results)
        metrics.pop("step", None)
        seed = options.get(SEED) or configured(config, SEED)
        run = Run(
            folder=name_of(path, folder),
            path=path,
            status=status,
            overrides={key: value for key, value in options.items() if key not in shared},
            shared=shared,
            seed=None if seed in (None, DEFAULT) else canonical(seed),
            verdict=status.verdict or verdict_of(results),
            metrics=metrics,
        )
        runs.append(run)
    return runs


def name_of(path: Path, folder: Path) -> str:
    """A run's folder relative to the sweep; its own name where it is the sweep itself."""
    return path.relative_to(folder).as_posix() if path != folder else path.resolve().name


def natural(text: str) -> list[str | int]:
    """A key that sorts numbers in a text by their value: "2" before "10"."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", text)]


def stored_overrides(path: Path, status: Status) -> list[str]:
    """A run's options as given on the command line, from the first of its files that has them."""
    if status.overrides:
        return status.overrides
    stored = read_yaml(path / ".hydra" / "overrides.yaml")
    if not isinstance(stored, list):
        config = read_yaml(path / "config.yaml")
        stored = config.get("overrides") if isinstance(config, dict) else None
    return [item for item in stored if isinstance(item, str)] if isinstance(stored, list) else []


def parse(overrides: list[str]) -> dict[str, str]:
    """Option -> value, as text without quotes; of an option given twice the last, as Hydra has it."""
    options = {}
    for override in overrides:
        key, value = override_key(override), override.partition("=")[2]
        if key in IGNORED or key.startswith(("hydra.", "hydra/")):
            continue
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        options[key] = REMOVED if override.startswith("~") else value or "''"
    return options


def configured(config: Any, key: str) -> str | None:
    """The value that a dotted key has in a run's config.yaml, as one would write it on the command line."""
    node = config
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return None
        node = node[part]
    # A key without a dot is that of a group, whose choice the composed configuration does not tell.
    if isinstance(node, dict) or node is config:
        return None
    return node if isinstance(node, str) else json.dumps(node, separators=(",", ":"), default=str)


def as_number(text: str) -> float | None:
    """The finite number that a value is, if it is one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def canonical(text: str) -> str:
    """A value in the one form in which equal ones are equal: "1e-3" and "0.001"."""
    value = as_number(text)
    return text if value is None else f"{value:.12g}"
