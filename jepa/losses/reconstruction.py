"""Reconstruction: the input at hidden tokens, decoded from their predicted latents."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.losses.objective import Term
from jepa.losses.regression import mean_over_targets
from jepa.types import Latents


class Reconstruction(Term):
    """The error of an MLP decoder from predictions (B, M, P, D) to the input at the same tokens.

    Float inputs: mean squared error over values, target tokens, samples and masks (MAE, arXiv 2111.06377, section 3).
    Ids (int64): cross-entropy over `out_dim` classes, as masked language models (BERT, arXiv 1810.04805).
    Latents.target_weights weigh the tokens.

    It prevents collapse: from equal embeddings only the mean input can be decoded, at a loss of the inputs' variance.

    in_dim, out_dim: the width of the predictions and the encoder's `token_values`; set by the objective.
    hidden: widths of hidden layers with GELU; none for a linear decoder.
    normalize: standardise the values of each token, MAE's `norm_pix_loss`.
    """

    prevents_collapse = True
    needs = ("predictions", "inputs")

    def __init__(
        self, *, in_dim: int, out_dim: int | None, hidden: Sequence[int] = (), normalize: bool = False
    ) -> None:
        super().__init__()
        if out_dim is None:
            raise ValueError(
                "reconstruction decodes the input's values and the encoder does not say how many a token covers "
                "(token_values): use an encoder that does, or loss.terms.reconstruction=null"
            )
        if normalize and out_dim == 1:
            raise ValueError("normalize=true: got tokens of one value, which has no spread: use normalize=false")
        self.out_dim = out_dim
        self.normalize = normalize
        layers: list[nn.Module] = []
        for in_width, out_width in pairwise([in_dim, *hidden]):
            layers += [nn.Linear(in_width, out_width), nn.GELU()]
        self.decoder = nn.Sequential(*layers, nn.Linear([in_dim, *hidden][-1], out_dim))

    def forward(self, latents: Latents) -> Tensor:
        pairs = zip(latents.predictions, latents.inputs)
        errors = [self._error(self.decoder(prediction).float(), values) for prediction, values in pairs]
        return mean_over_targets(errors, latents.target_weights)

    def _error(self, decoded: Tensor, values: Tensor) -> Tensor:
        """Return the error of each token, decoded (B, M, P, out_dim) and values, or ids (B, M, P) -> (B, M, P)."""
        if not values.is_floating_point():
            return F.cross_entropy(decoded.flatten(0, -2), values.flatten(), reduction="none").view(values.shape)
        if values.shape != decoded.shape:
            raise ValueError(
                f"reconstruction: got inputs of {tuple(values.shape)} for decoded tokens of {tuple(decoded.shape)}: "
                "the encoder's token_inputs and token_values disagree"
            )
        values = values.float()
        if self.normalize:
            variance, mean = torch.var_mean(values, dim=-1, keepdim=True)
            values = (values - mean) / (variance + 1e-6).sqrt()
        return (decoded - values).square().mean(-1)
