"""The training loop: owns time, devices, optimisation and files; knows nothing of masks, targets or modalities.

The step is the only clock: rates, sample order, augmentation and masks are functions of (seed, step), so a
checkpoint is weights, optimizer state and the step, and a resumed run equals one that was never interrupted. Nor do
ranks and accumulation change it: `data.batch_size` is the batch of all of them together.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jepa.checkpoint import plain as checkpoint
from jepa.checkpoint.load import locate
from jepa.checkpoint.saver import Format, Saver
from jepa.distributed.collectives import (
    TIMEOUT_SECONDS,
    all_reduce_max,
    all_reduce_sum,
    broadcast_from_rank0,
    first_not_none_over_ranks,
    get_rank,
    get_world_size,
    init_process_group,
    is_rank0,
    no_collectives,
    propagate_failure,
)
from jepa.distributed.launch import read_launch
from jepa.distributed.layers import checkpoint_activations, compile_blocks
from jepa.distributed.parallel import Parallel, StrategyName, full_scalar, gather_full_tensors
from jepa.trainer import collapse
from jepa.trainer.best import BestCheckpoints
from jepa.trainer.callbacks import Callback
from jepa.trainer.due import due, period
from jepa.trainer.duties import measure_and_save
from jepa.trainer.gradients import UpdateRatio, module_norms, parameter_norms
from jepa.trainer.loggers import Logger, RunInfo
from jepa.trainer.measure import StepMeter, slowest_of_ranks, to_floats
from jepa.trainer.precision import Precision, clip_gradients, resolve_device
from jepa.trainer.prefetch import prefetch, to_device
from jepa.trainer.profile import Profile
from jepa.trainer.run_folder import RunFolder
from jepa.trainer.settings import (
    check_micro_batch_size,
    check_positive,
    check_processes,
    check_statistics,
    make_run_length,
)
from jepa.trainer.signals import StopRequest
from jepa.trainer.state import restore, state_of
from jepa.trainer.validation import validation_loss
from jepa.types import Batch, Schedule, StepRandomness
from jepa.utils.errors import CheckpointError, Interrupted, NonFiniteError, UserError
from jepa.utils.memory import keep_freed_memory
from jepa.utils.random import derive_seed
from jepa.utils.tensors import batch_length, batch_slice

log = logging.getLogger("jepa")

MOST_SKIPPED = 20
"""fp16 steps in a row that may be skipped for overflow before the run stops."""


class Trainer:
    """Trains a model on data. Override `training_step` for a method of your own.

    model: has `loss`, `prepare(batch, rng)`, `forward(batch)`, `set_step(step, run_length)` and
        `update_target(step, run_length)`.
    data: has `batch_size` (global), `spec`, `train_batches(...)`, `validation_batches(...)`.
    optimizer: built over the model's parameters; groups with `decays` follow the weight-decay schedule.
    scheduler: schedules `lr` and `weight_decay`, called at the number of the update, from 1.
    loggers, callbacks: by name; loggers act on rank 0, callbacks on every rank.
    evaluation: called as (model, data, random_init=, device=, seed=) and gives {network: {probe: value}}; has
        `every_epochs`, `every_steps`, `at_end` and `table(results)`. None for no evaluation.
    monitor: looks at the latents of some steps and judges the run; see `jepa.monitor.CollapseMonitor`. None for none.
    random_init: makes an untrained model of the same kind, for evaluation to compare with.
    plan, preview: sentences about the run to say before it; what shows the whole run where dry_run is set.
    nodes, devices: machines, and processes on each, that the run is meant for; refused where other numbers were
        started. None takes what there is.
    strategy, backend, timeout_seconds, find_unused_parameters: see `jepa.distributed.parallel.Parallel`,
        `jepa.distributed.collectives`; find_unused_parameters None: looked for where training_step is overridden.
    precision, attention, tf32, deterministic, detect_anomaly: see `jepa.trainer.precision.Precision`.
    activation_checkpointing, compile: of each layer (`jepa.distributed.layers`); compile may name a backend of torch.
    max_steps, max_samples, max_epochs: the length of the run; of several the first of these wins.
    limit_train_batches, limit_val_batches: cut an epoch and the validation short.
    micro_batch_size: samples per forward pass on a device; None takes each rank's share of the batch at once.
    checkpoint_dir, checkpoint_format, async_save: see `jepa.checkpoint.saver.Saver`; None is `checkpoints` in the run
        folder. save_every_minutes goes by the clock of rank 0.
    best_metric, best_mode, best_k: which checkpoints to keep beside the last.
    resume: None starts afresh and refuses a folder that holds a checkpoint; "auto" continues from it if there is
        one; a path continues from there. Stated at the start.
    log_gradients: also log the norm of every parameter's gradient. profile: trace some steps (`jepa.trainer.profile`).
    dry_run: show what would run, and train nothing.
    config: the resolved configuration, stored in checkpoints and the run folder, not read here.

    Raises UserError for settings that contradict each other, before any data is read.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        data: Any,
        optimizer: torch.optim.Optimizer,
        scheduler: Mapping[str, Schedule],
        run_dir: str | Path,
        loggers: Mapping[str, Logger] | None = None,
        callbacks: Mapping[str, Callback] | None = None,
        evaluation: Any | None = None,
        monitor: Any | None = None,
        random_init: Callable[[], nn.Module] | None = None,
        plan: Callable[[Any], Sequence[str]] | None = None,
        preview: Callable[[Trainer], None] | None = None,
        config: Mapping[str, Any] | None = None,
        resume: str | None = None,
        seed: int = 0,
        device: str = "auto",
        nodes: int | None = None,
        devices: int | None = None,
        strategy: StrategyName = "auto",
        backend: Literal["nccl", "gloo"] | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        find_unused_parameters: bool | None = None,
        precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
        attention: Literal["auto", "flash", "efficient", "math"] = "auto",
        tf32: bool = False,
        deterministic: bool = False,
        detect_anomaly: bool = False,
        activation_checkpointing: bool = False,
        compile: bool | str = False,
        max_epochs: float | None = 100,
        max_steps: int | None = None,
        max_samples: int | None = None,
        limit_train_batches: int | None = None,
        limit_val_batches: int | None = None,
        micro_batch_size: int | None = None,
        allow_microbatch_statistics: bool = False,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        log_every: int = 10,
        log_gradients: bool = False,
        validate_every_epochs: float | None = None,
        validate_every_steps: int | None = None,
        checkpoint_dir: str | None = None,
        checkpoint_format: Format = "plain",
        async_save: bool = False,
        save_every_epochs: float | None = 1,
        save_every_steps: int | None = None,
        save_every_minutes: float | None = None,
        snapshot_every_epochs: float | None = None,
        snapshot_every_steps: int | None = None,
        best_k: int = 1,
        best_metric: str = "val/loss",
        best_mode: Literal["min", "max"] = "min",
        profile: bool = False,
        dry_run: bool = False,
    ) -> None:
        self.device = resolve_device(device, read_launch().local_rank)
        if self.device.type == "cpu":
            keep_freed_memory()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        init_process_group(self.device, backend, timeout_seconds)
        self.rank, self.world_size = get_rank(), get_world_size()
        check_processes(nodes, devices, self.world_size if not dry_run else None)
        self.model, self.data, self.optimizer, self.scheduler = model, data, optimizer, scheduler
        self.evaluation, self.random_init, self.monitor = evaluation, random_init, monitor
        self.plan, self.preview, self.dry_run, self.profile = plan, preview, dry_run, profile
        self.loggers = dict(loggers or {}) if is_rank0() else {}
        self.callbacks = dict(callbacks or {})
        self.seed, self.strategy = seed, strategy
        self.precision = Precision(
            precision,
            self.device,
            attention=attention,
            tf32=tf32,
            deterministic=deterministic,
            detect_anomaly=detect_anomaly,
        )
        self.run_length = make_run_length(
            max_epochs,
            max_steps,
            max_samples,
            num_train=data.spec.num_train,
            batch_size=data.batch_size,
            limit_train_batches=limit_train_batches,
        )
        self.limit_val_batches = limit_val_batches
        self.micro_batch_size = check_micro_batch_size(micro_batch_size, data.batch_size, self.world_size)
        check_statistics(
            model.loss, self.micro_batch_size < data.batch_size // self.world_size, allow_microbatch_statistics
        )
        check_positive(
            grad_clip_norm=grad_clip_norm,
            grad_clip_value=grad_clip_value,
            log_every=log_every,
            limit_val_batches=limit_val_batches,
            save_every_minutes=save_every_minutes,
            timeout_seconds=timeout_seconds,
        )
        self.grad_clip_norm, self.grad_clip_value = grad_clip_norm, grad_clip_value
        self.log_every, self.log_gradients = log_every, log_gradients
        self.validate_every = period("validate", validate_every_epochs, validate_every_steps, self.run_length)
        self.save_every = period("save", save_every_epochs, save_every_steps, self.run_length)
        self.save_every_minutes = save_every_minutes
        self.snapshot_every = period("snapshot", snapshot_every_epochs, snapshot_every_steps, self.run_length)
        self.evaluate_every = self.probe_every = None
        if evaluation is not None:
            every = (evaluation.every_epochs, evaluation.every_steps)
            self.evaluate_every = period("evaluation", *every, self.run_length)
            online = (evaluation.online_every_epochs, evaluation.online_every_steps)
            self.probe_every = period("evaluation.online", *online, self.run_length)
        self.best = BestCheckpoints(k=best_k, metric=best_metric, mode=best_mode)
        run_dir = Path(broadcast_from_rank0(lambda: str(run_dir)))
        folder = Path(checkpoint_dir) if checkpoint_dir else run_dir / "checkpoints"
        self.saver = Saver(folder, kind=checkpoint_format, asynchronous=async_save)
        self.folder = RunFolder(run_dir, dict(config or {}), resume, self.saver)
        self.step = 0
        self.train_seconds = 0.0
        self.metrics: dict[str, float] = {}
        self.rollbacks: list[dict[str, Any]] = []  # those made: from and to which step, and why
        self.going_back: str | None = None  # why to go back after this step
        self.pending = False  # whether what was due at this step is still to be done
        self.stopped: str | None = None  # why the run ends before its last step, as all ranks have agreed
        self._stop_asked: str | None = None
        self.stop_request = StopRequest()
        self.signal = 0  # the one that all ranks have agreed to stop for
        self.save_asked = False
        self.meter = StepMeter(self.device)
        self._skipped = 0
        self._prepare_model(find_unused_parameters, strategy, activation_checkpointing, compile)

    def _prepare_model(
        self, find_unused: bool | None, strategy: StrategyName, activation_checkpointing: bool, compiled: bool | str
    ) -> None:
        """Put the model on its device and wrap what is asked for, innermost first."""
        self.model.to(self.device)
        self.precision.choose_attention(self.model)
        if activation_checkpointing:
            checkpoint_activations(self.model)
        if compiled:
            compile_blocks(self.model, "inductor" if compiled is True else compiled)
        own_step = type(self).training_step is not Trainer.training_step
        self.parallel = Parallel(
            strategy,
            self.model,
            self.optimizer,
            device=self.device,
            find_unused=own_step if find_unused is None else find_unused,
            dtype=self.precision.dtype,
            wrap=not self.dry_run,
        )

    # What a user's own method overrides and calls.

    @property
    def criterion(self) -> nn.Module:
        """The loss: latents to {"loss": ..., "loss/<term>": ...}."""
        return self.model.loss

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor] | Tensor:
        """The loss of a batch: a scalar, or a dict with "loss" and whatever else is to be logged."""
        return self.criterion(self.model(self.prepare_batch(batch)))

    def prepare_batch(self, batch: Batch) -> Batch:
        """The batch on the device, with the random choices of this step (masks) drawn by the model.

        A batch that has been prepared is returned as it is.
        """
        if "rng" in batch:
            return batch
        count = batch_length(batch)
        return self.prepared(
            batch, StepRandomness(seed=self.step_seed, step=self.step, total=count, start=0, count=count)
        )

    def stop(self, reason: str) -> None:
        """End the run after this step as if it were the last: evaluated, saved, results written.

        For callbacks; it is enough that one rank asks for it.
        """
        self._stop_asked = reason

    def rollback(self, reason: str) -> None:
        """After this step, go back to the last healthy checkpoint and train on from there in another way.

        The learning rate is halved and the seed of what steps draw raised by one, both for the rest of the run and
        also when it is resumed. After `monitor.max_rollbacks` times the run stops instead. Every rank calls this
        alike. A checkpoint is healthy where the monitor found the run sound when it was saved; they are kept with
        monitor.on_collapse=rollback, the first one from before training. Raises UserError without that.
        """
        collapse.ask_to_go_back(self, reason)

    # The loop.

    @property
    def step_seed(self) -> int:
        """What batches, masks and dropout are drawn by: the seed, and another one after each rollback."""
        return self.seed + len(self.rollbacks)

    @property
    def rate_factor(self) -> float:
        """What the scheduled learning rate is multiplied by: a half for each rollback."""
        return 0.5 ** len(self.rollbacks)

    def fit(self) -> dict[str, float]:
        """Train to the end, evaluate, and give the last value of every metric."""
        if self.dry_run:
            with propagate_failure(), self.precision.kernels():
                if is_rank0():
                    with no_collectives():
                        self.preview(self)
            return {}
        with self.folder.telling_the_end(), propagate_failure(), self.precision.kernels():
            return self._fit()

    def _fit(self) -> dict[str, float]:
        start = self._begin()
        if self.ended and not self.pending:
            why = f" ({self.stopped}; other callbacks, another monitor or a longer run go on)" if self.stopped else ""
            self.say(f"{start}: the run has ended{why}, nothing is left to do")
            return self.metrics
        run = RunInfo(self.folder.path, self.step, self.run_length, self.folder.config, redo=self.pending)
        with contextlib.ExitStack() as stack:
            for logger in self.loggers.values():
                logger.open(run)
                stack.callback(logger.close)
            stack.callback(self._close_saver)
            self._announce(start)
            collapse.show_status(self)
            collapse.save_a_first(self, fresh=not self.resumed)
            with self.stop_request:
                self._tell_callbacks("begin")
                self._train()
                self._tell_callbacks("end")
                self._say_what_is_missing()
                self.saver.wait()
            self.folder.tell(state="done", reason=self.stopped, **self.progress())
            number = int(
                all_reduce_max(torch.tensor([float(self.stop_request.number or 0)], device=self.device)).item()
            )
            if number:  # came after the last step: the run is whole, a sweep ends
                raise Interrupted(f"the run in {self.folder.path} has ended, what follows is left out", number)
        return self.metrics

    def _close_saver(self) -> None:
        try:
            self.saver.close()
        except CheckpointError as error:  # the run has failed before, as it waits for its checkpoints otherwise
            log.error("%s", error)

    def _tell_callbacks(self, event: str, *arguments: Any) -> None:
        """Call a method of every callback; then all ranks know whether one of them asks to stop."""
        if not self.callbacks:
            return
        for callback in self.callbacks.values():
            getattr(callback, event)(self, *arguments)
        self.stopped = self.stopped or first_not_none_over_ranks(self._stop_asked)

    def _begin(self) -> str:
        """Load the checkpoint to go on from, if any, then lay the folder out; gives a sentence that says which.

        Nothing in the folder has been touched when this raises.
        """
        source = broadcast_from_rank0(self.folder.source)
        # From before the last one: what stands there as healthy may come from later.
        self.resumed = source is not None and source == broadcast_from_rank0(lambda: self.folder.last)
        if source is not None:
            self.load_checkpoint(source)
            start = f"resumed from {source} at step {self.step} of {self.run_length.max_steps}"
        elif self.step > 0:
            start = f"going on from step {self.step} in the new run folder {self.folder.path}"
        else:
            start = f"training from scratch in {self.folder.path}"
        if self.step > self.run_length.max_steps:
            raise UserError(
                f"the checkpoint {source} is at step {self.step}, past the end of this run "
                f"({self.run_length.max_steps} steps): raise trainer.max_epochs or trainer.max_steps"
            )
        broadcast_from_rank0(lambda: self.folder.lay_out(begins=self.pending or not self.ended))
        self.model.set_step(max(0, self.step - 1), self.run_length)
        return start

    @property
    def ended(self) -> bool:
        """Whether the run is over, by its length or because `stop` was called."""
        return self.step == self.run_length.max_steps or self.stopped is not None

    def _train(self) -> None:
        """Train to the end; once more from the last healthy checkpoint after each rollback."""
        while True:
            with closing(self._batches()) as batches:
                self._train_on(batches)
            if self.going_back is None:
                return
            collapse.go_back(self)
            self._tell_callbacks("begin")

    def _train_on(self, batches: Iterator[Batch]) -> None:
        """Train until the run ends or goes back, or all ranks have agreed to stop."""
        self.saved_at = time.monotonic()
        if self.pending:
            measure_and_save(self)
        if self.ended or self.going_back is not None:
            return
        profile = self._start_profile()
        self.meter.start()
        try:
            self._loop(batches, profile)
        finally:
            self._say_profile(profile and profile.close())

    def _loop(self, batches: Iterator[Batch], profile: Profile | None) -> None:
        begun = time.perf_counter()
        for batch in batches:
            self.train_step(batch)
            self.train_seconds += time.perf_counter() - begun
            self._say_profile(profile and profile.advance(self.step))
            self._after_step()
            if self.signal:
                self.folder.tell(**self.progress())
                raise Interrupted(
                    f"stopped at step {self.step} of {self.run_length.max_steps}; the checkpoint is "
                    f"{self.folder.last}; go on with resume={self.folder.path}",
                    self.signal,
                )
            if self.ended or self.going_back is not None:
                break
            begun = time.perf_counter()

    def _start_profile(self) -> Profile | None:
        if not (self.profile and is_rank0()):
            return None
        return Profile(folder=self.folder.path, start=self.step, stop=self.run_length.max_steps, device=self.device)

    def _say_profile(self, table: Any | None) -> None:
        if table is not None:
            self.say(table)

    def _batches(self) -> Iterator[Batch]:
        """The batches still to come, on the device, each timed for how long it was waited for."""
        batches = self.data.train_batches(
            seed=self.step_seed,
            start_step=self.step,
            stop_step=self.run_length.max_steps,
            rank=self.rank,
            world_size=self.world_size,
        )
        return prefetch(self.meter.waiting_for(batches), self.device)

    def train_step(self, batch: Batch) -> dict[str, Tensor | float]:
        """One optimizer step on this rank's share of a batch; gives and keeps what is to be logged, as tensors."""
        scheduled = self._set_schedules()
        # For dropout; everything else that is random has a generator of its own.
        torch.manual_seed(derive_seed(self.step_seed, "step", self.step, *([self.rank] if self.rank else [])))
        self.model.train()
        logs = self.logs_at(self.step + 1)
        with collapse.watching(self):
            values = self.forward_backward(batch)
        self.parallel.check_gradients()
        self.precision.scaler.unscale_(self.optimizer)
        values |= self._gradient_norms() if logs else {}
        values["grad_norm"] = full_scalar(clip_gradients(self.model, self.grad_clip_norm, self.grad_clip_value))
        ratio = UpdateRatio(self.model)
        if logs:
            ratio.keep()
        if self._may_step(values):
            self.precision.scaler.step(self.optimizer)
            self.precision.scaler.update()
            scheduled |= self.model.update_target(self.step, self.run_length)
        else:
            self.precision.skip_step()
        if logs:
            values["update_ratio"] = ratio.read()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.meter.count(self.data.batch_size)
        self._last = {**values, **scheduled}
        return self._last

    def forward_backward(self, batch: Batch) -> dict[str, Tensor]:
        """Gradients of the batch, accumulated over micro-batches; gives this rank's mean of what the steps gave."""
        share, size = self.data.batch_size // self.world_size, self.micro_batch_size
        sums: dict[str, Tensor] = {}
        for start in range(0, share, size):
            part = batch_slice(batch, slice(start, start + size))
            first = self.rank * share + start
            rng = StepRandomness(
                seed=self.step_seed, step=self.step, total=self.data.batch_size, start=first, count=size
            )
            with self.parallel.synchronised(last=start + size == share):
                with self.precision.autocast():
                    outputs = self.parallel(self.training_step, self.prepared(part, rng), self.step)
                outputs = outputs if isinstance(outputs, Mapping) else {"loss": outputs}
                self.precision.scaler.scale(outputs["loss"] * (size / share)).backward()
            for name, value in outputs.items():
                value = torch.as_tensor(value, device=self.device).detach().float() * (size / share)
                sums[f"train/{name}"] = sums[f"train/{name}"] + value if f"train/{name}" in sums else value
        return sums

    def prepared(self, batch: Batch, rng: StepRandomness) -> Batch:
        """A batch on the device with the random choices of a draw made by the model."""
        return {**self.model.prepare(to_device(batch, self.device), rng), "rng": rng}

    def _set_schedules(self) -> dict[str, float]:
        """Put the learning rate, weight decay and loss weights of this update in force."""
        update = self.step + 1
        values = {name: schedule(update, self.run_length) for name, schedule in self.scheduler.items()}
        values["lr"] *= self.rate_factor
        for group in self.optimizer.param_groups:
            group["lr"] = values["lr"]
            if group.get("decays") and "weight_decay" in values:
                group["weight_decay"] = values["weight_decay"]
        return values | self.model.set_step(self.step, self.run_length)

    def _gradient_norms(self) -> dict[str, Tensor]:
        return module_norms(self.model) | (parameter_norms(self.model) if self.log_gradients else {})

    def _may_step(self, values: Mapping[str, Tensor]) -> bool:
        """Whether all ranks may take the step; they also agree here on stopping and on saving by the clock.

        Raises NonFiniteError where they may not and fp16 does not explain it.
        """
        bad = torch.stack([~torch.isfinite(values["train/loss"]), ~torch.isfinite(values["grad_norm"])])
        late = self.save_every_minutes and time.monotonic() - self.saved_at >= 60 * self.save_every_minutes
        asked = bad.new_tensor([self.stop_request.number or 0, bool(late) and is_rank0()], dtype=torch.float32)
        loss_bad, norm_bad, signal, late = all_reduce_max(torch.cat([bad.float(), asked])).tolist()
        self.signal, self.save_asked = int(signal), bool(late)
        if not (loss_bad or norm_bad):
            self._skipped = 0
            return True
        self._skipped += 1
        if self.precision.name == "fp16" and not loss_bad and self._skipped <= MOST_SKIPPED:
            return False
        shown = ", ".join(
            f"{name}={value:.4g}" for name, value in to_floats(values).items() if not name.startswith("grad_norm/")
        )
        raise NonFiniteError(
            f"not finite at step {self.step + 1}: {shown}. The weights were not changed by it. Lower optimizer.lr, "
            "lengthen the warm-up, set trainer.grad_clip_norm=1, or use trainer.precision=fp32 to find the cause"
        )

    # What is due after a step.

    def _after_step(self) -> None:
        """Log, validate, evaluate and save what is due after this step.

        A run that stops only saves, and does the rest when it is resumed.
        """
        fresh: dict[str, float] = {}
        self.saver.poll()
        for logger in self.loggers.values():
            logger.advance(self.step)
        fresh |= self._log_step()
        self._tell_callbacks("step_end")
        if self.signal and self.going_back is not None:
            collapse.go_back(self)  # saves what it has gone back to
            self.saver.wait()
        elif self.signal:
            self.pending = True
            self.save_checkpoint()
            self.saver.wait()
        elif self.going_back is None:
            measure_and_save(self, fresh)

    def _log_step(self) -> Mapping[str, float]:
        """Log what is due of this step, its own values and what the monitor has seen, as one; gives it."""
        logs, watched = self.logs_at(self.step), collapse.watched(self, self.step)
        if not (logs or watched):
            return {}
        values = self._reduced(self._last)
        metrics = {**values, **slowest_of_ranks(self.meter.read(), self.device)} if logs else {}
        if watched:
            metrics |= collapse.measure(self, values)
        if logs:
            self.folder.tell_progress(**self.progress(), samples_per_second=metrics["samples_per_second"])
        if self.step == self.run_length.max_steps:
            metrics |= self.costs()
        return self.log(metrics)

    def progress(self) -> dict[str, Any]:
        """Where the run is, for its status."""
        where = {"step": self.step, "max_steps": self.run_length.max_steps}
        return {**where, "train_seconds": self.train_seconds, "verdict": self.verdict}

    @property
    def verdict(self) -> str | None:
        """The collapse monitor's verdict, such as "healthy"; None without a monitor."""
        return None if self.monitor is None else self.monitor.verdict.name

    def costs(self) -> dict[str, float]:
        """What the run has cost so far, over all restarts, for whoever weighs accuracy against it.

        `cost/seconds` of training steps, waiting for data included and measuring left out; `cost/samples` trained on;
        `cost/parameters` that are trained.
        """
        parameters = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        samples = float(self.step * self.data.batch_size)
        seconds = broadcast_from_rank0(lambda: self.train_seconds)
        return {"cost/seconds": seconds, "cost/samples": samples, "cost/parameters": float(parameters)}

    def logs_at(self, step: int) -> bool:
        """Whether the values of the step that ends at this count are logged."""
        return due(step, self.log_every) or step in (1, self.run_length.max_steps)

    def validate(self) -> float:
        """Mean loss on the held-out split, with masks that are the same every time."""
        loss = validation_loss(self, self.limit_val_batches)
        self.meter.restart()
        return loss

    # Files and words.

    def state(self) -> dict[str, Any]:
        """Everything a checkpoint holds. Every rank calls this; sharded tensors are gathered for the plain format."""
        state = state_of(self)
        return state if self.saver.kind == "sharded" else gather_full_tensors(state)

    def save_checkpoint(self, path: str | Path | None = None, include_optimizer: bool = True) -> None:
        """Write a checkpoint; without a path to the run folder's last. Raises CheckpointError if it cannot.

        A path gets the plain format, without the optimizer's state if so asked.
        """
        if path is None:
            self.saver.save(self.state(), ["last"], [])
            return
        state = gather_full_tensors(state_of(self))
        if not include_optimizer:
            state |= {"optimizer": None, "scaler": None}
        broadcast_from_rank0(lambda: checkpoint.write(Path(path), state))

    def load_checkpoint(self, path: str | Path, load_optimizer: bool = True) -> None:
        """Take weights, step and, unless told not to, optimizer state from a checkpoint or run folder.

        Either format loads on any number of ranks. Raises CheckpointError when it cannot be read or does not fit; the
        model is untouched then.
        """
        restore(self, locate(path), load_optimizer)

    def log(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        self.metrics.update(metrics)
        for logger in self.loggers.values():
            logger.log({"epoch": self.run_length.epoch(self.step), **metrics}, self.step)
        self._tell_callbacks("measured", metrics)
        return metrics

    def _reduced(self, values: Mapping[str, Tensor | float]) -> dict[str, float]:
        """Values as floats, those of the training step as the mean over ranks."""
        names = [name for name in values if name.startswith("train/")]
        means = all_reduce_sum(torch.stack([values[name] for name in names])) / self.world_size
        return to_floats({**values, **dict(zip(names, means))})

    def say(self, text: Any) -> None:
        """Show something to a person, on rank 0."""
        for logger in self.loggers.values():
            logger.message(text)

    def in_words(self) -> list[str]:
        """How much is trained on how much, where and in what parts."""
        millions = sum(p.numel() for p in self.model.parameters() if p.requires_grad) / 1e6
        size, share = self.micro_batch_size, self.data.batch_size // self.world_size
        parts = [f"{self.world_size} ranks"] * (self.world_size > 1) + [f"{share // size} x {size}"] * (size < share)
        split = f" ({' of '.join(parts)})" if parts else ""
        how = f" with {self.parallel.name.upper()}" if self.parallel.name != "single" else ""
        return [
            f"{millions:.2f} M trainable parameters, {self.data.spec.num_train:,} training samples, "
            f"{self.run_length.max_steps:,} steps of {self.data.batch_size}{split} on {self.device.type}{how} in "
            f"{self.precision.name}"
        ]

    def _say_what_is_missing(self) -> None:
        """Tell of a metric that decides what to keep and never came, as after a typo."""
        validated = self.validate_every is not None and self.validate_every <= self.step
        due = validated if self.best.metric == "val/loss" else True
        if self.best.k and due and self.best.metric not in self.metrics:
            self.say(
                f"no best checkpoint was kept, as trainer.best_metric={self.best.metric} was not among the metrics: "
                f"{', '.join(sorted(self.metrics))}"
            )

    def _announce(self, start: str) -> None:
        for line in (start, *self.in_words(), *(self.plan(self.run_length) if self.plan else ())):
            self.say(line)
        if self.strategy != "auto" and self.world_size == 1:
            self.say(
                f"trainer.strategy={self.strategy} does nothing in a single process: start several, as by "
                "torchrun --nproc_per_node=2 train.py ..."
            )
