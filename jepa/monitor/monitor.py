"""The collapse monitor: measures latents of some steps and judges whether the run collapses.

python train.py monitor.on_collapse=rollback
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jepa.distributed.collectives import all_reduce_sum, broadcast_from_rank0
from jepa.monitor.statistics import Rows, all_gather_row_sets, statistics, take_rows, view_rows
from jepa.monitor.verdict import UNKNOWN, Thresholds, Verdict, judge
from jepa.types import Latents, RunLength
from jepa.utils.errors import check_choice

KEPT = ("train/loss", "grad_norm", "update_ratio", "lr")  # of a step's other values
NOTHING_SEEN = (
    "the training step makes no jepa.types.Latents by calling the model, or of other shapes on each rank, so nothing "
    "can be watched"
)


@dataclass(kw_only=True, eq=False)
class CollapseMonitor:
    """Measures latents that a step has computed anyway, keeps a history of them, and judges it.

    every_steps: interval of measured steps; the first and the last are measured too.
    on_collapse: what the trainer does about a bad verdict: "warn" says so; "stop" ends the run; "rollback" goes back to
        the last checkpoint of a sound state, with half the learning rate and another seed, at most `max_rollbacks`
        times, then stops.
    max_rows: tokens, and samples times views, that are looked at, over all ranks.
    max_measurements: length of the history; beyond it the older half is thinned out.
    thresholds: see `jepa.monitor.Thresholds`.

    The trainer calls `watching` around the forward passes of a step that is `due`, then `measure`, every rank alike.
    What it remembers is in `state_dict`.

    Raises ValueError for values out of range.
    """

    every_steps: int = 20
    on_collapse: Literal["warn", "stop", "rollback"] = "warn"
    max_rollbacks: int = 3
    max_rows: int = 512
    max_measurements: int = 512
    thresholds: Thresholds | None = None

    def __post_init__(self) -> None:
        check_choice("monitor.on_collapse", self.on_collapse, ("warn", "stop", "rollback"))
        for name, least in {"every_steps": 1, "max_rollbacks": 0, "max_rows": 8, "max_measurements": 16}.items():
            if getattr(self, name) < least:
                raise ValueError(f"monitor.{name}: got {getattr(self, name)}, expected at least {least}")
        self.thresholds = self.thresholds or Thresholds()
        self.verdict = Verdict(UNKNOWN, "nothing has been measured yet")
        self.history: list[dict[str, float]] = []
        self.tasks: dict[str, CollapseMonitor] = {}
        self._rows: Rows | None = None

    def due(self, step: int, run_length: RunLength) -> bool:
        """Return whether the step that ends at this count is measured."""
        return step % self.every_steps == 0 or step in (1, run_length.max_steps)

    @contextlib.contextmanager
    def watching(self, model: nn.Module, ranks: int = 1) -> Iterator[None]:
        """Return a context in which the last latents that the model returns are measured, whoever calls it.

        So is what `model.loss.projector`, where there is one, makes of their embeddings. Of a model that is several
        (`model.tasks`, name -> model) each is watched by itself.

        ranks: how many processes share `max_rows`.
        """
        if tasks := tasks_of(model):
            with contextlib.ExitStack() as stack:
                for name, part in tasks.items():
                    stack.enter_context(self._of_task(name).watching(part, ranks))
                yield
            return
        self._rows = None
        most, views = max(8, self.max_rows // ranks), None

        def look(module: nn.Module, arguments: tuple, latents: Any) -> None:
            nonlocal views
            if isinstance(latents, Latents):
                self._rows = take_rows(latents, arguments[0] if arguments else None, most)
                views = latents.global_views

        def look_behind(module: nn.Module, arguments: tuple, projections: Any) -> None:
            if self._rows is not None and isinstance(projections, Tensor) and projections.ndim == 3:
                self._rows = replace(self._rows, projections=view_rows(projections, views, most))

        with contextlib.ExitStack() as hooks:
            hooks.callback(model.register_forward_hook(look).remove)
            if isinstance(projector := getattr(getattr(model, "loss", None), "projector", None), nn.Module):
                hooks.callback(projector.register_forward_hook(look_behind).remove)
            yield

    def measure(
        self, model: nn.Module, step: int, values: Mapping[str, float], device: torch.device
    ) -> dict[str, float]:
        """Return the metrics of the step just watched, the same on every rank, and judge the run by them.

        values: the step's others (`train/loss`, `grad_norm`, ...), of which some are kept as evidence.
        """
        if tasks := tasks_of(model):
            return self._measure_tasks(tasks, step, values, device)
        rows, self._rows = all_gather_row_sets(self._rows, device), None
        drift = target_drift(model)
        # One rank computes, so that rounding cannot make them judge differently.
        metrics = broadcast_from_rank0(lambda: {**({} if rows is None else statistics(rows)), **drift})
        if rows is None:
            if not self.has_looked:
                self.verdict = Verdict(UNKNOWN, NOTHING_SEEN)
            return metrics
        self._remember(step, values, metrics)
        self.verdict = judge(self.history, self.thresholds)
        return metrics

    @property
    def has_looked(self) -> bool:
        """Whether latents of any step have been measured."""
        return any(measurement["step"] > 0 for measurement in self.history)

    def _remember(self, step: int, values: Mapping[str, float], metrics: Mapping[str, float]) -> None:
        """Add a measurement to the history, which keeps its first three, the run's start, and is thinned out behind."""
        kept = {name: float(values[name]) for name in KEPT if name in values}
        self.history.append({"step": float(step), **kept, **metrics})
        if len(self.history) > self.max_measurements:
            half = len(self.history) // 2
            self.history = self.history[:3] + self.history[3:half:2] + self.history[half:]

    def _of_task(self, name: str) -> CollapseMonitor:
        return self.tasks.setdefault(name, replace(self))

    def _measure_tasks(
        self, tasks: Mapping[str, nn.Module], step: int, values: Mapping[str, float], device: torch.device
    ) -> dict[str, float]:
        """Measure each task; the verdict is the worst of theirs."""
        metrics: dict[str, float] = {}
        for name, model in tasks.items():
            of_task = {**values, "train/loss": values.get(f"train/loss/{name}", values.get("train/loss", 0.0))}
            found = self._of_task(name).measure(model, step, of_task, device)
            metrics |= {key.replace("/", f"/{name}/", 1): value for key, value in found.items()}
        name, worst = max(self.tasks.items(), key=lambda task: task[1].verdict.gravity)
        self.verdict = replace(worst.verdict, evidence=f"{name}: {worst.verdict.evidence}")
        if any(monitor.history for monitor in self.tasks.values()):
            self._remember(step, values, metrics)
        return metrics

    def note(self, metrics: Mapping[str, float]) -> None:
        """Add the metrics of an online probe to the last measurement; of a new network they are the first one."""
        if not self.history:
            self.history.append({"step": 0.0})
        self.history[-1] |= {name: float(value) for name, value in metrics.items()}
        if not self.tasks:
            self.verdict = judge(self.history, self.thresholds)

    def state_dict(self) -> dict[str, Any]:
        return {
            "history": [dict(measurement) for measurement in self.history],
            "verdict": list(astuple(self.verdict)),
            "tasks": {name: monitor.state_dict() for name, monitor in self.tasks.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.history = [dict(measurement) for measurement in state["history"]]
        self.verdict = Verdict(*state["verdict"])
        for name, task in state.get("tasks", {}).items():
            self._of_task(name).load_state_dict(task)


def tasks_of(model: nn.Module) -> Mapping[str, nn.Module]:
    """Return task -> model of a model of several tasks; empty for any other."""
    tasks = getattr(model, "tasks", None)
    return dict(tasks.items()) if isinstance(tasks, nn.ModuleDict) else {}


@torch.no_grad()
def target_drift(model: nn.Module) -> dict[str, float]:
    """Return {"monitor/target_drift": ||target - encoder|| / ||encoder||} if the target keeps weights; else empty."""
    drift = getattr(getattr(model, "target", None), "drift", None)
    if drift is None:
        return {}
    change, weight = all_reduce_sum(drift(model.encoder)).tolist()
    return {"monitor/target_drift": (change / max(weight, 1e-30)) ** 0.5}
