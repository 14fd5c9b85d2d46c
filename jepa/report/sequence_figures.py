"""Figures of samples and masks of series (lines), video (strips of frames) and token ids (text)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import ListedColormap
from torch import Tensor

from jepa.report.figures import ACCENT, INK, SECOND, Labels, draw_shares, group_names, new_figure, sample_sheet
from jepa.report.mask_statistics import token_indices
from jepa.types import Grid, Mask
from jepa.utils.tensors import grid_positions

MAX_CHANNELS = 8
COLOURS = (ACCENT, SECOND, "#2b8a3e", "#862e9c", "#a61e4d", "#5f3dc4", "#e67700", INK)
TOKEN_COLOURS = ("#e9ecef", "#d0ebff", "#ffd8a8")  # neither, seen, predicted


def as_strips(video: Tensor, max_frames: int = 16) -> Tensor:
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


def series_figure(views: Tensor, *, path: Path, labels: Labels = None, title: str = "") -> None:
    """Draw series (B, V, C, T): a panel for each sample, a line for each channel, views one above the other."""
    with sample_sheet(len(views), 4, 0.9 + 0.35 * views.shape[1], path, labels, title) as cells:
        for sample, axes in zip(views, cells):
            step = value_range(sample) * 1.1
            for view, series in enumerate(sample):
                draw_lines(axes, series - view * step)
            axes.set_xlim(0, views.shape[-1])  # so that padding shows


def series_mask_figure(x: Tensor, masks: Sequence[Mask], grid: Grid, *, path: Path, title: str = "") -> None:
    """Draw masks over series (B, C, T): a row for each sample, a column for each mask group, and below the share of
    samples in which each token is seen and predicted.

    Tokens are in order of time on the grid's last axis; on a grid (C, N) every channel has its own band.
    """
    count, bands, names = min(len(x), 6), grid[0] if len(grid) > 1 else 1, group_names(masks)
    tall = 0.55 + 0.22 * min(bands, 8)
    with new_figure(path, 10.4, 1.4 + count * tall + 2.0) as figure:
        figure.suptitle(title, fontsize=11)
        upper, lower = figure.subfigures(2, 1, height_ratios=[count * tall + 0.4, 2.0])
        panels = upper.subplots(count, len(masks), squeeze=False)
        for group, mask in enumerate(masks):
            panels[0, group].set_title(names[group], fontsize=9, pad=3)
            for number in range(count):
                panels[number, group].set(xticks=[], yticks=[])
                draw_series_mask(panels[number, group], x[number], mask, number, grid, bands)
        draw_shares(lower, masks, names, grid)


def draw_series_mask(axes: Any, series: Tensor, mask: Mask, number: int, grid: Grid, bands: int) -> None:
    """Draw one sample (C, T) over bands in the colours of its tokens."""
    state = np.zeros(math.prod(grid))
    state[token_indices(mask, "context", number).numpy()] = 1
    state[token_indices(mask, "targets", number).numpy()] = 2
    if bands > 1:  # each channel in the middle of its band
        step = value_range(series) * 1.1
        for channel, line in enumerate(series[:bands]):
            draw_lines(axes, line[None] - line.nanmean() - channel * step)
        axes.set_ylim(-(bands - 0.5) * step, 0.5 * step)
    else:
        draw_lines(axes, series)
    place = (0, series.shape[-1], *axes.get_ylim())
    look = {"cmap": ListedColormap(TOKEN_COLOURS), "vmin": 0, "vmax": 2, "interpolation": "nearest", "aspect": "auto"}
    axes.imshow(state.reshape(bands, -1), extent=place, **look)


def draw_lines(axes: Any, series: Tensor) -> None:
    """Draw the channels of a series (C, T); NaN leaves gaps."""
    for channel, line in enumerate(series[:MAX_CHANNELS].float().cpu().numpy()):
        axes.plot(np.arange(len(line)) + 0.5, line, color=COLOURS[channel % len(COLOURS)], linewidth=0.8)


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
            frames = ["{%s}"] * len(texts)
            for part, frame in (("targets", "[%s]"), ("context", "%s")):
                for place in token_indices(mask, part, number).tolist():
                    frames[place] = frame
            lines.append(" ".join(frame % text for frame, text in zip(frames, texts) if text))
    return lines
