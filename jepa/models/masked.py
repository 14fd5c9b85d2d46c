"""Masked JEPA: predict, from what is seen of an input, the features of what is hidden.

    python train.py model=vit data=digits

I-JEPA (Assran et al. 2023, arXiv 2301.08243) for images; nothing here knows what the tokens stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from jepa.models.base_model import JEPA
from jepa.models.drawing import MaskDrawer, flatten_views, views_first
from jepa.types import Batch, Grid, Latents, Mask, Masker, StepRandomness
from jepa.utils.tensors import gather_tokens, grid_positions, masked_mean, token_valid


class MaskedJEPA(JEPA):
    """Context encoder, predictor, target and masker; turns a batch into `Latents`.

    encoder: follows `jepa.types.Encoder`.
    predictor, target: called with `encoder=` to be completed (`_partial_` in configs).
    mask: draws what is seen and what is predicted.
    loss: called with `embedding_dim=` and `token_values=` to be completed; kept here so that its heads are trained
        and saved.
    token_weights: "uniform", or "inverse_coverage" to weigh a target token that lies in c blocks by 1 / c. Padding
        weighs nothing, and where there is any, every sample counts alike, however many of its tokens are predicted.
    corruption: called as corruption(x, rng, views) for what the context encoder is shown in place of x, of which the
        targets are made all the same; None shows x.
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
        corruption: Callable[[Tensor, StepRandomness, int], Tensor] | None = None,
        allow_collapse: bool = False,
    ) -> None:
        super().__init__()
        if token_weights not in ("uniform", "inverse_coverage"):
            raise ValueError(f"token_weights: got {token_weights!r}, expected 'uniform' or 'inverse_coverage'")
        self.encoder = encoder
        self.target = target(encoder=encoder)
        # Where targets are as wide as features, predictors of a user's own need not know that they might not be.
        wide = {} if self.target.out_dim == encoder.embed_dim else {"out_dim": self.target.out_dim}
        self.predictor = predictor(encoder=encoder, **wide)
        self.loss = loss(embedding_dim=encoder.embed_dim, token_values=getattr(encoder, "token_values", None))
        self._dense = getattr(self.predictor, "predicts_context", False)
        made = ["predictions", "targets", "target_weights", "positions", "inputs", "embeddings", "rng"]
        self.loss.require(made + ["context"] * self._dense, by="MaskedJEPA")
        if self._dense and "context" not in self.loss.needs:
            raise ValueError(
                "model.predictor.predict_context=true predicts the tokens that are seen, but no term of the loss reads "
                "them: add one such as jepa.losses.context_prediction.ContextPrediction, or set it to false"
            )
        self.token_weights = token_weights
        self.corruption = corruption
        self._draw_masks = MaskDrawer(mask, self._weights)
        if not (self.target.prevents_collapse or self.loss.prevents_collapse or allow_collapse):
            raise ValueError(
                f"{type(self.target).__name__} with the loss terms {self.loss.term_names} collapses to a constant: "
                "add a term that prevents it (loss.terms.sigreg), use model/target=ema, "
                "or set model.allow_collapse=true to watch it happen"
            )

    def prepare(self, batch: Batch, rng: StepRandomness) -> Batch:
        """The batch with its `masks` and `target_weights`, drawn for the global batch of which this is a slice.

        With a corruption also `shown` (B * views, *S): what the context encoder sees.
        """
        x, views = flatten_views(batch)
        valid = token_valid(self.encoder, x)
        drawn = self._draw_masks(rng, views=views, grid=self.encoder.grid(x), device=x.device, valid=valid)
        shown = {} if self.corruption is None else {"shown": self.corruption(x, rng, views)}
        return {**batch, **drawn, **shown, "rng": rng}

    def forward(self, batch: Batch) -> Latents:
        """Latents of a prepared batch."""
        x, views = flatten_views(batch)
        latents = self.latents(x, batch["masks"], views=views, shown=batch.get("shown"))
        return replace(latents, target_weights=batch["target_weights"], rng=batch["rng"])

    def latents(self, x: Tensor, masks: list[Mask], views: int = 1, shown: Tensor | None = None) -> Latents:
        """Predictions, targets and embeddings of inputs x (B * views, C, *S), views of a sample adjacent.

        shown: what the context encoder sees in place of x, of the same shape; None for x.
        """
        grid = self.encoder.grid(x)
        visible = x if shown is None else shown
        contexts = [self._encode_context(visible, mask) for mask in masks]
        targets = self.target.targets(self.encoder, x)  # (B, N, D)
        pooled = torch.stack(
            [masked_mean(c if isinstance(c, Tensor) else c[-1], m.context_valid) for c, m in zip(contexts, masks)]
        )
        predicted = [self._predict(c, mask, grid, group) for group, (c, mask) in enumerate(zip(contexts, masks))]
        seen = None
        if self._dense:
            seen = self._seen([at_context for _, at_context in predicted], targets, masks, grid)
            predicted = [at_targets for at_targets, _ in predicted]
        return Latents(
            predictions=predicted,
            targets=[gather_tokens(targets, mask.targets) for mask in masks],
            target_weights=[self._weights(mask, targets.shape[1]) for mask in masks],
            positions=[grid_positions(grid, m.targets) for m in masks] if "positions" in self.loss.needs else None,
            inputs=self._inputs(x, masks) if "inputs" in self.loss.needs else None,
            embeddings=views_first(pooled, views),  # (masks * views, B, D)
            context=seen,
        )

    def _encode_context(self, x: Tensor, mask: Mask) -> Tensor | list[Tensor]:
        """What the predictor gets to see: features (B, K, D), or one such tensor for each layer it asks for."""
        layers = getattr(self.predictor, "context_layers", None)
        asked = {} if layers is None else {"layers": layers}
        return self.encoder(x, keep=mask.context, valid=mask.context_valid, **asked)

    @staticmethod
    def _seen(predictions: list[Tensor], targets: Tensor, masks: list[Mask], grid: Grid) -> Latents:
        """The dense prediction of V-JEPA 2.1 (arXiv 2603.14482): at the tokens that are seen, (B, M, K, D).

        A token weighs 1 / sqrt(its distance to the nearest hidden token of the block), in steps of the grid.
        """
        wanted = [gather_tokens(targets, mask.context).unsqueeze(1) for mask in masks]
        return Latents(
            predictions=predictions,
            targets=[t.expand(-1, p.shape[1], -1, -1) for t, p in zip(wanted, predictions)],
            target_weights=[distance_weights(mask, grid) for mask in masks],
        )

    def _predict(self, context: Tensor, mask: Mask, grid: Grid, group: int) -> Tensor | tuple[Tensor, Tensor]:
        # Predictors of a user's own need not take groups where there is one.
        return self.predictor(context, mask, grid, **({"group": group} if group else {}))

    def _inputs(self, x: Tensor, masks: list[Mask]) -> list[Tensor]:
        tokens = self.encoder.token_inputs(x)  # (B, N, values), or (B, N) ids
        if tokens.is_floating_point():
            return [gather_tokens(tokens, mask.targets) for mask in masks]
        return [tokens.gather(1, mask.targets.flatten(1)).view_as(mask.targets) for mask in masks]

    def encode_target(self, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """Raw features (B, N, D) of the network that makes the targets; a list, one per asked layer."""
        return self.target.encode(self.encoder, x, layers)

    def _weights(self, mask: Mask, tokens: int) -> Tensor | None:
        """(B, M, P) weights of target tokens, of mean 1 over the batch; None when all count alike.

        Where tokens may be padding their mean is 1 over each sample, as that of the batch cannot be told from a slice.
        """
        counted = None if mask.target_valid is None else mask.target_valid.float()
        if self.token_weights == "inverse_coverage":
            counted = torch.ones_like(mask.targets, dtype=torch.float32) if counted is None else counted
            index = mask.targets.flatten(1)
            coverage = counted.new_zeros(index.shape[0], tokens).scatter_add_(1, index, counted.flatten(1))
            counted = counted / coverage.gather(1, index).view_as(counted).clamp(min=1)
        if counted is None:
            return None
        samples = counted.mean() if mask.target_valid is None else counted.mean(dim=(1, 2), keepdim=True)
        return counted / samples.clamp(min=1e-12)


def distance_weights(mask: Mask, grid: Grid) -> Tensor:
    """1 / sqrt(distance of each context token to the nearest target token of a block), (B, M, K) fp32; 0 at padding.

    Distances are Euclidean, in steps along the axes of the grid; a context token that is a target too weighs 1.
    """
    context = grid_positions(grid, mask.context).float().unsqueeze(1)  # (B, 1, K, A)
    apart = torch.cdist(context.expand(-1, mask.targets.shape[1], -1, -1), grid_positions(grid, mask.targets).float())
    if mask.target_valid is not None:
        apart = apart.masked_fill(~mask.target_valid.unsqueeze(2), float("inf"))
    weights = apart.amin(dim=-1).clamp(min=1).rsqrt()  # from (B, M, K, P)
    return weights if mask.context_valid is None else weights * mask.context_valid.unsqueeze(1)
