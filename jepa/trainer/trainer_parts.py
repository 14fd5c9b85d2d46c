"""What a trainer is made of, from flat settings to the parts that the loop uses, and what callbacks may ask of it."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from jepa.distributed.parallel import Parallel, StrategyName, change_layers
from jepa.trainer.checkpoints import BestCheckpoints, Checkpoints
from jepa.trainer.loggers import Logger, RunLog
from jepa.trainer.precision import Precision, prepare_device
from jepa.trainer.run_folder import RunFolder
from jepa.trainer.run_state import RunState
from jepa.trainer.settings import (
    check_clipping,
    check_positive,
    check_processes,
    due,
    find_micro_batch_size,
    make_intervals,
    make_run_length,
)
from jepa.trainer.step_metrics import StepGuard, StepMeter
from jepa.types import Schedule, StepRandomness
from jepa.utils.errors import Interrupted, UserError
from jepa.utils.signals import StopRequest


@dataclass(kw_only=True, eq=False, repr=False)
class TrainerParts:
    """The settings of a trainer, set as `trainer.<name>`, and the parts made of them; `Trainer` adds loop and step.

    Raises UserError for settings that contradict each other, before any data is read.
    """

    # What is trained and watched, made from the other sections of the configuration.
    model: nn.Module  # see `jepa.models.JEPA`
    data: Any  # has `batch_size` (global), `spec`, `train_batches(...)`, `validation_batches(...)`
    optimizer: torch.optim.Optimizer  # over the model's parameters; groups with `decays` follow the weight decay
    scheduler: Mapping[str, Schedule]  # `lr` and `weight_decay`, called with the number of updates made before
    loggers: Mapping[str, Logger] | None = None  # by name, on rank 0
    callbacks: Mapping[str, Any] | None = None  # by name, on every rank
    evaluation: Any | None = None  # see `jepa.evaluation.FrozenEvaluation`
    visualise: Any | None = None  # draws features, see `jepa.visualise.FeaturePictures`
    monitor: Any | None = None  # looks at latents and judges the run, see `jepa.monitor.CollapseMonitor`
    random_init: Callable[[], nn.Module] | None = None  # makes an untrained model, for evaluation to compare with
    plan: Callable[[Any], Sequence[str]] | None = None  # sentences about the run to show before it
    preview: Callable[[Any], None] | None = None  # shows the whole run where dry_run is set

    # The run.
    run_dir: str | Path
    config: Mapping[str, Any] | None = None  # resolved, kept in checkpoints and the run folder, not read here
    # None starts afresh and refuses a folder that holds a checkpoint; "auto" continues from it if there is one; a path
    # continues from there.
    resume: str | None = None
    seed: int = 0
    dry_run: bool = False  # show what would run, and train nothing

    # Its length: the first of these three that is given.
    max_steps: int | None = None
    max_samples: int | None = None
    max_epochs: float | None = 100
    limit_train_batches: int | None = None  # cut an epoch short, or the validation
    limit_val_batches: int | None = None

    # Devices. Other numbers of machines and processes on each than those started are refused; None takes what there is.
    device: str = "auto"
    nodes: int | None = None
    devices: int | None = None
    strategy: StrategyName = "auto"  # see `jepa.distributed.parallel.Parallel`
    backend: Literal["nccl", "gloo"] | None = None  # see `jepa.distributed.collectives`
    timeout_seconds: float = TIMEOUT_SECONDS
    find_unused_parameters: bool | None = None  # None: where training_step is overridden

    # Computing: see `jepa.trainer.precision.Precision`, and `jepa.distributed.parallel.change_layers` for the last two.
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    attention: Literal["auto", "flash", "efficient", "math"] = "auto"
    tf32: bool = False
    deterministic: bool = False
    detect_anomaly: bool = False
    activation_checkpointing: bool = False
    compile: bool | str = False  # or a backend of torch

    # The step.
    micro_batch_size: int | None = None  # samples per forward pass on a device; None: each rank's share of the batch
    allow_microbatch_statistics: bool = False
    grad_clip_norm: float | None = None
    grad_clip_value: float | None = None
    grad_clip_apart: Sequence[str] | None = None  # modules clipped each by itself, the others together

    # Periods, of which those in steps win.
    log_every: int = 10
    log_gradients: bool = False  # also the norm of every parameter's gradient
    validate_every_epochs: float | None = 1
    validate_every_steps: int | None = None
    profile: bool = False  # trace some steps, see `jepa.trainer.profile`

    # Checkpoints, see `jepa.checkpoint.saver.Saver`.
    checkpoint_dir: str | None = None  # None: `checkpoints` in the run folder
    checkpoint_format: Format = "plain"
    async_save: bool = False
    save_every_epochs: float | None = 1
    save_every_steps: int | None = None
    save_every_minutes: float | None = None  # by the clock of rank 0
    snapshot_every_epochs: float | None = None
    snapshot_every_steps: int | None = None
    best_k: int = 1  # which to keep beside the last
    best_metric: str = "val/loss"
    best_mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        """Make the parts; `device`, `precision` and `micro_batch_size` are then what the settings come to."""
        self.device = prepare_device(self.device)
        init_process_group(self.device, self.backend, self.timeout_seconds)
        self.rank, self.world_size = get_rank(), get_world_size()
        check_positive(self)
        check_clipping(self)
        if not self.dry_run:
            check_processes(self.nodes, self.devices, self.world_size)
        self.loggers = dict(self.loggers or {}) if is_rank0() else {}
        self.callbacks = dict(self.callbacks or {})
        self.precision = Precision(
            self.precision,
            self.device,
            attention=self.attention,
            tf32=self.tf32,
            deterministic=self.deterministic,
            detect_anomaly=self.detect_anomaly,
        )
        self.run_length = make_run_length(self)
        self.micro_batch_size = find_micro_batch_size(self)
        self.every = make_intervals(self)
        self._rng: StepRandomness | None = None  # of the micro-batch under way
        self.state, self.meter, self.signals = RunState(), StepMeter(self.device), StopRequest()
        self.guard = StepGuard()
        self._make_files()
        self._place_model()

    def _make_files(self) -> None:
        """Make what writes: the run folder, the log and the checkpoints."""
        run_dir = Path(broadcast_from_rank0(lambda: str(self.run_dir)))
        folder = Path(self.checkpoint_dir) if self.checkpoint_dir else run_dir / "checkpoints"
        saver = Saver(folder, kind=self.checkpoint_format, asynchronous=self.async_save)
        self.folder = RunFolder(run_dir, dict(self.config or {}), self.resume, saver)
        self.run_log = RunLog(self)
        self.checkpoints = Checkpoints(self, saver, BestCheckpoints(self.best_k, self.best_metric, self.best_mode))

    def _place_model(self) -> None:
        """Move the model to the device, change its layers as asked for, and wrap it for several processes."""
        self.model.to(self.device)
        if self.device.type == "cuda" and hasattr(self.data, "finish_on"):
            self.data.finish_on = self.device
        self.precision.choose_attention(self.model)
        change_layers(self.model, activation_checkpointing=self.activation_checkpointing, compile=self.compile)
        unused = self.find_unused_parameters
        self.parallel = Parallel(
            self.strategy,
            self.model,
            self.optimizer,
            device=self.device,
            find_unused=self.overrides("training_step") if unused is None else unused,
            dtype=self.precision.dtype,
            wrap=not self.dry_run,
        )

    @classmethod
    def overrides(cls, *names: str) -> bool:
        """Return whether a user's subclass has a method of its own for any of these names."""
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
        return self.step == self.run_length.max_steps or self.state.stop_reason is not None

    @property
    def verdict(self) -> str | None:
        """The collapse monitor's verdict, such as "healthy"; None without a monitor."""
        return None if self.monitor is None else self.monitor.verdict.name

    @property
    def goes_back(self) -> bool:
        """Whether the run keeps healthy checkpoints, to roll back to."""
        return self.monitor is not None and self.monitor.on_collapse == "rollback"

    @property
    def step_seed(self) -> int:
        """What batches, masks and dropout are drawn by: the seed, and another one after each rollback."""
        return self.seed + len(self.state.rollbacks)

    def logs_at(self, step: int) -> bool:
        """Return whether the values of the step with this number, from 1, are logged."""
        return due(step, self.every.log) or step in (1, self.run_length.max_steps)

    def watches_at(self, step: int) -> bool:
        """Return whether the collapse monitor looks at the step with this number, from 1."""
        return self.monitor is not None and self.monitor.due(step, self.run_length)

    def lags_at(self, step: int) -> bool:
        """Return whether the step with this number may go unread until the next one: nobody looks at what it leaves.

        That the device skips what is not finite takes an optimizer and a target that do so.
        """
        able = self.guard.may_lag and self.device.type == "cuda" and self.precision.name != "fp16"
        able = able and getattr(self.optimizer, "_step_supports_amp_scaling", False)  # a fused one of torch
        if not (able and getattr(self.model, "skips_updates", False)):
            return False
        drawn = self.visualise is not None and self.visualise.due(step, self.run_length)
        measured = any(due(step, every) for every in dataclasses.astuple(self.every))
        return not (self.callbacks or drawn or measured or self.logs_at(step) or self.watches_at(step))

    def describe(self) -> list[str]:
        """Return sentences on what is trained on how much, where, in what parts, and at which rates."""
        millions = sum(p.numel() for p in self.model.parameters() if p.requires_grad) / 1e6
        size, share = self.micro_batch_size, self.data.batch_size // self.world_size
        parts = [f"{self.world_size} ranks"] * (self.world_size > 1) + [f"{share // size} x {size}"] * (size < share)
        split = f" ({' of '.join(parts)})" if parts else ""
        how = f" with {self.parallel.name.upper()}" if self.parallel.name != "single" else ""
        lines = [
            f"{millions:.2f} M trainable parameters, {self.data.spec.num_train:,} training samples, "
            f"{self.run_length.max_steps:,} steps of {self.data.batch_size}{split} on {self.device.type}{how} in "
            f"{self.precision.name}",
            *(self.plan(self.run_length) if self.plan else ()),
        ]
        if self.strategy != "auto" and self.world_size == 1:
            lines.append(
                f"trainer.strategy={self.strategy} does nothing in a single process: start several, as by "
                "torchrun --nproc_per_node=2 train.py ..."
            )
        return lines

    def interrupted(self, number: int, what: str = "stopped", *, agreed: bool = True) -> Interrupted:
        """Return what ends the run for a signal, at a step whose checkpoint has been saved; see `Interrupted`."""
        return Interrupted(
            f"{what} at step {self.step} of {self.run_length.max_steps} by {signal.Signals(number).name}; the "
            f"checkpoint is {self.folder.last}; go on with resume={self.folder.path}",
            number,
            agreed=agreed,
        )

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
        alike, and so does the loop at a step that is not finite. A checkpoint is healthy where the monitor found the
        run sound when it was saved; they are kept with monitor.on_collapse=rollback, the first one from before
        training. Raises UserError without that.
        """
        if not self.goes_back:
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
        """Write a checkpoint, to a path in the plain format, else as the run folder's last.

        Raises CheckpointError if it cannot.
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

    def train(self) -> dict[str, float]:
        """Return `self.fit()`, by the name that guides use. A trainer has no modes as modules have."""
        return self.fit()
