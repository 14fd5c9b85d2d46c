"""A random encoder under a predictor that has learned: a baseline of planning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.types import Batch
from jepa.utils.lazy_import import keep_dynamo_out
from jepa.utils.tensors import masked_mean

LEARNING_RATE = 3e-3
"""Of AdamW. Of 1e-3, 3e-3 and 1e-2 the one with the least error on held-out windows of two rooms after few steps."""


def fit_predictor(model: nn.Module, batches: Iterable[Batch], steps: int) -> dict[str, float]:
    """Train the predictor of a world model (`jepa.models.WorldModel`), and leave all its other weights as they are.

    The states of the windows are computed once. From then on each component of what the encoder gives is standardised,
    over all their frames, as under random weights frames differ by little. The learning rate rises over a tenth of the
    steps and falls to 0.

    batches: each step takes the next one, and after the last the first again.

    Returns "prediction_error", the mean squared error of the predictions over the variance of states, of these windows,
    and "prediction_error_still", that of "nothing moves".
    """
    model.eval().requires_grad_(False)
    windows = standardised_windows(model, batches)
    keep_dynamo_out()
    weights = model.predictor.train().requires_grad_(True).parameters()
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, 10 * (step + 1) / steps) * (1 - step / steps)
    )
    for step in range(steps):
        predicted, true, _ = predictions(model, *windows[step % len(windows)])
        optimizer.zero_grad()
        F.mse_loss(predicted, true).backward()
        optimizer.step()
        schedule.step()
    model.eval().requires_grad_(False)
    return errors(model, windows)


@torch.no_grad()
def standardised_windows(model: nn.Module, batches: Iterable[Batch]) -> list[tuple[Tensor, Tensor]]:
    """Let the model standardise, and return states (B, T, D) and actions (B, T - 1, A) of each batch."""
    device = next(model.parameters()).device
    parts = []
    for batch in batches:
        x = batch["x"].to(device)
        frames = masked_mean(model.encoder(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        parts.append((frames, batch["actions"].to(device)))
    seen = torch.cat([frames.flatten(0, 1) for frames, _ in parts])
    mean, std = seen.mean(dim=0), seen.std(dim=0).clamp(min=1e-6)
    for encoder in (model.encoder, getattr(model.target, "encoder", None)):  # a moving average is still the same
        if encoder is not None:
            encoder.register_forward_hook(lambda module, inputs, tokens: (tokens - mean) / std)
    return [(model.norm((frames - mean) / std), actions) for frames, actions in parts]


def predictions(model: nn.Module, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return predicted states, the true ones and those known last, (B, k, D) each.

    As the model's loss compares them: rolled out, or where it reads no roll-outs each from the true ones before it.
    """
    if "predictions" not in model.loss.needs:
        return model.one_step(states, actions), states[:, 1:], states[:, :-1]
    known, end = model.history, model.history + model.rollout_steps
    true = states[:, known:end]
    predicted = model.rollout(states[:, :known], actions[:, : end - 1])
    return predicted, true, states[:, known - 1 : known].expand_as(true)


@torch.no_grad()
def errors(model: nn.Module, windows: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Return what `fit_predictor` does, of windows as `standardised_windows` gives them."""
    compared = [predictions(model, *window) for window in windows]
    variance = torch.cat([states.flatten(0, 1) for states, _ in windows]).var(dim=0).mean().clamp(min=1e-12)
    return {
        name: float(torch.stack([F.mse_loss(one[place], one[1]) for one in compared]).mean() / variance)
        for name, place in (("prediction_error", 0), ("prediction_error_still", 2))
    }
