"""Sizes of Vision Transformers as their weights and the command line give them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from hydra.utils import get_method
from torch import Tensor

from jepa.interop.adapter import Source
from jepa.utils.errors import CheckpointError, UserError
from jepa.utils.nested import flatten

NOT_STORED = ("dropout", "attention_dropout", "drop_path")  # values of training, which no file of weights contradicts


def vit_sizes(source: Source) -> dict[str, Any]:
    """Return the sizes of a ViT of pictures or clips with timm's names. Raises CheckpointError for other weights."""
    weights, path = source.file.encoder, source.path
    needed = ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "blocks.0.attn.qkv.weight")
    if missing := [name for name in needed if name not in weights]:
        raise CheckpointError(
            f"{path}: its encoder is no Vision Transformer with names of timm, DINO or Hugging Face: "
            f"{', '.join(missing)} missing; it has {', '.join(list(weights)[:4])}, ... ({len(weights)} in all)"
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
        "mlp_ratio": ratio(weights[needed[1]].shape[0], width),
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
    }


def ratio(hidden: int, width: int) -> float:
    """Return the `mlp_ratio` of which int(width * mlp_ratio) is the hidden width."""
    value = hidden / width
    return value if int(width * value) == hidden else math.nextafter(value, math.inf)


def described(sizes: Mapping[str, Any]) -> str:
    """Return sizes of an encoder in words."""
    return f"of width {sizes['embed_dim']}, depth {sizes['depth']}, {sizes['num_heads']} heads"


def count_blocks(weights: Mapping[str, Tensor], prefix: str) -> int:
    """Return how many modules a list of that name has in a state dict."""
    numbers = [name.removeprefix(f"{prefix}.").split(".")[0] for name in weights if name.startswith(f"{prefix}.")]
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)


def num_heads(source: Source, width: int, part: str = "encoder") -> int:
    """Return the number of attention heads. Raises UserError if nothing says it, or it does not fit the file."""
    given, stored = (values.get(f"{part}.num_heads") for values in (source.overrides, source.file.facts))
    key, heads = f"model.{part}.num_heads", stored if given is None else given
    if stored not in (None, heads):
        raise UserError(f"{key}={given}, but {source.path} has {stored}: leave it out")
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


def position_grid(source: Source, table: Tensor, patch: tuple[int, int], prefix: int) -> tuple[tuple[int, int], int]:
    """Return (rows, columns) of the grid of learned positions (1, T, D), and how many others, of prefix tokens, it has.

    patch: (height, width) in pixels. prefix: number of class and register tokens; all have positions, or none.
    The grid is that of `model.encoder.image_size` or source.image_size where that fits, else square. Raises UserError
    where a doubt is left: 14 x 12 patches and a class token have as many positions as 13 x 13.
    """
    tokens, given = table.shape[1], to_pair(source.overrides.get("encoder.image_size"))
    extras = sorted({prefix, 0}, reverse="reg_token" not in source.file.encoder)  # timm's registers have none
    size = given or source.image_size
    if size and not any(side % length for side, length in zip(size, patch)):
        grid = (size[0] // patch[0], size[1] // patch[1])
        if (extra := tokens - math.prod(grid)) in extras:
            return grid, extra
    possible = [(grid, extra) for extra in extras for grid in grids(tokens - extra)]
    if given is None and possible:
        grid, extra = possible[0]
        if grid[0] == grid[1] and (extra == extras[0] or len(possible) == 1):
            return grid, extra
    problem = f"model.encoder.image_size={list(given)} does not fit" if given else "their grid cannot be told"
    sizes = [f"[{rows * patch[0]},{columns * patch[1]}]" for (rows, columns), _ in possible[:6]]
    first, *others = sizes or ["[height,width]"]
    raise UserError(
        f"{source.path} holds {tokens} positions, and {problem}: give the size in pixels of the pictures that it was "
        f"made for, model.encoder.image_size={first}" + (f" (or {', '.join(others)})" if others else "")
    )


def grids(tokens: int) -> list[tuple[int, int]]:
    """Return the (rows, columns) of so many tokens, no side more than twice the other, squares first."""
    pairs = [(rows, tokens // rows) for rows in range(1, tokens + 1) if tokens % rows == 0]
    return sorted((p for p in pairs if max(p) <= 2 * min(p)), key=lambda pair: (abs(pair[0] - pair[1]), pair))


def sincos_grid(table: Tensor) -> tuple[int, int] | None:
    """Return (rows, columns) of sine-cosine positions (N, D), found by computing them; None for others."""
    return next((grid for grid in grids(len(table)) if is_sincos(table, grid)), None)


def is_sincos(table: Tensor, grid: tuple[int, ...], layout: str = "equal") -> bool:
    """Return whether positions (N, D) are the sine-cosine ones that our encoders compute for a grid."""
    try:
        ours = get_method("jepa.models.positions.sincos_positions")(table.shape[1], grid, layout)
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
