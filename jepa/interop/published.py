"""What the published files of I-JEPA and of V-JEPA share: three networks side by side, made into a masked JEPA."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from jepa.checkpoint.load import load_state
from jepa.interop.adapter import Loaded, Options, Source, build
from jepa.interop.sizes import count_blocks, num_heads
from jepa.interop.weights_file import WeightsFile
from jepa.utils.errors import CheckpointError

PREDICTOR_NAMES = {
    "predictor_embed.": "embed.",
    "predictor_blocks.": "blocks.",
    "predictor_norm.": "norm.",
    "predictor_proj.": "project.",
}
"""Start of a published name -> ours."""


def is_published(file: WeightsFile) -> bool:
    """Return whether a file holds encoder, predictor and target, as those of I-JEPA and V-JEPA do."""
    return len(file.parts) == 3


def check_present(weights: Mapping[str, Tensor], needed: tuple[str, ...], part: str, model: str, path: Path) -> None:
    """Raise CheckpointError where tensors that every such network has are missing."""
    if missing := [name for name in needed if name not in weights]:
        raise CheckpointError(f"{path}: {part} lacks {', '.join(missing)}: it is not that of {model}")


def masked_jepa_config(
    *,
    encoder: dict[str, Any],
    predictor: dict[str, Any],
    mask: dict[str, Any],
    terms: dict[str, Any],
    momentum: float,
    concat_layers: list[int] | None = None,
) -> dict[str, Any]:
    """Return a masked JEPA's configuration without interpolations. momentum: of the target at the start."""
    schedule = {"_target_": "jepa.optim.Linear", "start": momentum, "final": 1.0}
    target = {"_target_": "jepa.models.EMATarget", "_partial_": True, "momentum": schedule}
    return {
        "_target_": "jepa.models.MaskedJEPA",
        "encoder": encoder,
        "predictor": {"_target_": "jepa.models.Predictor", "_partial_": True, **predictor},
        "mask": mask,
        "target": {**target, "concat_layers": concat_layers},
        "loss": {"_target_": "jepa.losses.Objective", "_partial_": True, "terms": terms},
    }


def predictor_sizes(
    weights: Mapping[str, Tensor], mask_token: str, overrides: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """Return the sizes of a published predictor. num_heads None is as many as the encoder has."""
    width = weights[mask_token].shape[-1]
    sizes: dict[str, Any] = {
        "embed_dim": width,
        "depth": count_blocks(weights, "predictor_blocks"),
        "mlp_ratio": weights["predictor_blocks.0.mlp.fc1.weight"].shape[0] / width,
    }
    given = overrides.get("predictor.num_heads") is not None
    return sizes | {"num_heads": num_heads(sizes, overrides, path, "predictor") if given else None}


def load_masked_jepa(
    source: Source,
    options: Options,
    config: dict[str, Any],
    weights: Mapping[str, Tensor],
    found: str,
    predictor_heads: str,
    image_size: tuple[int, int] | None,
) -> Loaded:
    """Build a masked JEPA and load published weights by our names.

    found, predictor_heads: what the file is, and what is known of its predictor's heads, in words.
    """
    model, encoder = build(config), config["encoder"]
    load_state(model, weights, source.path, keep=("loss.",))
    lines = [*source.file.lines, found]
    if options.overrides.get("predictor.num_heads") is None:
        lines.append(f"predictor with {encoder['num_heads']} heads, those of the encoder{predictor_heads}")
    return Loaded(
        model,
        lambda: build(config).eval(),
        lines,
        {"model": config},
        encoder=encoder,
        image_size=image_size,
        channels=encoder.get("channels", encoder.get("stem", {}).get("channels")),
    )


def rename(name: str, prefixes: Mapping[str, str]) -> str:
    """Return a tensor's name with the first of the prefixes that it has replaced."""
    former = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
    return prefixes.get(former, "") + name.removeprefix(former)
