"""Cross-modal JEPA: from what is seen of one modality, the features of another that belongs to it.

    python train.py model=crossmodal data=paired

An encoder for each modality, with one trunk for all where that is asked for (MJEPA, arXiv 2606.25225, has one for sound
and video). A context encoder sees each modality through a mask; a predictor gives the other one's target features; the
loss may hold pooled embeddings together across modalities and apart across samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jepa.models.base_model import JEPA
from jepa.models.blocks import block_list, check_heads
from jepa.models.drawing import MaskDrawer
from jepa.models.init import init_transformer
from jepa.models.positions import SinCosPositions
from jepa.types import Batch, Grid, Latents, Mask, Masker, StepRandomness
from jepa.utils.tensors import attention_mask, gather_tokens, layer_norm, masked_mean, token_valid

Inputs = Mapping[str, Tensor]


class ModalityEncoders(nn.Module):
    """Encoders of several modalities as one (`jepa.types.Encoder`), whose input is {name: x} with a single name.

    encoders: all of one width. shared_trunk: blocks and final norm of the first serve all; each keeps its stem and
    positions. Only for `TransformerEncoder`s of one shape.

    An input that is empty (NaN throughout, nothing but padding) is missing; see `present`.
    Raises ValueError for widths that differ, and trunks that cannot be shared.
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
            first, *others = encoders.values()
            for other in others:
                if not (hasattr(first, "encode") and hasattr(other, "encode")) or _shapes(first) != _shapes(other):
                    raise ValueError(
                        "model.shared_trunk=true needs a TransformerEncoder for every modality, all of the same dim, "
                        "depth, heads and mlp_ratio"
                    )
                other.blocks, other.norm = first.blocks, first.norm

    def one(self, x: Inputs) -> tuple[nn.Module, Tensor]:
        """The encoder of {name: x}, and x as it takes it."""
        ((name, values),) = x.items()
        encoder = self.encoders[name]
        if values.is_floating_point() and not hasattr(encoder, "token_valid"):
            values = values.nan_to_num()  # missing; what comes of it weighs nothing
        return encoder, values

    def grid(self, x: Inputs) -> Grid:
        """The token grid of {name: x}."""
        encoder, values = self.one(x)
        return tuple(encoder.grid(values))

    def token_valid(self, x: Inputs) -> Tensor | None:
        """Which tokens (B, N) bool of {name: x} hold more than padding; None where its encoder takes none."""
        return token_valid(*self.one(x))

    def present(self, x: Inputs) -> Tensor:
        """Which samples (B,) bool of {name: x} are there: not NaN throughout, nor nothing but padding."""
        valid = self.token_valid(x)
        if valid is not None:
            return valid.any(dim=1)
        (values,) = x.values()
        return ~values.isnan().flatten(1).all(dim=1)

    def forward(
        self,
        x: Inputs,
        keep: Tensor | None = None,
        valid: Tensor | None = None,
        layers: Sequence[int] | None = None,
    ) -> Tensor | list[Tensor]:
        """Features of {name: x}, as every encoder's."""
        encoder, values = self.one(x)
        return encoder(values, keep=keep, valid=valid, layers=layers)


class CrossPredictor(nn.Module):
    """A narrow transformer over the tokens of one modality and queries for another's features.

    encoder: `ModalityEncoders`. out_dim: width of the targets, None for the encoder's.
    A token of a modality carries a learned vector of it and sine-cosine positions on its grid; a query for a token too,
    a query for the mean of all carries the vector alone. One predictor serves all directions.
    """

    def __init__(
        self,
        *,
        encoder: ModalityEncoders,
        out_dim: int | None = None,
        embed_dim: int = 96,
        depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_heads(embed_dim, num_heads, "model.predictor")
        names = list(encoder.encoders)
        self.embed = nn.Linear(encoder.embed_dim, embed_dim)
        self.sources = nn.ParameterDict({name: torch.zeros(embed_dim) for name in names})
        self.queries = nn.ParameterDict({name: torch.zeros(embed_dim) for name in names})
        self.positions = SinCosPositions(embed_dim)
        self.blocks = block_list(
            depth=depth, embed_dim=embed_dim, num_heads=num_heads, mlp_ratio=mlp_ratio, dropout=dropout
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.project = nn.Linear(embed_dim, encoder.embed_dim if out_dim is None else out_dim)
        init_transformer(self, self.blocks)
        for vector in [*self.sources.values(), *self.queries.values()]:
            nn.init.trunc_normal_(vector, std=0.02)

    def forward(
        self,
        context: Tensor,
        source: tuple[str, Grid, Mask],
        target: tuple[str, Grid],
        wanted: Tensor | None,
        wanted_valid: Tensor | None = None,
    ) -> Tensor:
        """Predictions (B, P, D) of the target modality's tokens `wanted` (B, P), or (B, 1, D) of their mean (None).

        context (B, K, D): features of what the mask shows of the source. wanted_valid (B, P) bool: False at padding.
        """
        name, grid, mask = source
        known = self.embed(context) + self.sources[name] + self.positions(grid, context.device)[mask.context]
        query = self.queries[target[0]].expand(len(context), 1, -1)
        if wanted is not None:
            query = query + self.positions(target[1], context.device)[wanted]
        tokens = torch.cat([known, query.to(known.dtype)], dim=1)  # (B, K + P, dim)
        valid = None
        if mask.context_valid is not None or wanted_valid is not None:
            parts = zip((known, query), (mask.context_valid, wanted_valid))
            everyone = [v if v is not None else torch.ones_like(t[..., 0], dtype=torch.bool) for t, v in parts]
            valid = attention_mask(torch.cat(everyone, dim=1))
        for block in self.blocks:
            tokens = block(tokens, valid)
        return self.project(self.norm(tokens[:, -query.shape[1] :]))


class CrossModalJEPA(JEPA):
    """Encoders, predictor, target and maskers of two or more modalities; turns a batch into `Latents`.

    encoders: name -> encoder, names as in the data. shared_trunk: see `ModalityEncoders`.
    predictor, target: called with `encoder=` to be completed. masks: name -> masker.
    loss: called with `embedding_dim=` to be completed.
    predict: what of another modality is predicted: "pooled", the layer-normed mean of its target features, which suits
        pairs that share a meaning and no more, or "tokens", those its mask hides, for pairs that are one event.
    in_modality: predict the hidden tokens of each modality from its seen ones, too.
    allow_collapse: accept a target and loss of which neither prevents collapse.

    A sample may lack modalities (`ModalityEncoders.present`): nothing is predicted from or for them, and in pooled
    embeddings, one view for each modality (and mask), what is there stands in for what is not, so that terms over them
    see no more of it.

    Raises ValueError for names that differ, settings that do not exist, and what would collapse.
    """

    def __init__(
        self,
        *,
        encoders: Mapping[str, nn.Module],
        predictor: Callable[..., nn.Module],
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
        if predict not in ("pooled", "tokens"):
            raise ValueError(f"model.predict: got {predict!r}, expected 'pooled' or 'tokens'")
        self.encoder = ModalityEncoders(encoders, shared_trunk=shared_trunk)
        self.target = target(encoder=self.encoder)
        self.predictor = predictor(encoder=self.encoder, out_dim=self.target.out_dim)
        self.loss = loss(embedding_dim=self.encoder.embed_dim, token_values=None)
        self.loss.require(("predictions", "targets", "target_weights", "embeddings", "rng"), by="CrossModalJEPA")
        self.predict, self.in_modality = predict, in_modality
        self._draw_masks = {
            name: MaskDrawer(_NamedMasker(mask, name), lambda mask, tokens: None) for name, mask in masks.items()
        }
        if not (self.target.prevents_collapse or self.loss.prevents_collapse or allow_collapse):
            raise ValueError(
                f"{type(self.target).__name__} with the loss terms {self.loss.term_names} collapses to a constant: "
                "add a term that prevents it (loss.terms.sigreg), use model/target=ema, "
                "or set model.allow_collapse=true to watch it happen"
            )

    @property
    def modalities(self) -> list[str]:
        """Their names, in order."""
        return list(self.encoder.encoders)

    def prepare(self, batch: Batch, rng: StepRandomness) -> Batch:
        """The batch with `modality_masks`, name -> masks, drawn for the global batch of which this is a slice.

        Raises ValueError for a batch that is no dict of these modalities.
        """
        x = batch.get("x")
        if not isinstance(x, Mapping) or set(x) != set(self.modalities):
            got = sorted(x) if isinstance(x, Mapping) else "a single input"
            raise ValueError(f"model=crossmodal takes batches of {self.modalities}, got {got}: use data=paired")
        masks = {}
        for name, drawer in self._draw_masks.items():
            one = {name: x[name]}
            valid = self.encoder.token_valid(one)
            drawn = drawer(rng, views=1, grid=self.encoder.grid(one), device=x[name].device, valid=valid)
            masks[name] = drawn["masks"]
        return {**batch, "modality_masks": masks, "rng": rng}

    def forward(self, batch: Batch) -> Latents:
        """Latents of a prepared batch."""
        x, masks = batch["x"], batch["modality_masks"]
        there = {name: self.encoder.present({name: x[name]}) for name in x}
        grids = {name: self.encoder.grid({name: x[name]}) for name in x}
        targets = {name: self.target.targets(self.encoder, {name: x[name]}) for name in x}  # (B, N, D) each
        pooled = {name: self._mean_target(targets[name], {name: x[name]}) for name in x}
        predictions, wanted, weights, views = [], [], [], []
        for name in self.modalities:
            for number, mask in enumerate(masks[name]):
                context = self.encoder({name: x[name]}, keep=mask.context, valid=mask.context_valid)
                views.append((name, masked_mean(context, mask.context_valid)))
                source = (name, grids[name], mask)
                for other in self.modalities:
                    if other == name and not self.in_modality:
                        continue
                    both = (there[name] & there[other]).float()[:, None, None]  # (B, 1, 1)
                    if other != name and self.predict == "pooled":
                        predictions.append(self.predictor(context, source, (other, grids[other]), None).unsqueeze(1))
                        wanted.append(pooled[other])
                        weights.append(both)
                        continue
                    # Of another modality, what the mask of the same number hides.
                    hidden = masks[other][min(number, len(masks[other]) - 1)]
                    index = hidden.targets.flatten(1)  # (B, M * P)
                    real = None if hidden.target_valid is None else hidden.target_valid.flatten(1)
                    predicted = self.predictor(context, source, (other, grids[other]), index, real)
                    predictions.append(predicted.unsqueeze(1))
                    wanted.append(gather_tokens(targets[other], index).unsqueeze(1))
                    weights.append(both * _even(hidden))
        return Latents(
            predictions=predictions,
            targets=wanted,
            target_weights=weights,
            embeddings=torch.stack([_stand_in(name, dict(views), view, there) for name, view in views]),
            rng=batch["rng"],
        )

    def _mean_target(self, features: Tensor, x: Inputs) -> Tensor:
        """Mean of target features (B, N, D) over what is no padding, layer-normed, (B, 1, 1, D)."""
        return layer_norm(masked_mean(features, self.encoder.token_valid(x)))[:, None, None]

    @torch.no_grad()
    def embed(self, x: Inputs, *, network: Literal["target", "context"] = "target") -> dict[str, Tensor]:
        """Name -> (B, E) in the space in which modalities are compared: whole inputs, pooled, through the projector."""
        found = {}
        for name, values in x.items():
            one = {name: values}
            tokens = self.target.encode(self.encoder, one) if network == "target" else self.encoder(one)
            mean = masked_mean(tokens, self.encoder.token_valid(one))
            projector = getattr(self.loss, "projector", None)
            found[name] = mean if projector is None else projector(mean.unsqueeze(0)).squeeze(0)
        return found

    def encode_target(self, x: Inputs, layers: Sequence[int] | None = None) -> Tensor | list[Tensor] | dict[str, Any]:
        """Raw features (B, N, D) of {name: x} by the network that makes the targets; a list, one per asked layer.

        Of several names, name -> that.
        """
        if len(x) > 1:
            return {name: self.encode_target({name: values}, layers) for name, values in x.items()}
        return self.target.encode(self.encoder, x, layers)


class _NamedMasker:
    """A masker whose complaints name its modality."""

    def __init__(self, masker: Masker, name: str) -> None:
        self.masker, self.name = masker, name

    def __call__(self, batch_size: int, grid: Grid, **others: Any) -> list[Mask]:
        try:
            return self.masker(batch_size, grid, **others)
        except ValueError as error:
            raise ValueError(f"model.masks.{self.name}: {error}") from error


def _even(mask: Mask) -> Tensor:
    """(B, 1, M * P) weights by which every sample counts alike, however many of its targets are padding."""
    if mask.target_valid is None:
        return torch.ones_like(mask.targets, dtype=torch.float32).flatten(1).unsqueeze(1)
    real = mask.target_valid.float().flatten(1).unsqueeze(1)
    return real / real.mean(dim=2, keepdim=True).clamp(min=1e-12)


def _stand_in(name: str, views: Mapping[str, Tensor], view: Tensor, there: Mapping[str, Tensor]) -> Tensor:
    """A view (B, D) of a modality; where that is missing, the view of the first one that is there."""
    filled = there[name]
    for other, instead in views.items():
        takes = ~filled & there[other]
        view = torch.where(takes.unsqueeze(1), instead, view)
        filled = filled | takes
    return view


def _shapes(encoder: nn.Module) -> tuple[int, list[tuple[str, torch.Size]]]:
    return encoder.num_heads, [(name, p.shape) for name, p in encoder.blocks.named_parameters()]
