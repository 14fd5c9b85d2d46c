"""LiDAR: the effective rank of what tells samples apart, without labels."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

from jepa.utils.errors import check_at_least
from jepa.utils.tensors import effective_rank

log = logging.getLogger("jepa")


def lidar(embeddings: Tensor, delta: float = 1e-4, eps: float = 1e-7) -> float:
    """Return the effective rank of the scatter between samples, in units of the scatter between their views.

    LiDAR (Thilak et al. 2023, arXiv 2312.04000) for embeddings (n, q, D) of q views of n samples: linear
    discriminant analysis in which every sample is a class. With the between-sample scatter B (over n - 1) and the
    within-sample scatter W (over n (q - 1)) it is exp(-sum_k p_k log p_k), p_k being the shares of the eigenvalues
    of (W + delta)^-1/2 B (W + delta)^-1/2, plus eps. Between 1 and min(n - 1, D).

    delta: added to W's diagonal, so that it can be inverted. Where all views of a sample are equal, W is 0 and this is
        the effective rank of B alone, which is logged.

    Raises ValueError for fewer than 2 samples or views.
    """
    samples, views = embeddings.shape[:2]
    if min(samples, views) < 2:
        raise ValueError(f"lidar: got {samples} samples of {views} views, expected at least 2 of 2 each")
    x = embeddings.double().cpu()  # for the inverse; some devices have no float64
    centres = x.mean(dim=1)
    deviations = (x - centres[:, None]).flatten(0, 1) / (samples * (views - 1)) ** 0.5
    within = deviations.T @ deviations
    if within.trace() <= 1e-12 * centres.square().sum():  # 0 but for rounding
        log.warning("LiDAR: the views of each sample have the same embedding, so it ranks the samples' scatter alone")
    within.diagonal().add_(delta)
    between = (centres - centres.mean(dim=0)) / (samples - 1) ** 0.5
    # With W = L L^T the eigenvalues are the squared singular values of L^-1 times the root of B.
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(within), between.T, upper=False)
    return effective_rank(torch.linalg.svdvals(whitened).square(), eps)


class LiDAR:
    """`lidar` of augmented and masked views of training samples: the embeddings that the model trains.

    Each sample is augmented `views` times, with one embedding per mask of each view; raw input has no masks. Data
    without `view_batches` has no score, which is logged.

    samples: n; the paper takes 1,000. views: augmented ones of each, 50 in the paper. delta: as in `lidar`.

    Raises ValueError for fewer than 2 samples or views, or a delta that is not above 0.
    """

    needs = "views"

    def __init__(self, *, samples: int = 256, views: int = 8, delta: float = 1e-4) -> None:
        key = "evaluation.probes.lidar"
        check_at_least(key, 2, samples=samples, views=views)
        if delta <= 0:
            raise ValueError(f"{key}.delta must be above 0, got {delta}: it makes scatter invertible")
        self.samples = samples
        self.views = views
        self.delta = delta

    def __call__(self, embeddings: Tensor) -> float:
        """Return the effective rank of embeddings (n, q, D), NaN of a single sample."""
        return lidar(embeddings, self.delta) if len(embeddings) > 1 else math.nan
