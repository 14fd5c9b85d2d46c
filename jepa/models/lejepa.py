"""LeJEPA: joint embedding of views without teacher, predictor or stop-gradient; the loss alone prevents collapse.

    python train.py model=lejepa data=digits                       # LeJEPA: invariance and SIGReg
    python train.py model=lejepa data=digits loss=vicreg_views     # VICReg on the same views
    python train.py model=lejepa model/mask=sparse data=digits     # each view in a few of its tokens
    python train.py model=levjepa data=moving_mnist data.root=DIR  # the same on video (LeVJEPA)

LeJEPA (Balestriero and LeCun 2025, arXiv 2511.08544) and LeVJEPA (Kuhn et al. 2026, arXiv 2608.27395); with other loss
terms VICReg (arXiv 2105.04906), SimCLR (arXiv 2002.05709) or VISReg (arXiv 2606.02572).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from jepa.models.base_model import JEPA, MaskSampler, flatten_views, views_first
from jepa.models.targets import EMATarget
from jepa.types import Batch, Latents, Mask, Masker, StepRandomness
from jepa.utils.tensors import masked_mean, token_valid


class LeJEPA(JEPA):
    """One encoder for all views of a sample: the global `views` and the smaller crops `local_views`.

    A view's embedding is the mean of its tokens. The published codes take the class token, which our encoders lack.

    loss: called with `embedding_dim=` and `token_values=` to be completed.
    mask: samples the visible tokens of each global view, which alone are computed; every mask group gives one view, so
        that random subsets of an input's tokens serve as cheap views. Its targets are not used. None: all tokens.
    local_mask: the same of each local view.
    target: called with `encoder=`; a moving average of the weights, which takes no part in the training and is what
        `encode_target` and so the evaluation use. None: the encoder itself.
    allow_collapse: accept a loss that does not prevent collapse; otherwise it raises ValueError.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        loss: Callable[..., nn.Module],
        mask: Masker | None = None,
        local_mask: Masker | None = None,
        target: Callable[..., nn.Module] | None = None,
        allow_collapse: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.loss = loss(embedding_dim=encoder.embed_dim, token_values=getattr(encoder, "token_values", None))
        self.loss.require(("embeddings", "global_views", "rng"), by="LeJEPA")
        self.mask_sampler = None if mask is None else MaskSampler(mask)
        self.local_mask_sampler = None if local_mask is None else MaskSampler(local_mask, stream="mask/local")
        self.target = None if target is None else target(encoder=encoder)
        if self.target is not None and (not isinstance(self.target, EMATarget) or self.target.layers is not None):
            raise ValueError(
                f"LeJEPA compares views and has no targets; model/target=average, ema, ... evaluates a moving average "
                f"of the weights. Got {type(self.target).__name__} of {self.target.layers or 'the last block'}: set "
                "model.target=null"
            )
        if not (self.loss.prevents_collapse or allow_collapse):
            raise ValueError(
                f"the loss terms {self.loss.term_names} let all views collapse to a constant: add one that prevents "
                "it (loss=sigreg_views, loss=vicreg_views), or set model.allow_collapse=true to watch it happen"
            )

    def prepare(self, batch: Batch, rng: StepRandomness) -> Batch:
        prepared = {**batch, "rng": rng}
        if self.mask_sampler is not None:
            x, views = flatten_views(batch)
            prepared["masks"] = self.mask_sampler(self.encoder, x, rng, views)["masks"]
        if self.local_mask_sampler is not None and "local_views" in batch:
            x, views = flatten_views(batch, "local_views")
            prepared["local_masks"] = self.local_mask_sampler(self.encoder, x, rng, views)["masks"]
        return prepared

    def forward(self, batch: Batch) -> Latents:
        """Return the embeddings of a prepared batch's views, the global ones first."""
        x, views = flatten_views(batch)
        embeddings = self.embed(x, batch.get("masks"), views)
        global_views = len(embeddings)
        if "local_views" in batch:
            x, views = flatten_views(batch, "local_views")
            embeddings = torch.cat([embeddings, self.embed(x, batch.get("local_masks"), views)])
        return Latents(embeddings=embeddings, global_views=global_views, rng=batch["rng"])

    def embed(self, x: Tensor, masks: list[Mask] | None, views: int) -> Tensor:
        """Return the mean over the visible tokens of x (B * views, C, *S), the views of a sample adjacent.

        (masks * views, B, D), fp32; padding does not count. masks: None for one that shows all.
        """
        if masks is None:
            pooled = masked_mean(self.encoder(x), token_valid(self.encoder, x)).unsqueeze(0)
        else:
            seen = [self.encoder(x, keep=mask.context, valid=mask.context_valid) for mask in masks]
            pooled = torch.stack([masked_mean(tokens, mask.context_valid) for tokens, mask in zip(seen, masks)])
        return views_first(pooled, views)

    def encode_target(self, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """Return features (B, N, D) of the moving average of the encoder, or of the encoder without one."""
        network = self.encoder if self.target is None else self.target.encoder
        return network(x, layers=layers)
