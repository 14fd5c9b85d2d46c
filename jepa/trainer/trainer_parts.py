"""What a trainer is made of, from flat settings to the parts that the loop uses, and what callbacks may ask of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from jepa.checkpoint.load import locate
from jepa.checkpoint.saver import Format, Saver
from jepa.distributed.collectives import (
    TIMEOUT_SECONDS,
    broadcast_from_rank0,
    get_rank,
    get_world_size,
    init_process_group,
    is_rank0,
)
from jepa.distributed.layers import change_layers
from jepa.distributed.parallel import Parallel, StrategyName
from jepa.trainer.best import BestCheckpoints
from jepa.trainer.checkpoints import Checkpoints
from jepa.trainer.collapse import CollapseWatch
from jepa.trainer.intervals import make_intervals
from jepa.trainer.loggers import Logger
from jepa.trainer.measurements import Measurements
from jepa.trainer.precision import Precision, prepare_device
from jepa.trainer.run_folder import RunFolder
from jepa.trainer.run_log import RunLog
from jepa.trainer.run_state import RunState
from jepa.trainer.settings import (
    check_micro_batch_size,
    check_positive,
    check_processes,
    check_statistics,
    make_run_length,
)
from jepa.trainer.step_metrics import StepMeter
from jepa.types import Schedule, StepRandomness
from jepa.utils.errors import UserError
from jepa.utils.signals import StopRequest


class TrainerParts:
    """The parts of a trainer and its state; `Trainer` adds the loop and the step.

    model: see `jepa.models.JEPA`: its `training_step(batch, rng)` gives the losses; `set_step(step, run_length)` and
        `update_target(step, run_length)` put schedules in force and move the target.
    data: has `batch_size` (global), `spec`, `train_batches(...)`, `validation_batches(...)`.
    optimizer: built over the model's parameters; groups with `decays` follow the weight-decay schedule.
    scheduler: schedules `lr` and `weight_decay`, called with the number of updates made before, as all schedules are.
    loggers, callbacks: by name, `jepa.trainer.Logger` and `Callback`; loggers act on rank 0, callbacks on every rank.
    evaluation: called as (model, data, random_init=, device=, seed=) and gives {network: {probe: value}}; has
        `every_epochs`, `every_steps`, `at_end` and `table(results)`. None for no evaluation.
    monitor: looks at the latents of some steps and judges the run; see `jepa.monitor.CollapseMonitor`. None for none.
    random_init: makes an untrained model of the same kind, for evaluation to compare with.
    plan, preview: sentences about the run to show before it; what shows the whole run where dry_run is set.
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
        callbacks: Mapping[str, Any] | None = None,
        evaluation: Any | None = None,
        monitor: Any | None = None,
        random_init: Callable[[], nn.Module] | None = None,
        plan: Callable[[Any], Sequence[str]] | None = None,
        preview: Callable[[Any], None] | None = None,
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
        self.device = prepare_device(device)
        init_process_group(self.device, backend, timeout_seconds)
        self.rank, self.world_size = get_rank(), get_world_size()
        check_processes(nodes, devices, self.world_size if not dry_run else None)
        self.model, self.data, self.optimizer, self.scheduler = model, data, optimizer, scheduler
        self.loggers, self.callbacks = dict(loggers or {}) if is_rank0() else {}, dict(callbacks or {})
        self.evaluation = evaluation
        self.seed, self.limit_val_batches, self._profiles = seed, limit_val_batches, profile and is_rank0()
        self._plan, self._preview = plan, preview if dry_run else None
        self._grad_clip = (grad_clip_norm, grad_clip_value)
        self._log_gradients, self._strategy = log_gradients, strategy
        kernels = {"tf32": tf32, "deterministic": deterministic, "detect_anomaly": detect_anomaly}
        self.precision = Precision(precision, self.device, attention=attention, **kernels)
        self.run_length = make_run_length(
            max_epochs,
            max_steps,
            max_samples,
            num_train=data.spec.num_train,
            batch_size=data.batch_size,
            limit_train_batches=limit_train_batches,
        )
        self.micro_batch_size = check_micro_batch_size(micro_batch_size, data.batch_size, self.world_size)
        accumulates = self.micro_batch_size < data.batch_size // self.world_size
        check_statistics(model.loss, accumulates, allow_microbatch_statistics)
        check_positive(
            grad_clip_norm=grad_clip_norm,
            grad_clip_value=grad_clip_value,
            log_every=log_every,
            limit_val_batches=limit_val_batches,
            save_every_minutes=save_every_minutes,
            timeout_seconds=timeout_seconds,
        )
        self.every = make_intervals(
            self.run_length,
            evaluation,
            log_every,
            validate=(validate_every_epochs, validate_every_steps),
            save=(save_every_epochs, save_every_steps),
            snapshot=(snapshot_every_epochs, snapshot_every_steps),
        )
        run_dir = Path(broadcast_from_rank0(lambda: str(run_dir)))
        folder = Path(checkpoint_dir) if checkpoint_dir else run_dir / "checkpoints"
        saver = Saver(folder, kind=checkpoint_format, asynchronous=async_save)
        self.folder = RunFolder(run_dir, dict(config or {}), resume, saver)
        self._rng: StepRandomness | None = None  # of the micro-batch under way
        self.state, self.meter, self.signals = RunState(), StepMeter(self.device), StopRequest()
        self.collapse = CollapseWatch(monitor, self.run_length)
        of_run = {"state": self.state, "folder": self.folder, "monitor": monitor}
        self.run_log = RunLog(self.loggers, run_length=self.run_length, **of_run)
        self.checkpoints = Checkpoints(
            saver=saver,
            best=BestCheckpoints(k=best_k, metric=best_metric, mode=best_mode),
            every=self.every,
            every_minutes=save_every_minutes,
            model=model,
            optimizer=optimizer,
            precision=self.precision,
            callbacks=self.callbacks,
            loggers=self.loggers,
            **of_run,
        )
        model.to(self.device)
        self.precision.choose_attention(model)
        change_layers(model, activation_checkpointing=activation_checkpointing, compile=compile)
        self.parallel = Parallel(
            strategy,
            model,
            optimizer,
            device=self.device,
            find_unused=self.overrides("training_step") if find_unused_parameters is None else find_unused_parameters,
            dtype=self.precision.dtype,
            wrap=not dry_run,
        )
        self.measurements = Measurements(
            evaluation=evaluation,
            random_init=random_init,
            data=data,
            parallel=self.parallel,
            precision=self.precision,
            seed=seed,
            run_length=self.run_length,
            every=self.every,
            checkpoints=self.checkpoints,
            signals=self.signals,
            meter=self.meter,
            **of_run,
        )

    @classmethod
    def overrides(cls, *names: str) -> bool:
        """Whether a user's subclass has a method of its own for any of these names."""
        raise NotImplementedError

    # What callbacks may read.

    @property
    def step(self) -> int:
        """Optimizer steps made."""
        return self.state.step

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of each metric."""
        return self.state.metrics

    @property
    def ended(self) -> bool:
        """Whether the run is over, by its length or because `stop` was called."""
        return self.state.ended(self.run_length)

    @property
    def monitor(self) -> Any | None:
        """The collapse monitor; None without one."""
        return self.collapse.monitor

    @property
    def verdict(self) -> str | None:
        """The collapse monitor's verdict, such as "healthy"; None without a monitor."""
        return None if self.monitor is None else self.monitor.verdict.name

    @property
    def step_seed(self) -> int:
        """What batches, masks and dropout are drawn by: the seed, and another one after each rollback."""
        return self.seed + len(self.state.rollbacks)

    def describe(self) -> list[str]:
        """Return sentences on how much is trained on how much, where, in what parts, and at which rates."""
        millions = sum(p.numel() for p in self.model.parameters() if p.requires_grad) / 1e6
        size, share = self.micro_batch_size, self.data.batch_size // self.world_size
        parts = [f"{self.world_size} ranks"] * (self.world_size > 1) + [f"{share // size} x {size}"] * (size < share)
        split = f" ({' of '.join(parts)})" if parts else ""
        how = f" with {self.parallel.name.upper()}" if self.parallel.name != "single" else ""
        lines = [
            f"{millions:.2f} M trainable parameters, {self.data.spec.num_train:,} training samples, "
            f"{self.run_length.max_steps:,} steps of {self.data.batch_size}{split} on {self.device.type}{how} in "
            f"{self.precision.name}",
            *(self._plan(self.run_length) if self._plan else ()),
        ]
        if self._strategy != "auto" and self.world_size == 1:
            lines.append(
                f"trainer.strategy={self._strategy} does nothing in a single process: start several, as by "
                "torchrun --nproc_per_node=2 train.py ..."
            )
        return lines

    # What callbacks may ask for.

    def stop(self, reason: str) -> None:
        """End the run after this step as if it were the last: evaluated, saved, results written.

        For callbacks; it is enough that one rank asks for it.
        """
        self.state.stop_requested = reason

    def rollback(self, reason: str) -> None:
        """After this step, go back to the last healthy checkpoint and train on from there in another way.

        The learning rate is halved and the seed of what steps draw raised by one, both for the rest of the run and
        also when it is resumed. After `monitor.max_rollbacks` times the run stops instead. Every rank calls this
        alike. A checkpoint is healthy where the monitor found the run sound when it was saved; they are kept with
        monitor.on_collapse=rollback, the first one from before training. Raises UserError without that.
        """
        if self.monitor is None or self.monitor.on_collapse != "rollback":
            raise UserError(
                f"cannot go back from step {self.step} ({reason}): checkpoints to go back to are kept with "
                "monitor=collapse monitor.on_collapse=rollback alone"
            )
        rollbacks = len(self.state.rollbacks)
        if rollbacks < self.monitor.max_rollbacks:
            self.state.rollback_reason = reason
        else:
            self.state.stop_reason = self.state.stop_reason or f"{reason} (after {rollbacks} rollbacks)"

    def say(self, text: Any) -> None:
        """Show something to a person, on rank 0."""
        self.run_log.say(text)

    def save_checkpoint(self, path: str | Path | None = None, include_optimizer: bool = True) -> None:
        """Write a checkpoint; without a path to the run folder's last. Raises CheckpointError if it cannot.

        A path gets the plain format, without the optimizer's state if so asked.
        """
        if path is None:
            self.checkpoints.save()
        else:
            self.checkpoints.write(Path(path), include_optimizer)

    def load_checkpoint(self, path: str | Path, load_optimizer: bool = True) -> None:
        """Take weights, step and, unless told not to, optimizer state from a checkpoint or run folder.

        Either format loads on any number of ranks. Raises CheckpointError when it cannot be read or does not fit; the
        model is untouched then.
        """
        self.checkpoints.load(locate(path), load_optimizer)
