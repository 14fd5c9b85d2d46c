"""What the published files of I-JEPA and of V-JEPA share: three networks side by side, made into a masked JEPA."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from hydra.utils import instantiate
from torch import Tensor

from jepa.checkpoint.load import load_state
from jepa.interop.adapter import Loaded, Source
from jepa.interop.sizes import channels_of, count_blocks, num_heads
from jepa.interop.weights_file import State, WeightsFile
from jepa.utils.errors import CheckpointError

PREDICTOR_NAMES = {
    r"^predictor_proj_context\.": "project_context.",
    r"^predictor_proj\.": "project.",
    r"^predictor_(embed|blocks|norm)\.": r"\1.",
}
"""Published name -> ours, as regular expressions."""


def renamed(weights: Mapping[str, Tensor], names: Mapping[str, str]) -> State:
    """Return tensors under other names. names: regular expression -> replacement, applied in their order."""

    def new_name(name: str) -> str:
        for pattern, replacement in names.items():
            name = re.sub(pattern, replacement, name)
        return name

    return {new_name(name): tensor for name, tensor in weights.items()}


def our_weights(file: WeightsFile, encoder: str, by_our_names: Callable[[State], State]) -> State:
    """Return the weights of a file by the names of our masked JEPA.

    encoder: start of the names of our encoder. by_our_names: one network's state dict to ours.
    """
    prefixes = {
        "encoder": f"encoder.{encoder}",
        "target_encoder": f"target.encoder.{encoder}",
        "predictor": "predictor.",
    }
    return {
        prefixes[part] + name: tensor
        for part, weights in file.parts.items()
        for name, tensor in by_our_names(weights).items()
    }


def is_published(file: WeightsFile) -> bool:
    """Return whether a file holds encoder, predictor and target, as those of I-JEPA and V-JEPA do."""
    return len(file.parts) == 3


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


def predictor_sizes(source: Source, mask_token: str, model: str) -> dict[str, Any]:
    """Return the sizes of a published predictor. num_heads None is as many as the encoder has.

    Raises CheckpointError where tensors are missing that every predictor of such a model has.
    """
    weights, hidden = source.file.parts["predictor"], "predictor_blocks.0.mlp.fc1.weight"
    if missing := [name for name in (mask_token, hidden, "predictor_proj.weight") if name not in weights]:
        raise CheckpointError(f"{source.path}: predictor lacks {', '.join(missing)}: it is not that of {model}")
    width = weights[mask_token].shape[-1]
    given = source.overrides.get("predictor.num_heads") is not None
    return {
        "embed_dim": width,
        "depth": count_blocks(weights, "predictor_blocks"),
        "mlp_ratio": weights[hidden].shape[0] / width,
        "num_heads": num_heads(source, width, "predictor") if given else None,
    }


def load_masked_jepa(
    source: Source,
    config: dict[str, Any],
    weights: Mapping[str, Tensor],
    found: str,
    predictor_heads: str,
    image_size: tuple[int, int] | None,
) -> Loaded:
    """Build a masked JEPA and load published weights by our names.

    found, predictor_heads: what the file is, and what is known of its predictor's heads, in words.
    """
    model, encoder = instantiate(config, _convert_="all"), config["encoder"]
    load_state(model, weights, source.path, keep=("loss.",))
    lines = [*source.file.lines, found]
    if config["predictor"]["num_heads"] is None:
        lines.append(f"predictor with {encoder['num_heads']} heads, those of the encoder{predictor_heads}")
    return Loaded(
        model,
        lambda: instantiate(config, _convert_="all").eval(),
        lines,
        {"model": config},
        encoder=encoder,
        image_size=image_size,
        channels=channels_of(encoder),
    )
