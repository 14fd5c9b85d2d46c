"""Joint embedding of views: no teacher, no predictor, no stop-gradient; the loss alone prevents collapse.

    python train.py model=lejepa data=digits                 # LeJEPA: agreement of views, and SIGReg
    python train.py model=lejepa data=digits loss=vicreg     # VICReg on the same views

LeJEPA (Balestriero and LeCun 2025, arXiv 2511.08544); with other terms of the loss, VICReg (arXiv 2105.04906) or
SimCLR (arXiv 2002.05709).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from jepa.models.base_model import JEPA
from jepa.models.drawing import MaskDrawer, flatten_views, views_first
from jepa.types import Batch, Latents, Mask, Masker, StepRandomness
from jepa.utils.tensors import masked_mean, token_valid


class LeJEPA(JEPA):
    """One encoder for all views of a sample: `views`, which show the whole of it, and smaller `local_views`.

    A view's embedding is the mean over its tokens. The published code takes a class token, which our encoders have
    not; its views come at two sizes, as here.

    encoder: follows `jepa.types.Encoder`.
    loss: called with `embedding_dim=` and `token_values=` to be completed; kept here so that its heads are trained.
    mask: what is seen of each global view, one more view for each mask group; None: all of it. Its targets are not
        used. Two random subsets of the tokens of one picture are views too, and cheap ones.
    allow_collapse: accept a loss that does not prevent collapse.

    Raises ValueError when the loss does not prevent collapse and allow_collapse is False, or needs what is not here.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        loss: Callable[..., nn.Module],
        mask: Masker | None = None,
        allow_collapse: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.loss = loss(embedding_dim=encoder.embed_dim, token_values=getattr(encoder, "token_values", None))
        self.loss.require(("embeddings", "global_views", "rng"), by="LeJEPA")
        self._draw_masks = None if mask is None else MaskDrawer(mask, lambda mask, tokens: None)
        if not (self.loss.prevents_collapse or allow_collapse):
            raise ValueError(
                f"the loss terms {self.loss.term_names} let all views collapse to a constant: add one that prevents "
                "it (loss=sigreg, loss=vicreg), or set model.allow_collapse=true to watch it happen"
            )

    def prepare(self, batch: Batch, rng: StepRandomness) -> Batch:
        """The batch with the `masks` of its global views, where there are any."""
        if self._draw_masks is None:
            return {**batch, "rng": rng}
        x, views = flatten_views(batch)
        valid = token_valid(self.encoder, x)
        drawn = self._draw_masks(rng, views=views, grid=self.encoder.grid(x), device=x.device, valid=valid)
        masks = drawn["masks"]
        return {**batch, "masks": masks, "rng": rng}

    def forward(self, batch: Batch) -> Latents:
        """Latents of a prepared batch: the embeddings of its views, global ones first."""
        x, views = flatten_views(batch)
        latents = self.latents(x, batch.get("masks"), views=views)
        if "local_views" in batch:
            local = self._pooled(batch["local_views"].flatten(0, 1))  # (B * L, D)
            embeddings = views_first(local.unsqueeze(0), batch["local_views"].shape[1])
            latents = replace(latents, embeddings=torch.cat([latents.embeddings, embeddings]))
        return replace(latents, rng=batch["rng"])

    def latents(self, x: Tensor, masks: list[Mask] | None = None, views: int = 1) -> Latents:
        """Embeddings of inputs x (B * views, C, *S), views of a sample adjacent, each as far as a mask shows it."""
        if masks is None:
            pooled = self._pooled(x).unsqueeze(0)
        else:
            seen = [(self.encoder(x, keep=m.context, valid=m.context_valid), m.context_valid) for m in masks]
            pooled = torch.stack([masked_mean(tokens, valid) for tokens, valid in seen])
        embeddings = views_first(pooled, views)  # (masks * V, B, D)
        return Latents(embeddings=embeddings, global_views=len(embeddings))

    def _pooled(self, x: Tensor) -> Tensor:
        """The mean over the tokens of whole inputs that are not padding, (B, D)."""
        return masked_mean(self.encoder(x), token_valid(self.encoder, x))

    def encode_target(self, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """Raw features (B, N, D) of the encoder: the network that is trained is the only one."""
        return self.encoder(x, layers=layers)
