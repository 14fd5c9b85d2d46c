"""I-JEPA as published: `encoder`, `predictor` and `target_encoder` of pictures (facebookresearch/ijepa src/helper.py).

Names start with `module.`; optimizer state is left alone. No file holds the number of heads.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from jepa.checkpoint.load import load_state
from jepa.interop.adapter import Adapter, Loaded, Source
from jepa.interop.published import (
    PREDICTOR_NAMES,
    is_published,
    load_masked_jepa,
    masked_jepa_config,
    our_weights,
    predictor_sizes,
    renamed,
)
from jepa.interop.sizes import by, check_overrides, is_sincos, num_heads, side_or_pair, table_side, to_pair, vit_sizes
from jepa.interop.weights_file import State, WeightsFile
from jepa.utils.errors import CheckpointError


def load(source: Source) -> Loaded:
    """Load the masked JEPA."""
    config = model_config(source)
    check_overrides(source, config, ("encoder.name",))
    encoder, own = config["encoder"], to_pair(config["encoder"]["image_size"])
    found = (
        f"I-JEPA of width {encoder['embed_dim']}, depth {encoder['depth']}, {encoder['num_heads']} heads (as given), "
        f"patches of {encoder['patch_size']} pixels; its position table is of pictures of {by(own)}"
    )
    return load_masked_jepa(source, config, model_weights(source.file), found, ", as published", own)


def load_into(model: nn.Module, source: Source) -> None:
    """Load the weights into a masked JEPA. Raises CheckpointError that lists what differs."""
    if not hasattr(model.encoder, "vit"):
        kind = type(model.encoder).__name__
        raise CheckpointError(
            f"{source.path} is an I-JEPA, of pictures, but the model's encoder is a {kind}: use model=vit"
        )
    load_state(model, model_weights(source.file), source.path, keep=("loss.",))


def model_config(source: Source) -> dict[str, Any]:
    """Return the configuration of a published file's masked JEPA.

    Raises CheckpointError for weights that are of no I-JEPA, UserError for heads missing.
    """
    sizes = vit_sizes(source)
    predictor = predictor_sizes(source, "mask_token", "an I-JEPA")
    side = grid_side(source.file, "encoder")
    stored = side_or_pair([side * patch for patch in to_pair(sizes["patch_size"])])
    return masked_jepa_config(
        encoder={
            "_target_": "jepa.models.vision_transformer",
            "image_size": source.overrides.get("encoder.image_size", stored),
            **sizes,
            "num_heads": num_heads(source, sizes["embed_dim"]),
        },
        predictor=predictor,
        mask={"_target_": "jepa.masks.multiblock_mask"},
        terms={"prediction": {"weight": 1.0, "term": {"_target_": "jepa.losses.SmoothL1"}}},
        momentum=0.996,
    )


def model_weights(file: WeightsFile) -> State:
    """Return the weights by the names of our masked JEPA.

    Raises CheckpointError where the stored positions are not the sine-cosine ones that our encoders compute.
    """
    for part in file.parts:
        grid_side(file, part)
    weights = our_weights(file, "vit.", lambda network: renamed(network, PREDICTOR_NAMES))
    return {name: tensor for name, tensor in weights.items() if not name.endswith("pos_embed")}


def grid_side(file: WeightsFile, part: str) -> int:
    """Return the side of the square grid of the stored positions. Raises CheckpointError for others than ours."""
    name = "predictor_pos_embed" if part == "predictor" else "pos_embed"
    if name not in file.parts[part]:
        raise CheckpointError(f"{file.path}: {part}.{name} is missing")
    table = file.parts[part][name]
    side, _ = table_side(table, file.path)
    if not is_sincos(table[0], (side, side)):
        raise CheckpointError(f"{file.path}: {part}.{name} does not hold sine-cosine positions")
    return side


ADAPTER = Adapter("ijepa", lambda source: is_published(source.file), load, load_into=load_into)
