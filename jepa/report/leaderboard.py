"""The leaderboard of a sweep as plain data: its runs, best first, settings, comparisons and importances."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from jepa.report.formatting import short_names
from jepa.report.runs import SHOWN_METRICS, Run, read_runs
from jepa.report.sweep_statistics import compare_with_best, importances, settings_of
from jepa.utils.errors import UserError
from jepa.utils.lazy_import import require
from jepa.utils.metric_direction import DEFAULT_METRICS, Direction, direction_of
from jepa.utils.run_status import FINISHED

if TYPE_CHECKING:
    import pandas

STATUS_FIELDS = ("reason", "verdict", "step", "max_steps", "train_seconds", "samples_per_second")
STATUS_FIELDS += ("starts", "job", "host")


class Leaderboard:
    """The runs of a sweep; see `read_leaderboard`.

    objectives: metric -> direction, of all that the sweep optimises; the first, `metric`, sorts the runs.
    options: those that differ between runs. places: run folder -> place from 1, of the runs that count.
    settings: the runs grouped by their options without the seed, best mean first. comparisons: the first against every
    other. importances: option -> share of the metric's variance that depends on it. front: see `pareto_front`.
    names: option or shown metric -> its shortest unambiguous name.
    """

    def __init__(self, *, folder: Path, runs: Sequence[Run], objectives: Mapping[str, Direction]) -> None:
        self.folder, self.objectives = folder, dict(objectives)
        self.metric, self.direction = next(iter(objectives.items()))
        self.runs = ranked(runs, self.metric, self.direction)
        self.options = list(self.runs[0].overrides)
        counted = [run for run in self.runs if run.counts(self.metric)]
        self.places = {run.path: place for place, run in enumerate(counted, 1)}
        self.settings = settings_of(self.runs, self.metric, self.direction)
        self.comparisons = compare_with_best(self.settings, self.direction)
        self.importances = importances(self.runs, self.metric)
        self.front = pareto_front(self.runs, self.objectives)
        usual = [name for name in SHOWN_METRICS if any(name in run.metrics for run in self.runs)]
        self.shown_metrics = list(dict.fromkeys([*self.objectives, *usual]))
        # "loss" for "val/loss" would be unclear.
        clear = {metric: metric for metric in self.shown_metrics if metric.count("/") < 2}
        self.names = short_names([*self.options, *self.shown_metrics]) | clear

    def rows(self) -> list[dict[str, Any]]:
        """Return every run as a dict: place, state, options, also the shared ones, objectives and metrics."""
        rows = []
        for run in self.runs:
            row = {"place": self.places.get(run.path), "run": run.folder, "state": run.state, "seed": run.seed}
            row |= {name: getattr(run.status, name) for name in STATUS_FIELDS}
            objective = {f"objective/{name}": value for name, value in run.status.objective.items()}
            rows.append(row | run.overrides | run.shared | objective | dict(sorted(run.metrics.items())) | row)
        return rows

    def to_frame(self) -> pandas.DataFrame:
        """Return `rows` as a pandas DataFrame. Raise UserError without pandas."""
        return require("pandas", extra="report", purpose="to_frame()").DataFrame(self.rows())


def read_leaderboard(
    folder: str | Path,
    metric: str | None = None,
    direction: Direction | None = None,
    queue: Mapping[str, str] | None = None,
) -> Leaderboard:
    """Read the runs in a sweep's folder, which may be under way.

    metric: to sort by; None: what the sweep optimises, else the first of `DEFAULT_METRICS` that a run has.
    direction: None: by the metric's name. queue: see `current_status`.

    Raise UserError if the folder does not exist or has no runs, or no run has the metric.
    """
    folder = Path(folder)
    if direction not in (None, *get_args(Direction)):
        raise UserError(f"direction={direction}: give one of {', '.join(get_args(Direction))}, or leave it out")
    runs = read_runs(folder, queue)
    first, *others = objectives_of(runs, metric, folder)
    objectives = {first: direction or direction_of(first), **{name: direction_of(name) for name in others}}
    return Leaderboard(folder=folder, runs=runs, objectives=objectives)


def objectives_of(runs: Sequence[Run], metric: str | None, folder: Path) -> list[str]:
    """Return the metric to sort by and what the sweep optimises besides.

    Raise UserError if no run has the metric, unless runs that are under way may still get it.
    """
    # A failed run may have another default metric than one that is evaluated.
    done = [run for run in runs if run.state == "done" and run.status.objective]
    counts = Counter(tuple(run.status.objective) for run in done or runs if run.status.objective)
    optimised = list(counts.most_common(1)[0][0]) if counts else []
    names = dict.fromkeys(name for run in runs for name in (*run.status.objective, *run.metrics))
    known = [name for name in names if any(run.value(name) is not None for run in runs)]
    wanted = [metric] if metric is not None else [*optimised[:1], *DEFAULT_METRICS]
    found = next((name for name in wanted if name in known), None)
    if found is not None:
        return [found, *(name for name in optimised if found in optimised and name != found)]
    if metric is None and any(run.state not in FINISHED for run in runs):
        return [DEFAULT_METRICS[0]]
    if not known:
        raise UserError(
            f"no run of sweep={folder} has any metric: python scripts/status.py folder={folder} tells how they are"
        )
    close = difflib.get_close_matches(metric or "", known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    others = ", ".join(sorted(known, key=lambda name: (not name.startswith(("eval/", "val/", "online/")), name))[:20])
    asked = f"no run of sweep={folder} has {metric or ' or '.join(DEFAULT_METRICS)}"
    raise UserError(f"{f'metric={metric}: ' if metric else ''}{asked}; {hint}give metric= one of {others}")


def ranked(runs: Sequence[Run], metric: str, direction: Direction) -> list[Run]:
    """Return the runs that count, best first, then those under way by their last value, the collapsed, the rest."""
    sign = -1.0 if direction == "maximize" else 1.0

    def key(run: Run) -> tuple[int, bool, float]:
        value = run.value(metric)
        group = 3 if run.state in ("failed", "damaged") else 2 if run.collapsed else 0 if run.counts(metric) else 1
        return group, value is None, 0.0 if value is None else sign * value

    return sorted(runs, key=key)


def pareto_front(runs: Sequence[Run], objectives: Mapping[str, Direction]) -> list[Run]:
    """Return the runs that count by all objectives and that no other equals in all and beats in one."""
    counted = [run for run in runs if all(run.counts(name) for name in objectives)]
    signs = {name: 1.0 if direction == "minimize" else -1.0 for name, direction in objectives.items()}
    points = np.array([[sign * run.value(name) for name, sign in signs.items()] for run in counted])
    beaten = [((points <= point).all(axis=1) & (points < point).any(axis=1)).any() for point in points]
    return [run for run, is_beaten in zip(counted, beaten) if not is_beaten]
