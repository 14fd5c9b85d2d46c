"""A small decoder from frozen features of tokens to the input at their places: what features, or predictions, know."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.report.figures import seen_and_predicted
from jepa.report.sample_media import Medium
from jepa.types import Grid, Mask

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


def decodes(model: nn.Module, x: Tensor) -> bool:
    """Return whether a decoder can be fitted to a model's features of such inputs; not without targets, nor of ids.

    A run is loaded without its frozen teacher, the target of some.
    """
    parts = (model, "latents"), (model, "target"), (model.encoder, "token_inputs")
    return x.is_floating_point() and all(hasattr(*part) for part in parts) and not getattr(model, "teachers", None)


def decode(
    model: nn.Module, x: Tensor, mask: Mask, grid: Grid, medium: Medium, *, fitted_to: Iterable[Tensor]
) -> Decoded:
    """Return what a decoder, fitted to inputs (b, C, *S), makes of the features and predictions of samples x."""
    encoder, features, values = model.encoder, [], []
    for batch in fitted_to:
        features.append(model.target.targets(encoder, batch).float().flatten(0, 1))
        values.append(encoder.token_inputs(batch).float().flatten(0, 1))
    decoder = fit_decoder(torch.cat(features), torch.cat(values))
    x, mask = x.to(features[0].device), mask.to(features[0].device)
    targets, truth = model.target.targets(encoder, x), encoder.token_inputs(x).float()
    predictions = model.latents(x, [mask]).predictions[0].float()
    seen, predicted = (tokens.flatten(1).to(x.device) for tokens in seen_and_predicted(mask, grid))
    places = mask.targets.flatten(1).unsqueeze(-1)
    weights = torch.ones_like(places) if mask.target_valid is None else mask.target_valid.flatten(1).unsqueeze(-1)
    mean = predictions.new_zeros(*truth.shape[:2], predictions.shape[-1] + 1)
    rows = torch.cat([predictions.flatten(1, 2), torch.ones_like(places)], dim=-1) * weights
    mean.scatter_add_(1, places.expand_as(rows), rows)
    guessed, whole = decoder(mean[..., :-1] / mean[..., -1:].clamp(min=1)), decoder(targets)
    like = medium.stem.log_mel_image(x) if medium.kind == "sound" else x
    index = places_of(encoder, like, grid, medium)
    shares = explained(truth[predicted], whole[predicted]), explained(truth[predicted], guessed[predicted])
    mixed = torch.where(seen.unsqueeze(-1), truth, guessed)
    full, partly = (place(each, index, like).cpu() for each in (whole, mixed))
    return Decoded(full, partly, (~seen & ~predicted).cpu(), shares)


def places_of(encoder: nn.Module, like: Tensor, grid: Grid, medium: Medium) -> Tensor:
    """Return 1 + the flat place in an input that each value of each token is of, (N, P); 0 for padding."""
    numbers = torch.arange(1, like[0].numel() + 1, device=like.device).view_as(like[:1])
    if medium.kind == "sound":  # its tokens are of the spectrogram
        patches = numbers[0, 0].unflatten(1, (grid[1], -1)).unflatten(0, (grid[0], -1))
        return patches.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    return encoder.token_inputs(numbers.float())[0].long()


def fit_decoder(
    features: Tensor,
    values: Tensor,
    *,
    shares: bool = False,
    steps: int = STEPS,
    seconds: float = SECONDS,
    batch: int = BATCH,
    learning_rate: float = 3e-3,
) -> Callable[[Tensor], Tensor]:
    """Return a function of features (..., D) that gives values (..., P), fitted to rows (n, D) and (n, P).

    Features are data: no gradient reaches the network. It takes at most `seconds`, and on a machine fast enough is the
    same every time.

    shares: of values in [0, 1], fitted by their cross-entropy from their means on: that sees what is small and seldom
        where it is, which to a squared error is hardly more than nothing.
    """
    features, values = features.float(), values.float()
    level, scale = (0.0, 1.0) if shares else (values.mean(), values.std().clamp(min=1e-6))
    error = F.binary_cross_entropy_with_logits if shares else F.mse_loss
    random = torch.Generator().manual_seed(0)
    with torch.enable_grad(), torch.autocast(features.device.type, enabled=False), torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(features.shape[1], WIDTH), nn.GELU(), nn.Linear(WIDTH, values.shape[1]))
        layers.to(features.device)
        if shares:
            layers[-1].bias.data.copy_(values.mean(dim=0).clamp(1e-3, 1 - 1e-3).logit())
        optimizer = torch.optim.AdamW(layers.parameters(), lr=learning_rate)
        end = time.monotonic() + seconds
        for step in range(steps):
            rows = torch.randint(len(features), (min(batch, len(features)),), generator=random).to(features.device)
            loss = error(layers(features[rows]), (values[rows] - level) / scale)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - (step + 1) / steps)
            if time.monotonic() > end:
                break
    layers.requires_grad_(False)
    if shares:
        return lambda tokens: layers(tokens.float()).sigmoid()
    return lambda tokens: layers(tokens.float()) * scale + level


def place(values: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """Return values (n, N, P) of tokens at their places, in the shape of `like` (n, C, *S) and within its range.

    That is of each channel, as those of pixels are normalised apart. index: (N, P), 1 + the flat place in a sample of
    `like`; 0 is padding.
    """
    flat = like.new_zeros(len(like), like[0].numel() + 1)
    flat.index_copy_(1, index.flatten(), values.flatten(1).to(like))
    real, others = like.isfinite(), [axis for axis in range(like.ndim) if axis != 1]
    low = like.where(real, torch.inf).amin(others, keepdim=True)
    return flat[:, 1:].view_as(like).clamp(low, like.where(real, -torch.inf).amax(others, keepdim=True))


def explained(values: Tensor, decoded: Tensor) -> float:
    """Return the share of the variance of values (n, P) over n that decoded ones (n, P) explain, from 0."""
    rest = (values - decoded).square().mean()
    return max(0.0, 1 - float(rest / (values - values.mean(dim=0)).square().mean().clamp(min=1e-12)))
