"""Encoders without a predictor as models whose features can be evaluated, not trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from jepa.checkpoint.load import load_state
from jepa.interop.adapter import Loaded, build
from jepa.interop.sizes import to_pair
from jepa.interop.weights_file import State, WeightsFile
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
        """Return features (B, N, D) of inputs x (B, C, *S) by the network that makes the targets."""
        return (self.encoder if self.target_encoder is None else self.target_encoder)(x, layers=layers)


class OtherEncoder(nn.Module):
    """An encoder of another project behind our contract (`jepa.types.Encoder`), for whole pictures.

    model: the other project's. A subclass has `grid` and:
        tokens: from pictures to (B, N, D), one token for each patch. depth: number of blocks, None without a list.
        layer_tokens: the same after each of some blocks, and the final norm.
    """

    depth: int | None

    def __init__(self, model: nn.Module, embed_dim: int) -> None:
        super().__init__()
        self.model = model
        self.embed_dim = embed_dim

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


def load_file_encoders(
    file: WeightsFile,
    config: dict[str, Any],
    lines: list[str],
    *,
    our_weights: Callable[[State], State] = dict,
    make_encoder: Callable[[State | None], nn.Module] | None = None,
) -> Loaded:
    """Load the encoders that a file holds without a predictor.

    config: builds one, unless make_encoder does, with a state dict or None. our_weights: a state dict by our names.

    Raises CheckpointError with the missing, unexpected and mis-shaped keys.
    """

    def build_and_load(weights: State | None) -> nn.Module:
        encoder = build(config)
        if weights is not None:
            load_state(encoder, our_weights(weights), file.path)
        return encoder

    make_encoder = make_encoder or build_and_load
    if "encoder" not in file.parts:
        lines.append("it holds the network that makes the targets alone: context and target are both that one")
    encoders = [make_encoder(file.parts[name]) for name in ("encoder", "target_encoder") if name in file.parts]
    return Loaded(
        FrozenNetworks(**dict(zip(("encoder", "target_encoder"), encoders))),
        lambda: FrozenNetworks(encoder=make_encoder(None)).eval(),
        lines,
        {"encoder": config},
        encoder=config if "_target_" in config else None,
        image_size=to_pair(config.get("image_size", config.get("img_size"))),
        channels=config.get("channels", config.get("in_chans", config.get("stem", {}).get("channels"))),
    )


def loaded_by_name(
    name: str,
    make_encoder: Callable[[Any], nn.Module],
    pretrained: Any,
    lines: list[str],
    image_size: tuple[int, int],
    channels: int,
) -> Loaded:
    """Load an encoder that its name defines. make_encoder: builds one from `pretrained`, None for untrained."""
    return Loaded(
        FrozenNetworks(encoder=make_encoder(pretrained)),
        lambda: FrozenNetworks(encoder=make_encoder(None)),
        lines,
        {"name": name, "image_size": image_size},
        image_size=image_size,
        channels=channels,
    )


def network_of(model: nn.Module, name: str) -> nn.Module:
    """Return an encoder of a model: the trained one, "context", or the one that makes the targets, "target".

    A target that keeps no encoder of its own uses the trained one. Raises UserError for another name.
    """
    if name not in ("context", "target"):
        raise UserError(f"network={name!r}: expected context or target")
    target = getattr(model, "target_encoder", None) or getattr(getattr(model, "target", None), "encoder", None)
    return model.encoder if name == "context" or target is None else target
