"""Inputs of a network as pixels that can be shown. Pure functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


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
    """Return inputs (n, ..., C, H, W) as pixels (n, ..., 1 or 3, H, W) in [0, 1], and what a title says of them.

    Their normalisation is undone. Of other than 1 or 3 channels the first three are shown, of two both: red and cyan.
    These, values outside [0, 1], and those without a normalisation are stretched, band by band, to the range of most of
    the samples, so that one of another range does not turn the others black.
    """
    channels, values = x.shape[-3], x.float().cpu()
    if statistics is not None:
        values = values * statistics[1] + statistics[0]
        if channels in (1, 3) and not bool(((values < -0.01) | (values > 1.01)).any()):
            return values.clamp(0, 1), ""
    values = values[..., :3, :, :]
    others = [axis for axis in range(1, values.dim()) if axis != values.dim() - 3]
    low = values.amin(others, keepdim=True).quantile(0.25, dim=0, keepdim=True)
    high = values.amax(others, keepdim=True).quantile(0.75, dim=0, keepdim=True)
    pixels = ((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    if channels == 2:
        pixels = pixels[..., [0, 1, 1], :, :]
    names = {1: "", 2: "band 1 red, band 2 cyan, ", 3: "red, green, blue: "}
    which = names.get(channels, f"bands 1, 2, 3 of {channels} as red, green, blue; ")
    ends = zip(low.flatten().tolist(), high.flatten().tolist())
    ranges = ", ".join(f"{least:.3g} to {most:.3g}" for least, most in ends)
    return pixels, f"\n{which}black to full: {ranges}, the range of most of these samples"


def to_pixels(x: Tensor, statistics: tuple[Tensor, Tensor] | None) -> np.ndarray:
    """Return images (n, C, H, W) as (n, H, W, 3) uint8, see `to_colours`."""
    return (to_colours(x, statistics)[0].expand(-1, 3, -1, -1).movedim(1, -1) * 255).round().byte().numpy()
