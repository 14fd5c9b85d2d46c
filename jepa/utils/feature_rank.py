"""Label-free measures of features: do they use their dimensions, or have they collapsed?"""

from __future__ import annotations

import torch
from torch import Tensor


def rankme(features: Tensor, eps: float = 1e-7) -> float:
    """Effective rank of features (N, D), between 1 and min(N, D).

    exp(-sum_k p_k log p_k) with p_k = s_k / sum(s) + eps over the singular values s of the uncentred matrix
    (RankMe, Garrido et al. 2023, arXiv 2210.02885; the paper takes 25,600 samples). Being uncentred, it
    counts the mean as one direction; features that are all zero have rank 1.
    """
    return effective_rank(singular_values(features), eps)


def effective_rank(values: Tensor, eps: float = 1e-7) -> float:
    """Exponential of the entropy of the shares, plus eps, that values >= 0 have of their sum; 1 where all are zero."""
    p = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny) + eps
    return float(torch.exp(-(p * p.log()).sum()))


def singular_values(features: Tensor) -> Tensor:
    """Singular values (min(N, D),) of features (N, D) in fp64, rising; by the smaller of the two Gram matrices.

    That squares them, so that of the 16 digits 8 are left: as many as the features have in fp32.
    """
    features = features.detach()
    if features.device.type == "mps":  # has no fp64
        features = features.cpu()
    features = features.double()
    gram = features @ features.T if features.shape[0] <= features.shape[1] else features.T @ features
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()


def feature_std(features: Tensor) -> float:
    """Standard deviation over samples, averaged over the D features of (N, D); 0 is complete collapse."""
    return float(features.float().std(dim=0, correction=0).mean())
