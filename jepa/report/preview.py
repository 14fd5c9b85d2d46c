"""The dry run: what would run, with what shapes, cost, masks and schedules; nothing is trained.

python train.py data=digits trainer.dry_run=true
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from jepa.report import facts
from jepa.report.figures import mask_figure, sample_figure
from jepa.report.measure import Cost, measure_cost, next_batch, parameter_counts, prepared, shapes_of, stages
from jepa.report.sequences import as_strips, id_lines, series_figure, series_mask_figure, strip_masks
from jepa.types import Batch, Grid, Latents, Mask
from jepa.utils.snapshot import preserved

WIDTH = 100
"""Columns of the report, as wide as a terminal usually is."""
MOST_PICTURES = 48


def preview(trainer: Any, *, plan: Sequence[str] = (), console: Console | None = None) -> None:
    """Print what a trainer would run, and write `preview/` in its run folder: report.txt, samples.png, masks.png.

    trainer: as `jepa.trainer.Trainer`; read are model, data, optimizer, scheduler, run_length, micro_batch_size,
        device, precision, seed, step, folder.path. One batch is read; two small forward and backward passes and one
        optimizer step are made, all of which is put back.
    plan: sentences on what would happen, printed first.
    """
    console = console or Console(highlight=False, markup=False, emoji=False)
    report = _Report(trainer, console)
    with preserved(trainer):
        trainer.model.train()
        report.write(plan)
    folder = trainer.folder.path / "preview"
    folder.mkdir(parents=True, exist_ok=True)
    console.print(
        f"Nothing was trained. Written to {folder}: {', '.join([*report.pictures, 'report.txt'])}", soft_wrap=True
    )
    temporary = folder / ".report.txt.writing"
    temporary.write_text(report.text())
    os.replace(temporary, folder / "report.txt")


class _Report:
    """The report under way: everything goes to the console and, again, into a text of fixed width."""

    def __init__(self, trainer: Any, console: Console) -> None:
        self.trainer, self.console = trainer, console
        self._copy = Console(record=True, file=io.StringIO(), width=WIDTH, highlight=False, markup=False, emoji=False)
        self.pictures: list[str] = []

    def write(self, plan: Sequence[str]) -> None:
        """All sections."""
        for line in plan:
            self.say(line)
        batch = next_batch(self.trainer)
        whole = prepared(self.trainer, batch, self.trainer.data.batch_size)
        self.data(batch)
        self.sizes()
        self.shapes(batch)
        cost = measure_cost(self.trainer, batch)
        self.cost(cost)
        self.masks(whole)
        self.schedules()
        self.disk(cost)

    def say(self, text: Any) -> None:
        """Print a line or table."""
        self.console.print(text, soft_wrap=isinstance(text, str))
        self._copy.print(text)

    def text(self) -> str:
        """What was printed."""
        return "\n".join(line.rstrip() for line in self._copy.export_text().splitlines()) + "\n"

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
        """Print a table whose first `left` columns are text and the others numbers."""
        table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        for number, name in enumerate(columns):
            table.add_column(name, justify="left" if number < left else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.say(table)

    # Sections.

    def data(self, batch: Batch) -> None:
        """Counts, the tensors of a batch, and a sheet of samples."""
        spec = self.trainer.data.spec
        classes = "no labels" if spec.classes is None else f"{spec.classes} classes"
        if spec.class_names:
            names = ", ".join(map(str, spec.class_names[:10]))
            classes += f" ({names}{', ...' if len(spec.class_names) > 10 else ''})"
        shape = times(spec.input_shape)
        self.say(f"Data: {spec.num_train:,} training and {spec.num_test:,} test samples of {shape}, {classes}")
        rows = []
        for name, value in named_tensors(batch):
            there = value[~value.isnan()] if value.is_floating_point() else value  # NaN is padding
            numbers = [f"{there.min().item():.3g}", f"{there.max().item():.3g}"] if there.numel() else ["", ""]
            spread = [f"{there.mean():.3f}", f"{there.std():.3f}"] if value.is_floating_point() else ["", ""]
            rows.append([name, times(value.shape), str(value.dtype).removeprefix("torch."), *numbers, *spread])
        self.table("A training batch", ["key", "shape", "type", "min", "max", "mean", "std"], rows, left=3)
        for part, views in inputs_of(batch).items():
            self._samples(part, views, batch)

    def _samples(self, part: str, views: Any, batch: Batch) -> None:
        """A sheet of the samples of a part of the data, "" for all of it, from views (B, V, ...)."""
        data, prefix = self._part(part), f"{part}_" if part else ""
        kind, labels = facts.kind_of(views), None if part else batch.get("label")
        if kind == "pictures":
            self._sheet(f"{prefix}samples.png", data, labels, views, "Training samples")
            if "local_views" in batch:
                self._sheet("local_views.png", data, labels, batch["local_views"], "Local views of training samples")
        elif kind == "video":
            self._sheet(f"{prefix}samples.png", data, labels, as_strips(views), "Frames of training samples")
        elif kind == "series":
            views = views[:24]
            title = f"Training samples as the model gets them ({times(views.shape[-2:])})"
            names = self._labels(labels, len(views))
            series_figure(views, labels=names, title=title, path=self._picture(f"{prefix}samples.png"))
        elif kind == "ids" and hasattr(data, "words"):
            self._text(f"{prefix}samples.txt", id_lines(views[:24].flatten(0, 1), data.words))
        else:
            what = "neither pictures of 1 or 3 channels, video nor series"
            self.say(f"{prefix}samples.png is left out: the inputs are {what}.")

    def _part(self, name: str) -> Any:
        """The data of one modality or task; all of it for ""."""
        return getattr(self.data_set, "modalities", {}).get(name, self.data_set)

    def _text(self, name: str, lines: Sequence[str]) -> None:
        """Lines into a file of the preview."""
        path = self._picture(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")

    def _sheet(self, name: str, data: Any, labels: Tensor | None, views: Tensor, what: str) -> None:
        """A sheet of views (B, V, C, H, W)."""
        views = facts.to_pixels(views[: max(4, MOST_PICTURES // views.shape[1])], facts.pixel_statistics(data))
        beside = f"; {views.shape[1]} views side by side" if views.shape[1] > 1 else ""
        title = f"{what} as the model gets them ({times(views.shape[-2:])} pixels{beside})"
        sample_figure(views, labels=self._labels(labels, len(views)), title=title, path=self._picture(name))

    def sizes(self) -> None:
        """Batch sizes and length, as derived."""
        trainer = self.trainer
        total, micro, ranks = trainer.data.batch_size, trainer.micro_batch_size, getattr(trainer, "world_size", 1)
        accumulation = total // ranks // micro
        run_length = trainer.run_length
        self.say(
            f"Batch: {total} samples a step = {ranks} rank{'s' * (ranks > 1)} x {accumulation} micro-batch"
            f"{'es' * (accumulation > 1)} x {micro}\n"
            f"Length: {run_length.max_steps:,} steps, {run_length.steps_per_epoch:,.1f} an epoch, "
            f"{run_length.epoch(run_length.max_steps):,.2f} epochs, on {trainer.device} in {trainer.precision.name}\n"
        )

    def shapes(self, batch: Batch) -> None:
        """Shapes at every stage of one micro-batch."""
        trainer = self.trainer
        part = prepared(trainer, batch, trainer.micro_batch_size)
        found: dict[str, Any] = {}

        @torch.no_grad()
        def run() -> None:
            with trainer.precision.autocast():
                found["latents"] = trainer.model(part)
                trainer.model.loss(found["latents"])

        passed = stages(trainer.model, run)
        rows = [[f"batch.{name}", times(value.shape), ""] for name, value in named_tensors(part)]
        grid = self._grid(part)
        if grid:
            rows.append(["token grid", times(grid), f"{times(grid)} = {torch.Size(grid).numel()} tokens"])
        for number, mask in enumerate(part.get("masks", []), start=1):
            name = "mask" if len(part["masks"]) == 1 else f"mask {number}"
            rows.append([f"{name}: context tokens", times(mask.context.shape), ""])
            rows.append([f"{name}: target tokens", times(mask.targets.shape), "blocks x tokens of each"])
        for stage in passed:
            given, calls = listed(stage.inputs), f"{stage.calls} times, last " * (stage.calls > 1)
            rows.append([stage.name, listed(stage.outputs), f"{calls}from {given}" if given else calls])
        if isinstance(found["latents"], Latents):
            for name in ("predictions", "targets", "embeddings"):
                value = getattr(found["latents"], name)
                if value is not None:
                    rows.append([f"latents.{name}", listed(shapes_of(value)), ""])
        self.table("Shapes of one micro-batch", ["stage", "shape", ""], rows, left=3)

    def cost(self, cost: Cost) -> None:
        """Parameters, operations and memory."""
        rows = [[n, f"{t:,}" if t else "-", f"{f:,}" if f else "-"] for n, t, f in parameter_counts(self.trainer.model)]
        totals = [sum(row[i] for row in parameter_counts(self.trainer.model)) for i in (1, 2)]
        rows.append(["total", *(f"{value:,}" for value in totals)])
        self.table("Parameters", ["module", "trainable", "frozen"], rows)
        micro, batch = self.trainer.micro_batch_size, self.trainer.data.batch_size
        self.say(
            f"Operations per sample: {si(cost.forward)}FLOP forward, {si(cost.total)}FLOP with backward "
            f"({si(cost.total * batch)}FLOP a step, {si(cost.total * batch * self.trainer.run_length.max_steps)}FLOP "
            "the run), measured; a multiply-add is two\n"
        )
        parts = [
            ("weights, trained", cost.trained),
            ("weights, frozen (target) and buffers", cost.frozen),
            ("gradients", cost.gradients),
            ("optimizer state", cost.optimizer),
            (f"activations: {micro} x {binary(cost.activations)}", cost.activations * micro + cost.constant),
            ("together, without the framework's own", cost.memory(micro)),
        ]
        rows = [[name, binary(value)] for name, value in parts]
        self.table("Memory of a micro-batch (estimate)", ["part", "size"], rows)

    def masks(self, batch: Batch) -> None:
        """Statistics of the masks of the whole batch, and a sheet of them."""
        masks: list[Mask] = batch.get("masks", [])
        grid = self._grid(batch)
        if not masks or not grid:
            self.say("masks.png is left out: the model draws no masks.")
            return
        every = [facts.mask_facts(mask, grid) for mask in masks]
        tokens = every[0].tokens

        def share(value: float) -> str:
            return f"{value:.1f} ({value / tokens:.0%})"

        rows = [
            ["context tokens kept", *(str(m.context) for m in every)],
            ["targets, blocks x tokens", *(f"{m.blocks} x {m.block_tokens}" for m in every)],
            ["distinct tokens seen", *(share(m.seen) for m in every)],
            ["distinct tokens predicted", *(share(m.predicted) for m in every)],
            ["neither seen nor predicted", *(share(m.neither) for m in every)],
            ["both seen and predicted", *(share(m.both) for m in every)],
            ["a token is seen in", *(f"{m.least_seen:.0%} to {m.most_seen:.0%} of samples" for m in every)],
            [
                "a token is predicted in",
                *(f"{m.least_predicted:.0%} to {m.most_predicted:.0%} of samples" for m in every),
            ],
        ]
        names = ["all"] if len(every) == 1 else [f"mask {number}" for number in range(1, len(every) + 1)]
        count = masks[0].context.shape[0]
        title = f"Masks of {count} inputs on a grid of {times(grid)} = {tokens} tokens"
        self.table(title, ["per input", *names], rows)
        self._mask_sheet(batch, masks, grid)

    def _mask_sheet(self, batch: Batch, masks: list[Mask], grid: Grid) -> None:
        """The masks drawn over the inputs they are of."""
        x = batch["views"].flatten(0, 1) if "views" in batch else batch["x"]
        kind, statistics = facts.kind_of(x.unsqueeze(1)), facts.pixel_statistics(self.data_set)
        stem = getattr(self.trainer.model.encoder, "stem", None)
        if kind == "series" and hasattr(stem, "picture"):  # sound, whose tokens lie on a spectrogram
            with torch.no_grad():
                x, kind, statistics = stem.picture(x[:9].to(self.trainer.device)), "pictures", None
        if kind == "video":
            x, (masks, grid), kind = as_strips(x[:9], most=x.shape[2]), strip_masks(masks, grid), "pictures"
        if kind == "pictures" and len(grid) == 2:
            pictures = facts.to_pixels(x[:9], statistics)
            title = "Context as it is, hidden tokens dimmed, each target block outlined"
            mask_figure(pictures, masks, grid, title=title, most=9, path=self._picture("masks.png"))
        elif kind == "series" and (len(grid) == 1 or grid[0] == x.shape[1]):
            title = "Blue is seen, orange predicted, grey neither"
            series_mask_figure(x[:6].cpu(), masks, grid, title=title, path=self._picture("masks.png"))
        elif kind == "ids" and hasattr(self.data_set, "words"):
            head = "As it stands: seen. [...]: predicted. {...}: neither."
            self._text("masks.txt", [head, *id_lines(x[:24].cpu(), self.data_set.words, masks)])
        else:
            self.say(
                f"masks.png is left out: there is no picture of inputs {times(x.shape[1:])} on a grid {times(grid)}."
            )

    def schedules(self) -> None:
        """Values of every schedule over the run."""
        trainer = self.trainer
        momentum = getattr(trainer.model, "momentum_schedule", None)
        names, rows = facts.schedule_table(trainer.scheduler, momentum, trainer.run_length)
        shown = [[name, f"{step:,}", *(f"{value:.4g}" for value in values)] for name, step, values in rows]
        self.table("Schedules", ["", "step", *names], shown)
        warmup = facts.longest_warmup(trainer.scheduler, trainer.run_length)
        if warmup > trainer.run_length.max_steps:
            self.say(f"The warm-up of {warmup:,.0f} steps is longer than the run and never reaches its peak.\n")

    def disk(self, cost: Cost) -> None:
        """Room that checkpoints need, and room there is."""
        number, free = facts.kept_checkpoints(self.trainer), facts.free_disk(self.trainer.folder.path)
        need = number * cost.checkpoint
        line = (
            f"Disk: checkpoints of {binary(cost.checkpoint)}, at most {number} at a time (one of them being written): "
            f"{binary(need)} of {binary(free)} free in {self.trainer.folder.path}"
        )
        self.say(line)
        if need > free:
            self.say("That is too little: keep fewer (trainer.best_k, trainer.snapshot_every_epochs) or make room.")

    # Small helpers.

    @property
    def data_set(self) -> Any:
        """The data object."""
        return self.trainer.data

    def _grid(self, batch: Batch) -> Grid | None:
        encoder = getattr(self.trainer.model, "encoder", None)
        x = batch["views"].flatten(0, 1) if "views" in batch else batch.get("x")
        return tuple(encoder.grid(x)) if hasattr(encoder, "grid") and isinstance(x, Tensor) else None

    def _labels(self, labels: Tensor | None, count: int) -> list[str] | None:
        names = self.trainer.data.spec.class_names
        if labels is None:
            return None
        labels = labels[:count].tolist()
        return [str(names[label])[:18] if names else str(label) for label in labels]

    def _picture(self, name: str) -> Path:
        self.pictures.append(name)
        return self.trainer.folder.path / "preview" / name


def named_tensors(batch: Batch) -> list[tuple[str, Tensor]]:
    """The tensors of a batch and their names; those of several modalities as x.<name>."""
    found = [(name, value) for name, value in batch.items() if isinstance(value, Tensor)]
    inputs = batch.get("x")
    if isinstance(inputs, Mapping):
        found += [(f"x.{name}", value) for name, value in inputs.items()]
    return found


def inputs_of(batch: Batch) -> dict[str, Any]:
    """Inputs (B, V, ...) by modality or task; by "" where there is one."""
    if isinstance(batch.get("x"), Mapping):
        return {name: x.unsqueeze(1) for name, x in batch["x"].items()}
    found = {}
    for key, value in batch.items():
        part, _, kind = key.rpartition("/")
        if kind in ("x", "views") and isinstance(value, Tensor):
            found[part] = value if kind == "views" else value.unsqueeze(1)
    return found or {"": None}


def times(shape: Sequence[int]) -> str:
    """3 x 224 x 224."""
    return " x ".join(map(str, shape))


def listed(shapes: Sequence[Sequence[int]]) -> str:
    """Shapes side by side, equal ones counted: "2 of 64 x 128, 4 scalars"."""
    counts: dict[str, int] = {}
    for shape in shapes:
        counts[times(shape)] = counts.get(times(shape), 0) + 1
    texts = []
    for shape, number in counts.items():
        if shape:
            texts.append(f"{number} of {shape}" if number > 1 else shape)
        else:
            texts.append(f"{number} scalars" if number > 1 else "scalar")
    return ", ".join(texts)


def binary(size: float) -> str:
    """Bytes in the unit that suits: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"


def si(value: float) -> str:
    """A number with its prefix, to stand before a unit: "1.5 G"."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if value < 1000:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value:,.0f} Z"
