"""Published video checkpoints in: V-JEPA, V-JEPA 2 and 2.1, told apart by what their files hold.

| file of | positions | told by |
|---|---|---|
| V-JEPA | 3-D sine-cosine | `pos_embed`, whose layout and grid are found by computing them |
| V-JEPA 2 | rotary, "tiled" | no positions, and nothing of the next |
| V-JEPA 2.1 | rotary, "interleaved" | `norms_block`, `patch_embed_img`, `*_mod_embed` or `ema_encoder` for the target |

What no file says is asked for: the heads, and of V-JEPA 2.1 whether positions are stretched
(`rotary_reference_side`), a setting of its configuration. `rotary_convention=` wins over the above.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_method, instantiate
from torch import Tensor, nn

from jepa.checkpoint.load import load_state
from jepa.interop.bare import check_given, count_blocks, heads_of
from jepa.utils.errors import CheckpointError, UserError

NEEDED = ("patch_embed.proj.weight", "patch_embed.proj.bias", "blocks.0.mlp.fc1.weight", "blocks.0.attn.qkv.weight")
MARKS_OF_2_1 = ("norms_block.", "patch_embed_img.", "img_mod_embed", "video_mod_embed")
LEVELS = {12: [2, 5, 8, 11], 24: [5, 11, 17, 23], 40: [9, 19, 29, 39], 48: [11, 23, 37, 47]}
"""Depth -> the blocks that V-JEPA 2.1 supervises (app/vjepa_2_1/models/vision_transformer.py)."""

PREDICTOR_NAMES = {
    "predictor_embed": "embed",
    "predictor_blocks": "blocks",
    "predictor_norm": "norm",
    "predictor_proj": "project",
    "predictor_proj_context": "project_context",
}
LAYOUTS = ("uniform_power", "half_time", "equal")


def is_video(encoder: Mapping[str, Tensor]) -> bool:
    """Whether a state dict embeds tubelets of clips rather than patches of pictures."""
    kernel = encoder.get("patch_embed.proj.weight")
    return kernel is not None and kernel.ndim == 5


def video_encoder_config(
    weights: Mapping[str, Tensor], given: Mapping[str, Any], path: Path, target_name: str = "target_encoder"
) -> dict[str, Any]:
    """The encoder of a state dict of V-JEPA, as a configuration.

    given: what the command line says, "encoder.num_heads" at least. target_name: what the file calls the network that
        makes the targets.

    Raises CheckpointError for what is of no V-JEPA, UserError for heads missing or sizes unlike the file's.
    """
    if missing := [name for name in NEEDED if name not in weights]:
        raise CheckpointError(f"{path}: encoder lacks {', '.join(missing)}: it is not that of a V-JEPA")
    dim, channels, tubelet, rows, columns = weights[NEEDED[0]].shape
    stem = {
        "_target_": "jepa.models.encoders.tubelet.TubeletStem",
        "_partial_": True,
        "channels": channels,
        "patch_size": rows if rows == columns else [rows, columns],
        "tubelet_size": tubelet,
        "images": "patch_embed_img.proj.weight" in weights,
    }
    sizes: dict[str, Any] = {
        "embed_dim": dim,
        "depth": count_blocks(weights, "blocks"),
        "mlp_ratio": weights["blocks.0.mlp.fc1.weight"].shape[0] / dim,
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
        **positions_of(weights, path, target_name, given.get("encoder.rotary_convention")),
        "level_layers": _levels(weights, count_blocks(weights, "blocks"), given, path),
    }
    told = {name: value for name, value in sizes.items() if name != "level_layers"}
    check_given(told, given, "encoder", path)
    check_given({name: value for name, value in stem.items() if name[0] != "_"}, given, "encoder.stem", path)
    sizes["rotary_reference_side"] = given.get("encoder.rotary_reference_side")
    sizes["num_heads"] = heads_of(sizes, given, path)
    return {"_target_": "jepa.models.TransformerEncoder", "stem": stem, **sizes}


def positions_of(
    weights: Mapping[str, Tensor], path: Path, target_name: str, asked: str | None = None
) -> dict[str, Any]:
    """Kind and convention of the positions, by the names of the encoder's arguments.

    asked: a rotary convention that wins over the one that the format tells. Raises CheckpointError for positions that
    are none of ours, UserError for a rotary convention where positions are stored.
    """
    if "pos_embed" in weights:
        if asked is not None:
            raise UserError(f"rotary_convention={asked}: {path} has sine-cosine positions; leave it out")
        layout, _ = sincos_of(weights["pos_embed"], "encoder.pos_embed", path)
        return {"positions": "sincos", "sincos_layout": layout}
    if asked is None:
        newer = target_name == "ema_encoder" or any(name.startswith(MARKS_OF_2_1) for name in weights)
        asked = "interleaved" if newer else "tiled"
    return {"positions": "rotary", "rotary_convention": asked}


def sincos_of(table: Tensor, name: str, path: Path) -> tuple[str, tuple[int, int, int]]:
    """Layout and grid (time, rows, columns) of a stored table of positions (1, N, D), of square frames.

    Raises CheckpointError when no layout gives it.
    """
    compute = get_method("jepa.models.positions.sincos_positions")
    tokens, dim = table.shape[1:]
    tolerance = max(1e-4, torch.finfo(table.dtype).eps)
    for side in range(1, tokens + 1):
        if tokens % (side * side) or side * side > tokens:
            continue
        grid = (tokens // (side * side), side, side)
        for layout in LAYOUTS:
            try:
                ours = compute(dim, grid, layout)
            except ValueError:
                continue  # this width cannot be shared so
            if torch.allclose(table[0].float(), ours, atol=tolerance):
                return layout, grid
    raise CheckpointError(f"{path}: {name} does not hold sine-cosine positions of clips in a known layout {LAYOUTS}")


def video_predictor_config(
    predictor: Mapping[str, Tensor], encoder: Mapping[str, Any], given: Mapping[str, Any], path: Path
) -> tuple[dict[str, Any], list[int] | None]:
    """The predictor of a published file as a configuration, and the blocks that it predicts where they are several.

    encoder: the encoder's configuration. Raises CheckpointError for what is of no V-JEPA.
    """
    needed = ("mask_tokens.0", "predictor_blocks.0.mlp.fc1.weight", "predictor_proj.weight")
    if missing := [name for name in needed if name not in predictor]:
        raise CheckpointError(f"{path}: predictor lacks {', '.join(missing)}: it is not that of a V-JEPA")
    width = predictor["mask_tokens.0"].shape[-1]
    levels = encoder["level_layers"]
    fused = predictor.get("predictor_embed.0.weight")
    out_dim = predictor["predictor_proj.weight"].shape[0]
    config: dict[str, Any] = {
        "embed_dim": width,
        "depth": count_blocks(predictor, "predictor_blocks"),
        "mlp_ratio": predictor["predictor_blocks.0.mlp.fc1.weight"].shape[0] / width,
        "mask_tokens": sum(name.startswith("mask_tokens.") for name in predictor),
        "predict_context": "predictor_proj_context.weight" in predictor,
        "modality_vectors": "img_mod_embed" in predictor,
        **{name: encoder[name] for name in ("positions", "sincos_layout", "rotary_convention") if name in encoder},
    }
    if "predictor_pos_embed" in predictor:
        config["sincos_layout"], _ = sincos_of(predictor["predictor_pos_embed"], "predictor.predictor_pos_embed", path)
    check_given(config, given, "predictor", path)
    config["rotary_reference_side"] = encoder["rotary_reference_side"]
    config["context_layers"] = levels if fused is not None else None
    config["num_heads"] = None
    if given.get("predictor.num_heads") is not None:
        config["num_heads"] = heads_of(config, given, path, "predictor")
    several = levels if levels and out_dim == len(levels) * encoder["embed_dim"] else None
    if several is None and out_dim != encoder["embed_dim"]:
        config["out_dim"] = out_dim  # distilled from a teacher of another width, which the file does not hold
    return {"_target_": "jepa.models.Predictor", "_partial_": True, **config}, several


def video_config(
    parts: Mapping[str, Mapping[str, Tensor]], given: Mapping[str, Any], path: Path, target_name: str
) -> dict[str, Any]:
    """The masked JEPA of a published video file's three state dicts, as a configuration without interpolations.

    Raises as `video_encoder_config` and `video_predictor_config` do.
    """
    encoder = video_encoder_config(parts["encoder"], given, path, target_name)
    predictor, several = video_predictor_config(parts["predictor"], encoder, given, path)
    error = {"_target_": "jepa.losses.regression.L1"}
    terms: dict[str, Any] = {"prediction": {"weight": 1.0, "term": error}}
    if predictor["predict_context"]:
        dense = {"_target_": "jepa.losses.context_prediction.ContextPrediction", "distance": error}
        terms["context"] = {"weight": 0.5, "term": dense}
    block = {"_target_": "jepa.masks.tubes.BlockGroup"}
    return {
        "_target_": "jepa.models.MaskedJEPA",
        "encoder": encoder,
        "predictor": predictor,
        "mask": {
            "_target_": "jepa.masks.tubes.TubeMask",
            "groups": {
                "short": {**block, "num_blocks": 8, "spatial_scale": [0.15, 0.15]},
                "long": {**block, "num_blocks": 2, "spatial_scale": [0.7, 0.7]},
            },
            "images": {**block, "num_blocks": 10, "spatial_scale": [0.15, 0.15]},
        },
        "target": {
            "_target_": "jepa.models.EMATarget",
            "_partial_": True,
            "momentum": {"_target_": "jepa.optim.Linear", "start": 0.998, "final": 1.0},
            "concat_layers": several,
        },
        "loss": {"_target_": "jepa.losses.Objective", "_partial_": True, "terms": terms},
    }


def check_clip(
    encoder: Mapping[str, Tensor], path: Path, *, image_size: int, num_frames: int | None, tubelet_size: int | None
) -> None:
    """Raise CheckpointError where a file's tubelets or its stored positions are of other clips than these."""
    tubelet, rows = encoder["patch_embed.proj.weight"].shape[2:4]
    if tubelet_size is not None and tubelet_size != tubelet:
        raise CheckpointError(f"{path} has tubelets of {tubelet} frames, got tubelet_size={tubelet_size}")
    if num_frames is not None and num_frames % tubelet:
        raise CheckpointError(f"{path} has tubelets of {tubelet} frames, of which num_frames={num_frames} is no number")
    if "pos_embed" not in encoder:
        return  # rotary positions are of any clip
    _, (steps, side, _) = sincos_of(encoder["pos_embed"], "encoder.pos_embed", path)
    if image_size != side * rows or num_frames not in (None, steps * tubelet):
        raise CheckpointError(
            f"{path} is of clips of {steps * tubelet} frames of {side * rows} pixels, got num_frames={num_frames} and "
            f"image_size={image_size}"
        )


def clip_of(encoder: Mapping[str, Tensor], path: Path) -> tuple[int, int] | None:
    """(frames, pixels of a side) of the clips that stored positions are made for; None of rotary ones."""
    if "pos_embed" not in encoder:
        return None
    tubelet, rows = encoder["patch_embed.proj.weight"].shape[2:4]
    _, (steps, side, _) = sincos_of(encoder["pos_embed"], "encoder.pos_embed", path)
    return steps * tubelet, side * rows


def open_video(
    weights: Mapping[str, Tensor], given: Mapping[str, Any], path: Path, target_name: str
) -> tuple[nn.Module, dict[str, Any], list[str]]:
    """The encoder of a state dict of V-JEPA alone, how it is built, and what was found, in words."""
    config = video_encoder_config(weights, given, path, target_name)
    encoder = instantiate(config, _convert_="all")
    load_state(encoder, encoder_weights(weights), path)
    return encoder.eval(), config, [told_of_video({"encoder": config}, clip_of(weights, path))]


def told_of_video(config: Mapping[str, Any], clip: tuple[int, int] | None) -> str:
    """What was found in a file, in words."""
    encoder = config["encoder"]
    stem = encoder["stem"]
    if encoder["positions"] == "sincos":
        name = "V-JEPA"
        positions = f"sine-cosine positions ({encoder['sincos_layout']}) of {clip[0]} frames of {clip[1]} pixels"
    else:
        name = "V-JEPA 2" if encoder["rotary_convention"] == "tiled" else "V-JEPA 2.1"
        positions = f"rotary positions, {encoder['rotary_convention']}"
        if encoder["rotary_convention"] == "interleaved" and encoder["rotary_reference_side"] is None:
            positions += ", not stretched (model.encoder.rotary_reference_side=<side> where they were)"
    return (
        f"{name} of width {encoder['embed_dim']}, depth {encoder['depth']}, {encoder['num_heads']} heads (as given), "
        f"tubelets of {stem['tubelet_size']} frames of {stem['patch_size']} pixels; {positions}"
    )


def check_same_positions(model: nn.Module, parts: Mapping[str, Mapping[str, Tensor]], path: Path, name: str) -> None:
    """Raise CheckpointError where a model's encoder has other positions than a file's, which no weight would tell."""
    encoder = model.encoder
    if not hasattr(getattr(encoder, "stem", None), "tubelet_size"):
        raise CheckpointError(
            f"{path} is a V-JEPA, of clips, but the model's encoder is a {type(encoder).__name__}: use model=video"
        )
    found = positions_of(parts["encoder"], path, name)
    if getattr(encoder, "rotary", None) is not None:
        own = {"positions": "rotary", "rotary_convention": encoder.rotary.convention}
    else:
        own = {"positions": "sincos", "sincos_layout": getattr(encoder.positions, "layout", None)}
    if own != found:
        raise CheckpointError(
            f"{path} has the positions {found}, the model {own}: set "
            + " ".join(f"model.encoder.{key}={value}" for key, value in found.items() if own.get(key) != value)
        )


def encoder_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published encoder's tensors by the names of our `TransformerEncoder`."""
    ours = {}
    last = count_blocks(weights, "norms_block") - 1 if any(n.startswith("norms_block.") for n in weights) else None
    for name, tensor in weights.items():
        head, _, rest = name.partition(".")
        if name in ("pos_embed", "img_mod_embed", "video_mod_embed"):
            continue
        if head in ("patch_embed", "patch_embed_img"):
            matrix = "proj" if head == "patch_embed" else "picture_proj"
            ours[f"stem.{matrix}.{rest.rpartition('.')[2]}"] = tensor.flatten(1) if tensor.ndim == 5 else tensor
        elif head == "norms_block":
            number, _, part = rest.partition(".")
            ours[f"norm.{part}" if int(number) == last else f"level_norms.{rest}"] = tensor
        else:
            ours[name] = tensor
    return ours | _modality(weights, "stem.modality")


def predictor_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published predictor's tensors by the names of our `Predictor`."""
    ours, tokens = {}, {}
    for name, tensor in weights.items():
        head, dot, rest = name.partition(".")
        if head == "mask_tokens":
            tokens[int(rest)] = tensor[0]
        elif name not in ("predictor_pos_embed", "img_mod_embed", "video_mod_embed"):
            ours[f"{PREDICTOR_NAMES.get(head, head)}{dot}{rest}"] = tensor
    if tokens:
        ours["mask_token"] = torch.stack([tokens[number] for number in sorted(tokens)])
    return ours | _modality(weights, "modality")


def _modality(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    both = [weights[key].flatten() for key in ("video_mod_embed", "img_mod_embed") if key in weights]
    return {name: torch.stack(both)} if both else {}


def _levels(weights: Mapping[str, Tensor], depth: int, given: Mapping[str, Any], path: Path) -> list[int] | None:
    """The blocks with norms of their own; None where the final norm serves all."""
    if not any(name.startswith("norms_block.") for name in weights):
        return None
    count = count_blocks(weights, "norms_block")
    layers = given.get("encoder.level_layers", LEVELS.get(depth, [depth - 1] if count == 1 else None))
    if layers is None or len(layers) != count:
        raise UserError(
            f"{path} has norms for {count} of its {depth} blocks and does not say which: give "
            f"model.encoder.level_layers=[...], of {count} numbers from 0 to {depth - 1}"
        )
    return list(layers)
