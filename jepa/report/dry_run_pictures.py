"""The pictures of a dry run: samples as the model gets them, and masks drawn over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa.report import figures
from jepa.report.formatting import shape_text
from jepa.types import Batch, Grid, Mask
from jepa.utils.files import write_text

MAX_IMAGES, MAX_SERIES = 48, 24
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
            labels = None if part else batch.get("label")
            self._samples(f"{part}_samples" if part else "samples", data, views, labels)
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
            title = "Blue is seen, orange predicted, grey neither"
            figures.series_mask_figure(x[:6].cpu(), masks, grid, title=title, path=self._path("masks.png"))
        elif kind == "ids" and hasattr(self.trainer.data, "words"):
            head = "As it stands: seen. [...]: predicted. {...}: neither. A letter of several tokens is at the first."
            lines = figures.id_lines(x[:MAX_SERIES].cpu(), self.trainer.data.words, masks)
            write_text(self._path("masks.txt"), "\n".join([head, *lines]) + "\n")
        else:
            inputs = f"inputs {shape_text(x.shape[1:])} on a grid {shape_text(grid)}"
            self.note(f"masks.png is left out: there is no picture of {inputs}.")

    def _samples(self, name: str, data: Any, views: Any, labels: Tensor | None) -> None:
        """Draw views (B, V, ...) of samples."""
        kind = input_kind(views)
        if kind == "images":
            self._images(name, data, views, labels, "Training samples")
        elif kind == "video":
            self._images(name, data, figures.as_strips(views), labels, "Frames of training samples")
        elif kind == "series" and hasattr(data, "spectrogram"):
            figures.spectrogram_figure(
                views[:MAX_SERIES],
                data.spectrogram,
                labels=self._labels(labels, MAX_SERIES),
                title="Training samples as the model gets them: log-mel power, brighter is louder",
                path=self._path(f"{name}.png"),
            )
        elif kind == "series":
            title = f"Training samples as the model gets them ({shape_text(views.shape[-2:])})"
            labels = self._labels(labels, MAX_SERIES)
            figures.series_figure(views[:MAX_SERIES], labels=labels, title=title, path=self._path(f"{name}.png"))
        elif kind == "ids" and hasattr(data, "words"):
            lines = figures.id_lines(views[:MAX_SERIES].flatten(0, 1), data.words)
            write_text(self._path(f"{name}.txt"), "\n".join(lines) + "\n")
        else:
            what = "neither pictures, video of 1 or 3 channels nor series"
            self.note(f"{name}.png is left out: the inputs are {what}.")

    def _images(self, name: str, data: Any, views: Tensor, labels: Tensor | None, what: str) -> None:
        """Draw a sheet of views (B, V, C, H, W)."""
        views, bands = to_colours(views[: max(4, MAX_IMAGES // views.shape[1])], pixel_statistics(data))
        beside = f"; {views.shape[1]} views side by side" if views.shape[1] > 1 else ""
        title = f"{what} as the model gets them ({shape_text(views.shape[-2:])} pixels{beside}){bands}"
        labels = self._labels(labels, len(views))
        figures.sample_figure(views, labels=labels, title=title, path=self._path(f"{name}.png"))

    def _labels(self, labels: Tensor | None, count: int) -> list[str] | None:
        if labels is None:
            return None
        names = self.trainer.data.spec.class_names
        return [str(names[label])[:18] if names else str(label) for label in labels[:count].tolist()]

    def _path(self, name: str) -> Path:
        self.written.append(name)
        return self.folder / name


def inputs_of(batch: Batch) -> dict[str, Any]:
    """Return the inputs (B, V, ...) by modality or task; by "" if there is one."""
    if isinstance(batch.get("x"), Mapping):
        return {name: x.unsqueeze(1) for name, x in batch["x"].items()}
    found = {}
    for key, value in batch.items():
        part, _, kind = key.rpartition("/")
        if kind in ("x", "views") and isinstance(value, Tensor):
            found[part] = value if kind == "views" else value.unsqueeze(1)
    return found or {"": None}


def input_kind(views: Any) -> str | None:
    """Return the kind of inputs (B, V, ...): "ids" (L), "series" (C, T), "images" (C, H, W) or "video" (C, T, H, W).

    None for anything else, also for video whose channels are not 1 or 3.
    """
    if not isinstance(views, Tensor):
        return None
    if not views.is_floating_point():
        return "ids" if views.dim() == 3 else None
    kind = {4: "series", 5: "images", 6: "video"}.get(views.dim())
    return None if kind == "video" and views.shape[2] not in (1, 3) else kind


def pixel_statistics(data: Any) -> tuple[Tensor, Tensor] | None:
    """Return the (mean, std) of the data's normalisation, each (C or 1, 1, 1); None without one."""
    for owner in (getattr(data, "transform", None), data):
        found = getattr(owner, "mean", None), getattr(owner, "std", None)
        if not any(each is None or isinstance(each, str) for each in found):
            mean, std = (torch.as_tensor(each).view(-1, 1, 1) for each in found)
            return mean, std
    return None  # series may have mean=auto, which they turn into numbers of their own


def to_colours(x: Tensor, statistics: tuple[Tensor, Tensor] | None) -> tuple[Tensor, str]:
    """Return inputs (..., C, H, W) as pixels (..., 1 or 3, H, W) in [0, 1], and what a title says of them.

    Their normalisation is undone. Of other than 1 or 3 channels, the first three, or of two the first. These, values
    outside [0, 1], and those without a normalisation are stretched to the range of each band.
    """
    channels, values = x.shape[-3], x.float().cpu()
    shown = channels if channels in (1, 3) else 1 if channels == 2 else 3
    if statistics is not None:
        values = values * statistics[1] + statistics[0]
        if channels == shown and not bool(((values < -0.01) | (values > 1.01)).any()):
            return values.clamp(0, 1), ""
    values = values[..., :shown, :, :]
    others = [axis for axis in range(values.dim()) if axis != values.dim() - 3]
    low, high = values.amin(others, keepdim=True), values.amax(others, keepdim=True)
    which = "" if channels == shown else f"band 1 of {channels}, " if shown == 1 else f"bands 1-3 of {channels}, "
    each = "" if shown == 1 else "each "
    return (values - low) / (high - low).clamp(min=1e-12), f"; {which}{each}scaled to its own range"
