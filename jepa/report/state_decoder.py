"""A small decoder from the states of a world model to frames: what states, and roll-outs of them, know of a scene."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.report.token_decoder import explained, fit_decoder

FRAMES = 3  # of each training window, as neighbours are much alike
SECONDS = 20.0  # to encode training windows; and to fit the decoder
STEPS, BATCH, LEARNING_RATE = 200, 128, 1e-2
SIDE = 72  # pixels of the longer side of a frame that is decoded


@dataclass(frozen=True)
class DecodedStates:
    """The frames that follow the history of n windows, and what a decoder makes of states, (n, k, C, H, W) each.

    frames: true ones, at most SIDE pixels large. own: decoded from their own states. rolled_out: from the states that
    the model predicts of the history and the true actions. explained, explained_rolled_out: share of the variance of
    each of the k frames over the windows that is decoded.
    """

    frames: Tensor
    own: Tensor
    rolled_out: Tensor
    explained: list[float]
    explained_rolled_out: list[float]


def decode_states(model: Any, train: Iterable[dict[str, Tensor]], test: Iterable[dict[str, Tensor]]) -> DecodedStates:
    """Return what a decoder, fitted to states of training windows, makes of those of test windows.

    model: has `encode`, `encode_target`, `rollout`, `history` (`WorldModel`). train, test: batches with `x`
    (B, T, C, H, W) and `actions`, on its device; of train as many as are encoded in SECONDS.
    """
    features, values, end = [], [], time.monotonic() + SECONDS
    for batch in train:
        x = batch["x"][:, torch.linspace(0, batch["x"].shape[1] - 1, FRAMES).round().long()]
        features.append(model.encode_target(x).float().flatten(0, 1))
        values.append(reduced(x.flatten(0, 1)))
        if time.monotonic() > end:
            break
    frames = torch.cat(values)
    low, high = (each.view(-1, 1, 1) for each in (frames.amin(dim=(0, 2, 3)), frames.amax(dim=(0, 2, 3))))
    shares = ((frames - low) / (high - low).clamp(min=1e-6)).flatten(1)
    settings = {"steps": STEPS, "seconds": SECONDS, "batch": BATCH, "learning_rate": LEARNING_RATE}
    decoder = fit_decoder(torch.cat(features), shares, shares=True, **settings)
    history, states, truth = model.history, [], []
    for batch in test:
        x, actions = batch["x"], batch["actions"]
        predicted = model.rollout(model.encode(x[:, :history]), actions)
        states.append(torch.stack([model.encode_target(x)[:, history:], predicted]).float())
        truth.append(reduced(x[:, history:].flatten(0, 1)).unflatten(0, predicted.shape[:2]))
    frames = torch.cat(truth).cpu()
    own, rolled_out = (
        (decoder(each).unflatten(-1, frames.shape[2:]) * (high - low) + low).cpu() for each in torch.cat(states, dim=1)
    )
    told = [
        [explained(frames[:, k].flatten(1), each[:, k].flatten(1)) for k in range(frames.shape[1])]
        for each in (own, rolled_out)
    ]
    return DecodedStates(frames, own, rolled_out, *told)


def reduced(frames: Tensor) -> Tensor:
    """Return frames (n, C, H, W) of at most SIDE pixels a side."""
    scale = SIDE / max(frames.shape[-2:])
    return frames.float() if scale >= 1 else F.interpolate(frames.float(), scale_factor=scale, mode="area")
