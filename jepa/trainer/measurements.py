"""What is measured beside the losses of steps: validation, probe, evaluation of frozen features, collapse, costs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from jepa.distributed.collectives import (
    all_reduce_sum,
    broadcast_from_rank0,
    get_rank,
    get_world_size,
    no_collectives,
)
from jepa.trainer.loggers import is_measurement
from jepa.trainer.settings import due
from jepa.types import Batch, StepRandomness
from jepa.utils.errors import Interrupted
from jepa.utils.random import derive_seed
from jepa.utils.tensors import batch_length, batch_slice

if TYPE_CHECKING:
    from jepa.trainer.trainer import Trainer

Kind = Literal["validation", "probe", "evaluation"]
INITIAL = "eval/initial/"  # start of the metrics of the network before the run


def measure_and_save(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """Validate, probe, evaluate and save what is due at this step; at the end also write results.json.

    metrics: those logged with the step.
    """
    metrics, before = dict(metrics), None
    measures: dict[Kind, Callable[[], dict[str, float]]] = {
        "validation": lambda: {"val/loss": trainer.validate()},
        "probe": lambda: probe(trainer),
        "evaluation": lambda: evaluate(trainer),
    }
    for kind, measure in measures.items():
        if not is_due(trainer, kind):  # by now: a callback may end the run for what it has seen
            continue
        before = before or trainer.checkpoints.content_that_measuring_changes()
        if kind == "evaluation" or (kind == "validation" and trainer.ended):
            save_unmeasured(trainer, before)  # what fails here must not cost the training
        with stopping_at_once(trainer, before):
            metrics |= trainer.log(measure())
        if kind == "evaluation":
            trainer.folder.write_results(results(trainer))
        trainer.meter.restart()
    if trainer.ended:
        if "cost/seconds" not in metrics:  # they come with the last step, unless only a callback has made it the last
            metrics |= trainer.log(run_costs(trainer))
        trainer.folder.write_results(results(trainer))
    trainer.state.pending = False
    trainer.checkpoints.save_if_due(metrics)
    draw_features(trainer)


def measure_at_start(trainer: Trainer) -> None:
    """Measure what a checkpoint left pending; probe, evaluate and draw the features of a new network."""
    if trainer.state.pending:
        measure_and_save(trainer, metrics_of_pending_step(trainer))
    elif trainer.step == 0:
        if trainer.evaluation is not None and trainer.every.probe:
            trainer.run_log.log(probe(trainer))  # no callback is to stop for it
        if getattr(trainer.evaluation, "at_start", False):
            trainer.log(evaluate(trainer, "initial"))
        draw_features(trainer)


def draw_features(trainer: Trainer) -> None:
    """Draw features if they are due; the time is not counted as that of training."""
    if trainer.visualise is not None:
        trainer.visualise.draw(trainer)
        trainer.meter.restart()


def is_due(trainer: Trainer, kind: Kind) -> bool:
    """Return whether something is measured at this step."""
    step, every = trainer.step, trainer.every
    if kind == "validation":
        return due(step, every.validate)
    if trainer.evaluation is None:
        return False
    if kind == "probe":
        return due(step, every.probe)
    return due(step, every.evaluate) or (trainer.ended and trainer.evaluation.at_end)


@torch.no_grad()
def validation_loss(trainer: Trainer, losses: Callable[[Batch, StepRandomness], Mapping[str, Tensor]]) -> float:
    """Return the mean loss on the held-out split, with masks that are the same every time.

    losses: the model's step, in evaluation mode. It does not depend on the number of ranks: they share each batch, and
    losses over batch statistics span them.
    """
    data, seed, ranks = trainer.data, derive_seed(trainer.seed, "validation"), get_world_size()
    size = trainer.micro_batch_size * ranks
    sums = torch.zeros(2, device=trainer.device)

    def weighted(batch: Batch, rng: StepRandomness, weight: float) -> Tensor:
        loss = losses(batch, rng)["loss"].float()
        return torch.stack([loss, torch.ones_like(loss)]) * weight

    for number, batch in enumerate(islice(data.validation_batches(batch_size=size), trainer.limit_val_batches)):
        count = batch_length(batch)
        # Drawn for batches of the global size, so that neither ranks nor micro-batches change anything.
        step, start = divmod(number * size, data.batch_size)
        drawn = min(data.batch_size, data.spec.num_test - step * data.batch_size)
        if count < ranks:  # too few to share: all ranks do the same
            rng = StepRandomness(seed=seed, step=step, total=drawn, start=start, count=count)
            with no_collectives():
                sums += weighted(batch, rng, count / ranks)
            continue
        first, last = (count * r // ranks for r in (get_rank(), get_rank() + 1))
        rng = StepRandomness(seed=seed, step=step, total=drawn, start=start + first, count=last - first)
        sums += weighted(batch_slice(batch, slice(first, last)), rng, last - first)
    loss, samples = all_reduce_sum(sums).tolist()
    return loss / samples


def probe(trainer: Trainer) -> dict[str, float]:
    """Return what the quick probe of `evaluation.quick` finds, as `online/...`; the monitor takes note of it."""
    with trainer.precision.autocast():
        networks = trainer.parallel.networks()
        found = trainer.evaluation.quick(networks, trainer.data, device=trainer.device, seed=trainer.seed)
    metrics = {f"online/{name}": value for name, value in broadcast_from_rank0(lambda: found).items()}
    if trainer.monitor is not None:
        trainer.monitor.note(metrics)
    return metrics


def evaluate(trainer: Trainer, row: Literal["trained", "initial"] = "trained") -> dict[str, float]:
    """Return the evaluation of frozen features, as `eval/<network>/<probe>`, and show its table.

    row: what the network is called. The table has also what it was found to be before the run.
    """
    trainer.say(f"evaluating frozen features at step {trainer.step}")
    options = {"device": trainer.device, "seed": trainer.seed, "random_init": trainer.random_init}
    with trainer.precision.autocast():
        found = trainer.evaluation(trainer.parallel.networks(), trainer.data, **options)
    for name, probe in getattr(trainer.evaluation, "probes", {}).items():
        if gif := getattr(probe, "animation", None):
            trainer.run_log.animation(f"eval/{row}/{name}", gif)
            probe.animation = None
    found = broadcast_from_rank0(lambda: found)
    found = {row if name == "trained" else name: values for name, values in found.items()}
    before = {name.removeprefix(INITIAL): x for name, x in trainer.metrics.items() if name.startswith(INITIAL)}
    shown = {row: found[row], **({"initial": before} if before else {}), **found}
    trainer.say(trainer.evaluation.table(shown))
    return {f"eval/{row}/{name}": value for row, values in found.items() for name, value in values.items()}


def save_unmeasured(trainer: Trainer, before: Mapping[str, Any]) -> None:
    """Save as it was before anything was measured at this step, as all of it will be measured again."""
    if not trainer.state.pending:
        trainer.state.pending = True
        trainer.checkpoints.save(**before)


@contextlib.contextmanager
def stopping_at_once(trainer: Trainer, before: Mapping[str, Any]) -> Iterator[None]:
    """Return a context in which a signal ends the run without waiting for a measurement, which may take an hour.

    The resumed run measures again. Of several ranks that have saved nothing yet each has to wait for the others, so
    there the measurement ends first.
    """
    if get_world_size() > 1 and not trainer.state.pending:
        yield
        return

    def interrupted(number: int) -> Interrupted:
        return trainer.interrupted(number, "stopped while measuring", agreed=get_world_size() == 1)

    try:
        with trainer.signals.at_once(interrupted):
            yield
    except Interrupted:
        save_unmeasured(trainer, before)
        trainer.checkpoints.saver.wait()
        raise


def run_costs(trainer: Trainer) -> dict[str, float]:
    """Return what a run has cost so far, over all restarts, to weigh accuracy against.

    `cost/seconds` of training steps, waiting for data included and measuring left out; `cost/samples` trained on;
    `cost/parameters` that are trained.
    """
    return {
        "cost/seconds": broadcast_from_rank0(lambda: trainer.state.train_seconds),
        "cost/samples": float(trainer.step * trainer.data.batch_size),
        "cost/parameters": float(sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)),
    }


def metrics_of_pending_step(trainer: Trainer) -> dict[str, float]:
    """Return what was logged with the step that a checkpoint left pending."""
    metrics, monitor = trainer.metrics, trainer.monitor
    if trainer.logs_at(trainer.step):
        return {name: value for name, value in metrics.items() if not is_measurement({name: value})}
    own = {} if monitor is None or not monitor.history else monitor.history[-1]
    watched = own if own.get("step") == trainer.step else ()
    return {name: metrics[name] for name in watched if name.startswith("monitor/") and name in metrics}


def results(trainer: Trainer) -> dict[str, Any]:
    """Return results.json: a row per probed network, the validation loss, the monitor's verdict, the step.

    scored_on: "validation" where samples kept aside from training stand for the test split.
    """
    state, monitor = trainer.state, trainer.monitor
    found: dict[str, Any] = {}
    for name, value in state.metrics.items():
        if name.startswith("eval/"):
            _, row, probed = name.split("/", 2)
            found.setdefault(row, {})[probed] = value
    if "val/loss" in state.metrics:
        found["val/loss"] = state.metrics["val/loss"]
    if monitor is not None:
        back = {"rollbacks": state.rollbacks} if state.rollbacks else {}
        found["collapse"] = {"verdict": monitor.verdict.name, "evidence": monitor.verdict.evidence, **back}
    if state.stop_reason:
        found["stopped"] = state.stop_reason
    if getattr(trainer.data, "score_on", "test") != "test":
        found["scored_on"] = trainer.data.score_on
    return {**found, "step": state.step}


def check_collapse(trainer: Trainer, values: Mapping[str, float]) -> dict[str, float]:
    """Return the monitor's metrics of the step just watched, and stop or go back where it asks for it.

    values: of the step, the same on every rank. News of the verdict are said; that a run turned out healthy is none.
    """
    monitor = trainer.monitor
    before = monitor.verdict.name
    metrics = monitor.measure(trainer.model, trainer.step, values, trainer.device)
    verdict, on_collapse = monitor.verdict, monitor.on_collapse
    if verdict.name != before:
        trainer.run_log.show_verdict()
        if before != "unknown" or verdict.is_bad:
            trainer.say(f"collapse monitor at step {trainer.step}: {verdict.name}: {verdict.evidence}")
    elif verdict.name == "unknown" and trainer.step == 1 and not monitor.has_looked:
        trainer.say(f"collapse monitor: {verdict.evidence}")
    if verdict.is_bad and on_collapse != "warn":
        reason = f"{verdict.name}: {verdict.evidence}"
        if on_collapse == "rollback" and verdict.is_curable:
            trainer.rollback(reason)
        else:
            trainer.state.stop_reason = trainer.state.stop_reason or reason
    return metrics
