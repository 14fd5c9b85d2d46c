"""The pictures of a dry run: samples as the model gets them, and masks drawn over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa.report import figures
from jepa.report.formatting import shape_text
from jepa.types import Batch, Grid, Mask
from jepa.utils.files import write_text
from jepa.utils.pixels import input_kind, pixel_statistics, to_colours

MAX_IMAGES, MAX_SERIES = 48, 24
INPUTS = ("x", "views")
MASK_TITLE = "The encoder sees the bright tokens and the predictor predicts each outlined block; dimmed ones are hidden"


class Pictures:
    """Write pictures of a trainer's inputs to a folder. written: their names. note: gets why a picture is left out."""

    def __init__(self, trainer: Any, folder: Path, note: Callable[[str], None]) -> None:
        self.trainer, self.folder, self.note = trainer, folder, note
        self.written: list[str] = []

    def samples(self, batch: Batch) -> None:
        """Draw the samples of a batch, of each modality or task."""
        for part, views in inputs_of(batch).items():
            data = getattr(self.trainer.data, "modalities", {}).get(part, self.trainer.data)
            labels = self._labels(batch, views) if not part else None
            originals = None if part else self._originals(batch, views)
            self._samples(f"{part}_samples" if part else "samples", data, views, labels, originals)
            if not part and "local_views" in batch and input_kind(views) == "images":
                self._images("local_views", data, batch["local_views"], labels, "Local views of training samples")

    def masks(self, batch: Batch, masks: list[Mask], grid: Grid) -> None:
        """Draw masks over the inputs of their batch."""
        x = batch["views"].flatten(0, 1) if "views" in batch else batch["x"]
        kind, statistics = input_kind(x.unsqueeze(1)), pixel_statistics(self.trainer.data)
        stem = getattr(self.trainer.model.encoder, "stem", None)
        if kind == "series" and hasattr(stem, "log_mel_image"):  # sound, whose tokens lie on a spectrogram
            with torch.no_grad():
                x = stem.log_mel_image(x[:9].to(self.trainer.device))
            images, front = to_colours(x, None)[0], stem.spectrogram
            seconds = x.shape[-1] * front.hop_length / front.sample_rate
            place = f"log-mel: time to the right ({seconds:.3g} s), frequency upwards to {front.sample_rate // 2:,} Hz"
            title = f"{MASK_TITLE}\n{place}"
            figures.mask_figure(images, masks, grid, title=title, path=self._path("masks.png"), upwards=True)
            return
        if kind == "video":
            x, kind = figures.as_strips(x[:9], max_frames=x.shape[2]), "images"
            masks, grid = figures.strip_masks(masks, grid)
        if kind == "images" and len(grid) == 2:
            images, bands = to_colours(x[:9], statistics)
            title = f"{MASK_TITLE}{bands}"
            figures.mask_figure(images, masks, grid, title=title, path=self._path("masks.png"))
        elif kind == "series" and (len(grid) == 1 or grid[0] == x.shape[1]):
            title = "The encoder sees what is on blue; the predictor predicts what is on orange; grey is neither"
            names = channel_names(self.trainer.data)
            figures.series_mask_figure(x[:6].cpu(), masks, grid, title=title, path=self._path("masks.png"), names=names)
        elif kind == "ids" and hasattr(self.trainer.data, "words"):
            head = "As it stands: seen. [...]: predicted. {...}: neither. A letter of several tokens is at the first."
            lines = figures.id_lines(x[:MAX_SERIES].cpu(), self.trainer.data.words, masks)
            write_text(self._path("masks.txt"), "\n".join([head, *lines]) + "\n")
        else:
            inputs = f"inputs {shape_text(x.shape[1:])} on a grid {shape_text(grid)}"
            self.note(f"masks.png is left out: there is no picture of {inputs}.")

    def _samples(self, name: str, data: Any, views: Any, labels: list[str] | None, originals: Tensor | None) -> None:
        """Draw views (B, V, ...) of samples; pictures and clips beside their originals (n, 1, ...)."""
        kind = input_kind(views)
        beside = f"{views.shape[1]} random view{'s' * (views.shape[1] > 1)}"
        if originals is not None and kind in ("images", "video"):
            views, beside = torch.cat([originals, views[: len(originals)]], dim=1), f"as stored, then {beside}"
        if kind == "images":
            self._images(name, data, views, labels, "Training samples", beside)
        elif kind == "video":
            shown = min(views.shape[3], figures.MAX_FRAMES)
            what = f"Clips of training samples, {shown} of {views.shape[3]} frames from left to right"
            self._images(name, data, figures.as_strips(views), labels, what, beside)
        elif kind == "series" and hasattr(data, "spectrogram"):
            title = "Training samples as the model gets them: log-mel power, brighter is louder"
            look = {"labels": labels, "title": title, "path": self._path(f"{name}.png")}
            figures.spectrogram_figure(views[:MAX_SERIES], data.spectrogram, **look)
        elif kind == "series":
            title = "Training samples as the model gets them"
            title += f", {views.shape[1]} random views one above the other" if views.shape[1] > 1 else ""
            unit = "z-scores: 0 is the mean, 1 a deviation" if getattr(data, "z_score", False) else "values as stored"
            options = {"labels": labels, "title": title, "names": channel_names(data), "unit": unit}
            figures.series_figure(views[:MAX_SERIES], path=self._path(f"{name}.png"), **options)
        elif kind == "ids" and hasattr(data, "words"):
            lines = figures.id_lines(views[:MAX_SERIES].flatten(0, 1), data.words)
            write_text(self._path(f"{name}.txt"), "\n".join(lines) + "\n")
        else:
            what = "neither pictures, video of 1 or 3 channels nor series"
            self.note(f"{name}.png is left out: the inputs are {what}.")

    def _images(
        self, name: str, data: Any, views: Tensor, labels: list[str] | None, what: str, beside: str | None = None
    ) -> None:
        """Draw a sheet of views (B, V, C, H, W). beside: what they are, if more than one."""
        views, bands = to_colours(views[: max(4, MAX_IMAGES // views.shape[1])], pixel_statistics(data))
        beside = f"; {beside or f'{views.shape[1]} views'} side by side" if views.shape[1] > 1 else ""
        title = f"{what} as the model gets them ({shape_text(views.shape[-2:])} pixels{beside}){bands}"
        figures.sample_figure(views, labels=labels, title=title, path=self._path(f"{name}.png"))

    def _originals(self, batch: Batch, views: Any) -> Tensor | None:
        """Return the samples of a batch as evaluation has them, (n, 1, ...); None where training has the same."""
        data = self.trainer.data
        if not hasattr(data, "make_batch") or input_kind(views) not in ("images", "video"):
            return None
        request = data.order(self.trainer.seed).request(self.trainer.step)
        request = replace(request, counters=request.counters[:MAX_IMAGES], indices=request.indices[:MAX_IMAGES])
        reading = data.reading("train")
        made = data.make_batch(request, reading)
        originals = made["x"].unsqueeze(1)
        unchanged = originals.shape[2:] != views.shape[2:] or torch.equal(originals, views[: len(originals), :1])
        return None if unchanged or made.get("bad") else originals

    def _labels(self, batch: Batch, views: Any) -> list[str] | None:
        """Return the class and the name of the file of each sample, as far as these are known."""
        data, names = self.trainer.data, self.trainer.data.spec.class_names
        describe = getattr(getattr(data, "splits", {}).get("train"), "describe", None)
        parts = []
        if (labels := batch.get("label")) is not None:
            parts.append([str(names[label])[:18] if names else str(label) for label in labels.tolist()])
        if describe is not None and not hasattr(data, "timelines"):  # windows of series have no files
            indices = data.order(self.trainer.seed).request(self.trainer.step).indices
            stems = [Path(describe(index)).name for index in indices]
            parts.append([stem if len(stem) <= 18 else f"...{stem[-15:]}" for stem in stems])
        return ["\n".join(each) for each in zip(*parts)] if parts else None

    def _path(self, name: str) -> Path:
        self.written.append(name)
        return self.folder / name


def channel_names(data: Any) -> Sequence[str]:
    """Return the names of the channels of series, empty where they have none, or are samples of their own."""
    timelines = getattr(data, "timelines", None)
    return timelines[0].names if timelines and not data.split_channels else ()


def inputs_of(batch: Batch) -> dict[str, Any]:
    """Return the inputs (B, V, ...) by modality or task; by "" if there is one."""
    if isinstance(batch.get("x"), Mapping):
        return {name: x.unsqueeze(1) for name, x in batch["x"].items()}
    parts = [(*key.rpartition("/")[::2], value) for key, value in batch.items() if isinstance(value, Tensor)]
    found = {part: value if kind == "views" else value.unsqueeze(1) for part, kind, value in parts if kind in INPUTS}
    return found or {"": None}
