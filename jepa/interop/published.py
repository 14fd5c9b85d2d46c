"""Published checkpoints in: I-JEPA's `.pth.tar` files.

    model = load_published("IN1K-vit.h.14-300e.pth.tar", image_size=224, patch_size=14, num_heads=16)

A file holds `encoder`, `predictor` and `target_encoder` (and optimizer state, which is left alone), with names
that start with `module.` (facebookresearch/ijepa src/helper.py). What the file does not say is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from jepa.utils.errors import CheckpointError
from jepa.utils.weights import load_state, locate, read_file

PARTS = ("encoder", "predictor", "target_encoder")

PREDICTOR_NAMES = {
    "predictor_embed": "embed",
    "predictor_blocks": "blocks",
    "predictor_norm": "norm",
    "predictor_proj": "project",
}


def load_published(
    path: str | Path, *, image_size: int, patch_size: int, num_heads: int, predictor_heads: int | None = None
) -> nn.Module:
    """The masked JEPA of a published I-JEPA checkpoint, with all its weights, in evaluation mode.

    Widths, depths and channels are read off the file; image_size, patch_size (pixels) and num_heads are not in it.
    predictor_heads None takes num_heads, as published.

    Raises CheckpointError when the file is not such a checkpoint, or does not fit these sizes.
    """
    content = read_file(Path(path))
    if not is_published(content):
        found = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(f"{path} is not a published I-JEPA checkpoint: expected {list(PARTS)}, found {found}")
    content = strip_prefix(content)
    encoder, predictor = content["encoder"], content["predictor"]
    kernel = encoder["patch_embed.proj.weight"].shape
    if tuple(kernel[2:]) != (patch_size, patch_size):
        raise CheckpointError(f"{path} has patches of {kernel[2]} x {kernel[3]} pixels, got patch_size={patch_size}")
    dim, hidden = kernel[0], encoder["blocks.0.mlp.fc1.weight"].shape[0]
    width = predictor["mask_token"].shape[-1]
    config = {
        "_target_": "jepa.models.MaskedJEPA",
        "encoder": {
            "_target_": "jepa.models.vision_transformer",
            "image_size": image_size,
            "channels": kernel[1],
            "patch_size": patch_size,
            "dim": dim,
            "depth": count_blocks(encoder, "blocks"),
            "heads": num_heads,
            "mlp_ratio": hidden / dim,
            "qkv_bias": "blocks.0.attn.qkv.bias" in encoder,
        },
        "predictor": {
            "_target_": "jepa.models.Predictor",
            "_partial_": True,
            "dim": width,
            "depth": count_blocks(predictor, "predictor_blocks"),
            "heads": predictor_heads,
            "mlp_ratio": predictor["predictor_blocks.0.mlp.fc1.weight"].shape[0] / width,
        },
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
    model = instantiate(config, _convert_="all")
    load_published_weights(model, content, Path(path))
    return model.eval()


def load_pretrained(model: nn.Module, path: str | Path) -> None:
    """Start a model from the weights of one of our runs (folder or file) or of a published file.

    Everything but the loss's own heads must fit. Raises CheckpointError when the file cannot be read or does not.
    """
    path = locate(path)
    content = read_file(path)
    if is_published(content):
        return load_published_weights(model, strip_prefix(content), path)
    if isinstance(content, Mapping) and content.get("format") == "jepa":
        return load_state(model, content["model"], path, keep=("loss.",))
    found = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
    raise CheckpointError(
        f"init_from={path}: expected a checkpoint of this project or a published I-JEPA file, found {found}"
    )


def is_published(content: Any) -> bool:
    """Whether what a file holds is an I-JEPA checkpoint."""
    return isinstance(content, Mapping) and all(isinstance(content.get(part), Mapping) for part in PARTS)


def strip_prefix(content: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """The three state dicts of a published file, names without `module.`."""
    return {part: {name.removeprefix("module."): tensor for name, tensor in content[part].items()} for part in PARTS}


def load_published_weights(model: nn.Module, content: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
    """Put published state dicts into a masked JEPA, strictly; the stored positions are compared with ours.

    Raises CheckpointError that lists what differs; the model is untouched then.
    """
    positions = {
        "encoder": (content["encoder"], "pos_embed", model.encoder.positions),
        "predictor": (content["predictor"], "predictor_pos_embed", model.predictor.positions),
    }
    for part, (weights, name, ours) in positions.items():
        if name not in weights:
            raise CheckpointError(f"{path}: {part}.{name} is missing")
        side = math.isqrt(weights[name].shape[1])  # published grids are square
        if weights[name].shape[2] == ours.dim and not torch.allclose(
            weights[name][0], ours((side, side), torch.device("cpu")), atol=1e-4
        ):
            raise CheckpointError(f"{path}: {part}.{name} does not hold sine-cosine positions")
    weights = {f"encoder.vit.{name}": t for name, t in content["encoder"].items() if name != "pos_embed"}
    weights |= {f"target.encoder.vit.{name}": t for name, t in content["target_encoder"].items() if name != "pos_embed"}
    for name, tensor in content["predictor"].items():
        head, dot, rest = name.partition(".")
        if head != "predictor_pos_embed":
            weights[f"predictor.{PREDICTOR_NAMES.get(head, head)}{dot}{rest}"] = tensor
    load_state(model, weights, path, keep=("loss.",))


def count_blocks(weights: Mapping[str, Tensor], prefix: str) -> int:
    """Number of transformer blocks in a state dict."""
    return 1 + max(int(name.split(".")[1]) for name in weights if name.startswith(f"{prefix}."))
