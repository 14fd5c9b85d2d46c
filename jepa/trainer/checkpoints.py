"""The checkpoints of a run: what they hold, when one is due, the best, loading one, going back to a healthy one."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from jepa.checkpoint import plain
from jepa.checkpoint.load import check_state, load_state
from jepa.checkpoint.optimizer_state import check_optimizer
from jepa.checkpoint.saver import Saver, find_checkpoint
from jepa.distributed.collectives import all_reduce_max, broadcast_from_rank0
from jepa.distributed.parallel import gather_full_tensors, shard_like
from jepa.trainer import going_on
from jepa.trainer.settings import due
from jepa.utils.errors import CheckpointError, NonFiniteError, UserError

if TYPE_CHECKING:
    from jepa.trainer.trainer_parts import TrainerParts

log = logging.getLogger("jepa")

HEALTHY = "healthy"  # name of the checkpoint that a rollback goes back to


class BestCheckpoints:
    """Keeps the k best (value, step) pairs. Raises ValueError for a negative k or an unknown mode."""

    def __init__(self, k: int, metric: str, mode: Literal["min", "max"]) -> None:
        if k < 0 or mode not in ("min", "max"):
            raise ValueError(f"got trainer.best_k={k}, trainer.best_mode={mode!r}, expected k >= 0 and 'min' or 'max'")
        self.k, self.metric, self.mode = k, metric, mode
        self.table: list[tuple[float, int]] = []
        self._dropped: list[int] = []

    def offer(self, value: float, step: int) -> bool:
        """Enter a step if it is among the best, drop what it displaces, and return whether it is; NaN never is."""
        if math.isnan(value):
            return False
        sign = 1 if self.mode == "min" else -1
        ranked = sorted([*self.table, (value, step)], key=lambda entry: (sign * entry[0], entry[1]))
        self.table, out = ranked[: self.k], ranked[self.k :]
        self._dropped += [old for _, old in out if old != step]
        return (value, step) in self.table

    def dropped(self) -> list[str]:
        """Return names that no longer belong to the best since this was last asked."""
        names, self._dropped = [self.file_name(step) for step in self._dropped], []
        return names

    def keep(self, steps: Collection[int]) -> None:
        """Forget all but these steps."""
        self.table = [(value, step) for value, step in self.table if step in steps]

    def state_dict(self) -> dict[str, Any]:
        """Return the table, for a checkpoint."""
        return {"metric": self.metric, "mode": self.mode, "table": self.table}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a table, unless it is of another metric or mode."""
        if (state["metric"], state["mode"]) == (self.metric, self.mode):
            self.table = [(value, step) for value, step in state["table"]]

    @staticmethod
    def file_name(step: int) -> str:
        """Return the name of the checkpoint of a step, without its suffix."""
        return f"best_{step:08d}"


class Checkpoints:
    """Saves and restores everything that a run needs to go on exactly; every rank makes the same calls."""

    def __init__(self, trainer: TrainerParts, saver: Saver, best: BestCheckpoints) -> None:
        self.trainer, self.saver, self.best = trainer, saver, best
        self._loaded_facts: dict[str, Any] = {}  # of the run that wrote what was loaded last
        self.start_clock()

    def content(self, *, gather: bool = False) -> dict[str, Any]:
        """Return the nested state; sharded tensors are gathered on rank 0 for the plain format, or if asked."""
        trainer = self.trainer
        content = {
            **trainer.state.state_dict(),
            "model": trainer.model.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "scaler": trainer.precision.scaler.state_dict(),
            "best": self.best.state_dict(),
            "callbacks": {name: callback.state_dict() for name, callback in trainer.callbacks.items()},
            "loggers": {name: logger.state_dict() for name, logger in trainer.loggers.items()},
            "monitor": None if trainer.monitor is None else trainer.monitor.state_dict(),
            "config": trainer.folder.config,
            "run": going_on.facts(trainer),
        }
        return gather_full_tensors(content) if gather or self.saver.kind == "plain" else content

    def content_that_measuring_changes(self) -> dict[str, Any]:
        """Return a copy of the entries that a validation, probe or evaluation may change."""
        state, monitor = self.trainer.state.state_dict(), self.trainer.monitor
        callbacks = {name: copy.deepcopy(callback.state_dict()) for name, callback in self.trainer.callbacks.items()}
        judged = {} if monitor is None else {"monitor": monitor.state_dict()}
        return {"ended": state["ended"], "metrics": state["metrics"], "callbacks": callbacks, **judged}

    # Saving.

    def save(self, names: list[str] | None = None, drop: list[str] | None = None, **changes: Any) -> None:
        """Save under names, by default as the last; remove those to drop. changes: entries to replace.

        Raises NonFiniteError, and writes nothing, for weights that are not finite.
        """
        self._check_weights()
        self.trainer.folder.restore_if_deleted()
        self.saver.save({**self.content(), **changes}, names or ["last"], drop or [])
        self.start_clock()

    def _check_weights(self) -> None:
        trainer = self.trainer
        bad = [name for name, value in trainer.model.state_dict().items() if not plain.is_finite(value)]
        if all_reduce_max(torch.tensor(float(len(bad)), device=trainer.device)):
            where = bad[0] if bad else "on another rank"
            raise NonFiniteError(
                f"not finite at step {trainer.step}: the weights ({where}), though loss and gradients were. "
                "Nothing was saved, the checkpoint before is intact. Lower optimizer.lr, or lengthen the warm-up"
            )

    def save_if_due(self, metrics: Mapping[str, float]) -> None:
        """Save when the interval, a request, the end of the run, a best metric or a snapshot asks for it."""
        step, every, asked = self.trainer.step, self.trainer.every, self.trainer.state.save_requested
        best = self.best.metric in metrics and self.best.offer(metrics[self.best.metric], step)
        snapshot = due(step, every.snapshot)
        if due(step, every.save) or asked or self.trainer.ended or best or snapshot:
            names = [f"step_{step:08d}"] * snapshot + [self.best.file_name(step)] * best
            self.save([*names, *[HEALTHY] * self._is_healthy, "last"], self.best.dropped())

    def overdue(self) -> bool:
        """Return whether `save_every_minutes` have passed on this rank since the last save."""
        minutes = self.trainer.save_every_minutes
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def start_clock(self) -> None:
        """Count `save_every_minutes` from now on."""
        self._saved_at = time.monotonic()

    def write(self, path: Path, include_optimizer: bool = True) -> None:
        """Write a plain checkpoint to a path."""
        content = self.content(gather=True)
        if not include_optimizer:
            content |= {"optimizer": None, "scaler": None}
        broadcast_from_rank0(lambda: plain.write(path, content))

    def missing_best_metric(self) -> str | None:
        """Return a message where the metric that decides what to keep never came, as after a typo."""
        metric, every, metrics = self.best.metric, self.trainer.every.validate, self.trainer.metrics
        expected = metric != "val/loss" or (every is not None and every <= self.trainer.step)
        if not (self.best.k and expected) or metric in metrics:
            return None
        names = ", ".join(sorted(metrics))
        return f"no best checkpoint was kept, as trainer.best_metric={metric} was not among the metrics: {names}"

    def early_best(self) -> str | None:
        """Return a message where the best value came in the first half of the run and the last one is a tenth worse."""
        last, step = self.trainer.metrics.get(self.best.metric), self.trainer.step
        value, best = self.best.table[0] if self.best.table else (math.nan, step)
        if last is None or best > step / 2 or not abs(last - value) > 0.1 * abs(value):
            return None
        path = self.saver.path(self.best.file_name(best))
        return (
            f"{self.best.metric} was best at step {best:,} of {step:,} ({value:.3g}, at the end {last:.3g}): are its "
            f"features better? python scripts/evaluate.py checkpoint={path}; callbacks=early_stopping ends such runs"
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        """Wait for what is being written, and end the thread that writes."""
        try:
            self.saver.close()
        except CheckpointError as error:  # the run has failed before, as it waits for its checkpoints otherwise
            log.error("%s", error)

    # Loading.

    def load(self, path: Path, load_optimizer: bool = True) -> None:
        """Restore a checkpoint of either format on any number of ranks.

        Raises CheckpointError when it cannot be read or does not fit; nothing has changed then.
        """
        if path.is_dir():
            from jepa.checkpoint.sharded import read as read_sharded  # takes a second to import

            content = read_sharded(path, self._counterpart)
            plain.check(content, path)
        else:
            content = plain.read(path)
        trainer = self.trainer
        check_state(trainer.model, content["model"], path)
        if load_optimizer:
            check_optimizer(trainer.optimizer, content["optimizer"], path)
        own = trainer.model.state_dict()
        weights = {name: shard_like(value, own[name]) for name, value in content["model"].items()}
        load_state(trainer.model, weights, path)
        if load_optimizer:
            self._load_optimizer(content)
        self.best.load_state_dict(content["best"])
        for kind, mine in (("callbacks", trainer.callbacks), ("loggers", trainer.loggers)):
            for name in mine.keys() & content[kind].keys():
                _restore(mine[name], content[kind][name], f"{kind}.{name}", path)
        if trainer.monitor is not None and content.get("monitor"):
            _restore(trainer.monitor, content["monitor"], "monitor", path)
        trainer.state.load_state_dict(content)
        self._loaded_facts = going_on.stored_facts(content)
        if not self._ends_alike(content["config"]):
            trainer.state.stop_reason = None

    def check_going_on(self, path: Path) -> list[str]:
        """Return sentences on what is not bit-exact in a run that goes on from what was loaded last, from a path.

        Raises UserError for another batch size, and for another frozen teacher.
        """
        then, now = self._loaded_facts, going_on.facts(self.trainer)
        going_on.check_batch_size(then, now, path)
        going_on.check_teachers(then, now, path)
        return going_on.differences(then, now)

    def _load_optimizer(self, content: Mapping[str, Any]) -> None:
        optimizer, scaler = self.trainer.optimizer, self.trainer.precision.scaler
        settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        parameters, state = self._parameters(), {}
        for number, entry in content["optimizer"]["state"].items():
            like = parameters[number]
            state[number] = {
                name: shard_like(value, like) if isinstance(value, Tensor) and value.shape == like.shape else value
                for name, value in entry.items()
            }
        optimizer.load_state_dict({**content["optimizer"], "state": state})
        for group, now in zip(optimizer.param_groups, settings):
            group.update(now)  # what this run was configured with wins over what the file remembers
        if content["scaler"]:  # a run in another precision leaves none
            scaler.load_state_dict(content["scaler"])

    def _ends_alike(self, config: Mapping[str, Any]) -> bool:
        """Return whether a run that was stopped early stays so: not with other callbacks, monitor or length."""

        def ending(config: Mapping[str, Any]) -> list[Any]:
            lengths = [config.get("trainer", {}).get(name) for name in ("max_epochs", "max_steps", "max_samples")]
            monitor = config.get("monitor", self.trainer.folder.config.get("monitor"))  # older runs have none
            return [config.get("callbacks"), monitor, *lengths]

        return ending(config) == ending(self.trainer.folder.config)

    def _counterpart(self, keys: tuple) -> Tensor | None:
        """Return the tensor of this run that one in a sharded checkpoint goes into."""
        if keys[0] == "model":
            return self.trainer.model.state_dict().get(keys[1])
        if keys[:2] == ("optimizer", "state"):
            parameters = self._parameters()
            return parameters[keys[2]] if keys[2] < len(parameters) else None
        return None

    def _parameters(self) -> list[Tensor]:
        """Return the parameters in the order in which the optimizer's state numbers them."""
        return [parameter for group in self.trainer.optimizer.param_groups for parameter in group["params"]]

    # Going back.

    @property
    def _is_healthy(self) -> bool:
        """Whether a checkpoint of now is one to go back to; always False where nothing ever goes back."""
        trainer = self.trainer
        return trainer.goes_back and trainer.monitor.verdict.is_sound and trainer.state.rollback_reason is None

    def save_first_healthy(self, *, resumed: bool) -> None:
        """Make sure that there is a checkpoint to go back to. resumed: one from before, if any, is of this run."""
        if self._is_healthy and not (resumed and broadcast_from_rank0(lambda: self._find(HEALTHY))):
            self.save([HEALTHY])

    def roll_back(self) -> str:
        """Restore the last healthy checkpoint and record the rollback in the state; return a message about it.

        Raises UserError when there is none.
        """
        state, before = self.trainer.state, replace(self.trainer.state)
        reason = state.rollback_reason
        best_before = {step for _, step in self.best.table}
        self.saver.wait()
        path = broadcast_from_rank0(lambda: self._find(HEALTHY))
        if path is None:
            raise UserError(
                f"cannot go back from step {state.step} ({reason}): {self.saver.path(HEALTHY)} is gone; go on with "
                f"resume={self.trainer.folder.path}, or start anew"
            )
        self.load(path)
        state.rollback_reason = state.stop_requested = None
        state.train_seconds = before.train_seconds  # spent all the same
        state.rollbacks = [*before.rollbacks, {"from": before.step, "to": state.step, "reason": reason}]
        restored = {step for _, step in self.best.table}
        void = best_before - restored
        # What has gone since may have displaced some of the best.
        self.best.keep(broadcast_from_rank0(lambda: [s for s in restored if self._find(self.best.file_name(s))]))
        # At once, so that a run that is killed now resumes from here.
        self.save([HEALTHY, "last"], [self.best.file_name(step) for step in sorted(void)])
        count, most = len(state.rollbacks), self.trainer.monitor.max_rollbacks
        return (
            f"{reason.partition(':')[0]}: rollback {count} of at most {most}, "
            f"back from step {before.step} to {state.step} ({path})"
        )

    def _find(self, name: str) -> Path | None:
        return find_checkpoint(self.saver.folder, name)


def _restore(part: Any, state: Mapping[str, Any], name: str, path: Path) -> None:
    """Give a part of the run the state that it had. Raise CheckpointError for one that is not of it."""
    try:
        part.load_state_dict(state)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: the state of {name} is not one of its own ({error!r})") from error
