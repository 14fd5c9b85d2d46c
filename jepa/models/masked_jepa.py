"""Masked JEPA: from the visible tokens of an input, predict the features of the hidden ones.

    python train.py model=vit data=digits

I-JEPA (Assran et al. 2023, arXiv 2301.08243) for images, V-JEPA (arXiv 2404.08471) for clips; any modality whose
encoder gives tokens on a grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from jepa.models.base_model import JEPA, MaskSampler, check_no_collapse, flatten_views, views_first
from jepa.types import Batch, Grid, Latents, Mask, Masker, StepRandomness
from jepa.utils.errors import check_choice
from jepa.utils.tensors import gather_tokens, grid_positions, masked_mean


class MaskedJEPA(JEPA):
    """Context encoder, predictor, target and masker: a batch to `Latents`.

    encoder: a `jepa.types.Encoder`.
    predictor, target: called with `encoder=` to be completed (`_partial_` in configs).
    loss: called with `embedding_dim=` and `token_values=` to be completed.
    token_weights: "uniform", or "inverse_coverage": weight 1 / c for a target token that lies in c blocks. Padding has
        weight 0; with padding, every sample has the same weight, however many of its tokens are predicted.
    corruption: called as corruption(x, rng, views) for the input of the context encoder; the targets are of x itself.
    allow_collapse: accept a target and a loss that do not prevent collapse; otherwise they raise ValueError.
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
        corruption: Callable[[Tensor, StepRandomness, int], Tensor] | None = None,
        allow_collapse: bool = False,
    ) -> None:
        super().__init__()
        check_choice("token_weights", token_weights, ("uniform", "inverse_coverage"))
        self.encoder = encoder
        self.target = target(encoder=encoder)
        # A user's own predictor needs `out_dim` only if targets and features differ in width.
        width = {} if self.target.out_dim == encoder.embed_dim else {"out_dim": self.target.out_dim}
        self.predictor = predictor(encoder=encoder, **width)
        self.loss = loss(embedding_dim=encoder.embed_dim, token_values=getattr(encoder, "token_values", None))
        self._dense = getattr(self.predictor, "predicts_context", False)
        self._context_layers = getattr(self.predictor, "context_layers", None)
        provided = ["predictions", "targets", "target_weights", "positions", "inputs", "embeddings", "rng"]
        self.loss.require(provided + ["context"] * self._dense, by="MaskedJEPA")
        if self._dense and "context" not in self.loss.needs:
            raise ValueError(
                "model.predictor.predict_context=true predicts the tokens that are seen, but no term of the loss reads "
                "them: add one such as jepa.losses.context_prediction.ContextPrediction, or set it to false"
            )
        self.token_weights = token_weights
        self.corruption = corruption
        self.mask_sampler = MaskSampler(mask, self._weights)
        check_no_collapse(self.target, self.loss, allow_collapse)

    def prepare(self, batch: Batch, rng: StepRandomness) -> Batch:
        """Return the batch with its `masks`, `target_weights` and, of a corruption, `corrupted` (B * views, *S)."""
        x, views = flatten_views(batch)
        sampled = self.mask_sampler(self.encoder, x, rng, views)
        corrupted = {} if self.corruption is None else {"corrupted": self.corruption(x, rng, views)}
        return {**batch, **sampled, **corrupted, "rng": rng}

    def forward(self, batch: Batch) -> Latents:
        x, views = flatten_views(batch)
        latents = self.latents(x, batch["masks"], views=views, corrupted=batch.get("corrupted"))
        return replace(latents, target_weights=batch["target_weights"], rng=batch["rng"])

    def latents(self, x: Tensor, masks: list[Mask], views: int = 1, corrupted: Tensor | None = None) -> Latents:
        """Return predictions, targets and embeddings of inputs x (B * views, C, *S), the views of a sample adjacent.

        corrupted: the input of the context encoder, of the same shape; None takes x.
        """
        grid = self.encoder.grid(x)
        seen = x if corrupted is None else corrupted
        options = {} if self._context_layers is None else {"layers": self._context_layers}
        contexts = [self.encoder(seen, keep=mask.context, valid=mask.context_valid, **options) for mask in masks]
        targets = self.target.targets(self.encoder, x)  # (B, N, D)
        pooled, predictions, context_predictions = [], [], []
        for group, (context, mask) in enumerate(zip(contexts, masks)):
            # A user's own predictor needs `group` only with several masks.
            predicted = self.predictor(context, mask, grid, **({"group": group} if group else {}))
            if self._dense:
                predicted, at_context = predicted
                context_predictions.append(at_context)
            predictions.append(predicted)
            pooled.append(masked_mean(context if isinstance(context, Tensor) else context[-1], mask.context_valid))
        return Latents(
            predictions=predictions,
            targets=[gather_tokens(targets, mask.targets) for mask in masks],
            target_weights=[self._weights(mask, targets.shape[1]) for mask in masks],
            positions=[grid_positions(grid, m.targets) for m in masks] if "positions" in self.loss.needs else None,
            inputs=self._inputs(x, masks) if "inputs" in self.loss.needs else None,
            embeddings=views_first(torch.stack(pooled), views),  # (masks * views, B, D)
            context=context_latents(context_predictions, targets, masks, grid) if self._dense else None,
        )

    def _inputs(self, x: Tensor, masks: list[Mask]) -> list[Tensor]:
        tokens = self.encoder.token_inputs(x)  # (B, N, values), or (B, N) ids
        if tokens.is_floating_point():
            return [gather_tokens(tokens, mask.targets) for mask in masks]
        return [tokens.gather(1, mask.targets.flatten(1)).view_as(mask.targets) for mask in masks]

    def encode_target(self, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """Return features (B, N, D) of the target network, without layer norm; with `layers` a list, one per layer."""
        return self.target.encode(self.encoder, x, layers)

    def _weights(self, mask: Mask, tokens: int) -> Tensor | None:
        """Return weights (B, M, P) of target tokens, of mean 1 over the batch, of which `tokens` lie on the grid.

        With padding the mean is 1 over each sample, as that over the batch is unknown to a slice. None: all are equal.
        """
        weights = None if mask.target_valid is None else mask.target_valid.float()
        if self.token_weights == "inverse_coverage":
            weights = torch.ones_like(mask.targets, dtype=torch.float32) if weights is None else weights
            index = mask.targets.flatten(1)
            coverage = weights.new_zeros(index.shape[0], tokens).scatter_add_(1, index, weights.flatten(1))
            weights = weights / coverage.gather(1, index).view_as(weights).clamp(min=1)
        if weights is None:
            return None
        mean = weights.mean() if mask.target_valid is None else weights.mean(dim=(1, 2), keepdim=True)
        return weights / mean.clamp(min=1e-12)


def context_latents(predictions: list[Tensor], targets: Tensor, masks: list[Mask], grid: Grid) -> Latents:
    """Return predictions and targets (B, M, K, D) at the context tokens (V-JEPA 2.1), with `distance_weights`."""
    at_context = [gather_tokens(targets, mask.context).unsqueeze(1) for mask in masks]
    return Latents(
        predictions=predictions,
        targets=[t.expand(-1, p.shape[1], -1, -1) for t, p in zip(at_context, predictions)],
        target_weights=[distance_weights(mask, grid) for mask in masks],
    )


def distance_weights(mask: Mask, grid: Grid) -> Tensor:
    """Return 1 / sqrt(distance from each context token to the nearest target token of a block), (B, M, K) fp32.

    Distances are Euclidean in grid steps, at least 1. Padding has weight 0.
    """
    context = grid_positions(grid, mask.context).float().unsqueeze(1)  # (B, 1, K, A)
    hidden = grid_positions(grid, mask.targets).float()
    distances = torch.cdist(context.expand(-1, mask.targets.shape[1], -1, -1), hidden)
    if mask.target_valid is not None:
        distances = distances.masked_fill(~mask.target_valid.unsqueeze(2), float("inf"))
    weights = distances.amin(dim=-1).clamp(min=1).rsqrt()  # from (B, M, K, P)
    return weights if mask.context_valid is None else weights * mask.context_valid.unsqueeze(1)
