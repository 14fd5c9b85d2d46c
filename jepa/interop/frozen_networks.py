"""Encoders without a predictor as models whose features can be evaluated, not trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from jepa.checkpoint.load import load_state
from jepa.interop.adapter import Loaded, Source
from jepa.interop.network_names import State
from jepa.interop.sizes import channels_of, to_pair
from jepa.utils.errors import UserError


class FrozenNetworks(nn.Module):
    """One encoder (`jepa.types.Encoder`), and the one that makes the targets, where that is another."""

    def __init__(self, *, encoder: nn.Module, target_encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder, self.target_encoder = encoder, target_encoder

    @torch.no_grad()
    def encode_target(self, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """Return features (B, N, D) of inputs x (B, C, *S) by the network that makes the targets."""
        return network_of(self, "target")(x, layers=layers)


class OtherEncoder(nn.Module):
    """An encoder of another project behind our contract (`jepa.types.Encoder`), for whole pictures.

    model: the other project's. depth: number of its blocks, if it has a list of them. A subclass has `grid`, `tokens`,
    from pictures to (B, N, D), and `layer_tokens`, the same after each of some blocks and the final norm.
    """

    def __init__(self, model: nn.Module, embed_dim: int, depth: int | None) -> None:
        super().__init__()
        self.model, self.embed_dim, self.depth = model, embed_dim, depth

    def forward(
        self, x: Tensor, keep: Tensor | None = None, valid: Tensor | None = None, layers: Sequence[int] | None = None
    ) -> Tensor | list[Tensor]:
        """Return features (B, N, D) of pictures x (B, C, H, W); a list, one per block number in layers.

        Raises ValueError for a part of the tokens, and blocks that do not exist.
        """
        if keep is not None or valid is not None:
            raise ValueError("this encoder was not made here and encodes whole inputs only")
        if layers is None:
            return self.tokens(x)
        if self.depth is None:
            raise ValueError(f"layers {list(layers)}: {type(self.model).__name__} has no list of blocks")
        if missing := [number for number in layers if not 0 <= number < self.depth]:
            raise ValueError(f"layers {missing} do not exist: the encoder has {self.depth}, from 0")
        return self.layer_tokens(x, layers)


def frozen(make_encoder: Callable[[Any], nn.Module], weights: Iterable[Any], **facts: Any) -> Loaded:
    """Load encoders without a predictor: make_encoder builds one with weights, or None for untrained ones.

    weights: of the encoder, and of the one that makes the targets if that is another. facts: fields of `Loaded`.
    """
    encoders = dict(zip(("encoder", "target_encoder"), map(make_encoder, weights)))
    return Loaded(FrozenNetworks(**encoders), lambda: FrozenNetworks(encoder=make_encoder(None)).eval(), **facts)


def load_by_name(source: Source, make_encoder: Callable[[Any], nn.Module], pretrained: Any) -> Loaded:
    """Load an encoder that its name defines. make_encoder: builds one from `pretrained`, None for untrained."""
    facts = {"image_size": source.image_size, "channels": source.channels}
    description = {"name": source.name, "image_size": source.image_size}
    return frozen(make_encoder, [pretrained], lines=[], description=description, **facts)


def load_our_encoders(
    source: Source, config: dict[str, Any], lines: list[str], our_weights: Callable[[State], State] = dict
) -> Loaded:
    """Load the encoders of a file into those that our configuration builds. our_weights: a state dict by our names."""

    def make_encoder(weights: State | None) -> nn.Module:
        encoder = instantiate(config, _convert_="all")
        if weights is not None:
            load_state(encoder, our_weights(weights), source.path)
        return encoder

    facts = {"image_size": to_pair(config.get("image_size")), "channels": channels_of(config)}
    lines, description = [*source.file.lines, *lines], {"encoder": config}
    return frozen(make_encoder, source.file.encoders, lines=lines, description=description, encoder=config, **facts)


def network_of(model: nn.Module, name: str) -> nn.Module:
    """Return an encoder of a model, "context" or "target", which is the first where no other makes the targets.

    Raises UserError for another name.
    """
    if name not in ("context", "target"):
        raise UserError(f"network={name!r}: expected context or target")
    target = getattr(model, "target_encoder", None) or getattr(getattr(model, "target", None), "encoder", None)
    return model.encoder if name == "context" or target is None else target
