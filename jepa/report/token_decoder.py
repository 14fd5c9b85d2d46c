"""A small decoder from frozen features of tokens to the input at their places: what features, or predictions, know."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEPS, SECONDS, BATCH, WIDTH = 600, 5.0, 1024, 256


@dataclass(frozen=True)
class Decoded:
    """What a decoder of target features makes of a few samples; each of the shape of their inputs, or spectrograms.

    full: of the features of the whole input. predicted: the input where the encoder saw it, and elsewhere what is
    decoded from the predicted features. hidden: (n, N), neither seen nor predicted. explained: share of the variance of
    the input at the predicted tokens that is decoded from their features, and from the predicted ones.
    """

    full: Tensor
    predicted: Tensor
    hidden: Tensor
    explained: tuple[float, float]


def fit_decoder(features: Tensor, values: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function of features (..., D) that gives values (..., P), fitted to rows (n, D) and (n, P).

    Features are data: no gradient reaches the network. It takes at most SECONDS, and on a machine fast enough is the
    same every time.
    """
    features, values = features.float(), values.float()
    level, scale = values.mean(), values.std().clamp(min=1e-6)
    random = torch.Generator().manual_seed(0)
    with torch.enable_grad(), torch.autocast(features.device.type, enabled=False), torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(features.shape[1], WIDTH), nn.GELU(), nn.Linear(WIDTH, values.shape[1]))
        layers.to(features.device)
        optimizer = torch.optim.AdamW(layers.parameters(), lr=3e-3)
        end = time.monotonic() + SECONDS
        for step in range(STEPS):
            rows = torch.randint(len(features), (min(BATCH, len(features)),), generator=random).to(features.device)
            loss = F.mse_loss(layers(features[rows]), (values[rows] - level) / scale)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            optimizer.param_groups[0]["lr"] = 3e-3 * (1 - (step + 1) / STEPS)
            if time.monotonic() > end:
                break
    layers.requires_grad_(False)
    return lambda tokens: layers(tokens.float()) * scale + level


def place(values: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """Return values (n, N, P) of tokens at their places, in the shape of `like` (n, *S) and within its range.

    index: (N, P), 1 + the flat place in a sample of `like`; 0 is padding.
    """
    flat = like.new_zeros(len(like), like[0].numel() + 1)
    flat.index_copy_(1, index.flatten(), values.flatten(1).to(like))
    real = like[like.isfinite()]
    return flat[:, 1:].view_as(like).clamp(real.min(), real.max())


def explained(values: Tensor, decoded: Tensor) -> float:
    """Return the share of the variance of values (n, P) over n that decoded ones (n, P) explain, from 0."""
    rest = (values - decoded).square().mean()
    return max(0.0, 1 - float(rest / (values - values.mean(dim=0)).square().mean().clamp(min=1e-12)))
