"""PNG figures with matplotlib: a learning-rate test, sheets of images, and masks on images."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import binary_erosion
from torch import Tensor

from jepa.report.mask_statistics import token_indices, token_membership
from jepa.types import Grid, Mask
from jepa.utils.files import write_atomic

INK, SOFT, ACCENT, SECOND = "#1f2933", "#9aa5b1", "#0b6e99", "#d9480f"
BLOCK_COLOURS = ("#ff6b35", "#00b4d8", "#9ef01a", "#ff4d9d", "#ffd60a", "#b388ff", "#2ec4b6", "#ffffff")
"""Outlines of target blocks, legible on dark and light images; they repeat after the last."""

FILTER = "nearest"  # interpolation of enlarged images

STYLE = {"font.size": 10, "axes.titlesize": 11, "axes.spines.top": False, "axes.spines.right": False}
STYLE |= {"axes.edgecolor": SOFT, "text.color": INK, "legend.frameon": False, "savefig.dpi": 150}


Labels = Sequence[str] | None

FINE = 20  # points per token at which outlines are computed


@contextlib.contextmanager
def new_figure(path: Path, width: float, height: float) -> Iterator[Any]:
    """Yield a matplotlib figure of a size in inches and write it as PNG; needs no display and no global state."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        write_atomic(path, figure.savefig)


def learning_rate_figure(
    learning_rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    suggestion: float | None,
    *,
    path: Path,
) -> None:
    """Draw the loss over a rising learning rate, raw and smoothed, and the suggested rate."""
    with new_figure(path, 8, 4.5) as figure:
        axes = figure.add_subplot()
        axes.plot(learning_rates, losses, ".", color=SOFT, markersize=5, label="loss of each step")
        axes.plot(learning_rates, smoothed, color=ACCENT, linewidth=2, label="smoothed")
        if suggestion is not None:
            height = float(np.interp(np.log(suggestion), np.log(learning_rates), smoothed))
            axes.axvline(suggestion, color=SECOND, linewidth=1, linestyle="--")
            axes.plot([suggestion], [height], "o", color=SECOND, markersize=8, label=f"suggestion: {suggestion:.2g}")
        axes.set_xscale("log")
        # A diverging loss must not flatten the rest of the curve.
        low, high = min(losses), max(smoothed)
        room = 0.06 * (high - low or abs(high) or 1.0)
        axes.set_ylim(low - room, high + 2 * room)
        axes.set(xlabel="learning rate", ylabel="training loss", title="Learning-rate range test")
        axes.grid(alpha=0.25)
        axes.legend(loc="best")


@contextlib.contextmanager
def sample_sheet(
    count: int, columns: int, height: float, path: Path, labels: Labels, title: str
) -> Iterator[list[Any]]:
    """Yield the axes of each of `count` samples, in rows of a height in inches. labels: above each."""
    rows = -(-count // columns)
    with new_figure(path, 10.4, max(1.5, rows * height + 0.5)) as figure:
        figure.suptitle(title, fontsize=11)
        figure.get_layout_engine().set(wspace=0.04)
        cells = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes, label in itertools.zip_longest(cells, labels or [], fillvalue=""):
            axes.set_axis_off()
            axes.set_title(label, fontsize=8, pad=2)
        yield cells[:count]


def sample_figure(views: Tensor, *, path: Path, labels: Labels = None, title: str = "") -> None:
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


def mask_figure(images: Tensor, masks: Sequence[Mask], grid: Grid, *, path: Path, title: str = "") -> None:
    """Draw masks over images (B, C, H, W) in [0, 1]: a row for each sample, a column for each mask group, and below the
    share of samples in which each token is seen and predicted.

    Hidden tokens are dimmed, and each target block is outlined in a colour.
    """
    names = group_names(masks)
    panels = ["input", *names]
    across = max(1, 6 // len(panels))  # samples side by side
    rows, columns = -(-len(images) // across), across * len(panels)
    tall = 10.0 / columns * images.shape[-2] / images.shape[-1] + 0.1
    with new_figure(path, 10.4, rows * tall + 3.4) as figure:
        figure.suptitle(title, fontsize=11)
        upper, lower = figure.subfigures(2, 1, height_ratios=[rows * tall, 2.9])
        cells = upper.subplots(rows, columns, squeeze=False)
        for axes, name in zip(cells[0], panels * across):
            axes.set_title(name, fontsize=9, pad=3)
        for axes in cells.flat:
            axes.set_axis_off()
        for number, (image, own) in enumerate(zip(map(to_rgb, images), cells.reshape(-1, len(panels)))):
            own[0].imshow(image, interpolation=FILTER)
            for mask, axes in zip(masks, own[1:]):
                draw_mask(axes, image, mask, number, grid)
        draw_shares(lower, masks, names, grid)


def group_names(masks: Sequence[Mask]) -> list[str]:
    """Return the names of mask groups: "masked" of one, "mask 1", "mask 2" of two."""
    return ["masked"] if len(masks) == 1 else [f"mask {number}" for number in range(1, len(masks) + 1)]


def draw_shares(figure: Any, masks: Sequence[Mask], names: Sequence[str], grid: Grid) -> None:
    """Draw the share of samples in which each token is seen and predicted; of a grid of one axis as a row."""
    panels = iter(figure.subplots(1, 2 * len(masks), squeeze=False).flat)
    for mask, name in zip(masks, names):
        for part, what in (("context", "seen as context"), ("targets", "predicted")):
            share = token_membership(mask, part, math.prod(grid)).float().mean(dim=0).view(-1, grid[-1])
            axes = next(panels)
            image = axes.imshow(share.numpy(), vmin=0, vmax=max(float(share.max()), 1e-6), cmap="viridis")
            axes.set(xticks=[], yticks=[], aspect="equal" if len(grid) > 1 else "auto")
            axes.set_title(f"share {what}" if len(masks) == 1 else f"{name}: share {what}", fontsize=9)
            figure.colorbar(image, ax=axes, shrink=0.85, format=lambda value, _: f"{value:.0%}")


def draw_mask(axes: Any, image: np.ndarray, mask: Mask, number: int, grid: Grid) -> None:
    """Draw one sample's mask over its image (H, W, 3)."""
    height, width = image.shape[:2]
    down, right = height / grid[0], width / grid[1]
    seen = np.zeros(grid, dtype=bool)
    seen.flat[token_indices(mask, "context", number).numpy()] = True
    weight = np.kron(seen, np.ones((round(down), round(right))))[..., None]  # (H, W, 1)
    hidden = 0.28 * image + 0.72 * np.array([0.27, 0.30, 0.34])
    axes.imshow(image * weight + hidden * (1 - weight), interpolation=FILTER)
    x, y = ((np.arange(FINE * n) + 0.5) / FINE * size - 0.5 for n, size in ((grid[1], right), (grid[0], down)))
    for block in range(mask.targets.shape[1]):
        inside = np.zeros(grid, dtype=bool)
        inside.flat[token_indices(mask, "targets", number, block).numpy()] = True
        # Different insets keep the outlines of overlapping blocks apart.
        inner = binary_erosion(np.kron(inside, np.ones((FINE, FINE))), iterations=1 + block % 4)
        axes.contour(x, y, inner, levels=[0.5], colors=BLOCK_COLOURS[block % len(BLOCK_COLOURS)], linewidths=1.8)


def to_rgb(image: Tensor) -> np.ndarray:
    """Return an image (C, H, W) in [0, 1], C 1 or 3, as (H, W, 3)."""
    return image.detach().float().cpu().clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0).numpy()
