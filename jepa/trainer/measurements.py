"""What is measured beside training steps: validation loss, online probe, evaluation of frozen features."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from torch import nn

from jepa.distributed.collectives import broadcast_from_rank0, get_world_size
from jepa.distributed.parallel import Parallel
from jepa.trainer.checkpoints import Checkpoints
from jepa.trainer.intervals import Intervals, due
from jepa.trainer.loggers import measures
from jepa.trainer.precision import Precision
from jepa.trainer.run_folder import RunFolder
from jepa.trainer.run_state import RunState
from jepa.trainer.step_metrics import StepMeter, run_costs
from jepa.types import RunLength
from jepa.utils.errors import Interrupted
from jepa.utils.signals import StopRequest

Kind = Literal["validation", "probe", "evaluation"]
Log = Callable[[Mapping[str, float]], Any]


class Measurements:
    """Takes and saves what is due at a step; `measure_and_save` does it all.

    evaluation: see `jepa.trainer.Trainer`; None for none. random_init: makes an untrained model to compare with.
    monitor: takes note of what the online probe finds. data, parallel, precision, seed: evaluations get these.
    state, run_length, every, checkpoints, folder, signals, meter: of the run.
    """

    def __init__(
        self,
        *,
        evaluation: Any | None,
        random_init: Callable[[], nn.Module] | None,
        monitor: Any | None,
        data: Any,
        parallel: Parallel,
        precision: Precision,
        seed: int,
        state: RunState,
        run_length: RunLength,
        every: Intervals,
        checkpoints: Checkpoints,
        folder: RunFolder,
        signals: StopRequest,
        meter: StepMeter,
    ) -> None:
        self._evaluation, self._random_init, self._monitor = evaluation, random_init, monitor
        self._data, self._parallel, self._precision, self._seed = data, parallel, precision, seed
        self._state, self._run_length, self._every = state, run_length, every
        self._checkpoints, self._folder, self._signals, self._meter = checkpoints, folder, signals, meter

    def measure_and_save(
        self, metrics: Mapping[str, float], *, validate: Callable[[], float], log: Log, say: Callable[[Any], None]
    ) -> None:
        """Validate, probe, evaluate and save what is due at this step; at the end also write results.json.

        metrics: those logged with the step. validate: returns the validation loss. log, say: the trainer's.
        """
        metrics, before = dict(metrics), None
        steps: dict[Kind, Callable[[], dict[str, float]]] = {
            "validation": lambda: {"val/loss": validate()},
            "probe": self._probe,
            "evaluation": lambda: self._evaluate(say),
        }
        for kind, measure in steps.items():
            if not self._due(kind):  # by now: a callback may end the run for what it has seen
                continue
            before = before or self._checkpoints.content_that_measuring_changes()
            if kind == "evaluation" or (kind == "validation" and self._ended):
                self._save_unmeasured(before)  # what fails here must not cost the training
            with self._stopping_at_once(before):
                found = measure()
                log(found)
                metrics |= found
            if kind == "evaluation":
                self._folder.write_results(self._results())
            self._meter.restart()
        if self._ended:
            samples = self._state.step * self._data.batch_size
            self._state.metrics.update(run_costs(self._parallel.model, self._state.train_seconds, samples))
            self._folder.write_results(self._results())
        self._state.pending = False
        self._checkpoints.save_if_due(metrics, ended=self._ended)

    @property
    def _ended(self) -> bool:
        return self._state.ended(self._run_length)

    def _due(self, kind: Kind) -> bool:
        step, every = self._state.step, self._every
        if kind == "validation":
            return due(step, every.validate)
        if self._evaluation is None:
            return False
        if kind == "probe":
            return due(step, every.probe)
        return due(step, every.evaluate) or (self._ended and self._evaluation.at_end)

    def _probe(self) -> dict[str, float]:
        """The quick probe of `evaluation.online`, as `online/...`."""
        options = {"device": self._precision.device, "seed": self._seed}
        with self._precision.autocast():
            results = self._evaluation.online(self._parallel.networks(), self._data, **options)
        metrics = {f"online/{name}": value for name, value in broadcast_from_rank0(lambda: results).items()}
        if self._monitor is not None:
            self._monitor.note(metrics)
        return metrics

    def _evaluate(self, say: Callable[[Any], None]) -> dict[str, float]:
        """The evaluation of frozen features, as `eval/<network>/<probe>`."""
        say(f"evaluating frozen features at step {self._state.step}")
        options = {"device": self._precision.device, "seed": self._seed, "random_init": self._random_init}
        with self._precision.autocast():
            results = self._evaluation(self._parallel.networks(), self._data, **options)
        results = broadcast_from_rank0(lambda: results)
        say(self._evaluation.table(results))
        return {f"eval/{row}/{name}": value for row, values in results.items() for name, value in values.items()}

    def _save_unmeasured(self, before: Mapping[str, Any]) -> None:
        """Save as it was before anything was measured at this step, as all of it will be measured again."""
        if not self._state.pending:
            self._state.pending = True
            self._checkpoints.save(**before)

    @contextlib.contextmanager
    def _stopping_at_once(self, before: Mapping[str, Any]) -> Iterator[None]:
        """Return a context in which a signal ends the run without waiting for a measurement, which may take an hour.

        The resumed run measures again. Of several ranks that have saved nothing yet each has to wait for the others, so
        there the measurement ends first.
        """
        if get_world_size() > 1 and not self._state.pending:
            yield
            return
        try:
            with self._signals.at_once(self._interrupted):
                yield
        except Interrupted:
            self._save_unmeasured(before)
            self._checkpoints.saver.wait()
            raise

    def _interrupted(self, number: int) -> Interrupted:
        return Interrupted(
            f"stopped while measuring at step {self._state.step} of {self._run_length.max_steps}; the checkpoint is "
            f"{self._folder.last}; go on with resume={self._folder.path}",
            number,
            agreed=get_world_size() == 1,
        )

    def metrics_of_step(self, logged: bool) -> dict[str, float]:
        """Return what was logged with the step that a checkpoint left pending. logged: the step was due for logging."""
        metrics, monitor = self._state.metrics, self._monitor
        if logged:
            return {name: value for name, value in metrics.items() if not measures({name: value})}
        own = {} if monitor is None or not monitor.history else monitor.history[-1]
        watched = [name for name in own if name in metrics] if own.get("step") == self._state.step else []
        return {name: metrics[name] for name in watched if name.startswith("monitor/")}

    def _results(self) -> dict[str, Any]:
        """results.json: a row per probed network, the validation loss, the monitor's verdict, and the step."""
        state, monitor = self._state, self._monitor
        results: dict[str, Any] = {}
        for name, value in state.metrics.items():
            if name.startswith("eval/"):
                _, row, probe = name.split("/", 2)
                results.setdefault(row, {})[probe] = value
        if "val/loss" in state.metrics:
            results["val/loss"] = state.metrics["val/loss"]
        if monitor is not None:
            back = {"rollbacks": state.rollbacks} if state.rollbacks else {}
            results["collapse"] = {"verdict": monitor.verdict.name, "evidence": monitor.verdict.evidence, **back}
        if state.stop_reason:
            results["stopped"] = state.stop_reason
        return {**results, "step": state.step}
