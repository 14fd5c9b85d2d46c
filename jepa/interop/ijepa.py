"""I-JEPA as published: `encoder`, `predictor` and `target_encoder` of pictures (facebookresearch/ijepa src/helper.py).

Names start with `module.`; optimizer state is left alone. No file holds the number of heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from jepa.checkpoint.load import load_state
from jepa.interop.adapter import Adapter, Loaded, Options, Source
from jepa.interop.published import (
    PREDICTOR_NAMES,
    check_present,
    is_published,
    load_masked_jepa,
    masked_jepa_config,
    predictor_sizes,
    rename,
)
from jepa.interop.sizes import by, check_overrides, is_sincos, num_heads, side_or_pair, table_side, to_pair, vit_sizes
from jepa.interop.weights_file import WeightsFile
from jepa.utils.errors import CheckpointError


def load(source: Source, options: Options) -> Loaded:
    """Load the masked JEPA."""
    file, overrides = source.file, options.overrides
    config = model_config(file, overrides)
    check_overrides(config, overrides, file.path, ("encoder.name",))
    encoder, own = config["encoder"], to_pair(config["encoder"]["image_size"])
    found = (
        f"I-JEPA of width {encoder['embed_dim']}, depth {encoder['depth']}, {encoder['num_heads']} heads (as given), "
        f"patches of {encoder['patch_size']} pixels; its position table is of pictures of {by(own)}"
    )
    return load_masked_jepa(source, options, config, model_weights(file), found, ", as published", own)


def load_into(model: nn.Module, source: Source) -> None:
    """Load the weights into a masked JEPA. Raises CheckpointError that lists what differs."""
    if not hasattr(model.encoder, "vit"):
        kind = type(model.encoder).__name__
        raise CheckpointError(
            f"{source.path} is an I-JEPA, of pictures, but the model's encoder is a {kind}: use model=vit"
        )
    load_state(model, model_weights(source.file), source.path, keep=("loss.",))


def model_config(file: WeightsFile, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a published file's masked JEPA.

    overrides: "encoder.num_heads" at least; "encoder.image_size" is that of the stored position table if left out.

    Raises CheckpointError for weights that are of no I-JEPA, UserError for heads missing.
    """
    path, predictor = file.path, file.parts["predictor"]
    sizes = vit_sizes(file.encoder, path)
    check_present(predictor, ("mask_token", "predictor_blocks.0.mlp.fc1.weight"), "predictor", "an I-JEPA", path)
    side = _grid_side(file, "encoder", "pos_embed")
    stored = side_or_pair([side * patch for patch in to_pair(sizes["patch_size"])])
    return masked_jepa_config(
        encoder={
            "_target_": "jepa.models.vision_transformer",
            "image_size": overrides.get("encoder.image_size", stored),
            **sizes,
            "num_heads": num_heads(sizes, overrides, path),
        },
        predictor=predictor_sizes(predictor, "mask_token", overrides, path),
        mask={"_target_": "jepa.masks.multiblock_mask"},
        terms={"prediction": {"weight": 1.0, "term": {"_target_": "jepa.losses.SmoothL1"}}},
        momentum=0.996,
    )


def model_weights(file: WeightsFile) -> dict[str, Tensor]:
    """Return the weights by the names of our masked JEPA.

    Raises CheckpointError where the stored positions are not the sine-cosine ones that our encoders compute.
    """
    weights = {}
    for part, ours, table, names in (
        ("encoder", "encoder.vit.", "pos_embed", {}),
        ("target_encoder", "target.encoder.vit.", "pos_embed", {}),
        ("predictor", "predictor.", "predictor_pos_embed", PREDICTOR_NAMES),
    ):
        side = _grid_side(file, part, table)
        if not is_sincos(file.parts[part][table][0], (side, side)):
            raise CheckpointError(f"{file.path}: {part}.{table} does not hold sine-cosine positions")
        weights |= {ours + rename(name, names): t for name, t in file.parts[part].items() if name != table}
    return weights


def _grid_side(file: WeightsFile, part: str, table: str) -> int:
    """Side of the square grid of the stored positions."""
    if table not in file.parts[part]:
        raise CheckpointError(f"{file.path}: {part}.{table} is missing")
    return table_side(file.parts[part][table], file.path)[0]


ADAPTER = Adapter("ijepa", lambda source: is_published(source.file), load, load_into=load_into)
