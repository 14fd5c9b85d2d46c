"""Masked JEPA: predict, from what is seen of an input, the features of what is hidden.

    python train.py model=vit data=digits

I-JEPA (Assran et al. 2023, arXiv 2301.08243) for images; nothing here knows what the tokens stand for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from jepa.types import Batch, Draw, Horizon, Latents, Mask, Masker, Schedule
from jepa.utils.tensors import gather_tokens, layer_norm, masked_mean


class MaskedJEPA(nn.Module):
    """Context encoder, predictor, target and masker; turns a batch into `Latents`.

    encoder: follows `jepa.types.Encoder`.
    predictor, target: called with `encoder=` to be completed (`_partial_` in configs).
    mask: draws what is seen and what is predicted.
    loss: called with `embedding_dim=` to be completed; kept here so that its heads are trained and saved.
    token_weights: "uniform", or "inverse_coverage" to weigh a target token that lies in c blocks by 1 / c.
    allow_collapse: accept a target and loss of which neither prevents collapse.

    Raises ValueError when neither target nor loss prevents collapse and allow_collapse is False.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        predictor: Callable[..., nn.Module],
        target: Callable[..., nn.Module],
        mask: Masker,
        loss: Callable[..., nn.Module],
        token_weights: Literal["uniform", "inverse_coverage"] = "uniform",
        allow_collapse: bool = False,
    ) -> None:
        super().__init__()
        if token_weights not in ("uniform", "inverse_coverage"):
            raise ValueError(f"token_weights: got {token_weights!r}, expected 'uniform' or 'inverse_coverage'")
        self.encoder = encoder
        self.predictor = predictor(encoder=encoder)
        self.target = target(encoder=encoder)
        self.loss = loss(embedding_dim=encoder.dim)
        self.masker = mask
        self.token_weights = token_weights
        self._drawn: tuple[tuple, list[Mask], list[Tensor | None]] | None = None
        if not (self.target.prevents_collapse or self.loss.prevents_collapse or allow_collapse):
            raise ValueError(
                f"{type(self.target).__name__} with the loss terms {self.loss.term_names} collapses to a constant: "
                "add a term that prevents it (loss.terms.sigreg), use model/target=ema, "
                "or set model.allow_collapse=true to watch it happen"
            )

    def prepare(self, batch: Batch, draw: Draw) -> Batch:
        """The batch with its `masks` and `target_weights`, drawn for the global batch of which this is a slice."""
        x, views = flatten_views(batch)
        grid = self.encoder.grid(x)
        key = (draw.seed, draw.step, draw.total * views, grid, x.device)
        if self._drawn is None or self._drawn[0] != key:  # micro-batches of a step share one draw
            masks = self.masker(draw.total * views, grid, generator=draw.generator(x.device, "mask"))
            self._drawn = key, masks, [self._weights(mask, math.prod(grid)) for mask in masks]
        _, masks, weights = self._drawn
        mine = slice(draw.samples.start * views, draw.samples.stop * views)
        return {
            **batch,
            "masks": [mask[mine] for mask in masks],
            "target_weights": [None if weight is None else weight[mine] for weight in weights],
            "draw": draw,
        }

    def forward(self, batch: Batch) -> Latents:
        """Latents of a prepared batch."""
        x, views = flatten_views(batch)
        latents = self.latents(x, batch["masks"], views=views)
        return replace(latents, target_weights=batch["target_weights"], draw=batch["draw"])

    def latents(self, x: Tensor, masks: list[Mask], views: int = 1) -> Latents:
        """Predictions, targets and embeddings of inputs x (B * views, C, *S), views of a sample adjacent."""
        grid = self.encoder.grid(x)
        contexts = [self.encoder(x, keep=mask.context, valid=mask.context_valid) for mask in masks]
        features = layer_norm(self.encode_target(x))  # (B, N, D)
        pooled = torch.stack([masked_mean(c, mask.context_valid) for c, mask in zip(contexts, masks)])
        return Latents(
            predictions=[self.predictor(c, mask, grid) for c, mask in zip(contexts, masks)],
            targets=[gather_tokens(features, mask.targets) for mask in masks],
            target_weights=[self._weights(mask, features.shape[1]) for mask in masks],
            embeddings=pooled.unflatten(1, (-1, views)).transpose(1, 2).flatten(0, 1),  # (masks * views, B, D)
        )

    def encode_target(self, x: Tensor) -> Tensor:
        """Raw features (B, N, D) of the network that makes the targets."""
        return self.target.encode(self.encoder, x)

    def set_step(self, step: int, horizon: Horizon) -> dict[str, float]:
        """Put in force what the loss schedules for this step; `step` counts the updates made before.

        Gives values to log.
        """
        return self.loss.set_step(step, horizon)

    @property
    def momentum_schedule(self) -> Schedule | None:
        """The target's momentum as it is applied, called as `schedule(step, horizon)`; None without one."""
        return getattr(self.target, "momentum_at", None)

    def update_target(self, step: int, horizon: Horizon) -> dict[str, float]:
        """Let the target follow the encoder; `step` counts the updates made before. Gives values to log."""
        return self.target.update(self.encoder, step, horizon)

    def _weights(self, mask: Mask, tokens: int) -> Tensor | None:
        """(B, M, P) weights of target tokens, with mean 1 over the batch; None when all count alike."""
        counted = None if mask.target_valid is None else mask.target_valid.float()
        if self.token_weights == "inverse_coverage":
            counted = torch.ones_like(mask.targets, dtype=torch.float32) if counted is None else counted
            index = mask.targets.flatten(1)
            coverage = counted.new_zeros(index.shape[0], tokens).scatter_add_(1, index, counted.flatten(1))
            counted = counted / coverage.gather(1, index).view_as(counted).clamp(min=1)
        return None if counted is None else counted / counted.mean().clamp(min=1e-12)


def flatten_views(batch: Batch) -> tuple[Tensor, int]:
    """The batch's inputs (B * V, C, *S), views of a sample adjacent, and V."""
    if "views" in batch:
        return batch["views"].flatten(0, 1), batch["views"].shape[1]
    return batch["x"], 1
