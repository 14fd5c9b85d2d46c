"""The training loop: owns time, devices, optimisation and files; knows nothing of masks, targets or modalities.

The step is the only clock: rates, sample order, augmentation and masks are functions of (seed, step), so a
checkpoint is weights, optimizer state and the step, and a resumed run equals one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jepa.trainer import checkpoint
from jepa.trainer.best import BestCheckpoints
from jepa.trainer.due import due, period
from jepa.trainer.loggers import Logger
from jepa.trainer.measure import StepMeter, to_floats
from jepa.trainer.precision import Precision, clip_gradients, resolve_device
from jepa.trainer.run_folder import RunFolder
from jepa.trainer.signals import StopRequest
from jepa.types import Batch, Draw, Horizon, Schedule
from jepa.utils.errors import Interrupted, NonFiniteError, UserError
from jepa.utils.memory import keep_freed_memory
from jepa.utils.random import derive_seed
from jepa.utils.weights import check_state, load_state, locate

MOST_SKIPPED = 20
"""fp16 steps in a row that may be skipped for overflow before the run stops."""


class Trainer:
    """Trains a model on data. Override `training_step` for a method of your own.

    model: has `loss`, `prepare(batch, draw)`, `forward(batch)`, `update_target(step, horizon)`.
    data: has `batch_size` (global), `spec`, `train_batches(...)`, `validation_batches(...)`.
    optimizer: built over the model's parameters; groups with `decays` follow the weight-decay schedule.
    scheduler: schedules `lr` and `weight_decay`, called at the number of the update, from 1.
    evaluation: called as (model, data, random_init=, device=, seed=) and gives {network: {probe: value}}; has
        `every_epochs`, `every_steps`, `at_end` and `table(results)`. None for no evaluation.
    random_init: makes an untrained model of the same kind, for evaluation to compare with.
    max_steps, max_epochs: the length of the run; max_steps wins where both are given.
    micro_batch_size: samples per forward pass; None takes the whole batch at once.
    best_metric, best_mode, best_k: which checkpoints to keep beside the last.
    dry_run: only show what would run; train.py looks at it.
    resume: None starts afresh and refuses a folder that holds a checkpoint; "auto" continues from it if there is
        one; a path continues from there. Stated at the start.
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
        loggers: list[Logger],
        run_dir: str | Path,
        evaluation: Any | None = None,
        random_init: Callable[[], nn.Module] | None = None,
        config: Mapping[str, Any] | None = None,
        resume: str | None = None,
        seed: int = 0,
        device: str = "auto",
        precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
        max_epochs: float | None = 100,
        max_steps: int | None = None,
        micro_batch_size: int | None = None,
        allow_microbatch_statistics: bool = False,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        log_every: int = 10,
        validate_every_epochs: float | None = None,
        validate_every_steps: int | None = None,
        save_every_epochs: float | None = 1,
        save_every_steps: int | None = None,
        snapshot_every_epochs: float | None = None,
        snapshot_every_steps: int | None = None,
        best_k: int = 1,
        best_metric: str = "val/loss",
        best_mode: Literal["min", "max"] = "min",
        dry_run: bool = False,
    ) -> None:
        self.device = resolve_device(device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.model = model.to(self.device)
        self.data = data
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.evaluation = evaluation
        self.random_init = random_init
        self.loggers = loggers
        self.folder = RunFolder(Path(run_dir), dict(config or {}), resume)
        self.precision = Precision(precision, self.device)
        self.precision.choose_attention(self.model)
        self.seed = seed
        self.grad_clip_norm, self.grad_clip_value = grad_clip_norm, grad_clip_value
        self.horizon = make_horizon(max_epochs, max_steps, data.spec.num_train / data.batch_size)
        self.micro_batch_size = check_micro_batch_size(micro_batch_size, data.batch_size)
        statistics = getattr(model.loss, "batch_statistics", False)
        if self.micro_batch_size < data.batch_size and statistics and not allow_microbatch_statistics:
            raise UserError(
                f"trainer.micro_batch_size={micro_batch_size}: the loss looks at statistics of the whole batch "
                f"({', '.join(model.loss.term_names)}), which micro-batches do not add up to: leave it unset, or take "
                "statistics of micro-batches with trainer.allow_microbatch_statistics=true"
            )
        for name, value in (("grad_clip_norm", grad_clip_norm), ("grad_clip_value", grad_clip_value)):
            if value is not None and value <= 0:
                raise UserError(f"trainer.{name}={value}: expected a value above 0, or null for no clipping")
        if log_every < 1:
            raise UserError(f"trainer.log_every must be at least 1, got {log_every}")
        self.log_every = log_every
        self.validate_every = period("validate", validate_every_epochs, validate_every_steps, self.horizon)
        self.save_every = period("save", save_every_epochs, save_every_steps, self.horizon)
        self.snapshot_every = period("snapshot", snapshot_every_epochs, snapshot_every_steps, self.horizon)
        self.evaluate_every = None
        if evaluation is not None:
            every = (evaluation.every_epochs, evaluation.every_steps)
            self.evaluate_every = period("evaluation", *every, self.horizon)
        self.best = BestCheckpoints(k=best_k, metric=best_metric, mode=best_mode)
        self.dry_run = dry_run
        self.step = 0
        self.metrics: dict[str, float] = {}
        self._results: dict[str, dict[str, float]] = {}
        self._pending = False  # whether what was due at this step is still to be done
        self._meter = StepMeter(self.device)
        self._skipped = 0

    # What a user's own method overrides and calls.

    @property
    def criterion(self) -> nn.Module:
        """The loss: latents to {"loss": ..., "loss/<term>": ...}."""
        return self.model.loss

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor] | Tensor:
        """The loss of a batch: a scalar, or a dict with "loss" and whatever else is to be logged."""
        batch = self.prepare_batch(batch)
        latents = self.model(batch)
        return {**self.criterion(latents), **(latents.statistics() if self._logs(step + 1) else {})}

    def prepare_batch(self, batch: Batch) -> Batch:
        """The batch on the device, with the random choices of this step (masks) drawn by the model.

        A batch that has been prepared is returned as it is.
        """
        if "draw" in batch:
            return batch
        count = next(value for value in batch.values() if isinstance(value, Tensor)).shape[0]
        return self._prepare(batch, Draw(seed=self.seed, step=self.step, total=count, start=0, count=count))

    # The loop.

    def fit(self) -> dict[str, float]:
        """Train to the end, evaluate, and give the last value of every metric."""
        start = self.folder.begin(self)
        if self.step > 0:
            self._remember()
        if self.step == self.horizon.max_steps and not self._pending:
            return self._end_again(start)
        if self._pending:
            self.folder.drop_measurements(self.step)
        for logger in self.loggers:
            logger.open(self.folder.path, self.step, self.horizon)
        try:
            self._announce(start)
            with StopRequest() as stop, closing(self._batches()) as batches:
                if self._pending:
                    self._measure_and_save()
                self._meter.restart()
                for batch in batches:
                    self.train_step(batch)
                    stopping = stop.number is not None  # a signal from here on waits for the next step
                    self._after_step(stopping)
                    if stopping:
                        raise Interrupted(
                            f"stopped at step {self.step} of {self.horizon.max_steps}; the checkpoint is "
                            f"{self.folder.last}; go on with resume={self.folder.path}",
                            stop.number,
                        )
            if stop.number is not None:  # came after the last step: the run is whole, a sweep ends
                raise Interrupted(f"the run in {self.folder.path} has ended, what follows is left out", stop.number)
        finally:
            for logger in self.loggers:
                logger.close()
        return self.metrics

    def _end_again(self, start: str) -> dict[str, float]:
        """The metrics of a run that had ended before."""
        self.say(f"{start}: the run has ended, nothing is left to do")
        return self.metrics

    def _remember(self) -> None:
        """Take up the last values and results of the run that goes on."""
        self.metrics = self.folder.read_metrics(self.step)
        for name, value in self.metrics.items():
            if name.startswith("eval/"):
                _, row, probe = name.split("/", 2)
                self._results.setdefault(row, {})[probe] = value

    def _batches(self) -> Iterator[Batch]:
        """The batches still to come, each timed for how long it was waited for."""
        batches = self.data.train_batches(seed=self.seed, start_step=self.step, stop_step=self.horizon.max_steps)
        return self._meter.waiting_for(batches)

    def train_step(self, batch: Batch) -> dict[str, Any]:
        """One optimizer step on a global batch; gives its values, losses as tensors."""
        scheduled = self._set_schedules()
        # For dropout; everything else that is random has a generator of its own.
        torch.manual_seed(derive_seed(self.seed, "step", self.step))
        self.model.train()
        values = self.forward_backward(batch)
        self.precision.scaler.unscale_(self.optimizer)
        values["grad_norm"] = clip_gradients(self.model, self.grad_clip_norm, self.grad_clip_value)
        if not self._is_finite(values):
            self.precision.scaler.update()
        else:
            self.precision.scaler.step(self.optimizer)
            self.precision.scaler.update()
            scheduled |= self.model.update_target(self.step, self.horizon)
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._meter.count(self.data.batch_size)
        self._last = {**values, **scheduled}
        return self._last

    def forward_backward(self, batch: Batch) -> dict[str, Tensor]:
        """Gradients of the batch, accumulated over micro-batches; gives the mean of what the steps gave."""
        total, size = self.data.batch_size, self.micro_batch_size
        sums: dict[str, Tensor] = {}
        for start in range(0, total, size):
            part = {name: value[start : start + size] for name, value in batch.items()}
            draw = Draw(seed=self.seed, step=self.step, total=total, start=start, count=size)
            with self.precision.autocast():
                outputs = self.training_step(self._prepare(part, draw), self.step)
            outputs = outputs if isinstance(outputs, Mapping) else {"loss": outputs}
            self.precision.scaler.scale(outputs["loss"] * (size / total)).backward()
            for name, value in outputs.items():
                value = torch.as_tensor(value).detach().float() * (size / total)
                sums[f"train/{name}"] = sums[f"train/{name}"] + value if f"train/{name}" in sums else value
        return sums

    def _prepare(self, batch: Batch, draw: Draw) -> Batch:
        on_device = {
            name: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }
        return {**self.model.prepare(on_device, draw), "draw": draw}

    def _set_schedules(self) -> dict[str, float]:
        """Put the learning rate and weight decay of this update into the optimizer."""
        update = self.step + 1
        values = {name: schedule(update, self.horizon) for name, schedule in self.scheduler.items()}
        for group in self.optimizer.param_groups:
            group["lr"] = values["lr"]
            if group.get("decays") and "weight_decay" in values:
                group["weight_decay"] = values["weight_decay"]
        return values

    def _is_finite(self, values: Mapping[str, Tensor]) -> bool:
        """Whether the step may be taken. Raises NonFiniteError where it may not and fp16 does not explain it."""
        if bool(torch.isfinite(values["grad_norm"]) & torch.isfinite(values["train/loss"])):
            self._skipped = 0
            return True
        self._skipped += 1
        overflow = self.precision.name == "fp16" and bool(torch.isfinite(values["train/loss"]))
        if overflow and self._skipped <= MOST_SKIPPED:
            return False
        shown = ", ".join(f"{name}={value:.4g}" for name, value in to_floats(values).items())
        raise NonFiniteError(
            f"not finite at step {self.step + 1}: {shown}. The weights were not changed by it. Lower optimizer.lr, "
            "lengthen the warm-up, set trainer.grad_clip_norm=1, or use trainer.precision=fp32 to find the cause"
        )

    def _after_step(self, stopping: bool) -> None:
        """Log, validate, evaluate and save what is due after this step.

        A run that stops only saves, and does the rest when it is resumed.
        """
        fresh: dict[str, float] = {}
        for logger in self.loggers:
            logger.advance(self.step)
        if self._logs(self.step):
            fresh |= self._log({**to_floats(self._last), **self._meter.read()})
        self._pending = stopping
        if stopping:
            self.save_checkpoint(self.folder.last)
        else:
            self._measure_and_save(fresh)

    def _measure_and_save(self, fresh: Mapping[str, float] | None = None) -> None:
        """Validate, evaluate and save what is due at this step; fresh: metrics of the step."""
        fresh, ended = dict(fresh or {}), self.step == self.horizon.max_steps
        if self._evaluation_due(ended) or (ended and due(self.step, self.validate_every)):
            # A probe that fails must not cost the training.
            self._pending = True
            self.save_checkpoint(self.folder.last)
        if due(self.step, self.validate_every):
            fresh |= self._log({"val/loss": self.validate()})
        if self._evaluation_due(ended):
            fresh |= self._evaluate()
        if ended:
            self._write_results()
        self._pending = False
        best = self.best.metric in fresh and self.best.offer(fresh[self.best.metric], self.step)
        snapshot = due(self.step, self.snapshot_every)
        if due(self.step, self.save_every) or ended or best or snapshot:
            self._save(best=best, snapshot=snapshot)

    def _logs(self, step: int) -> bool:
        """Whether the values of the step that ends at this count are logged."""
        return due(step, self.log_every) or step in (1, self.horizon.max_steps)

    def _evaluation_due(self, ended: bool) -> bool:
        if self.evaluation is None:
            return False
        return due(self.step, self.evaluate_every) or (ended and self.evaluation.at_end)

    # Validation and evaluation.

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss on the held-out split, with masks that are the same every time."""
        self.model.eval()
        seed = derive_seed(self.seed, "validation")
        total, samples = torch.zeros((), device=self.device), 0
        batches = self.data.validation_batches(batch_size=self.micro_batch_size)
        for number, batch in enumerate(batches):
            count = next(iter(batch.values())).shape[0]
            # Drawn for batches of the global size, so that micro-batches change nothing.
            whole, start = divmod(number * self.micro_batch_size, self.data.batch_size)
            size = min(self.data.batch_size, self.data.spec.num_test - whole * self.data.batch_size)
            draw = Draw(seed=seed, step=whole, total=size, start=start, count=count)
            with self.precision.autocast():
                loss = self.criterion(self.model(self._prepare(batch, draw)))["loss"]
            total, samples = total + loss.float() * count, samples + count
        self._meter.restart()
        return (total / samples).item()

    def _evaluate(self) -> Mapping[str, float]:
        """Probe the frozen features, show the table, write results.json; gives the metrics."""
        self.say(f"evaluating frozen features at step {self.step}")
        with self.precision.autocast():
            self._results = self.evaluation(
                self.model, self.data, random_init=self.random_init, device=self.device, seed=self.seed
            )
        self.say(self.evaluation.table(self._results))
        rows = self._results.items()
        metrics = self._log({f"eval/{row}/{name}": value for row, values in rows for name, value in values.items()})
        self._write_results()
        self._meter.restart()
        return metrics

    def _write_results(self) -> None:
        loss = {"val/loss": self.metrics["val/loss"]} if "val/loss" in self.metrics else {}
        self.folder.write_results({**self._results, **loss, "step": self.step})

    # Files and words.

    def save_checkpoint(self, path: str | Path, include_optimizer: bool = True) -> None:
        """Write a checkpoint, without the optimizer's state if so asked. Raises CheckpointError if it cannot."""
        checkpoint.write(
            Path(path),
            {
                "step": self.step,
                "pending": self._pending,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict() if include_optimizer else None,
                "scaler": self.precision.scaler.state_dict() if include_optimizer else None,
                "best": self.best.state_dict(),
                "config": self.folder.config,
            },
        )

    def load_checkpoint(self, path: str | Path, load_optimizer: bool = True) -> None:
        """Take weights, step and, unless told not to, optimizer state from a checkpoint file or run folder.

        Raises CheckpointError when it cannot be read or does not fit; the model is untouched then.
        """
        path = locate(path)
        content = checkpoint.read(path)
        check_state(self.model, content["model"], path)
        if load_optimizer:
            checkpoint.check_optimizer(self.optimizer, content["optimizer"], path)
        load_state(self.model, content["model"], path)
        if load_optimizer:
            settings = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
            self.optimizer.load_state_dict(content["optimizer"])
            for group, now in zip(self.optimizer.param_groups, settings):
                group.update(now)  # what this run was given wins over what the file remembers
            if content["scaler"]:  # a run in another precision leaves none
                self.precision.scaler.load_state_dict(content["scaler"])
        self.best.load_state_dict(content["best"])
        self.step, self._pending = content["step"], content.get("pending", False)

    def _save(self, best: bool, snapshot: bool) -> None:
        """Write the files that stay, then last.pt: a run killed between them goes on from before and mends it."""
        names = (
            [f"step_{self.step:08d}.pt"] * snapshot + [self.best.file_name(self.step)] * best + [self.folder.last.name]
        )
        self.save_checkpoint(self.folder.checkpoints / names[0])
        for name in names[1:]:
            self.folder.copy(names[0], name)
        for name in self.best.dropped():
            (self.folder.checkpoints / name).unlink(missing_ok=True)

    def _log(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        self.metrics.update(metrics)
        for logger in self.loggers:
            logger.log({"epoch": self.horizon.epoch(self.step), **metrics}, self.step)
        return metrics

    def say(self, text: Any) -> None:
        for logger in self.loggers:
            logger.message(text)

    def _announce(self, start: str) -> None:
        millions = sum(p.numel() for p in self.model.parameters() if p.requires_grad) / 1e6
        accumulation = self.data.batch_size // self.micro_batch_size
        self.say(start)
        self.say(
            f"{millions:.2f} M trainable parameters, {self.data.spec.num_train:,} training samples, "
            f"{self.horizon.max_steps:,} steps of {self.data.batch_size}"
            + (f" ({accumulation} x {self.micro_batch_size})" if accumulation > 1 else "")
            + f" on {self.device} in {self.precision.name}"
        )


def make_horizon(max_epochs: float | None, max_steps: int | None, steps_per_epoch: float) -> Horizon:
    """The length of the run in steps. Raises UserError when it has none."""
    if max_steps is None:
        if max_epochs is None or max_epochs <= 0:
            raise UserError(f"trainer.max_epochs={max_epochs}, trainer.max_steps=null: give one of them, above 0")
        max_steps = max(1, round(max_epochs * steps_per_epoch))
    if max_steps < 1:
        raise UserError(f"trainer.max_steps must be at least 1, got {max_steps}")
    return Horizon(max_steps=max_steps, steps_per_epoch=steps_per_epoch)


def check_micro_batch_size(micro_batch_size: int | None, batch_size: int) -> int:
    """The micro-batch size. Raises UserError unless it divides the batch, with the sizes that do."""
    size = batch_size if micro_batch_size is None else micro_batch_size
    if size < 1 or batch_size % size:
        fits = [n for n in range(1, batch_size + 1) if batch_size % n == 0]
        raise UserError(
            f"trainer.micro_batch_size={size} does not divide data.batch_size={batch_size}: use one of {fits}"
        )
    return size
