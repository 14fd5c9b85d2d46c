"""I-JEPA as published: `encoder`, `predictor` and `target_encoder` of pictures (facebookresearch/ijepa src/helper.py).

Names start with `module.`; optimizer state is left alone. No file holds the number of heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from jepa.checkpoint.load import load_state
from jepa.interop.adapter import Adapter, Loaded, Options, Source, load_published_model
from jepa.interop.sizes import (
    by,
    check_overrides,
    count_blocks,
    is_sincos,
    num_heads,
    side_or_pair,
    table_side,
    to_pair,
    vit_sizes,
)
from jepa.interop.weights_file import WeightsFile
from jepa.utils.errors import CheckpointError

PREDICTOR_NAMES = {
    "predictor_embed": "embed",
    "predictor_blocks": "blocks",
    "predictor_norm": "norm",
    "predictor_proj": "project",
}
"""A published name's first part -> ours."""


def is_published(file: WeightsFile) -> bool:
    """Return whether a file holds encoder, predictor and target, as those of I-JEPA and V-JEPA do."""
    return len(file.parts) == 3


def load(source: Source, options: Options) -> Loaded:
    """Load the masked JEPA."""
    file, overrides = source.file, options.overrides
    config = model_config(file, overrides)
    check_overrides(config, overrides, file.path, ("encoder.image_size", "encoder.name"))
    encoder, own = config["encoder"], to_pair(config["encoder"]["image_size"])
    lines = [
        *file.lines,
        f"I-JEPA of width {encoder['embed_dim']}, depth {encoder['depth']}, {encoder['num_heads']} heads (as given), "
        f"patches of {encoder['patch_size']} pixels; its position table is of pictures of {by(own)}",
    ]
    if overrides.get("predictor.num_heads") is None:
        lines.append(f"predictor with {encoder['num_heads']} heads, those of the encoder, as published")
    return load_published_model(
        source, config, model_weights(file), lines=lines, image_size=own, channels=encoder["channels"]
    )


def load_into(model: nn.Module, source: Source) -> None:
    """Load the weights into a masked JEPA. Raises CheckpointError that lists what differs."""
    if not hasattr(model.encoder, "vit"):
        kind = type(model.encoder).__name__
        raise CheckpointError(
            f"{source.path} is an I-JEPA, of pictures, but the model's encoder is a {kind}: use model=vit"
        )
    load_state(model, model_weights(source.file), source.path, keep=("loss.",))


def model_config(
    file: WeightsFile, overrides: Mapping[str, Any], image_size: int | list[int] | None = None
) -> dict[str, Any]:
    """Return the configuration of a published file's masked JEPA.

    overrides: "encoder.num_heads" at least; "predictor.num_heads" None is as many. image_size None is that of the
    stored position table.

    Raises CheckpointError for weights that are of no I-JEPA, UserError for heads missing.
    """
    path, predictor = file.path, file.parts["predictor"]
    encoder = vit_sizes(file.parts["encoder"], path)
    needed = ("mask_token", "predictor_blocks.0.mlp.fc1.weight")
    if missing := [name for name in needed if name not in predictor]:
        raise CheckpointError(f"{path}: predictor lacks {', '.join(missing)}: it is not that of an I-JEPA")
    width = predictor["mask_token"].shape[-1]
    sizes: dict[str, Any] = {
        "embed_dim": width,
        "depth": count_blocks(predictor, "predictor_blocks"),
        "mlp_ratio": predictor["predictor_blocks.0.mlp.fc1.weight"].shape[0] / width,
        "num_heads": None,
    }
    encoder["num_heads"] = num_heads(encoder, overrides, path)
    if overrides.get("predictor.num_heads") is not None:
        sizes["num_heads"] = num_heads(sizes, overrides, path, "predictor")
    if image_size is None:
        side = _grid_side(file.parts["encoder"], "encoder.pos_embed", file)
        image_size = side_or_pair([side * patch for patch in to_pair(encoder["patch_size"])])
    return {
        "_target_": "jepa.models.MaskedJEPA",
        "encoder": {"_target_": "jepa.models.vision_transformer", "image_size": image_size, **encoder},
        "predictor": {"_target_": "jepa.models.Predictor", "_partial_": True, **sizes},
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


def model_weights(file: WeightsFile) -> dict[str, Tensor]:
    """Return the weights by the names of our masked JEPA.

    Raises CheckpointError where the stored positions are not the sine-cosine ones that our encoders compute.
    """
    weights = {}
    for part, ours in (
        ("encoder", "encoder.vit"),
        ("target_encoder", "target.encoder.vit"),
        ("predictor", "predictor"),
    ):
        table_name = "predictor_pos_embed" if part == "predictor" else "pos_embed"
        side = _grid_side(file.parts[part], f"{part}.{table_name}", file)
        if not is_sincos(file.parts[part][table_name][0], (side, side)):
            raise CheckpointError(f"{file.path}: {part}.{table_name} does not hold sine-cosine positions")
        for name, tensor in file.parts[part].items():
            head, dot, rest = name.partition(".")
            if name != table_name:
                head = PREDICTOR_NAMES.get(head, head) if part == "predictor" else head
                weights[f"{ours}.{head}{dot}{rest}"] = tensor
    return weights


def _grid_side(weights: Mapping[str, Tensor], full_name: str, file: WeightsFile) -> int:
    """Side of the square grid of the stored positions."""
    name = full_name.partition(".")[2]
    if name not in weights:
        raise CheckpointError(f"{file.path}: {full_name} is missing")
    return table_side(weights[name], file.path)[0]


ADAPTER = Adapter("ijepa", lambda source: is_published(source.file), load, load_into=load_into)
