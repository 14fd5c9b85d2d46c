"""I-JEPA as published, and what V-JEPA's files share with it: three networks, made into a masked JEPA.

`encoder`, `predictor` and `target_encoder` of pictures (facebookresearch/ijepa src/helper.py). Names start with
`module.`; optimizer state is left alone. No file holds the number of heads.
"""

from __future__ import annotations

from collections.abc import Callable

from hydra.utils import instantiate
from torch import nn

from jepa.checkpoint.load import load_state
from jepa.interop.adapter import Adapter, Config, Loaded, Size, Source
from jepa.interop.network_names import State, renamed
from jepa.interop.sizes import (
    by,
    channels_of,
    check_overrides,
    count_blocks,
    described,
    num_heads,
    ratio,
    side_or_pair,
    sincos_grid,
    to_pair,
    vit_sizes,
)
from jepa.interop.weights_file import WeightsFile
from jepa.utils.errors import CheckpointError

PREDICTOR_NAMES = {
    r"^predictor_proj_context\.": "project_context.",
    r"^predictor_proj\.": "project.",
    r"^predictor_(embed|blocks|norm)\.": r"\1.",
}
"""Published name -> ours, as regular expressions."""


def load(source: Source) -> Loaded:
    """Load the masked JEPA. Raises CheckpointError for a file of no I-JEPA."""
    sizes, predictor = vit_sizes(source), predictor_sizes(source, "mask_token", "an I-JEPA")
    grid = stored_grid(source.file, "encoder")
    stored = side_or_pair([side * patch for side, patch in zip(grid, to_pair(sizes["patch_size"]))])
    encoder = {
        "_target_": "jepa.models.vision_transformer",
        "image_size": source.overrides.get("encoder.image_size", stored),
        **sizes,
        "num_heads": num_heads(source, sizes["embed_dim"]),
    }
    terms = {"prediction": {"weight": 1.0, "term": {"_target_": "jepa.losses.SmoothL1"}}}
    config = masked_jepa_config(encoder, predictor, {"_target_": "jepa.masks.multiblock_mask"}, terms, 0.996)
    check_overrides(source, config, ("encoder.name",))
    own = to_pair(encoder["image_size"])
    found = f"I-JEPA {described(encoder)} (as given), patches of {encoder['patch_size']} pixels"
    found += f"; its position table is of pictures of {by(own)}"
    return load_masked_jepa(source, config, model_weights(source.file), found, own)


def weights_for(model: nn.Module, source: Source) -> State:
    """Return the weights by the names of a model. Raises CheckpointError for one not of pictures."""
    check_of_pictures(model, source)
    return model_weights(source.file)


def check_of_pictures(model: nn.Module, source: Source) -> None:
    """Raise CheckpointError unless a model's encoder is a Vision Transformer of pictures."""
    encoder = getattr(model, "encoder", None)
    if not hasattr(encoder, "vit"):
        kind = type(encoder).__name__
        raise CheckpointError(f"{source.path} is of pictures, but the model's encoder is a {kind}: use model=vit")


def model_weights(file: WeightsFile) -> State:
    """Return the weights by the names of our masked JEPA. Raises CheckpointError for other positions than ours."""
    for part in file.parts:
        stored_grid(file, part)
    weights = our_weights(file, "vit.", lambda network: renamed(network, PREDICTOR_NAMES))
    return {name: tensor for name, tensor in weights.items() if not name.endswith("pos_embed")}


def stored_grid(file: WeightsFile, part: str) -> tuple[int, int]:
    """Return (rows, columns) of the stored positions. Raises CheckpointError for others than sine-cosine ones."""
    name = "predictor_pos_embed" if part == "predictor" else "pos_embed"
    if name not in file.parts[part]:
        raise CheckpointError(f"{file.path}: {part}.{name} is missing")
    grid = sincos_grid(file.parts[part][name][0])
    if grid is None:
        raise CheckpointError(f"{file.path}: {part}.{name} does not hold sine-cosine positions")
    return grid


# Shared with V-JEPA.


def our_weights(file: WeightsFile, encoder: str, by_our_names: Callable[[State], State]) -> State:
    """Return a file's weights by our names: encoder starts those of encoders, by_our_names renames one network."""
    starts = {"encoder": f"encoder.{encoder}", "target_encoder": f"target.encoder.{encoder}", "predictor": "predictor."}
    return {
        starts[part] + name: tensor
        for part, weights in file.parts.items()
        for name, tensor in by_our_names(weights).items()
    }


def masked_jepa_config(
    encoder: Config, predictor: Config, mask: Config, terms: Config, momentum: float, levels: list[int] | None = None
) -> Config:
    """Return a masked JEPA's configuration. momentum: of the target at the start. levels: blocks that it predicts."""
    schedule = {"_target_": "jepa.optim.Linear", "start": momentum, "final": 1.0}
    target = {"_target_": "jepa.models.EMATarget", "_partial_": True, "momentum": schedule}
    return {
        "_target_": "jepa.models.MaskedJEPA",
        "encoder": encoder,
        "predictor": {"_target_": "jepa.models.Predictor", "_partial_": True, **predictor},
        "mask": mask,
        "target": {**target, "concat_layers": levels},
        "loss": {"_target_": "jepa.losses.Objective", "_partial_": True, "terms": terms},
    }


def predictor_sizes(source: Source, mask_token: str, model: str) -> Config:
    """Return the sizes of a published predictor of such a model. num_heads None is as many as the encoder has."""
    weights, hidden = source.file.parts["predictor"], "predictor_blocks.0.mlp.fc1.weight"
    if missing := [name for name in (mask_token, hidden, "predictor_proj.weight") if name not in weights]:
        raise CheckpointError(f"{source.path}: predictor lacks {', '.join(missing)}: it is not that of {model}")
    width, key = weights[mask_token].shape[-1], "predictor.num_heads"
    given = source.overrides.get(key) is not None or key in source.file.facts
    return {
        "embed_dim": width,
        "depth": count_blocks(weights, "predictor_blocks"),
        "mlp_ratio": ratio(weights[hidden].shape[0], width),
        "num_heads": num_heads(source, width, "predictor") if given else None,
    }


def load_masked_jepa(source: Source, config: Config, weights: State, found: str, image_size: Size) -> Loaded:
    """Build a masked JEPA and load published weights by our names. found: what the file is, in words."""
    model, encoder = instantiate(config, _convert_="all"), config["encoder"]
    load_state(model, weights, source.path, keep=("loss.",))
    lines = [*source.file.lines, found]
    if config["predictor"]["num_heads"] is None:
        lines.append(
            f"predictor with {encoder['num_heads']} heads, those of the encoder, as published but for V-JEPA 2 (12)"
        )
    facts = {"encoder": encoder, "image_size": image_size, "channels": channels_of(encoder)}
    return Loaded(model, lambda: instantiate(config, _convert_="all").eval(), lines, {"model": config}, **facts)


ADAPTER = Adapter("ijepa", lambda source: source.file.is_whole, load, weights_for=weights_for)
