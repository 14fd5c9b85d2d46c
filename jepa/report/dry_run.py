"""The dry run: print what would run, with shapes, cost, masks and schedules, and train nothing.

python train.py data=digits trainer.dry_run=true
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from jepa.report import step_cost
from jepa.report.dry_run_pictures import Pictures
from jepa.report.figures import group_names, seen_and_predicted
from jepa.report.formatting import binary_size, plural, shape_text, shapes_text, si_prefix
from jepa.report.step_cost import StepCost, prepared, tensor_shapes
from jepa.types import Batch, Grid, Mask, RunLength, Schedule
from jepa.utils.files import write_text
from jepa.utils.nested import flatten
from jepa.utils.snapshot import preserved

WIDTH = 100  # characters of a line

PLAIN = {"highlight": False, "markup": False, "emoji": False}


def preview(trainer: Any, *, plan: Sequence[str] = (), console: Console | None = None) -> None:
    """Print what a trainer would run, and write `preview/` in its run folder: report.txt, samples.png, masks.png.

    Two small forward and backward passes and one optimizer step are made; the trainer is restored afterwards.

    trainer: read are model, data, optimizer, scheduler, run_length, micro_batch_size, device, precision, seed, step,
        training_step, folder.path.
    plan: sentences to print first.
    """
    report = _Report(trainer, console or Console(width=WIDTH))
    with preserved(trainer):
        trainer.model.train()
        report.write(plan)


class _Report:
    """Sections of the report, printed to a console that keeps them for report.txt."""

    def __init__(self, trainer: Any, console: Console) -> None:
        self.trainer, self.console = trainer, console
        self.console.record = True
        self.pictures = Pictures(trainer, trainer.folder.path / "preview", note=self.print)

    def write(self, plan: Sequence[str]) -> None:
        for line in plan:
            self.print(line)
        batch = step_cost.first_batch(self.trainer)
        full = prepared(self.trainer, batch, self.trainer.data.batch_size)
        self.data(batch)
        self.sizes()
        self.shapes(batch)
        cost = step_cost.measure_cost(self.trainer, batch)
        self.cost(cost)
        self.masks(full)
        self.schedules()
        self.disk(cost)
        lines = [line.rstrip() for line in self.console.export_text().splitlines()]
        write_text(self.pictures.folder / "report.txt", "\n".join(lines) + "\n")
        names = ", ".join([*self.pictures.written, "report.txt"])
        self.console.print(f"Nothing was trained. Written to {self.pictures.folder}: {names}", **PLAIN, soft_wrap=True)

    def print(self, text: str | Table) -> None:
        self.console.print(text, **PLAIN)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> None:
        """Print a table whose first columns are text and the others numbers."""
        table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        for index, name in enumerate(columns):
            table.add_column(name, justify="left" if index < text_columns else "right", overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        self.print(table)

    def data(self, batch: Batch) -> None:
        spec = self.trainer.data.spec
        classes = "no labels" if spec.classes is None else f"{spec.classes} classes"
        if spec.class_names:
            names = ", ".join(map(str, spec.class_names[:10]))
            classes += f" ({names}{', ...' if len(spec.class_names) > 10 else ''})"
        shape, scored = shape_text(spec.input_shape), getattr(self.trainer.data, "score_on", "test")
        self.print(f"Data: {spec.num_train:,} training and {spec.num_test:,} {scored} samples of {shape}, {classes}")
        rows = []
        for name, value in named_tensors(batch):
            real = value[~value.isnan()] if value.is_floating_point() else value  # NaN is padding
            ends = [f"{real.min().item():.3g}", f"{real.max().item():.3g}"] if real.numel() else ["", ""]
            moments = [f"{real.mean():.3f}", f"{real.std():.3f}"] if value.is_floating_point() else ["", ""]
            rows.append([name, shape_text(value.shape), str(value.dtype).removeprefix("torch."), *ends, *moments])
        self.table("A training batch", ["key", "shape", "type", "min", "max", "mean", "std"], rows, text_columns=3)
        self.pictures.samples(batch)

    def sizes(self) -> None:
        trainer, length = self.trainer, self.trainer.run_length
        total, micro, ranks = trainer.data.batch_size, trainer.micro_batch_size, getattr(trainer, "world_size", 1)
        accumulation = total // ranks // micro
        parts = f"{plural(ranks, 'rank')} x {accumulation} micro-batch{'es' * (accumulation > 1)} x {micro}"
        epochs = f"{length.steps_per_epoch:,.1f} an epoch, {length.epoch(length.max_steps):,.2f} epochs"
        self.print(
            f"Batch: {total} samples a step = {parts}\n"
            f"Length: {length.max_steps:,} steps, {epochs}, on {trainer.device} in {trainer.precision.name}\n"
        )

    def shapes(self, batch: Batch) -> None:
        part = prepared(self.trainer, batch, self.trainer.micro_batch_size)
        latents, modules = step_cost.module_shapes(self.trainer, part)
        rows = [[f"batch.{name}", shape_text(value.shape), ""] for name, value in named_tensors(part)]
        if grid := self._grid(part):
            rows.append(["token grid", shape_text(grid), f"{shape_text(grid)} = {math.prod(grid)} tokens"])
        masks = part.get("masks", [])
        for mask, name in zip(masks, group_names(masks)):
            rows.append([f"{name}: context tokens", shape_text(mask.context.shape), ""])
            rows.append([f"{name}: target tokens", shape_text(mask.targets.shape), "blocks x tokens of each"])
        for name, inputs, outputs, calls in modules:
            times = f"{calls} times, last " * (calls > 1)
            rows.append([name, shapes_text(outputs), f"{times}from {shapes_text(inputs)}" if inputs else times])
        for name in ("predictions", "targets", "embeddings"):
            if (value := getattr(latents, name, None)) is not None:
                rows.append([f"latents.{name}", shapes_text(tensor_shapes(value)), ""])
        self.table("Shapes of one micro-batch", ["stage", "shape", ""], rows, text_columns=3)

    def cost(self, cost: StepCost) -> None:
        counts = step_cost.parameter_counts(self.trainer.model)
        counts["total"] = tuple(map(sum, zip(*counts.values())))
        rows = [[name, *(f"{count:,}" if count else "-" for count in both)] for name, both in counts.items()]
        self.table("Parameters", ["module", "trainable", "frozen"], rows)
        micro, step = self.trainer.micro_batch_size, cost.total * self.trainer.data.batch_size
        run = step * self.trainer.run_length.max_steps
        self.print(
            f"Operations per sample: {si_prefix(cost.forward)}FLOP forward, {si_prefix(cost.total)}FLOP with backward "
            f"({si_prefix(step)}FLOP a step, {si_prefix(run)}FLOP the run), measured; a multiply-add is two\n"
        )
        parts = {
            "weights, trained": cost.trained,
            "weights, frozen (target) and buffers": cost.frozen,
            "gradients": cost.gradients,
            "optimizer state": cost.optimizer,
            f"activations: {micro} x {binary_size(cost.activations)}": cost.activations * micro + cost.constant,
            "together, without the framework's own": cost.memory(micro),
        }
        rows = [[name, binary_size(size)] for name, size in parts.items()]
        self.table("Memory of a micro-batch (estimate)", ["part", "size"], rows)

    def masks(self, batch: Batch) -> None:
        masks: list[Mask] = batch.get("masks", [])
        grid = self._grid(batch)
        if not masks or not grid:
            self.print("masks.png is left out: the model draws no masks.")
            return
        groups = [mask_statistics(mask, grid) for mask in masks]
        rows = [[name, *(group[name] for group in groups)] for name in groups[0]]
        tokens = f"{shape_text(grid)} = {math.prod(grid)} tokens"
        title = f"Masks of {len(masks[0].context)} inputs on a grid of {tokens}"
        self.table(title, ["per input", *group_names(masks)], rows)
        self.pictures.masks(batch, masks, grid)

    def schedules(self) -> None:
        schedules, length = dict(self.trainer.scheduler), self.trainer.run_length
        if momentum := getattr(self.trainer.model, "momentum_schedule", None):
            schedules["momentum"] = momentum
        rows = schedule_table(schedules, length)
        shown = [[name, f"{step:,}", *(f"{value:.4g}" for value in values)] for name, step, values in rows]
        self.table("Schedules", ["", "step", *schedules], shown)
        if (warmup := warmup_steps(schedules, length)) > length.max_steps:
            self.print(f"The warm-up of {warmup:,.0f} steps is longer than the run and never reaches its peak.\n")

    def disk(self, cost: StepCost) -> None:
        trainer, folder = self.trainer, self.trainer.folder.path.absolute()
        every = getattr(getattr(trainer, "every", None), "snapshot", None)
        snapshots = 0 if every is None else math.floor(trainer.run_length.max_steps / every)
        best = trainer.checkpoints.best.k if hasattr(trainer, "checkpoints") else 0
        count = 2 + best + snapshots  # the last, and one being written
        need = count * cost.checkpoint
        free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.is_dir())).free
        self.print(
            f"Disk: checkpoints of {binary_size(cost.checkpoint)}, at most {count} at a time (one of them being "
            f"written): {binary_size(need)} of {binary_size(free)} free in {trainer.folder.path}"
        )
        if need > free:
            self.print("That is too little: keep fewer (trainer.best_k, trainer.snapshot_every_epochs) or make room.")

    def _grid(self, batch: Batch) -> Grid | None:
        encoder = getattr(self.trainer.model, "encoder", None)
        x = batch["views"].flatten(0, 1) if "views" in batch else batch.get("x")
        return tuple(encoder.grid(x)) if hasattr(encoder, "grid") and isinstance(x, Tensor) else None


def mask_statistics(mask: Mask, grid: Grid) -> dict[str, str]:
    """Return statistics of one mask group over a batch: tokens per sample, and shares of the samples."""
    tokens = math.prod(grid)
    seen, predicted = seen_and_predicted(mask, (tokens,))

    def count(where: Tensor) -> str:
        mean = where.float().sum(dim=1).mean().item()
        return f"{mean:.1f} ({mean / tokens:.0%})"

    def shares(where: Tensor) -> str:
        share = where.float().mean(dim=0)
        return f"{share.min().item():.0%} to {share.max().item():.0%} of samples"

    return {
        "context tokens kept": str(mask.context.shape[1]),
        "targets, blocks x tokens": f"{mask.targets.shape[1]} x {mask.targets.shape[2]}",
        "distinct tokens seen": count(seen),
        "distinct tokens predicted": count(predicted),
        "neither seen nor predicted": count(~seen & ~predicted),
        "both seen and predicted": count(seen & predicted),
        "a token is seen in": shares(seen),
        "a token is predicted in": shares(predicted),
    }


def schedule_table(schedules: Mapping[str, Schedule], run_length: RunLength) -> list[tuple[str, int, list[float]]]:
    """Return rows (name, step, value of each schedule) at the start, the end of the warm-up, quarters and the end."""
    last, warmup = run_length.max_steps, warmup_steps(schedules, run_length)
    points = {"start": 1, **{f"{share} %": round(share / 100 * last) for share in (25, 50, 75)}, "end": last}
    if warmup > 0:
        points["end of warm-up" if warmup <= last else "(warm-up does not end)"] = round(min(warmup, last))
    points = {name: max(1, step) for name, step in sorted(points.items(), key=lambda item: (item[1], item[0] == "end"))}
    return [(name, step, [call(step - 1, run_length) for call in schedules.values()]) for name, step in points.items()]


def warmup_steps(schedules: Mapping[str, Schedule], run_length: RunLength) -> float:
    """Return the steps of the longest warm-up, 0 without one."""
    durations = (getattr(schedule, "warmup_duration", None) for schedule in schedules.values())
    return max((duration.whole(run_length) for duration in durations if duration is not None), default=0)


def named_tensors(batch: Batch) -> list[tuple[str, Tensor]]:
    """Return (name, tensor) of a batch; those of several modalities as x.<name>."""
    return [(name, value) for name, value in flatten(batch).items() if isinstance(value, Tensor)]
