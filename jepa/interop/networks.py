"""Encoders of other projects behind our encoder contract, to be looked at and not trained."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jepa.types import Grid
from jepa.utils.errors import UserError


class FrozenNetworks(nn.Module):
    """One encoder, or a trained one and the one that makes the targets, with the names evaluation asks for.

    encoder, target_encoder: called as encoder(x, layers=None), see `jepa.types.Encoder`; target_encoder None is the
        encoder itself.
    """

    def __init__(self, *, encoder: nn.Module, target_encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.target_encoder = target_encoder

    @torch.no_grad()
    def encode_target(self, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """Features (B, N, D) of inputs x (B, C, *S) by the network that makes the targets."""
        return (self.encoder if self.target_encoder is None else self.target_encoder)(x, layers=layers)


def networks_of(model: nn.Module) -> dict[str, nn.Module]:
    """The encoders of a model by their name in `network=`: "context", the trained one, and "target".

    A target that keeps no encoder of its own uses the trained one.
    """
    target = getattr(model, "target_encoder", None) or getattr(getattr(model, "target", None), "encoder", None)
    return {"context": model.encoder, "target": model.encoder if target is None else target}


def network_of(model: nn.Module, name: str) -> nn.Module:
    """One of the encoders. Raises UserError for another name."""
    networks = networks_of(model)
    if name not in networks:
        raise UserError(f"network={name!r}: expected {' or '.join(networks)}")
    return networks[name]


class TimmFeatures(nn.Module):
    """A timm model as an encoder of patches: its tokens after the final norm, without class and register tokens.

    model: any of timm's models without classifier whose features are tokens (B, N, D) or maps (B, D, H, W).

    Raises UserError for features of another form.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.embed_dim: int = model.num_features
        self.prefix_tokens: int = getattr(model, "num_prefix_tokens", 0)
        if getattr(model, "output_fmt", "NCHW") == "NHWC":
            raise UserError(f"{type(model).__name__} of timm gives maps with channels last, expected tokens or NCHW")

    @property
    def depth(self) -> int | None:
        """Number of blocks; None where there is no list of them."""
        return len(self.model.blocks) if hasattr(self.model, "blocks") else None

    def grid(self, x: Tensor) -> Grid:
        """(rows, columns) of features of pictures (B, C, H, W)."""
        if hasattr(self.model, "patch_embed"):
            return tuple(side // patch for side, patch in zip(x.shape[2:], self.model.patch_embed.patch_size))
        with torch.no_grad():
            return tuple(self.model.forward_features(x[:1]).shape[2:])

    def forward(
        self, x: Tensor, keep: Tensor | None = None, valid: Tensor | None = None, layers: Sequence[int] | None = None
    ) -> Tensor | list[Tensor]:
        """Features (B, N, D) of pictures x (B, C, H, W); a list, one per block number in layers."""
        refuse_masks(keep, valid)
        if layers is None:
            features = self.model.forward_features(x)
            if features.ndim == 4:
                return features.flatten(2).transpose(1, 2)  # (B, D, H, W) -> (B, N, D)
            if features.ndim != 3:
                raise UserError(f"{type(self.model).__name__} of timm gives features of shape {tuple(features.shape)}")
            return features[:, self.prefix_tokens :]
        if self.depth is None:
            raise ValueError(f"layers {list(layers)}: {type(self.model).__name__} of timm has no list of blocks")
        check_layers(layers, self.depth)
        order = sorted(set(layers))
        found = self.model.forward_intermediates(x, indices=order, norm=True, output_fmt="NLC", intermediates_only=True)
        return [found[order.index(number)] for number in layers]


class TransformersFeatures(nn.Module):
    """A vision model of `transformers` as an encoder of patches: the last ones of its tokens, one for each patch.

    Class and register tokens stand before them and are dropped. model: gives `last_hidden_state` (B, T, D).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.embed_dim: int = model.config.hidden_size
        size = model.config.patch_size
        self.patch_size: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)
        self.resamples = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.model.config.num_hidden_layers

    def grid(self, x: Tensor) -> Grid:
        """(rows, columns) of patches of pictures (B, C, H, W)."""
        return tuple(side // patch for side, patch in zip(x.shape[2:], self.patch_size))

    def forward(
        self, x: Tensor, keep: Tensor | None = None, valid: Tensor | None = None, layers: Sequence[int] | None = None
    ) -> Tensor | list[Tensor]:
        """Features (B, N, D) of pictures x (B, C, H, W); a list, one per block number in layers."""
        refuse_masks(keep, valid)
        rows, columns = self.grid(x)
        own = getattr(self.model.config, "image_size", None)
        other = own is not None and tuple(x.shape[2:]) != ((own, own) if isinstance(own, int) else tuple(own))
        extra = {"interpolate_pos_encoding": True} if other and self.resamples else {}
        output = self.model(pixel_values=x, output_hidden_states=layers is not None, **extra)
        if layers is None:
            return self._patches(output.last_hidden_state, rows * columns)
        check_layers(layers, self.depth)
        norm = next((getattr(self.model, n) for n in ("layernorm", "norm") if hasattr(self.model, n)), nn.Identity())
        return [self._patches(norm(output.hidden_states[number + 1]), rows * columns) for number in layers]

    def _patches(self, tokens: Tensor, count: int) -> Tensor:
        """The patches' part (B, count, D) of the tokens (B, T, D)."""
        registers = getattr(self.model.config, "num_register_tokens", 0) or 0
        if tokens.shape[1] - count not in (0, registers, registers + 1):
            raise UserError(
                f"{type(self.model).__name__} gives {tokens.shape[1]} tokens for {count} patches: expected one each, "
                f"and at most a class token and {registers} registers"
            )
        return tokens[:, tokens.shape[1] - count :]


def refuse_masks(keep: Tensor | None, valid: Tensor | None) -> None:
    """Raise ValueError where only some tokens are asked for, which foreign encoders cannot give."""
    if keep is not None or valid is not None:
        raise ValueError("this encoder was not made here and encodes whole inputs only")


def check_layers(layers: Sequence[int], depth: int) -> None:
    """Raise ValueError for block numbers that do not exist."""
    if missing := [number for number in layers if not 0 <= number < depth]:
        raise ValueError(f"layers {missing} do not exist: the encoder has {depth}, from 0")
