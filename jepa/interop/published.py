"""Published checkpoints in: the files of I-JEPA, and of V-JEPA, V-JEPA 2 and 2.1 (`jepa.interop.video`).

    model = load_published("IN1K-vit.h.14-300e.pth.tar", image_size=224, patch_size=14, num_heads=16)
    model = load_published("vitl.pt", image_size=256, patch_size=16, num_heads=16, num_frames=64, predictor_heads=12)

A file holds `encoder`, `predictor` and `target_encoder` (and optimizer state, which is left alone), with names
that start with `module.` (facebookresearch/ijepa src/helper.py). What the file does not say is asked for.
`jepa.interop.layouts` detects the variants.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from hydra.utils import instantiate
from torch import Tensor, nn

from jepa.checkpoint.load import load_state, locate, read_file
from jepa.interop.bare import check_given, count_blocks, heads_of, is_sincos, pair, sizes_of, table_side
from jepa.interop.layouts import TARGETS, Layout, detect
from jepa.interop.video import (
    check_clip,
    check_same_positions,
    encoder_weights,
    is_video,
    predictor_weights,
    video_config,
)
from jepa.utils.errors import CheckpointError

log = logging.getLogger("jepa")

PARTS = ("encoder", "predictor", "target_encoder")
PREDICTOR_SIZES = ("mask_token", "predictor_blocks.0.mlp.fc1.weight")

PREDICTOR_NAMES = {
    "predictor_embed": "embed",
    "predictor_blocks": "blocks",
    "predictor_norm": "norm",
    "predictor_proj": "project",
}


def load_published(
    path: str | Path,
    *,
    image_size: int,
    patch_size: int,
    num_heads: int,
    predictor_heads: int | None = None,
    num_frames: int | None = None,
    tubelet_size: int | None = None,
    rotary_convention: Literal["interleaved", "tiled"] | None = None,
    rotary_reference_side: int | None = None,
) -> nn.Module:
    """The masked JEPA of a published I-JEPA or V-JEPA checkpoint, with all its weights, in evaluation mode.

    Widths, depths and channels are read off the file; image_size, patch_size (pixels) and num_heads are not in it.
    predictor_heads None takes num_heads, as published (V-JEPA 2 has 12).
    Of clips: num_frames and tubelet_size (frames) are held against the file where it says them. rotary_convention None
    takes that of the file's format (see `jepa.interop.video`). rotary_reference_side: see `RotaryPositions`.

    Raises CheckpointError when the file is not such a checkpoint, or does not fit these sizes.
    """
    path = Path(path)
    layout = detect_published(read_file(path), path)
    encoder = layout.parts["encoder"]
    given = {"encoder.num_heads": num_heads, "predictor.num_heads": predictor_heads}
    if is_video(encoder):
        _check_patch(list(encoder["patch_embed.proj.weight"].shape[3:]), patch_size, path)
        check_clip(encoder, path, image_size=image_size, num_frames=num_frames, tubelet_size=tubelet_size)
        given |= {"encoder.rotary_reference_side": rotary_reference_side}
        if rotary_convention is not None:
            given |= {"encoder.rotary_convention": rotary_convention}
        config = video_config(layout.parts, given, path, layout.target_name)
    else:
        clip = {"num_frames": num_frames, "tubelet_size": tubelet_size, "rotary_convention": rotary_convention}
        if of_clips := [name for name, value in clip.items() if value is not None]:
            raise CheckpointError(f"{path} is of pictures, not of clips: leave out {', '.join(of_clips)}")
        _check_patch(sizes_of(encoder, path)["patch_size"], patch_size, path)
        config = published_config(layout.parts, given, path, image_size=image_size)
    model = instantiate(config, _convert_="all")
    load_published_weights(model, layout.parts, path)
    return model.eval()


def _check_patch(kernel: int | list[int], patch_size: int, path: Path) -> None:
    rows, columns = pair(kernel)
    if (rows, columns) != (patch_size, patch_size):
        raise CheckpointError(f"{path} has patches of {rows} x {columns} pixels, got patch_size={patch_size}")


def detect_published(content: Any, path: Path) -> Layout:
    """The layout of a published file. Raises CheckpointError when it is of another."""
    if is_published(content):
        return detect(content, path)
    found = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
    raise CheckpointError(
        f"{path} is not a published I-JEPA checkpoint, nor one of V-JEPA: expected {list(PARTS)}, found {found}"
    )


def published_config(
    parts: Mapping[str, Mapping[str, Tensor]], given: Mapping[str, Any], path: Path, image_size: int | None = None
) -> dict[str, Any]:
    """The masked JEPA of a published file's three state dicts, as a configuration without interpolations.

    given: what the command line says, "encoder.num_heads" at least, as the file does not; "predictor.num_heads" None or
        left out is as many. image_size None is that of the stored position table.

    Raises CheckpointError for weights that are of no I-JEPA, UserError for heads missing or sizes unlike the file's.
    """
    encoder, predictor = sizes_of(parts["encoder"], path), parts["predictor"]
    if missing := [name for name in PREDICTOR_SIZES if name not in predictor]:
        raise CheckpointError(f"{path}: predictor lacks {', '.join(missing)}: it is not that of an I-JEPA")
    width = predictor["mask_token"].shape[-1]
    small = {
        "embed_dim": width,
        "depth": count_blocks(predictor, "predictor_blocks"),
        "mlp_ratio": predictor["predictor_blocks.0.mlp.fc1.weight"].shape[0] / width,
    }
    check_given(encoder, given, "encoder", path)
    check_given(small, given, "predictor", path)
    encoder["num_heads"] = heads_of(encoder, given, path)
    if given.get("predictor.num_heads") is not None:
        small["num_heads"] = heads_of(small, given, path, "predictor")
    if image_size is None:
        image_size = image_size_of(parts["encoder"], path)
    return {
        "_target_": "jepa.models.MaskedJEPA",
        "encoder": {"_target_": "jepa.models.vision_transformer", "image_size": image_size, **encoder},
        "predictor": {"_target_": "jepa.models.Predictor", "_partial_": True, "num_heads": None, **small},
        "mask": {"_target_": "jepa.masks.multiblock_mask"},
        "target": {
            "_target_": "jepa.models.EMATarget",
            "_partial_": True,
            "momentum": {"_target_": "jepa.optim.Linear", "start": 0.996, "final": 1.0},
        },
        "loss": {
            "_target_": "jepa.losses.Objective",
            "_partial_": True,
            "terms": {"prediction": {"weight": 1.0, "term": {"_target_": "jepa.losses.SmoothL1"}}},
        },
    }


def image_size_of(encoder: Mapping[str, Tensor], path: Path) -> int | list[int]:
    """Pixels of the pictures that the stored position table is made for."""
    if "pos_embed" not in encoder:
        raise CheckpointError(f"{path}: encoder.pos_embed is missing")
    side, _ = table_side(encoder["pos_embed"], 0, path)
    rows, columns = pair(sizes_of(encoder, path)["patch_size"])
    return side * rows if rows == columns else [side * rows, side * columns]


def load_pretrained(model: nn.Module, path: str | Path) -> None:
    """Start a model from the weights of one of our runs (folder or file) or of a published file.

    Everything but the loss's own heads must fit. Raises CheckpointError when the file cannot be read or does not.
    """
    path = locate(path)
    content = read_file(path)
    if is_published(content):
        layout = detect(content, path)
        for line in layout.lines:
            log.info("%s: %s", path, line)
        if is_video(layout.parts["encoder"]):
            check_same_positions(model, layout.parts, path, layout.target_name)
        return load_published_weights(model, layout.parts, path)
    if isinstance(content, Mapping) and content.get("format") == "jepa":
        return load_state(model, content["model"], path, keep=("loss.",))
    found = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
    raise CheckpointError(
        f"init_from={path}: expected a checkpoint of this project or a published I-JEPA or V-JEPA file, found {found}"
    )


def is_published(content: Any) -> bool:
    """Whether what a file holds is an I-JEPA or V-JEPA checkpoint."""
    return isinstance(content, Mapping) and all(
        any(isinstance(content.get(name), Mapping) for name in names)
        for names in (("encoder",), ("predictor",), TARGETS)
    )


def load_published_weights(model: nn.Module, content: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
    """Put published state dicts into a masked JEPA, strictly; the stored positions are compared with ours.

    Raises CheckpointError that lists what differs; the model is untouched then.
    """
    if is_video(content["encoder"]):
        weights = {f"encoder.{name}": t for name, t in encoder_weights(content["encoder"]).items()}
        weights |= {f"target.encoder.{name}": t for name, t in encoder_weights(content["target_encoder"]).items()}
        weights |= {f"predictor.{name}": t for name, t in predictor_weights(content["predictor"]).items()}
        load_state(model, weights, path, keep=("loss.",))
        return
    if not hasattr(model.encoder, "vit"):
        kind = type(model.encoder).__name__
        raise CheckpointError(f"{path} is an I-JEPA, of pictures, but the model's encoder is a {kind}: use model=vit")
    positions = {
        "encoder": (content["encoder"], "pos_embed", model.encoder.positions.embed_dim),
        "target_encoder": (content["target_encoder"], "pos_embed", model.encoder.positions.embed_dim),
        "predictor": (content["predictor"], "predictor_pos_embed", model.predictor.positions.embed_dim),
    }
    for part, (weights, name, dim) in positions.items():
        if name not in weights:
            raise CheckpointError(f"{path}: {part}.{name} is missing")
        side, _ = table_side(weights[name], 0, path)  # published grids are square
        if weights[name].shape[2] == dim and not is_sincos(weights[name][0], (side, side)):
            raise CheckpointError(f"{path}: {part}.{name} does not hold sine-cosine positions")
    weights = {f"encoder.vit.{name}": t for name, t in content["encoder"].items() if name != "pos_embed"}
    weights |= {f"target.encoder.vit.{name}": t for name, t in content["target_encoder"].items() if name != "pos_embed"}
    for name, tensor in content["predictor"].items():
        head, dot, rest = name.partition(".")
        if head != "predictor_pos_embed":
            weights[f"predictor.{PREDICTOR_NAMES.get(head, head)}{dot}{rest}"] = tensor
    load_state(model, weights, path, keep=("loss.",))
