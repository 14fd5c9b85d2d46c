"""Rank and standard deviation of features, measures of collapse without labels."""

from __future__ import annotations

import torch
from torch import Tensor


def rankme(features: Tensor, eps: float = 1e-7) -> float:
    """Return the effective rank of features (N, D), between 1 and min(N, D).

    exp(-sum_k p_k log p_k) with p_k = s_k / sum(s) + eps over the singular values s of the uncentred matrix
    (RankMe, Garrido et al. 2023, arXiv 2210.02885; the paper takes 25,600 samples). Being uncentred, it
    counts the mean as one direction; zeros have rank 1.
    """
    return effective_rank(singular_values(features), eps)


def effective_rank(values: Tensor, eps: float = 1e-7) -> float:
    """Return exp(entropy) of values >= 0 divided by their sum, plus eps; 1 if all are zero."""
    p = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny) + eps
    return float(torch.exp(-(p * p.log()).sum()))


def singular_values(features: Tensor) -> Tensor:
    """Return the singular values (min(N, D),) of features (N, D) in fp64, rising, by the smaller Gram matrix.

    The Gram matrix squares them, which leaves 8 of 16 digits, as many as fp32 features have.
    """
    features = features.detach()
    if features.device.type == "mps":  # has no fp64
        features = features.cpu()
    features = features.double()
    gram = features @ features.T if features.shape[0] <= features.shape[1] else features.T @ features
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()


def feature_std(features: Tensor) -> float:
    """Return the standard deviation over samples, averaged over the D features of (N, D); 0 is complete collapse."""
    return float(features.float().std(dim=0, correction=0).mean())
