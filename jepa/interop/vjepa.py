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

from jepa.checkpoint.load import load_state
from jepa.interop.adapter import Adapter, Loaded, Options, Source
from jepa.interop.frozen_networks import load_file_encoders
from jepa.interop.published import (
    PREDICTOR_NAMES,
    check_present,
    is_published,
    load_masked_jepa,
    masked_jepa_config,
    predictor_sizes,
    rename,
)
from jepa.interop.sizes import check_overrides, count_blocks, is_sincos, num_heads, side_or_pair
from jepa.interop.weights_file import WeightsFile
from jepa.utils.errors import CheckpointError, UserError

ENCODER_NEEDS = (
    "patch_embed.proj.weight",
    "patch_embed.proj.bias",
    "blocks.0.mlp.fc1.weight",
    "blocks.0.attn.qkv.weight",
)
PREDICTOR_NEEDS = ("mask_tokens.0", "predictor_blocks.0.mlp.fc1.weight", "predictor_proj.weight")
MARKS_OF_2_1 = ("norms_block.", "patch_embed_img.", "img_mod_embed", "video_mod_embed")
LEVELS = {12: [2, 5, 8, 11], 24: [5, 11, 17, 23], 40: [9, 19, 29, 39], 48: [11, 23, 37, 47]}
"""Depth -> the blocks that V-JEPA 2.1 supervises (app/vjepa_2_1/models/vision_transformer.py)."""
LAYOUTS = ("uniform_power", "half_time", "equal")
NOT_WEIGHTS = ("pos_embed", "predictor_pos_embed", "img_mod_embed", "video_mod_embed")


def load(source: Source, options: Options) -> Loaded:
    """Load the masked JEPA."""
    file = source.file
    config, clip = model_config(file, options.overrides), clip_size(file)
    check_overrides(config, options.overrides, file.path)
    found, size = describe(config["encoder"], clip), None if clip is None else (clip[1], clip[1])
    return load_masked_jepa(source, options, config, model_weights(file), found, "; V-JEPA 2 has 12", size)


def load_encoder(source: Source, options: Options) -> Loaded:
    """Load the encoders of a file without a predictor."""
    file = source.file
    config = encoder_config(file, options.overrides)
    check_overrides({"encoder": config}, options.overrides, file.path)
    lines = [*file.lines, describe(config, clip_size(file))]
    return load_file_encoders(file, config, lines, our_weights=encoder_weights)


def load_into(model: nn.Module, source: Source) -> None:
    """Load the weights into a masked JEPA.

    Raises CheckpointError that lists what differs, or names other positions, which no weight would show.
    """
    file, encoder = source.file, model.encoder
    if not hasattr(getattr(encoder, "stem", None), "tubelet_size"):
        raise CheckpointError(
            f"{file.path} is a V-JEPA, of clips, but the model's encoder is a {type(encoder).__name__}: use model=video"
        )
    found = positions(file)
    if getattr(encoder, "rotary", None) is not None:
        own = {"positions": "rotary", "rotary_convention": encoder.rotary.convention}
    else:
        own = {"positions": "sincos", "sincos_layout": getattr(encoder.positions, "layout", None)}
    if own != found:
        raise CheckpointError(
            f"{file.path} has the positions {found}, the model {own}: set "
            + " ".join(f"model.encoder.{key}={value}" for key, value in found.items() if own.get(key) != value)
        )
    load_state(model, model_weights(file), file.path, keep=("loss.",))


def model_config(file: WeightsFile, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a published file's masked JEPA.

    Raises as `encoder_config` and `predictor_config` do.
    """
    encoder = encoder_config(file, overrides)
    predictor, concat_layers = predictor_config(file, encoder, overrides)
    error = {"_target_": "jepa.losses.regression.L1"}
    terms: dict[str, Any] = {"prediction": {"weight": 1.0, "term": error}}
    if predictor["predict_context"]:
        dense = {"_target_": "jepa.losses.context_prediction.ContextPrediction", "distance": error}
        terms["context"] = {"weight": 0.5, "term": dense}

    def blocks(number: int, scale: float) -> dict[str, Any]:
        return {"_target_": "jepa.masks.tubes.BlockGroup", "num_blocks": number, "spatial_scale": [scale, scale]}

    mask = {
        "_target_": "jepa.masks.tubes.TubeMask",
        "groups": {"short": blocks(8, 0.15), "long": blocks(2, 0.7)},
        "images": blocks(10, 0.15),
    }
    return masked_jepa_config(
        encoder=encoder, predictor=predictor, mask=mask, terms=terms, momentum=0.998, concat_layers=concat_layers
    )


def encoder_config(file: WeightsFile, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a file's encoder. overrides: "encoder.num_heads" at least.

    Raises CheckpointError for what is of no V-JEPA, UserError for heads or supervised blocks missing.
    """
    weights, path = file.encoder, file.path
    check_present(weights, ENCODER_NEEDS, "encoder", "a V-JEPA", path)
    width, channels, tubelet, *patch = weights[ENCODER_NEEDS[0]].shape
    config: dict[str, Any] = {
        "_target_": "jepa.models.TransformerEncoder",
        "stem": {
            "_target_": "jepa.models.encoders.tubelet_stem.TubeletStem",
            "_partial_": True,
            "channels": channels,
            "patch_size": side_or_pair(patch),
            "tubelet_size": tubelet,
            "images": "patch_embed_img.proj.weight" in weights,
        },
        "embed_dim": width,
        "depth": count_blocks(weights, "blocks"),
        "mlp_ratio": weights["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
        **positions(file, overrides.get("encoder.rotary_convention")),
        "rotary_reference_side": overrides.get("encoder.rotary_reference_side"),
    }
    config["level_layers"] = _level_layers(weights, config["depth"], overrides, path)
    return config | {"num_heads": num_heads(config, overrides, path)}


def positions(file: WeightsFile, rotary_convention: str | None = None) -> dict[str, Any]:
    """Return kind and convention of the positions, as arguments of our encoder.

    rotary_convention: wins over that of the format. Raises CheckpointError for positions that are none of ours,
    UserError for a rotary convention where positions are stored.
    """
    weights = file.encoder
    if "pos_embed" in weights:
        if rotary_convention is not None:
            raise UserError(
                f"rotary_convention={rotary_convention}: {file.path} has sine-cosine positions; leave it out"
            )
        return {
            "positions": "sincos",
            "sincos_layout": sincos_layout(weights["pos_embed"], "encoder.pos_embed", file.path)[0],
        }
    newer = file.target_name == "ema_encoder" or any(name.startswith(MARKS_OF_2_1) for name in weights)
    return {"positions": "rotary", "rotary_convention": rotary_convention or ("interleaved" if newer else "tiled")}


def sincos_layout(table: Tensor, name: str, path: Path) -> tuple[str, tuple[int, int, int]]:
    """Return layout and grid (time, rows, columns) of a stored table of positions (1, N, D), of square frames.

    Raises CheckpointError when no layout gives it.
    """
    tokens = table.shape[1]
    for side in range(1, int(tokens**0.5) + 1):
        grid = (tokens // (side * side), side, side)
        for layout in LAYOUTS if tokens % (side * side) == 0 else ():
            if is_sincos(table[0], grid, layout):
                return layout, grid
    raise CheckpointError(f"{path}: {name} does not hold sine-cosine positions of clips in a known layout {LAYOUTS}")


def predictor_config(
    file: WeightsFile, encoder: Mapping[str, Any], overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], list[int] | None]:
    """Return the predictor's configuration, and the blocks that it predicts where they are several.

    Raises CheckpointError for what is of no V-JEPA.
    """
    weights, path, levels = file.parts["predictor"], file.path, encoder["level_layers"]
    check_present(weights, PREDICTOR_NEEDS, "predictor", "a V-JEPA", path)
    config = {
        **predictor_sizes(weights, "mask_tokens.0", overrides, path),
        "mask_tokens": sum(name.startswith("mask_tokens.") for name in weights),
        "predict_context": "predictor_proj_context.weight" in weights,
        "modality_vectors": "img_mod_embed" in weights,
        "context_layers": levels if "predictor_embed.0.weight" in weights else None,
        **{name: encoder[name] for name in ("positions", "rotary_reference_side")},
        **{name: encoder[name] for name in ("sincos_layout", "rotary_convention") if name in encoder},
    }
    if (table := weights.get("predictor_pos_embed")) is not None:
        config["sincos_layout"], _ = sincos_layout(table, "predictor.predictor_pos_embed", path)
    out_dim = weights["predictor_proj.weight"].shape[0]
    if levels and out_dim == len(levels) * encoder["embed_dim"]:
        return config, levels
    if out_dim != encoder["embed_dim"]:
        config["out_dim"] = out_dim  # distilled from a teacher of another width, which the file does not hold
    return config, None


def clip_size(file: WeightsFile) -> tuple[int, int] | None:
    """Return (frames, pixels of a side) of the clips that stored positions are made for; None of rotary ones."""
    weights = file.encoder
    if "pos_embed" not in weights:
        return None
    tubelet, rows = weights["patch_embed.proj.weight"].shape[2:4]
    _, (steps, side, _) = sincos_layout(weights["pos_embed"], "encoder.pos_embed", file.path)
    return steps * tubelet, side * rows


def check_clip(file: WeightsFile, *, image_size: int, num_frames: int | None, tubelet_size: int | None) -> None:
    """Raise CheckpointError where a file's tubelets or its stored positions are of other clips than these."""
    path, tubelet = file.path, file.parts["encoder"]["patch_embed.proj.weight"].shape[2]
    if tubelet_size not in (None, tubelet):
        raise CheckpointError(f"{path} has tubelets of {tubelet} frames, got tubelet_size={tubelet_size}")
    if num_frames is not None and num_frames % tubelet:
        raise CheckpointError(
            f"{path} has tubelets of {tubelet} frames: num_frames={num_frames} is not a multiple of {tubelet}"
        )
    clip = clip_size(file)
    if clip is not None and (image_size != clip[1] or num_frames not in (None, clip[0])):
        raise CheckpointError(
            f"{path} is of clips of {clip[0]} frames of {clip[1]} pixels, got num_frames={num_frames} and "
            f"image_size={image_size}"
        )


def describe(encoder: Mapping[str, Any], clip: tuple[int, int] | None) -> str:
    """Return what was found in a file, in words. encoder: its configuration. clip: as `clip_size`."""
    stem, convention = encoder["stem"], encoder.get("rotary_convention")
    if clip is not None:
        name = "V-JEPA"
        text = f"sine-cosine positions ({encoder['sincos_layout']}) of {clip[0]} frames of {clip[1]} pixels"
    else:
        name, text = "V-JEPA 2" if convention == "tiled" else "V-JEPA 2.1", f"rotary positions, {convention}"
        if convention == "interleaved" and encoder["rotary_reference_side"] is None:
            text += ", not stretched (model.encoder.rotary_reference_side=<side> where they were)"
    return (
        f"{name} of width {encoder['embed_dim']}, depth {encoder['depth']}, {encoder['num_heads']} heads (as given), "
        f"tubelets of {stem['tubelet_size']} frames of {stem['patch_size']} pixels; {text}"
    )


def model_weights(file: WeightsFile) -> dict[str, Tensor]:
    """Return the weights by the names of our masked JEPA."""
    parts = {
        "encoder": encoder_weights(file.parts["encoder"]),
        "target.encoder": encoder_weights(file.parts["target_encoder"]),
        "predictor": predictor_weights(file.parts["predictor"]),
    }
    return {f"{part}.{name}": tensor for part, weights in parts.items() for name, tensor in weights.items()}


def encoder_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a published encoder's tensors by the names of our `TransformerEncoder`."""
    names = {"patch_embed.proj.": "stem.proj.", "patch_embed_img.proj.": "stem.picture_proj."}
    if any(name.startswith("norms_block.") for name in weights):
        names[f"norms_block.{count_blocks(weights, 'norms_block') - 1}."] = "norm."
        names["norms_block."] = "level_norms."
    ours = {
        rename(name, names): tensor.flatten(1) if tensor.ndim == 5 else tensor
        for name, tensor in weights.items()
        if name not in NOT_WEIGHTS
    }
    return ours | _modality(weights, "stem.modality")


def predictor_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a published predictor's tensors by the names of our `Predictor`."""
    tokens = sorted((name for name in weights if name.startswith("mask_tokens.")), key=lambda name: int(name[12:]))
    names = PREDICTOR_NAMES | {"predictor_proj_context.": "project_context."}
    ours = {rename(name, names): t for name, t in weights.items() if name not in (*NOT_WEIGHTS, *tokens)}
    if tokens:
        ours["mask_token"] = torch.stack([weights[name][0] for name in tokens])
    return ours | _modality(weights, "modality")


def _modality(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    both = [weights[key].flatten() for key in ("video_mod_embed", "img_mod_embed") if key in weights]
    return {name: torch.stack(both)} if both else {}


def _level_layers(
    weights: Mapping[str, Tensor], depth: int, overrides: Mapping[str, Any], path: Path
) -> list[int] | None:
    """The blocks with norms of their own; None where the final norm serves all."""
    if not any(name.startswith("norms_block.") for name in weights):
        return None
    count = count_blocks(weights, "norms_block")
    layers = overrides.get("encoder.level_layers", LEVELS.get(depth, [depth - 1] if count == 1 else None))
    if layers is None or len(layers) != count:
        raise UserError(
            f"{path} has norms for {count} of its {depth} blocks and does not say which: give "
            f"model.encoder.level_layers=[...], of {count} numbers from 0 to {depth - 1}"
        )
    return list(layers)


MODEL = Adapter("vjepa", lambda source: source.file.is_video and is_published(source.file), load, load_into=load_into)
ENCODER = Adapter("vjepa_encoder", lambda source: source.file.is_video, load_encoder)
