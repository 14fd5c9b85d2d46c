"""Stopping bad runs of a sweep early, by what the sweep's other runs have measured by then.

    python train.py -m callbacks=median_stopping optimized_metric=online/knn evaluation.online_every_epochs=1 \\
        optimizer.lr=1e-4,3e-4,1e-3,3e-3,1e-2

The other runs are the folders beside the run's own, and what is read of them is their `metrics.jsonl`: so it is all
the same which sweeper chose the runs, which launcher started them, and whether they run one by one or side by side.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jepa.distributed.collectives import is_rank0
from jepa.trainer.callbacks import MEASURED_EVERY, Callback, check_is_measured, check_name, family
from jepa.trainer.loggers import JSONLines
from jepa.utils.errors import UserError, check_choice
from jepa.utils.metric_direction import DEFAULT_METRICS, Direction, direction_of
from jepa.utils.read_data import MAX_LINES, DamagedFileError, exists, open_regular, parse_json, printable
from jepa.utils.run_status import is_collapse, read_status

if TYPE_CHECKING:
    from jepa.trainer.trainer import Trainer

FILE = "metrics.jsonl"
DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
"""Name of the folder in which single runs of a day stand: they have nothing to do with one another."""


class OtherRuns:
    """What the runs beside a run's folder have measured of a metric, read on as their files grow.

    damaged: folder -> what is damaged there, of runs that are left out for it.
    """

    def __init__(self, folder: Path, metric: str) -> None:
        self.folder, self.metric = folder.resolve(), metric
        self._files: dict[Path, GrowingFile] = {}
        self.damaged: dict[Path, str] = {}

    @property
    def in_sweep(self) -> bool:
        """Whether the folders beside it are runs of the same sweep; not in that of a day, where single runs stand."""
        return DAY.fullmatch(self.folder.parent.name) is None

    def values(self) -> dict[Path, dict[int, float | None]]:
        """Return, for each other run that has measured the metric, step -> value, None if it was not finite."""
        if not self.in_sweep:
            return {}
        found = {path.parent.resolve() for path in self.folder.parent.glob(f"*/{FILE}")} - {self.folder}
        for folder in found - self._files.keys():
            self._files[folder] = GrowingFile(folder / FILE, self.metric)
        values = {}
        for folder in sorted(found):
            try:
                values[folder] = self._files[folder].read()
            except DamagedFileError as error:
                self.damaged[folder] = error.brief
        return {folder: curve for folder, curve in values.items() if curve}


@dataclass
class GrowingFile:
    """A metric in a file of JSON lines that another process may be writing; each line is read once."""

    path: Path
    metric: str
    identity: int = 0
    position: int = 0
    values: dict[int, float | None] = field(default_factory=dict)

    def read(self) -> dict[int, float | None]:
        """Return the metric's values by step; none where the file is gone. Raise DamagedFileError if it is none."""
        if not exists(self.path):
            return {}
        with open_regular(self.path, MAX_LINES) as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self.identity or status.st_size < self.position:  # a resumed run cuts it back
                self.identity, self.position, self.values = status.st_ino, 0, {}
            file.seek(self.position)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]  # the last line may still be being written
        self.position += len(whole)
        for line in whole.splitlines():
            if json.dumps(self.metric).encode() in line:
                # A line may be cut off where its run was killed, and still to be cut back by the next start.
                with contextlib.suppress(DamagedFileError, KeyError, TypeError):
                    entry = parse_json(line, self.path)
                    step, value = entry["step"], entry[self.metric]
                    if type(step) is int and (value is None or type(value) in (int, float)):
                        self.values[step] = value
        return self.values


@dataclass(kw_only=True, eq=False)
class SweepStopping(Callback):
    """Base of the rules below, each of which keeps something of every measurement and judges by it.

    Values are held as costs: less is better, and what is not finite (a line of JSON has null for it) is infinite. So
    is all of another run that has collapsed, where collapsed="failed": its loss would be the best of all. Whether the
    run itself has is for the monitor to see (monitor.on_collapse=stop).
    Every rank keeps the same state; rank 0 alone reads and decides.

    Raises ValueError for settings out of range, and UserError when the metric cannot come: at the start where
    nothing of its kind is measured during the run, else with the first metrics of its kind that come without it.
    """

    rule: ClassVar[str]  # name of the rule, for messages
    kept: ClassVar[tuple[str, ...]]  # attributes that a checkpoint keeps

    metric: str | Sequence[str] | None = None  # as logged; of several the first, None for eval/trained/linear
    # Whether less or more is better; None goes by the name (`jepa.utils.metric_direction.direction_of`).
    direction: Direction | Sequence[Direction] | None = None
    collapsed: Literal["failed", "measured"] = "failed"

    def __post_init__(self) -> None:
        check_choice("collapsed", self.collapsed, ("failed", "measured"))
        names = [self.metric] if isinstance(self.metric, str) else list(self.metric or ())
        self.metric = names[0] if names else DEFAULT_METRICS[0]
        given = [self.direction] if isinstance(self.direction, str) else list(self.direction or ())
        self.direction = given[0] if given else direction_of(self.metric)
        if self.direction not in ("minimize", "maximize"):
            raise ValueError(f"got direction={self.direction!r}, expected 'minimize', 'maximize' or None")
        self._who = f"{self.rule} judges by metric={self.metric}"
        self._came = False
        self._others: OtherRuns | None = None
        self._said: dict[Path, str] = {}

    def begin(self, trainer: Trainer) -> None:
        """Check that the metric can come and is written where other runs read it; say what it is compared with."""
        check_is_measured(trainer, self.metric, self._who, f"callbacks.{self.rule.replace(' ', '_')}.metric=val/loss")
        if not is_rank0():
            return
        loggers = [logger for logger in trainer.loggers.values() if isinstance(logger, JSONLines)]
        if not any(logger.path in (None, FILE) for logger in loggers):
            raise UserError(f"{self.rule} reads the {FILE} of a sweep's runs: set logger=[console,jsonl], path=null")
        if self._others is None:  # begin comes again after a rollback
            self._others = OtherRuns(trainer.folder.path, self.metric)
            trainer.say(self._plan(trainer))

    def measured(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Record the metric and stop the run by the rule, unless it ends anyway."""
        if self.metric not in metrics:
            if not self._came:
                check_name(metrics, self.metric, self._who)
            return
        self._came = True
        cost = self._cost(metrics[self.metric])
        due = self._note(trainer.step, cost)
        if due and self._others is not None and not trainer.ended:
            curves = self._curves()
            for folder, damage in self._others.damaged.items() - self._said.items():
                trainer.say(f"{self.rule} leaves out the run {printable(folder.name, keep='')}: {damage}")
            self._said |= self._others.damaged
            reason = self._verdict(trainer.step, cost, curves)
            if reason is not None:
                trainer.stop(f"{self.rule} at step {trainer.step}: {self.metric} {reason}")

    def state_dict(self) -> dict[str, Any]:
        """Return the settings it belongs to, and what the rule has kept."""
        kept = [getattr(self, name) for name in self.kept]
        return {"settings": self._settings(), "came": self._came, "kept": kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state, unless it is of other settings."""
        if state["settings"] == self._settings():
            self._came, kept = state["came"], state["kept"]
            vars(self).update(zip(self.kept, kept if isinstance(kept, list) else [kept]))  # older ones have no list

    # For a rule to define.

    def _note(self, step: int, cost: float) -> bool:
        """Record a measurement; return whether to judge by it."""
        raise NotImplementedError

    def _verdict(self, step: int, cost: float, curves: list[dict[int, float]]) -> str | None:
        """Return why the run is to stop after this measurement, else None. curves: costs by step, of each other run."""
        raise NotImplementedError

    def _first_step(self) -> int:
        """Return the first step that is judged."""
        raise NotImplementedError

    def _settings(self) -> list[Any]:
        """Return what its state depends on."""
        return [self.metric, self.direction]

    # Costs and words.

    def _curves(self) -> list[dict[int, float]]:
        """Return step -> cost, for each other run that has measured the metric."""
        curves = []
        for folder, values in self._others.values().items():
            status = read_status(folder)
            if status is not None and status.state == "damaged":  # which may have hidden a collapse
                self._others.damaged[folder] = status.reason
                continue
            void = self.collapsed == "failed" and status is not None and is_collapse(status.verdict)
            curves.append({step: math.inf if void else self._cost(value) for step, value in values.items()})
        return curves

    def _cost(self, value: float | None) -> float:
        if value is None or not math.isfinite(value):
            return math.inf
        return value if self.direction == "minimize" else -value

    def _shown(self, cost: float) -> str:
        return "not a number" if math.isinf(cost) else f"{cost if self.direction == 'minimize' else -cost:.4g}"

    def _plan(self, trainer: Trainer) -> str:
        folder = self._others.folder.parent
        if not self._others.in_sweep:
            return f"{self.rule} does nothing: {folder} holds single runs, not those of a sweep"
        interval, _ = MEASURED_EVERY.get(family(self.metric), (None, None))
        period = getattr(trainer.every, interval) if interval else 1
        first = period * max(1, math.ceil(self._first_step() / period))
        if first >= trainer.run_length.max_steps:
            return (
                f"{self.rule} does nothing in this run of {trainer.run_length.max_steps} steps: it judges from step "
                f"{first:.0f} on, and not at the last"
            )
        best = "least" if self.direction == "minimize" else "greatest"
        return f"{self.rule} compares {self.metric} (best: {best}) with the other runs in {folder}"


@dataclass(kw_only=True, eq=False)
class MedianStopping(SweepStopping):
    """Stops a run whose best value so far is worse than the median of the other runs' best values up to that step.

    The median stopping rule of Golovin et al. 2017 (Google Vizier, section 3.2.2), where the other runs count with
    the mean of their values up to the step; here with the best, as a noisy start should not help. Compared with are
    the runs that have a measurement at this step or later, finished or not.
    """

    rule = "median stopping"
    kept = ("best", "judged_step")

    warmup_steps: int = 0  # the first step at which a run may be stopped
    every_steps: int | None = None  # that lie between two judgements at least; None judges each measurement
    min_runs: int = 4  # that must have got as far, else it goes on

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_steps < 0 or self.min_runs < 1 or (self.every_steps is not None and self.every_steps < 1):
            raise ValueError(
                f"got warmup_steps={self.warmup_steps}, every_steps={self.every_steps}, min_runs={self.min_runs}, "
                "expected warmup_steps >= 0, every_steps >= 1 or None, min_runs >= 1"
            )
        self.best, self.judged_step = math.inf, None

    def _note(self, step: int, cost: float) -> bool:
        self.best = min(self.best, cost)
        early = self.judged_step is not None and step - self.judged_step < (self.every_steps or 1)
        if step < self.warmup_steps or early:
            return False
        self.judged_step = step
        return True

    def _verdict(self, step: int, cost: float, curves: list[dict[int, float]]) -> str | None:
        reached = [curve for curve in curves if min(curve) <= step <= max(curve)]
        bests = [min(cost for at, cost in curve.items() if at <= step) for curve in reached]
        if len(bests) < self.min_runs or self.best <= median(bests):
            return None
        return (
            f"is {self._shown(self.best)} at best, worse than the median {self._shown(median(bests))} of "
            f"{len(bests)} other runs"
        )

    def _first_step(self) -> int:
        return self.warmup_steps


@dataclass(kw_only=True, eq=False)
class SuccessiveHalving(SweepStopping):
    """Lets only the best 1/reduction_factor of a sweep's runs go on beyond each rung.

    Asynchronous successive halving (ASHA, Li et al. 2020, arXiv 1810.05934), in the form that stops runs instead of
    pausing them: a run is held against those that have come to the rung before it, so that none waits. Rungs are at
    min_steps * reduction_factor**k steps, and a run's value there is its first measurement at or past that step. With
    n values at a rung, own one included, max(1, floor(n / reduction_factor)) go on; equal ones share the better place.
    """

    rule = "successive halving"
    kept = ("decided",)

    min_steps: int = 100  # of the first rung
    reduction_factor: int = 3  # of runs from rung to rung, and of steps

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_steps < 1 or self.reduction_factor < 2:
            raise ValueError(
                f"got min_steps={self.min_steps}, reduction_factor={self.reduction_factor}, expected min_steps >= 1 "
                "and reduction_factor >= 2"
            )
        self.decided, self._reached = 0, []  # rungs that lie behind the run, and those that it has just come to

    def _note(self, step: int, cost: float) -> bool:
        self._reached = []
        while (rung := self.min_steps * self.reduction_factor**self.decided) <= step:
            self._reached.append(rung)
            self.decided += 1
        return bool(self._reached)

    def _verdict(self, step: int, cost: float, curves: list[dict[int, float]]) -> str | None:
        for rung in self._reached:
            others = [curve[min(at for at in curve if at >= rung)] for curve in curves if max(curve) >= rung]
            better, count = sum(other < cost for other in others), len(others) + 1
            go_on = max(1, count // self.reduction_factor)
            if better >= go_on:
                return (
                    f"is {self._shown(cost)}, at the rung of {rung} steps place {better + 1} of {count} (with "
                    f"{len(others)} other runs), of which {go_on} may go on"
                )
        return None

    def _first_step(self) -> int:
        return self.min_steps

    def _settings(self) -> list[Any]:
        return [*super()._settings(), self.min_steps, self.reduction_factor]
