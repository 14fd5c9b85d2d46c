"""The training loop: `fit` runs it, `train_step` is one optimizer step, `training_step` the losses of a batch.

It owns time, devices, optimisation and files, and knows nothing of masks, targets or modalities: what a step computes
is the model's (`jepa.models.JEPA.training_step`).

The step is the only clock: rates, sample order, augmentation and masks are functions of (seed, step), so a
checkpoint is weights, optimizer state and the step, and a resumed run equals one that was never interrupted. Nor do
ranks and accumulation change it: `data.batch_size` is the batch of all of them together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from jepa.distributed.collectives import (
    all_reduce_max,
    broadcast_from_rank0,
    first_not_none_over_ranks,
    is_rank0,
    no_collectives,
    propagate_failure,
)
from jepa.distributed.parallel import full_scalar
from jepa.trainer import measurements
from jepa.trainer.going_on import check_length
from jepa.trainer.gradients import UpdateRatio, clip_gradients, gradient_norms
from jepa.trainer.prefetch import prefetch, restartable, to_device
from jepa.trainer.profile import profiling
from jepa.trainer.settings import explaining_out_of_memory
from jepa.trainer.step_metrics import MAX_SKIPPED_STEPS, reduce_values, slowest_of_ranks
from jepa.trainer.trainer_parts import TrainerParts
from jepa.types import Batch, StepRandomness
from jepa.utils.errors import Interrupted, NonFiniteError
from jepa.utils.random import derive_seed
from jepa.utils.tensors import batch_length, batch_slice


class Trainer(TrainerParts):
    """Trains a model on data; `TrainerParts` has the settings. Override `training_step` for your own method."""

    # The step.

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor] | Tensor:
        """Return the losses of this rank's micro-batch, {"loss": ..., "loss/<term>": ...}, or the loss alone.

        For a subclass to override, by `prepare_batch`, the parts of `model`, and `criterion`. Everything in the dict is
        logged as `train/<name>`.
        """
        if self.overrides("prepare_batch", "criterion") or not hasattr(self.model, "training_step"):
            return self.criterion(self.model(self.prepare_batch(batch)))
        return self.model.training_step(batch, self._randomness(batch))

    def prepare_batch(self, batch: Batch) -> Batch:
        """Return the batch on the device with what the model draws for it (masks); a prepared one as it is."""
        if "rng" in batch:
            return batch
        batch, rng = to_device(batch, self.device), self._randomness(batch)
        return {**self.model.prepare(batch, rng), "rng": rng}

    @property
    def criterion(self) -> nn.Module:
        """The loss: latents to {"loss": ..., "loss/<term>": ...}."""
        return self.model.loss

    def train_step(self, batch: Batch) -> dict[str, Tensor | float]:
        """Make one optimizer step on this rank's share of a batch; return what may be logged, as tensors.

        Raises NonFiniteError for a loss or gradient that is not finite, with weights as before that step.
        """
        state, optimizer, number = self.state, self.optimizer, self.step + 1
        scheduled = self._set_schedules()
        # For dropout; everything else that is random has a generator of its own.
        torch.manual_seed(derive_seed(self.step_seed, "step", self.step, *([self.rank] if self.rank else [])))
        self.model.train()
        logs = self.logs_at(number)
        with self.monitor.watching(self.model, self.world_size) if self.watches_at(number) else nullcontext():
            values = self.forward_backward(batch)
        self.parallel.check_gradients()
        self.precision.scaler.unscale_(optimizer)
        if logs:
            values |= gradient_norms(self.model, of_parameters=self.log_gradients)
        limits = self.grad_clip_norm, self.grad_clip_value, self.grad_clip_apart
        values["grad_norm"] = full_scalar(clip_gradients(self.model, *limits))
        ratio = UpdateRatio(self.model) if logs else None
        finite, skip = self._judge(values, number)
        if finite:
            self.precision.update(optimizer, skip)
            scheduled |= self.model.update_target(
                self.step, self.run_length, **({} if skip is None else {"skip": skip})
            )
        else:
            self.precision.skip_step()
        state.skipped_steps = 0 if finite else state.skipped_steps + 1
        if ratio is not None:
            values["update_ratio"] = ratio.read()
        optimizer.zero_grad(set_to_none=True)
        state.step += 1
        self.meter.count(self.data.batch_size)
        return {**values, **scheduled}

    def _judge(self, values: Mapping[str, Tensor], number: int) -> tuple[bool, Tensor | None]:
        """Return whether a step is finite, as far as it is known, and for one that is read later the flag to skip it.

        Raises NonFiniteError for this step, or the one before it, which is then not counted.
        """
        state, guard = self.state, self.guard
        asked = False
        if guard.behind:
            state.step -= 1  # it was none, if this raises
            asked = any(guard.read()[1:])
            state.step += 1
        guard.look_at(values, step=number, signal=self.signals.number, save=is_rank0() and self.checkpoints.overdue())
        if self.lags_at(number) and not asked:
            return True, guard.skip
        may_skip = self.precision.name == "fp16" and state.skipped_steps < MAX_SKIPPED_STEPS
        finite, state.signal, state.save_requested = guard.read(may_skip=may_skip)
        return finite, None

    def forward_backward(self, batch: Batch) -> dict[str, Tensor]:
        """Accumulate gradients over micro-batches; return this rank's mean of their losses, as `train/<name>`."""
        share, size = self.data.batch_size // self.world_size, self.micro_batch_size
        sums: dict[str, Tensor] = {}
        for start in range(0, share, size):
            first, total = self.rank * share + start, self.data.batch_size
            rng = StepRandomness(seed=self.step_seed, step=self.step, total=total, start=first, count=size)
            with self.parallel.synchronised(last=start + size == share):
                losses = self._losses(self.training_step, batch_slice(batch, slice(start, start + size)), rng)
                self.precision.scaler.scale(losses["loss"] * (size / share)).backward()
            for name, value in losses.items():
                value = torch.as_tensor(value, device=self.device).detach().float() * (size / share)
                sums[f"train/{name}"] = sums[f"train/{name}"] + value if f"train/{name}" in sums else value
        return sums

    def _losses(self, step: Callable[[Batch, int], Any], batch: Batch, rng: StepRandomness) -> Mapping[str, Tensor]:
        """Run a training step in the asked precision, wrapped by DDP or FSDP. rng: of the samples in the batch."""
        self._rng = rng
        try:
            with self.precision.autocast():
                losses = self.parallel(step, to_device(batch, self.device), self.step)
        finally:
            self._rng = None
        return losses if isinstance(losses, Mapping) else {"loss": losses}

    def _randomness(self, batch: Batch) -> StepRandomness:
        """Return the randomness of the micro-batch under way; outside of the loop, of a full batch of the step."""
        if self._rng is not None:
            return self._rng
        count = batch_length(batch)
        return StepRandomness(seed=self.step_seed, step=self.step, total=count, start=0, count=count)

    @classmethod
    def overrides(cls, *names: str) -> bool:
        """Return whether a user's subclass has a method of its own for any of these names."""
        return any(getattr(cls, name) is not getattr(Trainer, name) for name in names)

    def _set_schedules(self) -> dict[str, float]:
        """Put learning rate, weight decay and loss weights in force; return them, to log."""
        values = {name: schedule(self.step, self.run_length) for name, schedule in self.scheduler.items()}
        values["lr"] *= self.state.lr_factor
        for group in self.optimizer.param_groups:
            group["lr"] = values["lr"]
            if group.get("decays") and "weight_decay" in values:
                group["weight_decay"] = values["weight_decay"]
        return values | self.model.set_step(self.step, self.run_length)

    # The loop.

    def fit(self) -> dict[str, float]:
        """Train to the end, evaluate, and return the last value of every metric."""
        if self.dry_run and self.preview is not None:
            return self._show_preview()
        with self.folder.record_end(self.run_log.progress), self.precision.kernels():
            start, resumed = self._begin()
            if self.ended and not self.state.pending:
                early = self.state.stop_reason
                reason = f" ({early}; other callbacks, another monitor or a longer run go on)" if early else ""
                self.say(f"{start[0]}: the run has ended{reason}, nothing is left to do")
                return self.metrics
            with self.run_log.open(), self.checkpoints, self.signals, closing(self._batches()) as batches:
                for line in (*start, *self.describe()):
                    self.say(line)
                if not self.ended:
                    self.checkpoints.save_first_healthy(resumed=resumed)
                self._call_callbacks("begin")
                measurements.measure_at_start(self)
                self.checkpoints.start_clock()
                self.meter.start()
                self.guard.may_lag = True
                self._train(batches)
                self.guard.may_lag = False
                self._call_callbacks("end")
                self._finish()
        return self.metrics

    def _train(self, batches: Iterator[Batch]) -> None:
        """Make steps until the run has ended."""
        state, profiled = self.state, self.profile and is_rank0() and not self.ended
        window = {"start": self.step, "stop": self.run_length.max_steps, "device": self.device}
        with profiling(profiled, self.say, folder=self.folder.path, **window) as profile:
            while True:
                if state.rollback_reason is not None:
                    self._roll_back()
                if state.signal:
                    self.checkpoints.saver.wait()
                    raise self.interrupted(state.signal)
                if self.ended:
                    break
                begun = time.perf_counter()
                try:
                    batch = next(batches)
                    with explaining_out_of_memory(self):
                        values = self.train_step(batch)
                    state.train_seconds += time.perf_counter() - begun
                    profile(self.step)
                    self._after_step(values)
                except NonFiniteError as error:
                    self._recover_from(error)

    def _begin(self) -> tuple[list[str], bool]:
        """Load the checkpoint to go on from, if any, and create the folder; return sentences, and whether it resumes.

        Nothing in the folder has been touched when this raises.
        """
        source = broadcast_from_rank0(self.folder.source)
        # Going on from an older checkpoint, the one saved as healthy may be newer than it.
        resumed = source is not None and broadcast_from_rank0(lambda: source.resolve() == self.folder.last.resolve())
        if source is not None:
            self.load_checkpoint(source)
            start = [f"resumed from {source} at step {self.step} of {self.run_length.max_steps}"]
            start += self.checkpoints.check_going_on(source)
        elif self.step > 0:
            start = [f"going on from step {self.step} in the new run folder {self.folder.path}"]
        else:
            weights = self.folder.config.get("init_from")
            start = [f"training from {weights or 'scratch'} in {self.folder.path}"]
        check_length(self.step, self.run_length, source)
        begins = self.state.pending or not self.ended
        broadcast_from_rank0(lambda: self.folder.create(begins=begins, fresh=source is None))
        self.model.set_step(max(0, self.step - 1), self.run_length)
        return start, resumed

    def _batches(self) -> Iterator[Batch]:
        """Yield the batches still to come, on the device; after a rollback those from the step it went back to."""

        def from_here() -> Iterator[Batch]:
            steps = {"start_step": self.step, "stop_step": self.run_length.max_steps}
            batches = self.data.train_batches(seed=self.step_seed, rank=self.rank, world_size=self.world_size, **steps)
            return prefetch(self.meter.waiting_for(batches), self.device)

        return restartable(from_here, version=lambda: self.step_seed)

    def _after_step(self, values: Mapping[str, Tensor | float]) -> None:
        """Log, measure and save what is due. A run that a signal stops only saves, and measures when it is resumed."""
        self.checkpoints.saver.poll()
        self.folder.keep_config()
        self.run_log.advance()
        metrics = self.log_step(values)
        self._call_callbacks("step_end")
        if self.state.rollback_reason is not None:
            return
        if self.state.signal:
            self.state.pending = True
            self.checkpoints.save()
        else:
            measurements.measure_and_save(self, metrics)

    def log_step(self, values: Mapping[str, Tensor | float]) -> Mapping[str, float]:
        """Log what is due of the step just made, with what the monitor finds in it; return what was logged."""
        logs, watched = self.logs_at(self.step), self.watches_at(self.step)
        if not (logs or watched):
            return {}
        values = reduce_values(values)
        metrics = {**values, **slowest_of_ranks(self.meter.read(), self.device)} if logs else {}
        if watched:
            metrics |= measurements.check_collapse(self, values)
        if logs:
            self.folder.update_progress(**self.run_log.progress(), samples_per_second=metrics["samples_per_second"])
        if self.ended:
            metrics |= measurements.run_costs(self)
        return self.log(metrics)

    def log(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """Hand metrics of this step to loggers and callbacks, on every rank alike; return them."""
        self.metrics.update(metrics)
        self.run_log.log(metrics)
        self._call_callbacks("measured", metrics)
        return metrics

    def validate(self) -> float:
        """Return the mean of the model's own loss on the held-out split, with masks that are the same every time."""
        self.model.eval()
        step = partial(Trainer.training_step, self)
        return measurements.validation_loss(self, lambda batch, rng: self._losses(step, batch, rng))

    def _call_callbacks(self, event: str, *arguments: Any) -> None:
        """Call a method of every callback; then all ranks know whether one of them asks to stop."""
        if self.callbacks:
            for callback in self.callbacks.values():
                getattr(callback, event)(self, *arguments)
            state = self.state
            state.stop_reason = state.stop_reason or first_not_none_over_ranks(state.stop_requested)

    def _recover_from(self, error: NonFiniteError) -> None:
        """Have the run go back from a step that is not finite, if the monitor rolls back; else raise the error.

        So it does after `monitor.max_rollbacks` rollbacks: the weights before such a step are of no use either.
        """
        if not self.goes_back:
            raise error
        if (rollbacks := len(self.state.rollbacks)) >= self.monitor.max_rollbacks:
            raise NonFiniteError(f"{error} (after {rollbacks} rollbacks)") from error
        self.optimizer.zero_grad(set_to_none=True)
        self.precision.skip_step()
        self.rollback(str(error))

    def _roll_back(self) -> None:
        """Go back to the last healthy checkpoint; see `rollback`."""
        message = self.checkpoints.roll_back()
        self.model.set_step(max(0, self.step - 1), self.run_length)
        self.run_log.reopen()
        self.say(f"{message}, the learning rate times {self.state.lr_factor:g}, the seed {self.step_seed}")
        self.meter.start()
        self._call_callbacks("begin")

    def _finish(self) -> None:
        """Wait for the last checkpoint and record the end; raise Interrupted for a signal after the last step."""
        checkpoints, end = self.checkpoints, self.state.early_end(self.run_length)
        for line in filter(None, (checkpoints.missing_best_metric(), checkpoints.early_best(), end)):
            self.say(line)
        self.checkpoints.saver.wait()
        self.folder.keep_config()
        self.folder.update_status(state="done", reason=self.state.stop_reason, **self.run_log.progress())
        number = all_reduce_max(torch.tensor([float(self.signals.number or 0)], device=self.device)).item()
        if number:  # the run is complete, a sweep ends
            raise Interrupted(f"the run in {self.folder.path} has ended, what follows is left out", int(number))

    def _show_preview(self) -> dict[str, float]:
        """Show what would run."""
        with propagate_failure(), self.precision.kernels():
            if is_rank0():
                with no_collectives():
                    self.preview(self)
        return {}
