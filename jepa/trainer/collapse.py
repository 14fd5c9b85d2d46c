"""What the loop does with the collapse monitor: shows it steps, says what it finds, stops or goes back."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from jepa.checkpoint.saver import find_checkpoint
from jepa.distributed.collectives import broadcast_from_rank0
from jepa.trainer.loggers import RunInfo
from jepa.trainer.state import restore
from jepa.utils.errors import UserError

if TYPE_CHECKING:
    from jepa.trainer.trainer import Trainer

HEALTHY = "healthy"
"""Name of the checkpoint that a run goes back to."""


def watched(trainer: Trainer, step: int) -> bool:
    """Whether the monitor looks at the step that ends at this count."""
    return trainer.monitor is not None and trainer.monitor.due(step, trainer.run_length)


def watching(trainer: Trainer) -> AbstractContextManager:
    """A context for the forward passes of the coming step."""
    if not watched(trainer, trainer.step + 1):
        return contextlib.nullcontext()
    return trainer.monitor.watching(trainer.model, trainer.world_size)


def measure(trainer: Trainer, values: Mapping[str, float]) -> dict[str, float]:
    """What the monitor has measured of the step just made. values: of the step, the same on every rank."""
    before = trainer.monitor.verdict.name
    metrics = trainer.monitor.measure(trainer.model, trainer.step, values, trainer.device)
    announce(trainer, before)
    return metrics


def announce(trainer: Trainer, before: str) -> None:
    """Say the verdict where it is another than before, and do what is asked for about it."""
    verdict = trainer.monitor.verdict
    if verdict.name != before:
        show_status(trainer)
        first = before == "unknown" and not verdict.is_bad
        missing = verdict.name == "unknown" and not trainer.monitor.history
        if not first or missing:
            trainer.say(f"collapse monitor at step {trainer.step}: {verdict.name}: {verdict.evidence}")
    elif verdict.name == "unknown" and trainer.step == 1 and not trainer.monitor.history:
        trainer.say(f"collapse monitor: {verdict.evidence}")
    if verdict.is_bad and trainer.monitor.on_collapse != "warn":
        act(trainer)


def act(trainer: Trainer) -> None:
    """Stop, or ask for going back, by a bad verdict."""
    monitor, verdict = trainer.monitor, trainer.monitor.verdict
    reason = f"{verdict.name}: {verdict.evidence}"
    if monitor.on_collapse == "rollback" and verdict.is_curable:
        trainer.rollback(reason)
    else:
        trainer.stopped = trainer.stopped or reason


def ask_to_go_back(trainer: Trainer, reason: str) -> None:
    """Let the loop go back after this step, or stop where it has done so often enough; see `Trainer.rollback`.

    Raises UserError where no checkpoints to go back to are kept.
    """
    monitor = trainer.monitor
    if monitor is None or monitor.on_collapse != "rollback":
        raise UserError(
            f"cannot go back from step {trainer.step} ({reason}): checkpoints to go back to are kept with "
            "monitor=collapse monitor.on_collapse=rollback alone"
        )
    if len(trainer.rollbacks) < monitor.max_rollbacks:
        trainer.going_back = reason
    else:
        trainer.stopped = trainer.stopped or f"{reason} (after {len(trainer.rollbacks)} rollbacks)"


def show_status(trainer: Trainer) -> None:
    """Let loggers show the verdict for as long as it stands."""
    if trainer.monitor is not None:
        for logger in trainer.loggers.values():
            logger.status(trainer.monitor.verdict.name)


def may_go_back_to(trainer: Trainer) -> bool:
    """Whether a checkpoint of now is one to go back to; always False where nothing ever goes back."""
    monitor = trainer.monitor
    goes_back = monitor is not None and monitor.on_collapse == "rollback"
    return goes_back and monitor.verdict.is_sound and trainer.going_back is None


def save_a_first(trainer: Trainer, fresh: bool) -> None:
    """Make sure that there is a checkpoint to go back to. fresh: whatever stands there is of another run."""
    if may_go_back_to(trainer) and not trainer.ended:
        found = broadcast_from_rank0(lambda: find_checkpoint(trainer.saver.folder, HEALTHY))
        if fresh or found is None:
            trainer.saver.save(trainer.state(), [HEALTHY], [])


def results(trainer: Trainer) -> dict[str, Any]:
    """What results.json holds of it; empty without a monitor."""
    if trainer.monitor is None:
        return {}
    verdict = trainer.monitor.verdict
    back = {"rollbacks": trainer.rollbacks} if trainer.rollbacks else {}
    return {"collapse": {"verdict": verdict.name, "evidence": verdict.evidence, **back}}


def go_back(trainer: Trainer) -> None:
    """Restore the last healthy checkpoint, with half the learning rate and another seed; see `Trainer.rollback`.

    Raises UserError when there is none.
    """
    reason, trainer.going_back = trainer.going_back, None
    trainer.saver.wait()
    path = broadcast_from_rank0(lambda: find_checkpoint(trainer.saver.folder, HEALTHY))
    if path is None:
        raise UserError(
            f"cannot go back from step {trainer.step} ({reason}): {trainer.saver.path(HEALTHY)} is gone; go on with "
            f"resume={trainer.folder.path}, or start anew"
        )
    collapsed, rollbacks, best = trainer.step, trainer.rollbacks, {step for _, step in trainer.best.table}
    seconds = trainer.train_seconds
    restore(trainer, path, load_optimizer=True)
    trainer.train_seconds = seconds  # spent all the same
    trainer.rollbacks = [*rollbacks, {"from": collapsed, "to": trainer.step, "reason": reason}]
    trainer.model.set_step(max(0, trainer.step - 1), trainer.run_length)
    for logger in trainer.loggers.values():  # as on a resume, so that no step stands twice
        logger.close()
        logger.open(RunInfo(trainer.folder.path, trainer.step, trainer.run_length, trainer.folder.config))
    show_status(trainer)
    trainer.say(
        f"{reason.partition(':')[0]}: rollback {len(trainer.rollbacks)} of at most {trainer.monitor.max_rollbacks}, "
        f"back from step {collapsed} to {trainer.step} ({path}), the learning rate times {trainer.rate_factor:g}, the "
        f"seed {trainer.step_seed}"
    )
    void = best - {step for _, step in trainer.best.table}
    trainer.best.keep(broadcast_from_rank0(lambda: kept_best(trainer)))
    # At once, so that a run killed from here on goes on from here.
    trainer.saver.save(trainer.state(), [HEALTHY, "last"], [trainer.best.file_name(step) for step in sorted(void)])


def kept_best(trainer: Trainer) -> list[int]:
    """Steps of the best checkpoints that are still there: what has gone since may have displaced some."""
    steps = [step for _, step in trainer.best.table]
    return [step for step in steps if find_checkpoint(trainer.saver.folder, trainer.best.file_name(step)) is not None]
