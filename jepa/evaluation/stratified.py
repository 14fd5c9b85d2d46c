"""Stratified subsets of training samples: every class keeps its share."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.utils.random import generator


def stratified_holdout(labels: Tensor, every: int, seed: int) -> Tensor:
    """Return (N,) bool, True for each `every`-th sample of a class, shuffled."""
    shuffled = torch.randperm(len(labels), generator=generator("cpu", seed, "evaluation/held_out"))
    order = shuffled[labels.cpu()[shuffled].argsort(stable=True)]
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[order[::every]] = True
    return held_out.to(labels.device)


def stratified_subset(labels: Tensor, share: float, seed: int, repeat: int = 0) -> Tensor:
    """Return (N,) bool, True for a random share of each class, rounded, at least one sample of it."""
    rng = generator("cpu", seed, "evaluation/few_shot", repeat)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        of_class = (labels == label).nonzero().flatten().cpu()
        count = max(1, round(share * len(of_class)))
        chosen[of_class[torch.randperm(len(of_class), generator=rng)[:count]]] = True
    return chosen.to(labels.device)
