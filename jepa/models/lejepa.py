"""LeJEPA: joint embedding of views without teacher, predictor or stop-gradient; the loss alone prevents collapse.

    python train.py model=lejepa data=digits                 # LeJEPA: invariance and SIGReg
    python train.py model=lejepa data=digits loss=vicreg     # VICReg on the same views

LeJEPA (Balestriero and LeCun 2025, arXiv 2511.08544); with other loss terms VICReg (arXiv 2105.04906) or SimCLR
(arXiv 2002.05709).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from jepa.models.base_model import JEPA, MaskSampler, flatten_views, views_first
from jepa.types import Batch, Latents, Mask, Masker, StepRandomness
from jepa.utils.tensors import masked_mean, token_valid


class LeJEPA(JEPA):
    """One encoder for all views of a sample: the global `views` and the smaller crops `local_views`.

    A view's embedding is the mean of its tokens. The published code takes the class token, which our encoders lack.

    loss: called with `embedding_dim=` and `token_values=` to be completed.
    mask: samples the visible tokens of each global view; every mask group gives one view, so that random subsets of an
        image's tokens serve as cheap views. Its targets are not used. None: all tokens are visible.
    allow_collapse: accept a loss that does not prevent collapse; otherwise it raises ValueError.
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
        self.mask_sampler = None if mask is None else MaskSampler(mask)
        if not (self.loss.prevents_collapse or allow_collapse):
            raise ValueError(
                f"the loss terms {self.loss.term_names} let all views collapse to a constant: add one that prevents "
                "it (loss=sigreg, loss=vicreg), or set model.allow_collapse=true to watch it happen"
            )

    def prepare(self, batch: Batch, rng: StepRandomness) -> Batch:
        if self.mask_sampler is None:
            return {**batch, "rng": rng}
        x, views = flatten_views(batch)
        return {**batch, "masks": self.mask_sampler(self.encoder, x, rng, views)["masks"], "rng": rng}

    def forward(self, batch: Batch) -> Latents:
        """Return the embeddings of a prepared batch's views, the global ones first."""
        x, views = flatten_views(batch)
        latents = self.latents(x, batch.get("masks"), views=views)
        if "local_views" in batch:
            local = self._pooled(batch["local_views"].flatten(0, 1))  # (B * L, D)
            embeddings = views_first(local.unsqueeze(0), batch["local_views"].shape[1])
            latents = replace(latents, embeddings=torch.cat([latents.embeddings, embeddings]))
        return replace(latents, rng=batch["rng"])

    def latents(self, x: Tensor, masks: list[Mask] | None = None, views: int = 1) -> Latents:
        """Return the embeddings of the visible tokens of x (B * views, C, *S), the views of a sample adjacent."""
        if masks is None:
            pooled = self._pooled(x).unsqueeze(0)
        else:
            contexts = [self.encoder(x, keep=mask.context, valid=mask.context_valid) for mask in masks]
            pooled = torch.stack([masked_mean(c, mask.context_valid) for c, mask in zip(contexts, masks)])
        embeddings = views_first(pooled, views)  # (masks * V, B, D)
        return Latents(embeddings=embeddings, global_views=len(embeddings))

    def _pooled(self, x: Tensor) -> Tensor:
        """Return the mean (B, D) over the tokens of unmasked inputs that are not padding."""
        return masked_mean(self.encoder(x), token_valid(self.encoder, x))

    def encode_target(self, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """Return features (B, N, D) of the encoder, the only network."""
        return self.encoder(x, layers=layers)
