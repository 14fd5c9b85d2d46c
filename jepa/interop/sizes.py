"""Sizes of Vision Transformers as their weights and the command line give them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_method
from torch import Tensor

from jepa.interop.adapter import Source
from jepa.utils.errors import CheckpointError, UserError
from jepa.utils.nested import flatten

NOT_STORED = ("dropout", "attention_dropout", "drop_path")
"""Values of training, which no file of weights contradicts."""


def vit_sizes(source: Source) -> dict[str, Any]:
    """Return the sizes of a ViT of pictures or clips with timm's names. Raises CheckpointError for other weights."""
    weights, path = source.file.encoder, source.path
    needed = ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "blocks.0.attn.qkv.weight")
    if missing := [name for name in needed if name not in weights]:
        hint = ""
        if any(name.startswith(("embeddings.", "layernorm.")) or ".embeddings." in name for name in weights):
            hint = ". These are names of Hugging Face: give the folder with its config.json as checkpoint=hf:<folder>"
        raise CheckpointError(
            f"{path}: its encoder is no Vision Transformer with timm's names: {', '.join(missing)} missing; it has "
            f"{', '.join(list(weights)[:4])}, ... ({len(weights)} in all){hint}"
        )
    width, channels, *kernel = weights[needed[0]].shape
    if len(kernel) not in (2, 3):
        raise CheckpointError(
            f"{path}: its encoder embeds patches by a kernel of shape {(width, channels, *kernel)}: expected (width, "
            "channels, rows, columns) of pictures, or with frames before the rows of clips"
        )
    return {
        "channels": channels,
        "patch_size": side_or_pair(kernel[-2:]),
        "embed_dim": width,
        "depth": count_blocks(weights, "blocks"),
        "mlp_ratio": weights[needed[1]].shape[0] / width,
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
    }


def count_blocks(weights: Mapping[str, Tensor], prefix: str) -> int:
    """Return how many modules a list of that name has in a state dict."""
    numbers = [name.removeprefix(f"{prefix}.").split(".")[0] for name in weights if name.startswith(f"{prefix}.")]
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)


def num_heads(source: Source, width: int, part: str = "encoder") -> int:
    """Return the number of attention heads, which no file holds.

    Raises UserError when the command line does not give it, or it does not divide the width.
    """
    heads, key = source.overrides.get(f"{part}.num_heads"), f"model.{part}.num_heads"
    divisors = [number for number in range(1, 33) if width % number == 0]
    if heads is None:
        common = f", usually {width // 64} for a width of {width}" if width % 64 == 0 else ""
        raise UserError(
            f"{source.path} does not say how many attention heads its {part} has: give {key}=<number>{common} "
            f"(it divides {width}: one of {divisors})"
        )
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise UserError(f"{key}={heads} does not divide the width {width} of {source.path}: use one of {divisors}")
    return heads


def check_overrides(source: Source, config: Mapping[str, Any], ignored: tuple[str, ...] = ()) -> None:
    """Raise UserError where the command line contradicts a file, or names a value that its networks do not have.

    config: {"encoder": ..., "predictor": ...}. ignored: keys that may have any value.
    """
    found = flatten({part: config[part] for part in ("encoder", "predictor") if part in config})
    for key, value in source.overrides.items():
        if key in ignored or value is None or not key.startswith(("encoder.", "predictor.")):
            continue
        if key in found:
            stored = found[key]
            alike = isinstance(stored, float) and math.isclose(value, stored, rel_tol=1e-6)
            if value != stored and not alike:
                raise UserError(f"model.{key}={value}, but {source.path} has {stored}: leave it out")
        elif key.rpartition(".")[2] not in NOT_STORED:
            known = sorted(name for name in {*found, *ignored} if not name.rpartition(".")[2].startswith("_"))
            raise UserError(f"model.{key}={value}: {source.path} takes no such value; expected one of {known}")


def table_side(table: Tensor, path: Path, prefix_tokens: int = 0) -> tuple[int, int]:
    """Return the side of the square grid of positions (1, T, D), and how many of their rows are of prefix tokens."""
    for extra in (prefix_tokens, 0):
        side = math.isqrt(max(0, table.shape[1] - extra))
        if side and side * side == table.shape[1] - extra:
            return side, extra
    raise CheckpointError(f"{path}: the position table {tuple(table.shape)} is not of a square grid")


def is_sincos(table: Tensor, grid: tuple[int, ...], layout: str = "equal") -> bool:
    """Return whether positions (N, D) are the sine-cosine ones that our encoders compute for a grid."""
    try:
        ours = get_method("jepa.models.transformer.sincos_positions")(table.shape[1], grid, layout)
    except ValueError:
        return False  # this width cannot be shared among the axes
    # Positions lie in [-1, 1], so that rounding them to a shorter format moves them by at most its eps.
    return torch.allclose(table.float(), ours, atol=max(1e-4, torch.finfo(table.dtype).eps))


def channels_of(encoder: Mapping[str, Any]) -> int | None:
    """Return the channels in the configuration of an encoder of ours."""
    return encoder.get("channels", encoder.get("stem", {}).get("channels"))


def to_pair(size: Any) -> tuple[int, int] | None:
    """Return (height, width) of a side or a pair; None of None."""
    return (size, size) if isinstance(size, int) else size and tuple(size)


def side_or_pair(size: Any) -> int | list[int]:
    """Return a side where height and width are alike, else both as a list."""
    return size[0] if size[0] == size[1] else list(size)


def by(size: Any) -> str:
    """Return (height, width) as text, `224 x 224`."""
    return f"{size[0]} x {size[1]}"
