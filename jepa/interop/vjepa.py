"""V-JEPA, V-JEPA 2 and 2.1 as published: a masked JEPA of clips, or its encoder alone.

| file of | positions | recognised by |
|---|---|---|
| V-JEPA | 3-D sine-cosine | `pos_embed`, whose layout and grid are found by computing them |
| V-JEPA 2 | rotary, "tiled" | no positions, and nothing of the next |
| V-JEPA 2.1 | rotary, "interleaved" | `norms_block`, `patch_embed_img`, `*_mod_embed` or `ema_encoder` for the target |

What no file holds is asked for: the heads, and of V-JEPA 2.1 whether positions are stretched
(`rotary_reference_side`), a setting of its configuration. `rotary_convention=` wins over the above.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jepa.interop.adapter import Adapter, Loaded, Source
from jepa.interop.frozen_networks import load_our_encoders
from jepa.interop.ijepa import PREDICTOR_NAMES, load_masked_jepa, masked_jepa_config, our_weights, predictor_sizes
from jepa.interop.network_names import State, renamed
from jepa.interop.sizes import check_overrides, count_blocks, described, is_sincos, num_heads, vit_sizes
from jepa.interop.weights_file import WeightsFile
from jepa.utils.errors import CheckpointError, UserError

MARKS_OF_2_1 = ("norms_block.", "patch_embed_img.", "img_mod_embed", "video_mod_embed")
LEVELS = {12: [2, 5, 8, 11], 24: [5, 11, 17, 23], 40: [9, 19, 29, 39], 48: [11, 23, 37, 47]}
"""Depth -> the blocks that V-JEPA 2.1 supervises (app/vjepa_2_1/models/vision_transformer.py)."""
LAYOUTS = ("uniform_power", "half_time", "equal")
NAMES = {
    r"^patch_embed\.proj\.": "stem.proj.",
    r"^patch_embed_img\.proj\.": "stem.picture_proj.",
    r"^norms_block\.": "level_norms.",
    **PREDICTOR_NAMES,
}
"""Published name -> ours, as regular expressions; the last of `norms_block` is our `norm`."""


def load(source: Source) -> Loaded:
    """Load the whole model of a published V-JEPA file. Raise CheckpointError for overrides that do not fit."""
    config, clip = model_config(source), clip_size(source.file)
    check_overrides(source, config)
    weights, found = our_weights(source.file, "", by_our_names), describe(config["encoder"], clip)
    return load_masked_jepa(source, config, weights, found, clip and (clip[1], clip[1]))


def load_encoder(source: Source) -> Loaded:
    """Load the encoder of a published V-JEPA file alone, in the same way."""
    config = encoder_config(source)
    check_overrides(source, {"encoder": config})
    return load_our_encoders(source, config, [describe(config, clip_size(source.file))], by_our_names)


def weights_for(model: nn.Module, source: Source) -> State:
    """Return the weights by the names of a model. Raises CheckpointError unless it takes clips, with such positions."""
    encoder, found = getattr(model, "encoder", None), positions(source)
    kind = type(encoder).__name__
    if not hasattr(getattr(encoder, "stem", None), "tubelet_size"):
        raise CheckpointError(
            f"{source.path} is a V-JEPA, of clips, but the model's encoder is a {kind}: use model=video"
        )
    if getattr(encoder, "rotary", None) is not None:
        own = {"positions": "rotary", "rotary_convention": encoder.rotary.convention}
    else:
        own = {"positions": "sincos", "sincos_layout": getattr(encoder.positions, "layout", None)}
    if own != found:
        options = [f"model.encoder.{key}={value}" for key, value in found.items() if own.get(key) != value]
        raise CheckpointError(f"{source.path} has the positions {found}, the model {own}: set {' '.join(options)}")
    return our_weights(source.file, "", by_our_names)


def model_config(source: Source) -> dict[str, Any]:
    """Return the configuration of a file's masked JEPA.

    Raises CheckpointError for what is of no V-JEPA, UserError for heads or supervised blocks missing.
    """
    encoder = encoder_config(source)
    predictor = predictor_config(source, encoder)
    error = {"_target_": "jepa.losses.regression.L1"}
    terms: dict[str, Any] = {"prediction": {"weight": 1.0, "term": error}}
    if predictor["predict_context"]:
        dense = {"_target_": "jepa.losses.context_prediction.ContextPrediction", "distance": error}
        terms["context"] = {"weight": 0.5, "term": dense}

    def blocks(number: int, scale: float) -> dict[str, Any]:
        return {"_target_": "jepa.masks.tubes.BlockGroup", "num_blocks": number, "spatial_scale": [scale, scale]}

    groups = {"short": blocks(8, 0.15), "long": blocks(2, 0.7)}
    mask = {"_target_": "jepa.masks.tubes.TubeMask", "groups": groups, "images": blocks(10, 0.15)}
    levels, width = encoder["level_layers"], encoder["embed_dim"]
    out_dim = source.file.parts["predictor"]["predictor_proj.weight"].shape[0]
    predicts_levels = levels is not None and out_dim == len(levels) * width
    if out_dim != width and not predicts_levels:
        predictor["out_dim"] = out_dim  # distilled from a teacher of another width, which the file does not hold
    return masked_jepa_config(encoder, predictor, mask, terms, 0.998, levels if predicts_levels else None)


def encoder_config(source: Source) -> dict[str, Any]:
    """Return the configuration of a file's encoder. Raises as `model_config` does."""
    weights, sizes = source.file.encoder, vit_sizes(source)
    return {
        "_target_": "jepa.models.TransformerEncoder",
        "stem": {
            "_target_": "jepa.models.encoders.tubelet_stem.TubeletStem",
            "_partial_": True,
            "channels": sizes.pop("channels"),
            "patch_size": sizes.pop("patch_size"),
            "tubelet_size": weights["patch_embed.proj.weight"].shape[2],
            "images": "patch_embed_img.proj.weight" in weights,
        },
        **sizes,
        **positions(source),
        "rotary_reference_side": source.overrides.get("encoder.rotary_reference_side"),
        "level_layers": level_layers(source, sizes["depth"]),
        "num_heads": num_heads(source, sizes["embed_dim"]),
    }


def positions(source: Source) -> dict[str, Any]:
    """Return kind and convention of the positions, as arguments of our encoder. Raises as `model_config` does."""
    weights, given = source.file.encoder, source.overrides.get("encoder.rotary_convention")
    if "pos_embed" in weights:
        if given is not None:
            raise UserError(f"rotary_convention={given}: {source.path} has sine-cosine positions; leave it out")
        layout, _ = sincos_layout(weights["pos_embed"], "encoder.pos_embed", source.path)
        return {"positions": "sincos", "sincos_layout": layout}
    newer = "ema_encoder" in source.file.target_place or any(name.startswith(MARKS_OF_2_1) for name in weights)
    return {"positions": "rotary", "rotary_convention": given or ("interleaved" if newer else "tiled")}


def sincos_layout(table: Tensor, name: str, path: Path) -> tuple[str, tuple[int, int, int]]:
    """Return layout and grid (time, rows, columns) of stored positions (1, N, D), of square frames."""
    tokens = table.shape[1]
    sides = [side for side in range(1, int(tokens**0.5) + 1) if tokens % (side * side) == 0]
    for grid in [(tokens // (side * side), side, side) for side in sides]:
        for layout in LAYOUTS:
            if is_sincos(table[0], grid, layout):
                return layout, grid
    raise CheckpointError(f"{path}: {name} does not hold sine-cosine positions of clips in a known layout {LAYOUTS}")


def level_layers(source: Source, depth: int) -> list[int] | None:
    """Return the blocks with norms of their own, which must be known or given; None where the final norm serves all."""
    count = count_blocks(source.file.encoder, "norms_block")
    if not count:
        return None
    known = LEVELS.get(depth, [depth - 1] if count == 1 else [])
    layers = list(source.overrides.get("encoder.level_layers") or known)
    if len(layers) != count:
        raise UserError(
            f"{source.path} has norms for {count} of its {depth} blocks and does not say which: give "
            f"model.encoder.level_layers=[...], of {count} numbers from 0 to {depth - 1}"
        )
    return layers


def predictor_config(source: Source, encoder: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a file's predictor. Raises CheckpointError for what is of no V-JEPA."""
    sizes, weights = predictor_sizes(source, "mask_tokens.0", "a V-JEPA"), source.file.parts["predictor"]
    shared = ("positions", "sincos_layout", "rotary_convention", "rotary_reference_side")
    config = {
        **sizes,
        "mask_tokens": count_blocks(weights, "mask_tokens"),
        "predict_context": "predictor_proj_context.weight" in weights,
        "modality_vectors": "img_mod_embed" in weights,
        "context_layers": encoder["level_layers"] if "predictor_embed.0.weight" in weights else None,
        **{name: encoder[name] for name in shared if name in encoder},
    }
    if (table := weights.get("predictor_pos_embed")) is not None:
        config["sincos_layout"], _ = sincos_layout(table, "predictor.predictor_pos_embed", source.path)
    return config


def clip_size(file: WeightsFile) -> tuple[int, int] | None:
    """Return (frames, pixels of a side) of the clips that stored positions are made for; None of rotary ones."""
    if "pos_embed" not in file.encoder:
        return None
    frames, pixels = file.encoder["patch_embed.proj.weight"].shape[2:4]
    _, (steps, side, _) = sincos_layout(file.encoder["pos_embed"], "encoder.pos_embed", file.path)
    return steps * frames, side * pixels


def check_clip(file: WeightsFile, *, image_size: int, num_frames: int | None, tubelet_size: int | None) -> None:
    """Raise CheckpointError where a file is of other clips than these."""
    frames, clip = file.encoder["patch_embed.proj.weight"].shape[2], clip_size(file)
    tubelets, given = f"{file.path} has tubelets of {frames} frames", f"num_frames={num_frames}"
    if tubelet_size not in (None, frames):
        raise CheckpointError(f"{tubelets}, got tubelet_size={tubelet_size}")
    if num_frames is not None and num_frames % frames:
        raise CheckpointError(f"{tubelets}: {given} is not a multiple of {frames}")
    if clip is not None and (image_size != clip[1] or num_frames not in (None, clip[0])):
        theirs = f"clips of {clip[0]} frames of {clip[1]} pixels"
        raise CheckpointError(f"{file.path} is of {theirs}, got {given} and image_size={image_size}")


def describe(encoder: Mapping[str, Any], clip: tuple[int, int] | None) -> str:
    """Return what was found in a file, in words. clip: see `clip_size`."""
    stem, convention = encoder["stem"], encoder.get("rotary_convention")
    if clip is not None:
        name, layout = "V-JEPA", encoder["sincos_layout"]
        text = f"sine-cosine positions ({layout}) of {clip[0]} frames of {clip[1]} pixels"
    else:
        name, side = "V-JEPA 2" if convention == "tiled" else "V-JEPA 2.1", encoder["rotary_reference_side"]
        text = f"rotary positions, {convention}, model.encoder.rotary_reference_side={side}"
    tubelets = f"tubelets of {stem['tubelet_size']} frames of {stem['patch_size']} pixels"
    return f"{name} {described(encoder)} (as given), {tubelets}; {text}"


def by_our_names(weights: State) -> State:
    """Return the tensors of a published encoder or predictor by our names."""
    last_norm = {rf"^norms_block\.{count_blocks(weights, 'norms_block') - 1}\.": "norm."}
    tokens = [name for n in range(count_blocks(weights, "mask_tokens")) if (name := f"mask_tokens.{n}") in weights]
    modality = [name for name in ("video_mod_embed", "img_mod_embed") if name in weights]
    left_out = ("pos_embed", "predictor_pos_embed", *tokens, *modality)
    ours = renamed({name: t for name, t in weights.items() if name not in left_out}, last_norm | NAMES)
    ours = {name: tensor.flatten(1) if tensor.ndim == 5 else tensor for name, tensor in ours.items()}
    if tokens:
        ours["mask_token"] = torch.stack([weights[name][0] for name in tokens])
    if modality:
        name = "stem.modality" if "stem.proj.weight" in ours else "modality"
        ours[name] = torch.stack([weights[part].flatten() for part in modality])
    return ours


MODEL = Adapter("vjepa", lambda source: source.file.is_video and source.file.is_whole, load, weights_for=weights_for)
ENCODER = Adapter("vjepa_encoder", lambda source: source.file.is_video, load_encoder, weights_for=weights_for)
