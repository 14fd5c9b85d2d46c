"""Encoders alone: our own exports, and state dicts with the names of timm's Vision Transformers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from hydra.utils import get_method, instantiate
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from jepa.checkpoint.load import check_state, first_line, load_state
from jepa.interop.layouts import CARD
from jepa.interop.networks import TimmFeatures
from jepa.utils.errors import CheckpointError, UserError


def sizes_of(weights: Mapping[str, Tensor], path: Path, part: str = "encoder") -> dict[str, Any]:
    """What a ViT's weights say of its sizes, with the argument names of `jepa.models.vision_transformer`.

    Raises CheckpointError when these are no weights of a ViT with timm's names, or one of video.
    """
    needed = ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "blocks.0.attn.qkv.weight")
    if missing := [name for name in needed if name not in weights]:
        names = list(weights)
        hint = ""
        if any(name.startswith(("embeddings.", "layernorm.")) or ".embeddings." in name for name in names):
            hint = ". These are names of Hugging Face: give the folder with its config.json as checkpoint=hf:<folder>"
        raise CheckpointError(
            f"{path}: {part} is no Vision Transformer with timm's names: {', '.join(missing)} missing; it has "
            f"{', '.join(names[:4])}, ... ({len(names)} in all){hint}"
        )
    kernel, hidden = weights[needed[0]].shape, weights[needed[1]].shape[0]
    if len(kernel) != 4:
        raise CheckpointError(
            f"{path}: {part} embeds patches by a kernel of shape {tuple(kernel)}: expected (width, channels, rows, "
            "columns), of pictures; are these weights of pictures and of clips mixed?"
        )
    return {
        "channels": kernel[1],
        "patch_size": kernel[2] if kernel[2] == kernel[3] else list(kernel[2:]),
        "embed_dim": kernel[0],
        "depth": count_blocks(weights, "blocks"),
        "mlp_ratio": hidden / kernel[0],
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
    }


def count_blocks(weights: Mapping[str, Tensor], prefix: str) -> int:
    """Number of transformer blocks in a state dict; what has no number is none."""
    numbers = [name.split(".")[1] for name in weights if name.startswith(f"{prefix}.")]
    return 1 + max(int(number) for number in numbers if number.isdecimal())


def check_given(sizes: Mapping[str, Any], given: Mapping[str, Any], part: str, path: Path) -> None:
    """Raise UserError where the command line says something else of a part of the model than its file.

    sizes: of the file. given: as `jepa.config.stored.given_model`.
    """
    for name, value in sizes.items():
        got = given.get(f"{part}.{name}", value)
        if got != value and not (isinstance(value, float) and math.isclose(got, value, rel_tol=1e-6)):
            raise UserError(f"model.{part}.{name}={got}, but {path} has {value}: leave it out")


def heads_of(sizes: Mapping[str, Any], given: Mapping[str, Any], path: Path, part: str = "encoder") -> int:
    """The number of attention heads, which no file says. Raises UserError when it is not given or does not divide."""
    heads, dim = given.get(f"{part}.num_heads"), sizes["embed_dim"]
    usual = [h for h in range(1, 33) if dim % h == 0]
    if heads is None:
        common = f", usually {dim // 64} for a width of {dim}" if dim % 64 == 0 else ""
        raise UserError(
            f"{path} does not say how many attention heads its {part} has: give model.{part}.num_heads=<number>"
            f"{common} (it divides {dim}: one of {usual})"
        )
    if not isinstance(heads, int) or heads < 1 or dim % heads:
        raise UserError(f"model.{part}.num_heads={heads} does not divide the width {dim} of {path}: use one of {usual}")
    return heads


def table_side(table: Tensor, prefix_tokens: int, path: Path) -> tuple[int, int]:
    """Side of the square grid of a position table (1, T, D), and how many of its rows are of prefix tokens.

    Raises CheckpointError when it is not square.
    """
    for extra in dict.fromkeys((prefix_tokens, 0)):
        side = math.isqrt(max(0, table.shape[1] - extra))
        if side and side * side == table.shape[1] - extra:
            return side, extra
    raise CheckpointError(f"{path}: the position table {tuple(table.shape)} is not of a square grid")


def is_sincos(table: Tensor, grid: tuple[int, int]) -> bool:
    """Whether positions (N, D) are those that our encoders compute."""
    if table.shape[1] % 4:
        return False
    ours = get_method("jepa.models.positions.sincos_positions")(table.shape[1], grid)
    # Positions lie in [-1, 1], so that rounding them to a shorter format moves them by at most its eps.
    return torch.allclose(table.float(), ours, atol=max(1e-4, torch.finfo(table.dtype).eps))


def open_exported(weights: Mapping[str, Tensor], header: str, path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The encoder of one of our own safetensors exports, and its card.

    Raises CheckpointError when the header is damaged or the weights do not match the model it claims.
    """
    try:
        card = json.loads(header)
        config = dict(card["encoder"])
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{path}: its header {CARD!r} is damaged ({first_line(error)})") from error
    if foreign := [target for target in targets_in(config) if not target.startswith("jepa.models.")]:
        raise CheckpointError(f"{path}: its header names {foreign}, expected an encoder of jepa.models")
    encoder = instantiate(config, _convert_="all")
    load_state(encoder, weights, path)
    return encoder.eval(), card


def open_vit(
    weights: Mapping[str, Tensor],
    given: Mapping[str, Any],
    path: Path,
    image_size: tuple[int, int] | None,
    load: bool = True,
) -> tuple[nn.Module, dict[str, Any], list[str]]:
    """The encoder of a state dict with timm's names, how it is built, and what was found, in words.

    given: what the command line says of the model: `encoder.num_heads`, or `encoder.name` of a timm model.
    image_size: (H, W) that it will see, to which learned positions are resampled; None leaves them.
    load: False builds the same with random weights.

    Raises CheckpointError with the missing, unexpected and mis-shaped keys.
    """
    sizes = sizes_of(weights, path)
    check_given(sizes, given, "encoder", path)
    if "pos_embed" not in weights:
        raise CheckpointError(
            f"{path} holds no positions (pos_embed), and no header that says how they are computed: expected a file "
            "written by scripts/export.py or by timm"
        )
    left = [name for name in weights if name.startswith(("head.", "head_dist."))]
    weights = {name: tensor for name, tensor in weights.items() if name not in left}
    lines = [f"left alone: {', '.join(left)}"] if left else []
    prefix = sum(weights[name].shape[1] for name in ("cls_token", "reg_token") if name in weights)
    side, extra = table_side(weights["pos_embed"], prefix, path)
    stored = tuple(side * patch for patch in pair(sizes["patch_size"]))
    lines.append(
        f"ViT of width {sizes['embed_dim']}, depth {sizes['depth']}, {sizes['channels']} channels, positions of {side}"
        f" x {side} patches of {sizes['patch_size']} pixels (pictures of {stored[0]} x {stored[1]})"
    )
    name = given.get("encoder.name")
    if name is None and not prefix and is_sincos(weights["pos_embed"][0], (side, side)):
        config = {"_target_": "jepa.models.vision_transformer", "image_size": list(stored), **sizes}
        config["num_heads"] = heads_of(sizes, given, path)
        encoder = instantiate(config, _convert_="all")
        if load:
            load_state(encoder, {f"vit.{n}": t for n, t in weights.items() if n != "pos_embed"}, path)
        return encoder.eval(), config, [*lines, "its positions are sine-cosine, computed for the grid that comes"]
    vit, config = _timm_vit(weights, sizes, given, path, stored, extra)
    try:
        check_state(vit, weights, path)
    except CheckpointError as error:
        hint = "" if name else "\nIf it is one of timm's variants, name it: model.encoder.name=<name in timm>"
        raise CheckpointError(f"{error}{hint}") from None
    if load:
        load_state(vit, weights, path)
    if prefix:
        lines.append(f"{prefix} class or register tokens, which are no features")
    if image_size not in (None, stored):
        vit.set_input_size(img_size=image_size)
        lines.append(f"learned positions resampled from pictures of {stored} to {image_size}")
    return TimmFeatures(vit).eval(), config, lines


def _timm_vit(
    weights: Mapping[str, Tensor],
    sizes: Mapping[str, Any],
    given: Mapping[str, Any],
    path: Path,
    image_size: tuple[int, int],
    extra: int,
) -> tuple[nn.Module, dict[str, Any]]:
    """A timm ViT with learned positions into which the weights should fit, untrained, and its arguments."""
    arguments = {
        "img_size": list(image_size),
        "patch_size": sizes["patch_size"],
        "in_chans": sizes["channels"],
        "num_classes": 0,
        "class_token": "cls_token" in weights,
        "global_pool": "token" if "cls_token" in weights else "avg",
        "fc_norm": False,
    }
    name = given.get("encoder.name")
    if name is not None:
        return build_timm(name, arguments), {"timm": name, **arguments}
    arguments |= {
        "embed_dim": sizes["embed_dim"],
        "depth": sizes["depth"],
        "num_heads": heads_of(sizes, given, path),
        "mlp_ratio": sizes["mlp_ratio"],
        "qkv_bias": sizes["qkv_bias"],
        "qk_norm": "blocks.0.attn.q_norm.weight" in weights,
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in weights else None,
        "reg_tokens": weights["reg_token"].shape[1] if "reg_token" in weights else 0,
        "no_embed_class": extra == 0,
    }
    return VisionTransformer(**arguments), arguments


def build_timm(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A timm model by name, untrained. Raises UserError for a name it does not know or arguments it does not take."""
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_patch')[0]}*")[:8] or timm.list_models("vit_*_patch16_224")
        raise UserError(f"model.encoder.name: timm has no model {name!r}; it has {', '.join(close)}, ...")
    try:
        return timm.create_model(name, pretrained=False, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"model.encoder.name={name}: timm cannot build it so: {first_line(error)}") from error


def targets_in(node: Any) -> list[str]:
    """Every `_target_` in a nested configuration."""
    if isinstance(node, Mapping):
        own = [str(node["_target_"])] if "_target_" in node else []
        return own + [target for value in node.values() for target in targets_in(value)]
    if isinstance(node, (list, tuple)):
        return [target for value in node for target in targets_in(value)]
    return []


def pair(size: int | list[int]) -> tuple[int, int]:
    """(height, width) of a side or a pair."""
    return (size, size) if isinstance(size, int) else tuple(size)
