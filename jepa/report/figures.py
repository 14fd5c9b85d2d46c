"""PNG figures with matplotlib: a learning-rate test, and samples and masks of images, series and text."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa.types import Grid, Mask
from jepa.utils.files import write_atomic
from jepa.utils.lazy_import import lazy_import
from jepa.utils.tensors import grid_positions

matplotlib, ndimage = lazy_import("matplotlib"), lazy_import("scipy.ndimage")

INK, SOFT, ACCENT, SECOND = "#1f2933", "#9aa5b1", "#0b6e99", "#d9480f"
LINE_COLOURS = ("#0072b2", "#d55e00", "#007a5a", "#b0478a", "#000000", "#a87400", "#2a9fd8", "#7f4f24")
"""Of the first channels: Okabe and Ito's colours, darker where they are to be read on white and on TOKEN_COLOURS."""
TOKEN_COLOURS = ("#e9ecef", "#d0ebff", "#ffd8a8")  # neither, seen, predicted
COLOUR_WORDS = ("blue", "orange", "green", "purple", "black", "ochre", "light blue", "brown")
BLOCK_COLOURS = ("#ff6b35", "#00b4d8", "#9ef01a", "#ff4d9d", "#ffd60a", "#b388ff", "#2ec4b6", "#ffffff")
"""Outlines of target blocks, legible on dark and light images; they repeat after the last."""

FILTER = "nearest"  # interpolation of enlarged images
STYLE = {"font.size": 10, "axes.titlesize": 11, "axes.spines.top": False, "axes.spines.right": False}
STYLE |= {"axes.edgecolor": SOFT, "text.color": INK, "legend.frameon": False, "savefig.dpi": 150}
MAX_FRAMES = 16  # of a clip
FINE = 20  # points per token at which outlines are computed


@contextlib.contextmanager
def new_figure(path: Path, width: float, height: float, title: str = "") -> Iterator[Any]:
    """Yield a matplotlib figure of a size in inches and write it as PNG; needs no display and no global state."""
    from matplotlib.figure import Figure  # slow, and most of this file needs none

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        if title:
            figure.suptitle("\n".join(line for each in title.split("\n") for line in wrap(each, 100)), fontsize=11)
        yield figure
        write_atomic(path, figure.savefig)


def learning_rate_figure(finding: Any, path: Path) -> None:
    """Draw the loss over a rising learning rate, raw and smoothed, and the suggested rate.

    finding: see `jepa.tools.LearningRateFinding`.
    """
    rates, losses, smoothed, suggestion = finding.learning_rates, finding.losses, finding.smoothed, finding.suggestion
    with new_figure(path, 8, 4.5) as figure:
        axes = figure.add_subplot()
        axes.plot(rates, losses, ".", color=SOFT, markersize=5, label="loss of each step")
        axes.plot(rates, smoothed, color=ACCENT, linewidth=2, label="smoothed")
        if suggestion is not None:
            height = float(np.interp(np.log(suggestion), np.log(rates), smoothed))
            axes.axvline(suggestion, color=SECOND, linewidth=1, linestyle="--")
            axes.plot([suggestion], [height], "o", color=SECOND, markersize=8, label=f"suggestion: {suggestion:.2g}")
        # A diverging loss must not flatten the rest of the curve.
        low, high = min(losses), max(smoothed)
        room = 0.06 * (high - low or abs(high) or 1.0)
        axes.set(xlabel="learning rate", ylabel="training loss", title="Learning-rate range test")
        axes.set(xscale="log", ylim=(low - room, high + 2 * room))
        axes.grid(alpha=0.25)
        axes.legend(loc="best")


@contextlib.contextmanager
def sample_sheet(
    count: int, columns: int, height: float, path: Path, labels: Sequence[str] | None, title: str
) -> Iterator[list[Any]]:
    """Yield the axes of each of `count` samples, in rows of a height in inches. labels: above each, as many or more."""
    rows = -(-count // columns)
    with new_figure(path, 10.4, max(1.5, rows * height + 0.5), title) as figure:
        figure.get_layout_engine().set(wspace=0.04)
        cells = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes, label in zip(cells, [*(labels or [])[:count], *[""] * len(cells)]):
            axes.set_axis_off()
            axes.set_title(label, fontsize=8, pad=2)
        yield cells[:count]


@contextlib.contextmanager
def mask_sheet(
    masks: Sequence[Mask],
    grid: Grid,
    rows: int,
    headings: Sequence[str],
    height: float,
    path: Path,
    title: str,
    upwards: bool = False,
) -> Iterator[Any]:
    """Yield axes (rows, headings), each of a height in inches, to draw masks on.

    Below is drawn the share of samples in which each token is seen and predicted; of a grid of one axis as a row.
    """
    below = 2.9 if len(grid) > 1 else 2.0
    with new_figure(path, 10.4, rows * height + below + 0.5, title) as figure:
        upper, lower = figure.subfigures(2, 1, height_ratios=[rows * height + 0.2, below])
        cells = upper.subplots(rows, len(headings), squeeze=False)
        for axes, heading in zip(cells[0], headings):
            axes.set_title(heading, fontsize=9, pad=3)
        for axes in cells.flat:
            axes.set_axis_off()
        yield cells
        panels = iter(lower.subplots(1, 2 * len(masks), squeeze=False).flat)
        for mask, name in zip(masks, group_names(masks)):
            for tokens, what, axes in zip(seen_and_predicted(mask, grid), ("seen as context", "predicted"), panels):
                share = tokens.float().mean(dim=0).view(-1, grid[-1])
                share = share.flip(0) if upwards else share
                image = axes.imshow(share.numpy(), vmin=0, vmax=max(float(share.max()), 1e-6), cmap="viridis")
                axes.set(xticks=[], yticks=[], aspect="equal" if len(grid) > 1 else "auto")
                axes.set_title(f"share {what}" if len(masks) == 1 else f"{name}: share {what}", fontsize=9)
                lower.colorbar(image, ax=axes, shrink=0.85, format=lambda value, _: f"{value:.0%}")


def group_names(masks: Sequence[Mask]) -> list[str]:
    """Return the names of mask groups: "mask" of one, "mask 1", "mask 2" of two."""
    return ["mask"] if len(masks) == 1 else [f"mask {number}" for number in range(1, len(masks) + 1)]


def sample_figure(views: Tensor, *, path: Path, labels: Sequence[str] | None = None, title: str = "") -> None:
    """Draw views (B, V, C, H, W) in [0, 1], C 1 or 3; the views of a sample side by side."""
    count, across = views.shape[:2]
    aspect = views.shape[-2] / (views.shape[-1] * across)
    columns = max(1, min(count, math.ceil(math.sqrt(count * aspect) + 0.5)))
    height = 10.0 / columns * aspect + (0.22 if labels else 0.05)
    larger = max(1, 64 // views.shape[-1])  # so that the gap between views is thin, also on tiny images
    with sample_sheet(count, columns, height, path, labels, title) as cells:
        for sample, axes in zip(views, cells):
            enlarged = [np.kron(to_rgb(view), np.ones((larger, larger, 1))) for view in sample]
            gap = (0, 0), (0, max(1, enlarged[0].shape[1] // 40)), (0, 0)
            strips = [np.pad(image, gap, constant_values=1) for image in enlarged]
            axes.imshow(np.concatenate(strips, axis=1), interpolation=FILTER)


def mask_figure(
    images: Tensor, masks: Sequence[Mask], grid: Grid, *, path: Path, title: str = "", upwards: bool = False
) -> None:
    """Draw masks over images (B, C, H, W) in [0, 1]: beside each image its masks, see `draw_mask`.

    upwards: the first row is the lowest, as of spectrograms.
    """
    panels = ["input", *group_names(masks)]
    across = max(1, 6 // len(panels))  # samples side by side
    rows, headings = -(-len(images) // across), panels * across
    height = 10.0 / len(headings) * images.shape[-2] / images.shape[-1] + 0.1
    with mask_sheet(masks, grid, rows, headings, height, path, title, upwards) as cells:
        for number, (image, own) in enumerate(zip(map(to_rgb, images), cells.reshape(-1, len(panels)))):
            own[0].imshow(image, interpolation=FILTER)
            for mask, axes in zip(masks, own[1:]):
                draw_mask(axes, image, mask, number, grid)
            for axes in own if upwards else ():
                axes.invert_yaxis()


def draw_mask(axes: Any, image: np.ndarray, mask: Mask, number: int, grid: Grid) -> None:
    """Draw one sample's mask over its image (H, W, 3): hidden tokens dimmed, target blocks outlined in colours."""
    down, right = image.shape[0] / grid[0], image.shape[1] / grid[1]
    seen, blocks = seen_and_predicted(mask, grid)[0][number], target_blocks(mask, grid)[number]
    weight = np.kron(seen, np.ones((round(down), round(right))))[..., None]  # (H, W, 1)
    hidden = 0.28 * image + 0.72 * np.array([0.27, 0.30, 0.34])
    axes.imshow(image * weight + hidden * (1 - weight), interpolation=FILTER)
    x, y = ((np.arange(FINE * n) + 0.5) / FINE * size - 0.5 for n, size in ((grid[1], right), (grid[0], down)))
    for index, (block, colour) in enumerate(zip(blocks.numpy(), itertools.cycle(BLOCK_COLOURS))):
        # Different insets keep the outlines of overlapping blocks apart.
        inner = ndimage.binary_erosion(np.kron(block, np.ones((FINE, FINE))), iterations=1 + index % 4)
        axes.contour(x, y, inner, levels=[0.5], colors=colour, linewidths=1.8)


def to_rgb(image: Tensor) -> np.ndarray:
    """Return an image (C, H, W) in [0, 1], C 1 or 3, as (H, W, 3)."""
    return image.detach().float().cpu().clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0).numpy()


def seen_and_predicted(mask: Mask, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return whether a token is in a sample's context, and in at least one of its targets, each (B, *grid) bool."""
    return tokens_in(mask.context, mask.context_valid, grid), target_blocks(mask, grid).any(dim=1)


def target_blocks(mask: Mask, grid: Grid) -> Tensor:
    """Return whether a token is in each target block, (B, blocks, *grid) bool."""
    return tokens_in(mask.targets, mask.target_valid, grid)


def tokens_in(index: Tensor, valid: Tensor | None, grid: Grid) -> Tensor:
    """Return which tokens are among the valid indices (..., K), as (..., *grid) bool on the CPU."""
    padding = math.prod(grid)
    index = index if valid is None else index.masked_fill(~valid, padding)
    inside = torch.zeros(*index.shape[:-1], padding + 1, dtype=torch.bool)
    return inside.scatter_(-1, index.cpu(), True)[..., :-1].unflatten(-1, grid)


def as_strips(video: Tensor, max_frames: int = MAX_FRAMES) -> Tensor:
    """Return clips (..., C, T, H, W) as at most `max_frames` frames side by side, (..., C, H, T * W)."""
    frames = video.shape[-3]
    chosen = torch.linspace(0, frames - 1, min(frames, max_frames)).round().long()
    return video.index_select(-3, chosen.to(video.device)).transpose(-3, -2).flatten(-2)


def strip_masks(masks: Sequence[Mask], grid: Grid) -> tuple[list[Mask], Grid]:
    """Return masks of clips on a grid (T, H, W) as masks of their strips, and the strips' grid (H, T * W)."""
    frames, rows, columns = grid

    def moved(index: Tensor) -> Tensor:
        frame, row, column = grid_positions(grid, index).unbind(-1)
        return row * frames * columns + frame * columns + column

    return [replace(m, context=moved(m.context), targets=moved(m.targets)) for m in masks], (rows, frames * columns)


def series_figure(
    views: Tensor,
    *,
    path: Path,
    labels: Sequence[str] | None = None,
    title: str = "",
    names: Sequence[str] = (),
    unit: str = "",
) -> None:
    """Draw series (B, V, C, T): a panel for each sample, a line for each channel, views one above the other.

    names: of the channels. unit: of the values, for the title.
    """
    title = "\n".join(filter(None, (title, channels_text(views.shape[2], names), f"right: steps; up: {unit}")))
    columns = 4
    with sample_sheet(len(views), columns, 0.9 + 0.35 * views.shape[1], path, labels, title) as cells:
        for number, (sample, axes) in enumerate(zip(views, cells)):
            step = value_range(sample) * 1.1
            for view, series in enumerate(sample):
                draw_lines(axes, series - view * step)
            axes.set_xlim(0, views.shape[-1])  # so that padding shows
            axes.set_axis_on()
            axes.tick_params(labelsize=7, length=2, labelbottom=number + columns >= len(views))
            if len(sample) > 1:
                axes.set_yticks([])


def channels_text(channels: int, names: Sequence[str]) -> str:
    """Return which lines are drawn."""
    if channels == 1:
        return ""
    names = [*names, *(f"channel {number}" for number in range(len(names) + 1, channels + 1))]
    shown = ", ".join(f"{colour}: {name}" for colour, name in zip(COLOUR_WORDS, names))
    return shown + (f"; the first {len(COLOUR_WORDS)} of {channels} channels" if channels > len(COLOUR_WORDS) else "")


def spectrogram_figure(
    waves: Tensor, front: Any, *, path: Path, labels: Sequence[str] | None = None, title: str = ""
) -> None:
    """Draw waveforms (B, V, 1, T) as the log-mel spectrograms of `front` (`LogMel`), views one above the other.

    Padding is left white. Hz stand at the left, seconds below.
    """
    columns, seconds = 4, waves.shape[-1] / front.sample_rate
    hertz = front.filters.argmax(dim=1).cpu() * (front.sample_rate / 2 / (front.filters.shape[1] - 1))  # of each bin
    marks = torch.linspace(0, len(hertz) - 1, 4).long().tolist()
    views = waves.flatten(0, 1).to(front.filters.device)
    mel = front(views).masked_fill(~front.valid(views).unsqueeze(1), math.nan).cpu().unflatten(0, waves.shape[:2])
    real = mel[~mel.isnan()]
    limits = {"vmin": float(real.min()), "vmax": float(real.max())} if len(real) else {}
    with sample_sheet(len(waves), columns, 0.5 + 0.8 * waves.shape[1], path, labels, title) as cells:
        for number, (sample, axes) in enumerate(zip(mel, cells)):
            place = (0, seconds, 0, len(sample) * len(hertz))
            rows = sample.flip(0).flatten(0, 1)  # the first view on top
            axes.imshow(rows.numpy(), origin="lower", aspect="auto", cmap="magma", extent=place, **limits)
            left, low = number % columns == 0, number + columns >= len(mel)
            axes.set_axis_on()
            axes.tick_params(labelsize=7, length=2)
            ticks = [view * len(hertz) + mark for view in range(len(sample)) for mark in marks]
            names = [f"{float(f'{float(hertz[mark]):.2g}'):,.0f}" for mark in marks] * len(sample)
            axes.set_yticks(ticks if left else [], names if left else [])
            axes.set_xticks(axes.get_xticks() if low else [])
            axes.set(xlim=(0, seconds), xlabel="s" if low else None, ylabel="Hz" if left else None)
            axes.xaxis.label.set_size(7)
            axes.yaxis.label.set_size(7)


def series_mask_figure(
    x: Tensor, masks: Sequence[Mask], grid: Grid, *, path: Path, title: str = "", names: Sequence[str] = ()
) -> None:
    """Draw masks over series (B, C, T): a row for each sample, a column for each mask group.

    Tokens are in order of time on the grid's last axis; on a grid (C, N) every channel has its own band.
    """
    bands = grid[0] if len(grid) > 1 else 1
    if bands > 1:
        title += f"\nfrom top to bottom: {', '.join(names) or f'channels 1 to {bands}'}"
    elif lines := channels_text(x.shape[1], names):
        title += f"\n{lines}"
    with mask_sheet(masks, grid, len(x), group_names(masks), 0.55 + 0.22 * min(bands, 8), path, title) as cells:
        for number, (series, row) in enumerate(zip(x, cells)):
            for mask, axes in zip(masks, row):
                draw_series_mask(axes, series, mask, number, grid, bands)


def draw_series_mask(axes: Any, series: Tensor, mask: Mask, number: int, grid: Grid, bands: int) -> None:
    """Draw one sample (C, T) over bands in the colours of its tokens."""
    seen, predicted = (tokens[number].view(bands, -1) for tokens in seen_and_predicted(mask, grid))
    if bands > 1:  # each channel in the middle of its band
        step = value_range(series) * 1.1
        for channel, line in enumerate(series[:bands]):
            draw_lines(axes, line[None] - line.nanmean() - channel * step)
        axes.set_ylim(-(bands - 0.5) * step, 0.5 * step)
    else:
        draw_lines(axes, series)
    place = (0, series.shape[-1], *axes.get_ylim())
    cmap = matplotlib.colors.ListedColormap(TOKEN_COLOURS)
    look = {"cmap": cmap, "vmin": 0, "vmax": 2, "interpolation": "nearest", "aspect": "auto"}
    axes.imshow(torch.where(predicted, 2, seen.int()).numpy(), extent=place, **look)


def draw_lines(axes: Any, series: Tensor) -> None:
    """Draw the first channels of a series (C, T); NaN leaves gaps."""
    for line, colour in zip(series.float().cpu().numpy(), LINE_COLOURS):
        axes.plot(np.arange(len(line)) + 0.5, line, color=colour, linewidth=0.8)


def value_range(series: Tensor) -> float:
    """Return the range of the values of series (..., C, T), above 0."""
    real = series[~series.isnan()]
    return max(float(real.max() - real.min()), 1e-6) if real.numel() else 1.0


def id_lines(ids: Tensor, words: Callable[[Tensor], Sequence[str]], masks: Sequence[Mask] = ()) -> list[str]:
    """Return samples of ids (B, L) as lines of text; with masks a line for each, [predicted] and {neither} in brackets.

    words: ids (L,) -> a string for each.
    """
    lines = []
    for number, row in enumerate(ids):
        texts = words(row)
        if not masks:
            lines.append(" ".join(filter(None, texts)))
        for mask in masks:
            seen, predicted = (tokens[number].tolist() for tokens in seen_and_predicted(mask, (len(texts),)))
            framed = [t if s else f"[{t}]" if p else f"{{{t}}}" for t, s, p in zip(texts, seen, predicted) if t]
            lines.append(" ".join(framed))
    return lines
