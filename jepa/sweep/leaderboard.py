"""The runs of a sweep, best first, and what follows from them: as a table, in words, as CSV and as a page."""

from __future__ import annotations

import contextlib
import csv
import difflib
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from jepa.sweep.collect import Run, collect
from jepa.sweep.importance import importances
from jepa.sweep.statistics import Comparison, Setting, compare_with_best, settings_of
from jepa.sweep.wording import short_names
from jepa.utils.errors import UserError
from jepa.utils.metric_direction import DEFAULT_METRICS, Direction, direction_of
from jepa.utils.run_status import FINISHED

if TYPE_CHECKING:
    from rich.console import Group

SHOWN_METRICS = ("eval/trained/linear", "eval/trained/knn", "eval/trained/rankme", "val/loss")
"""What a table shows beside the objectives, where a run has it."""


@dataclass(frozen=True)
class Leaderboard:
    """What came out of a sweep; see `leaderboard`.

    runs: best first (`ordered`). objectives: metric -> which way it is better, of all that the sweep optimises; the
    first is what it is sorted by.
    """

    folder: Path
    runs: tuple[Run, ...]
    objectives: dict[str, Direction]

    @property
    def metric(self) -> str:
        """What it is sorted by."""
        return next(iter(self.objectives))

    @property
    def direction(self) -> Direction:
        """Which way the metric is better."""
        return self.objectives[self.metric]

    @property
    def options(self) -> list[str]:
        """The options that are not the same in all runs."""
        return list(self.runs[0].overrides)

    @cached_property
    def settings(self) -> list[Setting]:
        """The runs grouped by what they are but for the seed, best mean first."""
        return settings_of(self.runs, self.metric, self.direction)

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """The best setting against every other."""
        return compare_with_best(self.settings, self.direction)

    @cached_property
    def importances(self) -> dict[str, float]:
        """Option -> the share of the metric's variance that depends on it."""
        return importances(self.runs, self.metric)

    @cached_property
    def front(self) -> list[Run]:
        """The runs that no other beats in one objective without losing in another."""
        return pareto_front(self.runs, self.objectives)

    @cached_property
    def places(self) -> dict[Path, int]:
        """Run, by its path -> its place among those that count, from 1."""
        counted = (run.path for run in self.runs if run.counts(self.metric))
        return {path: place for place, path in enumerate(counted, 1)}

    @cached_property
    def shown_metrics(self) -> list[str]:
        """The objectives, then the usual metrics that a run has."""
        usual = [name for name in SHOWN_METRICS if any(name in run.metrics for run in self.runs)]
        return list(dict.fromkeys([*self.objectives, *usual]))

    @cached_property
    def names(self) -> dict[str, str]:
        """Option or shown metric -> its name, as short as it is without doubt."""
        names = short_names([*self.options, *self.shown_metrics])
        # The last word of "val/loss" would not do.
        return names | {metric: metric for metric in self.shown_metrics if metric.count("/") < 2}

    def table(self, limit: int | None = None, width: int | None = None) -> Group:
        """The runs, or the first so many, and the settings where seeds repeat them, to be printed by rich.

        width: characters of a line; None: those of the terminal.
        """
        from jepa.sweep.columns import tables

        return tables(self, limit, width)

    def conclusions(self) -> list[str]:
        """What follows, in sentences."""
        from jepa.sweep.conclusions import conclusions

        return conclusions(self)

    def write_csv(self, path: Path) -> None:
        """Every run with every option, the shared ones too, and every metric, in full precision.

        Raises UserError when it cannot be written.
        """
        shared = self.runs[0].shared
        objectives = sorted({name for run in self.runs for name in run.status.objective})
        about = ["place", "run", "state", "reason", "verdict", "seed"]
        cost = ["step", "max_steps", "train_seconds", "samples_per_second", "starts", "job", "host"]
        metrics = sorted({name for run in self.runs for name in run.metrics} - {*cost})
        counted = [f"objective/{name}" for name in objectives]
        text = io.StringIO()
        writer = csv.DictWriter(text, [*about, *self.options, *shared, *counted, *metrics, *cost], restval="")
        writer.writeheader()
        for run in self.runs:
            facts = (self.places.get(run.path), run.folder, run.state, run.status.reason, run.verdict, run.seed)
            row = dict(zip(about, facts)) | run.shared | run.overrides | run.metrics
            row |= {f"objective/{name}": value for name, value in run.status.objective.items()}
            writer.writerow(row | {name: getattr(run.status, name) for name in cost})
        write_text(path, text.getvalue(), "csv")

    def write_page(self, path: Path) -> None:
        """A page of its own, with tables and figures, that needs no network. Raises as `write_csv` does."""
        from jepa.sweep.page import page

        write_text(path, page(self), "html")


def leaderboard(
    folder: str | Path,
    metric: str | None = None,
    direction: Direction | None = None,
    queue: Mapping[str, str] | None = None,
) -> Leaderboard:
    """Read the runs of a sweep's folder, which may be under way.

    metric: what to sort by; None: what the sweep optimises as its runs tell, else the first of `DEFAULT_METRICS` that
    one has. direction: which way it is better; None: by its name. queue: see `current_status`.

    Raises UserError where there is no such folder, no run in it, or no run with the metric.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"sweep={folder} {what}: give the folder of a sweep, such as outputs/<date>/<time>-sweep")
    if direction not in (None, *get_args(Direction)):
        raise UserError(f"direction={direction}: give one of {', '.join(get_args(Direction))}, or leave it out")
    runs = collect(folder, queue)
    if not runs:
        raise UserError(
            f"sweep={folder} holds no runs (no folder in it has a status.json, metrics.jsonl or results.json): give "
            "the folder that the jobs of a sweep write to"
        )
    objectives = {name: direction_of(name) for name in objectives_of(runs, metric, folder)}
    if direction is not None:
        objectives[next(iter(objectives))] = direction
    first, way = next(iter(objectives.items()))
    return Leaderboard(folder=folder, runs=tuple(ordered(runs, first, way)), objectives=objectives)


def objectives_of(runs: Sequence[Run], metric: str | None, folder: Path) -> list[str]:
    """What a sweep is sorted by, and what it optimises besides.

    Raises UserError where no run has it, unless that is only since they are under way.
    """
    told = Counter(tuple(run.status.objective) for run in runs if run.status.objective and run.state == "done")
    # A failed run may not know what the others come to be judged by.
    told = told or Counter(tuple(run.status.objective) for run in runs if run.status.objective)
    optimised = list(told.most_common(1)[0][0]) if told else []
    known = {name: None for run in runs for name in (*run.status.objective, *run.metrics)}
    known = [name for name in known if any(run.value(name) is not None for run in runs)]
    wanted = [metric] if metric is not None else [*optimised[:1], *DEFAULT_METRICS]
    found = next((name for name in wanted if name in known), None)
    if found is not None:
        return [found, *(name for name in optimised if name != found)] if found in optimised else [found]
    if metric is None and any(run.state not in FINISHED for run in runs):
        return [DEFAULT_METRICS[0]]  # which none has come to so far
    if not known:
        raise UserError(
            f"no run of sweep={folder} has any metric: python scripts/status.py folder={folder} tells how they are"
        )
    close = difflib.get_close_matches(metric or DEFAULT_METRICS[0], known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if metric is not None and close else ""
    others = ", ".join(sorted(known, key=lambda name: (not name.startswith(("eval/", "val/", "online/")), name))[:20])
    asked = f"metric={metric}: no" if metric is not None else "no"
    which = "it" if metric is not None else " or ".join(DEFAULT_METRICS)
    raise UserError(f"{asked} run of sweep={folder} has {which}; {hint}give metric= one of {others}")


def ordered(runs: Sequence[Run], metric: str, direction: Direction) -> list[Run]:
    """Best first: those that count, then those under way by their latest value, the collapsed, the failed."""
    sign = -1.0 if direction == "maximize" else 1.0

    def key(run: Run) -> tuple[int, bool, float]:
        value = run.value(metric)
        group = 3 if run.state == "failed" else 2 if run.collapsed else 0 if run.counts(metric) else 1
        return group, value is None, 0.0 if value is None else sign * value

    return sorted(runs, key=key)


def pareto_front(runs: Sequence[Run], objectives: Mapping[str, Direction]) -> list[Run]:
    """The runs that count by all objectives and are not dominated: no other is as good in all and better in one."""
    points = []
    for run in runs:
        if all(run.counts(name) for name in objectives):
            values = (run.value(name) if way == "minimize" else -run.value(name) for name, way in objectives.items())
            points.append((run, tuple(values)))

    def dominated(point: tuple[float, ...]) -> bool:
        return any(other != point and all(o <= p for o, p in zip(other, point)) for _, other in points)

    return [run for run, point in points if not dominated(point)]


def write_text(path: Path, text: str, key: str) -> None:
    """Write a file whole or not at all, making its folder. Raises UserError that names the key."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", newline="")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write {key}={path}: {error.strerror}: give another {key}=<file>") from error
