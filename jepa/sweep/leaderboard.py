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
from jepa.sweep.objective import DEFAULT_METRICS
from jepa.sweep.statistics import Comparison, Setting, compare_with_best, settings_of
from jepa.sweep.wording import duration, number, option, short_names, shortened
from jepa.utils.errors import UserError
from jepa.utils.metrics import Direction, direction_of

if TYPE_CHECKING:
    from rich.table import Table

SHOWN_METRICS = ("eval/trained/linear", "eval/trained/knn", "eval/trained/rankme", "val/loss")
"""What a table shows beside the metric itself, where a run has it."""


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
        return compare_with_best(self.settings)

    @cached_property
    def importances(self) -> dict[str, float]:
        """Option -> its share of the variance of the metric."""
        return importances(self.runs, self.metric)

    @cached_property
    def front(self) -> list[Run]:
        """The runs that no other beats in one objective without losing in another."""
        return pareto_front(self.runs, self.objectives)

    def place(self, run: Run) -> int | None:
        """A run's place among those that count, from 1."""
        counted = [other.path for other in self.runs if other.counts(self.metric)]
        return counted.index(run.path) + 1 if run.path in counted else None

    def columns(self) -> list[str]:
        """The metrics a table shows: the objectives, then the usual ones that a run has."""
        usual = [name for name in SHOWN_METRICS if any(name in run.metrics for run in self.runs)]
        return list(dict.fromkeys([*self.objectives, *usual]))

    def cells(self, run: Run) -> list[str]:
        """A run as texts, in the order of `headings`."""
        place, status = self.place(run), run.status
        steps = "" if status.step is None else f"{status.step}" + (f"/{status.max_steps}" if status.max_steps else "")
        return [
            "" if place is None else str(place),
            run.folder,
            *map(option, run.overrides.values()),
            *(number(shown_value(run, name)) for name in self.columns()),
            duration(run.seconds),
            steps,
            outcome(run),
        ]

    def headings(self) -> list[str]:
        """Of the columns of a table, as short as they are without doubt."""
        names = short_names([*self.options, *self.columns()])
        return ["place", "run", *names.values(), "time", "steps", "state"]

    def is_text(self) -> list[bool]:
        """Whether a column is one of words, not of numbers."""
        return [False, True, *(True for _ in self.options), *(False for _ in self.columns()), False, False, True]

    def table(self, limit: int | None = None) -> Table:
        """The runs, or the first so many, as a rich table."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        shown = self.runs if limit is None else self.runs[:limit]
        left = len(self.runs) - len(shown)
        way = "more" if self.direction == "maximize" else "less"
        table = Table(
            box=SIMPLE_HEAD,
            title=f"{self.metric}, {way} is better",
            caption=f"and {left} more: limit={len(self.runs)}" if left else None,
        )
        for heading, is_text in zip(self.headings(), self.is_text()):
            table.add_column(Text(heading), justify="left" if is_text else "right", overflow="fold")
        for run in shown:
            style = "red" if run.state == "failed" or run.collapsed else "" if run.counts(self.metric) else "dim"
            table.add_row(*(Text(cell) for cell in self.cells(run)), style=style)
        return table

    def conclusions(self) -> list[str]:
        """What follows, in sentences."""
        from jepa.sweep.conclusions import conclusions

        return conclusions(self)

    def write_csv(self, path: Path) -> None:
        """Every run with every option, the shared ones too, and every metric, in full precision.

        Raises UserError when it cannot be written.
        """
        shared = self.runs[0].shared
        metrics = sorted({name for run in self.runs for name in run.metrics})
        objectives = sorted({name for run in self.runs for name in run.status.objective})
        about = ["place", "run", "state", "reason", "verdict", "seed"]
        cost = ["step", "max_steps", "train_seconds", "samples_per_second", "starts", "job", "host"]
        counted = [f"objective/{name}" for name in objectives]
        text = io.StringIO()
        writer = csv.DictWriter(text, [*about, *self.options, *shared, *counted, *metrics, *cost], restval="")
        writer.writeheader()
        for run in self.runs:
            row = {"place": self.place(run), "run": run.folder, "state": run.state, "reason": run.status.reason}
            row |= {"verdict": run.verdict, "seed": run.seed, **run.shared, **run.overrides, **run.metrics}
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
    """What a sweep is sorted by, and what it optimises besides. Raises UserError where no run has it."""
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
    if not known:
        raise UserError(
            f"no run of sweep={folder} has any metric yet: python scripts/status.py folder={folder} tells how they are"
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


def shown_value(run: Run, metric: str) -> float | None:
    """A run's value, not finite ones too."""
    value = run.value(metric)
    return run.metrics.get(metric) if value is None else value


def outcome(run: Run, length: int = 60) -> str:
    """A run's state, with why, and what the collapse monitor found."""
    found = f", {run.verdict}" if run.collapsed else ""
    reason = f": {run.status.reason}" if run.status.reason else ""
    return shortened(f"{run.state}{found}{reason}", length)


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
