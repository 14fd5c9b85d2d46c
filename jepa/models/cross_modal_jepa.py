"""Cross-modal JEPA: from the visible tokens of one modality, predict features of another modality of the same sample.

    python train.py model=crossmodal data=paired

One encoder per modality, optionally with one trunk for all (MJEPA, arXiv 2606.25225, shares one between sound and
video). The context encoder sees each modality through a mask, and a predictor predicts the target features of the
others. The loss may also pull pooled embeddings together across modalities and apart across samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jepa.models.base_model import JEPA, MaskSampler, check_no_collapse
from jepa.models.transformer import share_trunks
from jepa.types import Batch, Grid, Latents, Mask, Masker, StepRandomness
from jepa.utils.errors import check_choice
from jepa.utils.tensors import gather_tokens, layer_norm, masked_mean, token_valid

Inputs = Mapping[str, Tensor]  # modality -> inputs (B, ...)


class CrossModalJEPA(JEPA):
    """Encoders, predictor, target and maskers of two or more modalities: a batch to `Latents`.

    encoders, masks: modality -> encoder, masker, with the names of the data. shared_trunk: see `ModalityEncoders`.
    predictor, target: called with `encoder=` to be completed; loss with `embedding_dim=` and `token_values=`. predictor
        None: nothing is predicted, embeddings alone are compared.
    predict: what is predicted of another modality. "pooled": the layer-normed mean of its target features, for pairs
        that share only their meaning. "tokens": the tokens that its mask hides, for pairs that show the same event.
    in_modality: also predict the hidden tokens of each modality from its own visible ones.
    allow_collapse: accept a target and a loss that do not prevent collapse; otherwise they raise ValueError.

    A sample may lack modalities (`ModalityEncoders.present`): they are neither predicted nor predicted from. Pooled
    embeddings have one view per modality and mask; the view of a missing modality is replaced by the sample's first
    present one, so that it adds nothing to terms over embeddings.
    """

    def __init__(
        self,
        *,
        encoders: Mapping[str, nn.Module],
        predictor: Callable[..., nn.Module] | None,
        target: Callable[..., nn.Module],
        masks: Mapping[str, Masker],
        loss: Callable[..., nn.Module],
        shared_trunk: bool = False,
        predict: Literal["pooled", "tokens"] = "pooled",
        in_modality: bool = True,
        allow_collapse: bool = False,
    ) -> None:
        super().__init__()
        if set(masks) != set(encoders):
            raise ValueError(
                f"model.masks has {sorted(masks)}, expected one for each of model.encoders: {sorted(encoders)}"
            )
        check_choice("model.predict", predict, ("pooled", "tokens"))
        self.encoder = ModalityEncoders(encoders, shared_trunk=shared_trunk)
        self.target = target(encoder=self.encoder)
        self.predictor = predictor and predictor(encoder=self.encoder, out_dim=self.target.out_dim)
        self.loss = loss(embedding_dim=self.encoder.embed_dim, token_values=None)
        predicted = () if predictor is None else ("predictions", "targets", "target_weights")
        self.loss.require((*predicted, "embeddings", "rng"), by="CrossModalJEPA")
        self.predict, self.in_modality = predict, in_modality
        self.mask_samplers = {name: MaskSampler(mask) for name, mask in masks.items()}
        check_no_collapse(self.loss if predictor is None else self.target, self.loss, allow_collapse)

    @property
    def modalities(self) -> list[str]:
        """Their names, in the order of `encoders`."""
        return list(self.encoder.encoders)

    def prepare(self, batch: Batch, rng: StepRandomness) -> Batch:
        """Return the batch with `modality_masks`, modality -> masks. Raise ValueError for other modalities."""
        x = batch.get("x")
        if not isinstance(x, Mapping) or set(x) != set(self.modalities):
            got = sorted(x) if isinstance(x, Mapping) else "a single input"
            raise ValueError(f"model=crossmodal takes batches of {self.modalities}, got {got}: use data=paired")
        masks = {}
        for name, sampler in self.mask_samplers.items():
            try:
                masks[name] = sampler(self.encoder.encoders[name], x[name], rng)["masks"]
            except ValueError as error:
                raise ValueError(f"model.masks.{name} with model.encoders.{name}: {error}") from error
        return {**batch, "modality_masks": masks, "rng": rng}

    def forward(self, batch: Batch) -> Latents:
        masks = batch["modality_masks"]
        inputs = {name: {name: values} for name, values in batch["x"].items()}
        present = {name: self.encoder.present(x) for name, x in inputs.items()}
        seen = [
            (name, number, mask, self.encoder(inputs[name], keep=mask.context, valid=mask.context_valid))
            for name in self.modalities
            for number, mask in enumerate(masks[name])
        ]
        views = [(name, masked_mean(context, mask.context_valid)) for name, _, mask, context in seen]
        embeddings = torch.stack([_replace_missing(name, dict(views), view, present) for name, view in views])
        made = Latents(embeddings=embeddings, rng=batch["rng"])
        if self.predictor is None:
            return made
        grids = {name: self.encoder.grid(x) for name, x in inputs.items()}
        targets = {name: self.target.targets(self.encoder, x) for name, x in inputs.items()}  # (B, N, D) each
        predictions, expected, weights = [], [], []
        for name, number, mask, context in seen:
            for other in self.modalities:
                if other == name and not self.in_modality:
                    continue
                weight = (present[name] & present[other]).float()[:, None, None]  # (B, 1, 1)
                index = valid = None
                if other != name and self.predict == "pooled":
                    pooled = masked_mean(targets[other], self.encoder.token_valid(inputs[other]))
                    features = layer_norm(pooled)[:, None, None]  # (B, 1, 1, D)
                else:
                    # Of another modality, the tokens hidden by the mask of the same number.
                    hidden = masks[other][min(number, len(masks[other]) - 1)]
                    index = hidden.targets.flatten(1)  # (B, M * P)
                    valid = None if hidden.target_valid is None else hidden.target_valid.flatten(1)
                    features = gather_tokens(targets[other], index).unsqueeze(1)
                    weight = weight * _equal_sample_weights(hidden)
                source = (name, grids[name], mask)
                predicted = self.predictor(context, source, (other, grids[other]), index, valid)
                predictions.append(predicted.unsqueeze(1))
                expected.append(features)
                weights.append(weight)
        return replace(made, predictions=predictions, targets=expected, target_weights=weights)

    @torch.no_grad()
    def embed(self, x: Inputs, *, network: Literal["target", "context"] = "target") -> dict[str, Tensor]:
        """Return modality -> (B, E): unmasked inputs pooled and projected to the space in which the loss compares."""
        embeddings = {}
        for name, values in x.items():
            single = {name: values}
            tokens = self.target.encode(self.encoder, single) if network == "target" else self.encoder(single)
            pooled = masked_mean(tokens, self.encoder.token_valid(single))
            projector = getattr(self.loss, "projector", None)
            embeddings[name] = pooled if projector is None else projector(pooled.unsqueeze(0)).squeeze(0)
        return embeddings

    def encode_target(self, x: Inputs, layers: Sequence[int] | None = None) -> Tensor | list[Tensor] | dict[str, Any]:
        """Return features (B, N, D) of {name: x} by the target network; of several names a dict of them."""
        if len(x) > 1:
            return {name: self.encode_target({name: values}, layers) for name, values in x.items()}
        return self.target.encode(self.encoder, x, layers)


class ModalityEncoders(nn.Module):
    """Encoders of several modalities as one (`jepa.types.Encoder`), whose input is {name: x} with a single name.

    encoders: modality -> encoder, all of the same width.
    shared_trunk: use the blocks and the final norm of the first encoder, of the same shape, for all; each keeps its
        stem and positions.

    A sample that is NaN or padding throughout is missing; see `present`.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], *, shared_trunk: bool = False) -> None:
        super().__init__()
        widths = {name: encoder.embed_dim for name, encoder in encoders.items()}
        if len(widths) < 2 or len(set(widths.values())) > 1:
            raise ValueError(f"model.encoders: got the widths {widths}, expected two or more encoders of one width")
        self.encoders = nn.ModuleDict(encoders)
        self.embed_dim: int = next(iter(widths.values()))
        self.depth: int | None = min(getattr(encoder, "depth", 0) for encoder in encoders.values()) or None
        self.token_values: int | None = None
        if shared_trunk:
            share_trunks(list(encoders.values()), "model.shared_trunk")

    def grid(self, x: Inputs) -> Grid:
        encoder, values = self._select(x)
        return tuple(encoder.grid(values))

    def token_valid(self, x: Inputs) -> Tensor | None:
        """Return which tokens (B, N) bool of {name: x} are not padding; None if its encoder takes no padding."""
        return token_valid(*self._select(x))

    def present(self, x: Inputs) -> Tensor:
        """Return which samples (B,) bool of {name: x} are not missing: neither all NaN nor all padding."""
        valid = self.token_valid(x)
        if valid is not None:
            return valid.any(dim=1)
        (values,) = x.values()
        return ~values.isnan().flatten(1).all(dim=1)

    def forward(
        self, x: Inputs, keep: Tensor | None = None, valid: Tensor | None = None, layers: Sequence[int] | None = None
    ) -> Tensor | list[Tensor]:
        encoder, values = self._select(x)
        return encoder(values, keep=keep, valid=valid, layers=layers)

    def _select(self, x: Inputs) -> tuple[nn.Module, Tensor]:
        """Return the encoder of {name: x}, and x as that encoder takes it."""
        ((name, values),) = x.items()
        encoder = self.encoders[name]
        if values.is_floating_point() and not hasattr(encoder, "token_valid"):
            values = values.nan_to_num()  # a missing sample; its features get no weight
        return encoder, values


def _equal_sample_weights(mask: Mask) -> Tensor:
    """Return weights (B, 1, M * P) of mean 1 over each sample's targets, 0 at padding."""
    if mask.target_valid is None:
        return torch.ones_like(mask.targets, dtype=torch.float32).flatten(1).unsqueeze(1)
    valid = mask.target_valid.float().flatten(1).unsqueeze(1)
    return valid / valid.mean(dim=2, keepdim=True).clamp(min=1e-12)


def _replace_missing(name: str, views: Mapping[str, Tensor], view: Tensor, present: Mapping[str, Tensor]) -> Tensor:
    """Return a modality's view (B, D), in samples that lack it the view of their first present modality."""
    filled = present[name]
    for other, replacement in views.items():
        replaced = ~filled & present[other]
        view = torch.where(replaced.unsqueeze(1), replacement, view)
        filled = filled | replaced
    return view
