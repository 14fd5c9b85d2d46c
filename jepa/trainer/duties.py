"""What is due after a step besides logging: validating, probing, evaluating and saving."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from jepa.distributed.collectives import broadcast_from_rank0
from jepa.trainer import collapse
from jepa.trainer.due import due
from jepa.trainer.loggers import measures
from jepa.utils.errors import Interrupted

if TYPE_CHECKING:
    from jepa.trainer.trainer import Trainer


def measure_and_save(trainer: Trainer, fresh: Mapping[str, float] | None = None) -> None:
    """Validate, probe, evaluate and save what is due at this step. fresh: the step's metrics; None on a resume."""
    fresh = dict(_metrics_of_step(trainer) if fresh is None else fresh)
    probed = due(trainer.step, trainer.probe_every)
    measured = due(trainer.step, trainer.validate_every) or probed or evaluation_due(trainer)
    before = _remembered(trainer) if measured else {}
    if due(trainer.step, trainer.validate_every):
        if trainer.ended:
            _secure(trainer, before)
        with _stopping_at_once(trainer, before):
            fresh |= trainer.log({"val/loss": trainer.validate()})
    if probed:
        with _stopping_at_once(trainer, before):
            fresh |= probe(trainer)
    if evaluation_due(trainer):
        _secure(trainer, before)
        with _stopping_at_once(trainer, before):
            fresh |= evaluate(trainer)
    if trainer.ended:
        trainer.metrics.update(trainer.costs())
        _write_results(trainer)
    trainer.pending = False
    _save_if_due(trainer, fresh)


def probe(trainer: Trainer) -> Mapping[str, float]:
    """The quick probe of `evaluation.online`: its metrics as `online/...`, of which the monitor takes note."""
    model = trainer.parallel.networks()
    with trainer.precision.autocast():
        results = trainer.evaluation.online(model, trainer.data, device=trainer.device, seed=trainer.seed)
    metrics = {f"online/{name}": value for name, value in broadcast_from_rank0(lambda: results).items()}
    if trainer.monitor is not None:
        trainer.monitor.note(metrics)
    trainer.log(metrics)
    trainer.meter.restart()
    return metrics


def evaluation_due(trainer: Trainer) -> bool:
    """Whether frozen features are probed at this step."""
    if trainer.evaluation is None:
        return False
    return due(trainer.step, trainer.evaluate_every) or (trainer.ended and trainer.evaluation.at_end)


def evaluate(trainer: Trainer) -> Mapping[str, float]:
    """Probe the frozen features, show the table, write results.json; gives the metrics."""
    trainer.say(f"evaluating frozen features at step {trainer.step}")
    with trainer.precision.autocast():
        results = trainer.evaluation(
            trainer.parallel.networks(),
            trainer.data,
            random_init=trainer.random_init,
            device=trainer.device,
            seed=trainer.seed,
        )
    results = broadcast_from_rank0(lambda: results)
    trainer.say(trainer.evaluation.table(results))
    metrics = {f"eval/{row}/{name}": value for row, values in results.items() for name, value in values.items()}
    trainer.log(metrics)
    _write_results(trainer)
    trainer.meter.restart()
    return metrics


def _metrics_of_step(trainer: Trainer) -> Mapping[str, float]:
    """What was logged with the step that a checkpoint with something pending is of."""
    own = {} if trainer.monitor is None or not trainer.monitor.history else trainer.monitor.history[-1]
    watched = {name for name in own if name in trainer.metrics} if own.get("step") == trainer.step else set()
    if not trainer.logs_at(trainer.step):
        return {name: trainer.metrics[name] for name in watched if name.startswith("monitor/")}
    return {name: value for name, value in trainer.metrics.items() if not measures({name: value})}


def _remembered(trainer: Trainer) -> dict[str, Any]:
    """What measuring changes of a checkpoint."""
    callbacks = {name: copy.deepcopy(callback.state_dict()) for name, callback in trainer.callbacks.items()}
    monitor = {"monitor": trainer.monitor.state_dict()} if trainer.monitor is not None else {}
    return {"ended": trainer.stopped, "metrics": dict(trainer.metrics), "callbacks": callbacks, **monitor}


def _secure(trainer: Trainer, before: Mapping[str, Any]) -> None:
    """Save before what may fail: a probe that does must not cost the training.

    before: as it was before anything was measured, as all of it will be measured again.
    """
    if not trainer.pending:
        trainer.pending = True
        trainer.saver.save({**trainer.state(), **before}, ["last"], [])


@contextlib.contextmanager
def _stopping_at_once(trainer: Trainer, before: Mapping[str, Any]) -> Iterator[None]:
    """A context in which a signal ends the run without waiting for what is being measured, which may take an hour.

    The resumed run measures it again. Of several ranks that have nothing secured, each has to wait for the others, so
    there the measurement ends first.
    """

    def stop(number: int) -> Interrupted:
        return Interrupted(
            f"stopped while measuring at step {trainer.step} of {trainer.run_length.max_steps}; the checkpoint is "
            f"{trainer.folder.last}; go on with resume={trainer.folder.path}",
            number,
            agreed=trainer.world_size == 1,
        )

    if trainer.world_size > 1 and not trainer.pending:
        yield
        return
    try:
        with trainer.stop_request.at_once(stop):
            yield
    except Interrupted:
        if not trainer.pending:
            trainer.pending = True
            trainer.saver.save({**trainer.state(), **before}, ["last"], [])
        trainer.saver.wait()
        trainer.folder.tell(**trainer.progress())
        raise


def _save_if_due(trainer: Trainer, fresh: Mapping[str, float]) -> None:
    best = trainer.best.metric in fresh and trainer.best.offer(fresh[trainer.best.metric], trainer.step)
    snapshot = due(trainer.step, trainer.snapshot_every)
    if due(trainer.step, trainer.save_every) or trainer.save_asked or trainer.ended or best or snapshot:
        names = [f"step_{trainer.step:08d}"] * snapshot + [trainer.best.file_name(trainer.step)] * best
        names += [collapse.HEALTHY] * collapse.may_go_back_to(trainer) + ["last"]
        trainer.saver.save(trainer.state(), names, trainer.best.dropped())
        trainer.saved_at = time.monotonic()


def _write_results(trainer: Trainer) -> None:
    """results.json: a row per network that was probed, the validation loss, the monitor's verdict, and the step."""
    rows: dict[str, dict[str, float]] = {}
    for name, value in trainer.metrics.items():
        if name.startswith("eval/"):
            _, row, probe = name.split("/", 2)
            rows.setdefault(row, {})[probe] = value
    loss = {"val/loss": trainer.metrics["val/loss"]} if "val/loss" in trainer.metrics else {}
    stopped = {"stopped": trainer.stopped} if trainer.stopped else {}
    trainer.folder.write_results({**rows, **loss, **collapse.results(trainer), **stopped, "step": trainer.step})
