"""InfoNCE: the contrastive loss of CPC (arXiv 1807.03748, equation 4) and SimCLR, over all ranks."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.distributed.collectives import all_gather_rows, mean_over_ranks, row_offset
from jepa.losses.objective import Term
from jepa.types import Latents
from jepa.utils.errors import check_choice
from jepa.utils.tensors import position_ids


class InfoNCE(Term):
    """Mean over queries of -log(e^(s+ / t) / (e^(s+ / t) + sum over negatives of e^(s / t))), s the cosine similarity.

    over: the queries and keys.
        "tokens": each prediction (B, M, P, D) is a query, its target the positive, and the targets of the same mask in
            all samples are keys: CPC's prediction of latents. Keys that are the same token of the same sample in
            another block are no negatives. Tokens of weight 0 are neither queries nor keys; other weights weigh the
            queries.
        "embeddings": each view's projection (V, B, E) is a query, every other view of its sample a positive (each
            ordered pair counts once), and all views of all other samples are negatives: SimCLR's NT-Xent (arXiv
            2002.05709, equation 1) for V views.
    temperature: t.
    negative_samples: number of keys, sampled at every step, that negatives are taken from; None for all. All queries
        and ranks share them, and the ranks exchange only these.

    Queries and keys are those of all ranks: one process with the whole batch has the same loss and gradient. It
    prevents collapse: equal latents have a loss of log(1 + negatives).
    """

    prevents_collapse = True
    batch_statistics = True

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        over: Literal["tokens", "embeddings"] = "tokens",
        negative_samples: int | None = None,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature: got {temperature}, expected a number above 0, such as 0.1")
        check_choice("over", over, ("tokens", "embeddings"))
        if negative_samples is not None and negative_samples < 1:
            raise ValueError(f"negative_samples: got {negative_samples}, expected at least 1, or null for all")
        self.temperature = temperature
        self.over = over
        self.negative_samples = negative_samples
        self.needs = ("projections",) if over == "embeddings" else ("predictions", "targets", "positions")

    def forward(self, latents: Latents) -> Tensor:
        device = (latents.targets[0] if self.over == "tokens" else latents.projections).device
        generator = None if latents.rng is None else latents.rng.generator(device, "infonce")
        with torch.autocast(device.type, enabled=False):  # bf16 would round s / t to a few hundredths
            if self.over == "embeddings":
                return self._views(latents.projections.float(), generator)
            weights = latents.target_weights or [None] * len(latents.targets)
            masks = zip(latents.predictions, latents.targets, latents.positions, weights)
            return torch.stack([self._tokens(*mask, generator) for mask in masks]).mean()

    def _tokens(
        self,
        prediction: Tensor,
        target: Tensor,
        positions: Tensor,
        weight: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Return the loss of one mask, (B, M, P, D) with positions (B, M, P, A) and weights (B, M, P)."""
        queries, keys = (F.normalize(t.float().flatten(1, 2), dim=-1) for t in (prediction, target))  # (B, M * P, D)
        ids = position_ids(positions).flatten(1)
        same = ids.unsqueeze(2) == ids.unsqueeze(1)  # (B, M * P, M * P)
        weight = None if weight is None else weight.flatten(1)
        negative = self._negatives(queries, keys, same, None if weight is None else weight > 0, generator)
        positive = (queries * keys).sum(-1) / self.temperature
        loss = F.softplus(negative - positive)  # (B, M * P)
        return mean_over_ranks((loss if weight is None else loss * weight).sum(), loss.numel())[0]

    def _views(self, projections: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return the loss of projections (V, B, E)."""
        views, samples = projections.shape[:2]
        if views < 2:
            raise ValueError(
                "InfoNCE(over=embeddings) compares views of a sample and there is one: set data.views=2, draw several "
                "masks, or use over=tokens"
            )
        keys = F.normalize(projections, dim=-1).transpose(0, 1)  # (B, V, E)
        same = torch.ones(samples, views, views, dtype=torch.bool, device=keys.device)
        negative = self._negatives(keys, keys, same, None, generator)
        positive = keys @ keys.transpose(1, 2) / self.temperature  # (B, V, V)
        loss = F.softplus(negative.unsqueeze(2) - positive)
        itself = torch.eye(views, dtype=torch.bool, device=keys.device)
        return mean_over_ranks(loss.masked_fill(itself, 0).sum(), samples * views * (views - 1))[0]

    def _negatives(
        self, queries: Tensor, keys: Tensor, same: Tensor, usable: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """Return the log of the sum of e^(s / t) over each query's negatives, (B, T), for queries and keys (B, T, D).

        same (B, T, T): keys of a query's own sample that are no negatives of it. usable (B, T): which keys may be
        negatives; None for all. Keys are those of all ranks, numbered sample by sample.
        """
        tokens = keys.shape[1]
        first, samples = row_offset(len(keys))
        offset = (first * tokens, samples * tokens)
        usable = None if usable is None else all_gather_rows(usable.float().flatten(), offset=offset) > 0
        chosen = torch.arange(offset[1], device=keys.device)
        if self.negative_samples is not None and self.negative_samples < len(chosen):
            scores = torch.rand(len(chosen), device=keys.device, generator=generator)
            scores = scores if usable is None else scores.masked_fill(~usable, -1)  # sampled last
            chosen = scores.topk(self.negative_samples).indices
        candidates = all_gather_rows(keys.flatten(0, 1), index=chosen, offset=offset)  # (n, D)
        own = chosen // tokens - first == torch.arange(len(keys), device=keys.device).unsqueeze(1)  # (B, n)
        excluded = own.unsqueeze(1) & same[:, :, chosen % tokens]  # (B, T, n)
        if usable is not None:
            excluded = excluded | ~usable[chosen]
        logits = queries @ candidates.T / self.temperature
        # Not -inf: a query without any negative then has loss 0 and gradient 0 instead of NaN.
        return logits.masked_fill(excluded, -1e9).logsumexp(dim=-1)
