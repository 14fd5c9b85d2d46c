"""Features as colours: their principal components, the same axes for several steps, and RGB. Pure functions.

Values are of any grid: (n, T, C) of series, text and sound in time, (n, H, W, C) of images, (n, T, H, W, C) of video.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

NO_TOKEN = 128  # the grey of padding


def principal_components(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the first principal components (..., count) fp32 of features (..., D), and their basis (D, count).

    Rows that are not finite take no part and are NaN in the values: padding is NaN. Components beyond D are 0. The
    largest weight of each is positive, so that the same features give the same signs.
    """
    rows = features.detach().flatten(0, -2).float()
    real = rows.isfinite().all(dim=1)
    centred = (rows - rows[real].mean(dim=0)).masked_fill(~real[:, None], float("nan"))
    with torch.autocast(features.device.type, enabled=False):
        gram = (centred[real].T @ centred[real]).cpu().double()
    basis = torch.linalg.eigh(gram).eigenvectors.flip(-1)[:, :count]  # by falling variance
    largest = basis.gather(0, basis.abs().argmax(dim=0, keepdim=True))
    basis = F.pad(basis * largest.sign(), (0, count - basis.shape[1])).to(rows)
    with torch.autocast(features.device.type, enabled=False):
        return (centred @ basis).unflatten(0, features.shape[:-1]), basis


def aligned(values: Tensor | np.ndarray, reference: Tensor | np.ndarray) -> Tensor:
    """Return the first three components of `values` (..., C), turned to be as close as can be to those of `reference`.

    An orthogonal Procrustes problem, for components of the same tokens at two steps: equal colours then mean the same.
    Raise ValueError for other shapes.
    """
    values, reference = (torch.as_tensor(each)[..., :3].float() for each in (values, reference))
    if values.shape != reference.shape:
        raise ValueError(f"got components of {tuple(values.shape)} and {tuple(reference.shape)}: of different tokens")
    real = (values.isfinite() & reference.isfinite()).all(dim=-1)
    left, _, right = torch.linalg.svd(values[real].T @ reference[real])
    return values @ (left @ right)


def as_colours(values: Tensor | np.ndarray, *, clip: float = 2.0) -> np.ndarray:
    """Return values (..., 3) as RGB (..., 3) uint8: each component from its percentile `clip` to 100 - `clip`.

    Values that are NaN, as those of padding, are grey.
    """
    values = torch.as_tensor(values).float().cpu().numpy()
    real = values[np.isfinite(values).all(axis=-1)]
    low, high = np.percentile(real, (clip, 100 - clip), axis=0) if len(real) else (np.zeros(3), np.ones(3))
    flat = high - low < 1e-12
    shares = np.where(flat, 0.5, (values - low) / np.where(flat, 1.0, high - low))
    return np.nan_to_num(shares.clip(0, 1) * 255, nan=NO_TOKEN).round().astype(np.uint8)
