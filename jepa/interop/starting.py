"""Training that starts from weights, `init_from=`: of a run of any method, or of any file that can be read."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from jepa.checkpoint.load import load_state
from jepa.interop.adapter import Source
from jepa.interop.loading import FILES, find
from jepa.interop.network_names import State
from jepa.interop.sizes import count_blocks, side_or_pair
from jepa.utils.errors import CheckpointError
from jepa.utils.read_data import printable

log = logging.getLogger("jepa")


def load_into(model: nn.Module, checkpoint: str | Path) -> None:
    """Load weights into a model, part by part: encoder, target, predictor.

    A part that the model or the checkpoint lacks is left out: a target without weights gets those of the encoder, other
    parts and the loss's own heads start fresh. What is taken, left alone and fresh is logged.

    Raises CheckpointError when the checkpoint cannot be read, has no encoder, or a part does not fit.
    """
    source = find(str(checkpoint), key="init_from", trusted=None)  # its weights alone are read
    if source.adapter.read is not None:
        source.file = source.adapter.read(source)
        source.adapter = next(adapter for adapter in FILES if adapter.recognizes(source))
    if source.adapter.weights_for is None:
        raise CheckpointError(
            f"init_from={checkpoint}: expected a run folder, a file of weights, timm:<name> or hf:<name or folder>"
        )
    weights = source.adapter.weights_for(model, source)
    check_said(model, source)
    own = model.state_dict()
    parts, theirs = ({name.partition(".")[0] for name in state} - {"loss"} for state in (own, weights))
    weights = with_both(weights, parts, theirs)
    copied = sorted({"encoder", "target"} & parts & {name.partition(".")[0] for name in weights} - theirs)
    fresh, unused = sorted(parts - theirs - set(copied)), sorted(theirs - parts)
    if not parts & theirs and not copied:
        raise CheckpointError(f"{source.path} holds {', '.join(unused)}, and the model {', '.join(sorted(parts))}")
    weights = {name: tensor for name, tensor in weights.items() if name.partition(".")[0] not in unused}
    keep = ("loss.", *(f"{part}." for part in fresh))
    try:
        load_state(model, weights, source.path, keep=keep)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{advice(model, own, weights, source)}") from None
    lines = [*source.file.lines, f"weights taken for {', '.join(sorted((parts & theirs) | set(copied)))}"]
    lines += ["encoder and target start alike, as it holds one of them"] if copied else []
    said = source.file.run is not None or source.file.card is not None or "encoder.num_heads" in source.file.facts
    if not said and (heads := own_settings(getattr(model, "encoder", None)).get("num_heads")):
        lines.append(f"{heads} attention heads, as the model has: the file does not say (model.encoder.num_heads)")
    fresh += ["loss"] * any(name.startswith("loss.") for name in own)
    lines += [f"not used: {', '.join(unused)}"] if unused else []
    lines += [f"starts fresh: {', '.join(fresh)}"] if fresh else []
    for line in lines:
        log.info("%s: %s", source.path, printable(line))


def with_both(weights: State, parts: set[str], theirs: set[str]) -> State:
    """Return weights in which an encoder or target that a model has and a file lacks is the other one."""
    if "target" in parts - theirs:
        return weights | {f"target.{name}": tensor for name, tensor in weights.items() if name.startswith("encoder.")}
    if "encoder" in parts - theirs:
        start = "target.encoder."
        return weights | {name[len("target.") :]: t for name, t in weights.items() if name.startswith(start)}
    return weights


def check_said(model: nn.Module, source: Source) -> None:
    """Raise CheckpointError where what a checkpoint says of its encoder is not what the model has."""
    encoder = getattr(model, "encoder", None)
    config = (source.config or {}).get("model", source.config) or {}
    said = config.get("encoder") if isinstance(config, Mapping) else None
    said = dict(said) if isinstance(said, Mapping) else {}
    if "encoder.num_heads" in source.file.facts:
        said["num_heads"] = source.file.facts["encoder.num_heads"]
    other = {name: said[name] for name, value in own_settings(encoder).items() if said.get(name, value) != value}
    if other:
        raise CheckpointError(
            f"{source.path} has an encoder of other settings than the model: set "
            + " ".join(f"model.encoder.{name}={value}" for name, value in other.items())
        )


def own_settings(encoder: Any) -> dict[str, Any]:
    """Return the values of a model's encoder that change what it computes, but no shape of its weights."""
    settings = {"num_heads": encoder.num_heads} if isinstance(getattr(encoder, "num_heads", None), int) else {}
    rotary = getattr(encoder, "rotary", None)
    if rotary is not None:
        settings |= {"positions": "rotary", "rotary_convention": rotary.convention}
        settings["rotary_reference_side"] = rotary.reference_side
    elif hasattr(getattr(encoder, "positions", None), "layout") and hasattr(encoder, "stem"):
        settings |= {"positions": "sincos", "sincos_layout": encoder.positions.layout}
    return settings


def advice(model: nn.Module, own: State, weights: State, source: Source) -> str:
    """Return a line with the options that give the model the sizes of the weights; "" where they are not known."""
    encoder = getattr(model, "encoder", None)
    if type(getattr(encoder, "vit", None)).__module__.startswith("timm."):
        return "\nThe model's encoder is one of timm: name that of the file, model.encoder.name=<name in timm>"
    ours, theirs = sizes(own), sizes(weights)
    kernel, stem = source.file.encoder.get("patch_embed.proj.weight"), getattr(encoder, "stem", None)
    if kernel is not None and kernel.ndim == 5 and hasattr(stem, "tubelet_size"):
        ours |= {
            "encoder.stem.patch_size": side_or_pair(stem.patch_size),
            "encoder.stem.tubelet_size": stem.tubelet_size,
        }
        theirs["encoder.stem.tubelet_size"] = kernel.shape[2]
        theirs["encoder.stem.patch_size"] = side_or_pair(list(kernel.shape[3:]))
    options = {key: value for key, value in theirs.items() if key in ours and ours[key] != value}
    for part in ("encoder", "predictor"):
        width = options.get(f"{part}.embed_dim")
        heads = getattr(encoder, "num_heads", None)
        known = source.file.facts.get(f"{part}.num_heads")
        if width and (known or (isinstance(heads, int) and part == "encoder")):
            usual = width // 64 if width % 64 == 0 else next(n for n in range(heads or 1, 0, -1) if width % n == 0)
            options[f"{part}.num_heads"] = known or usual
    names = {key: key if key.startswith("data.") else f"model.{key}" for key in options}
    given = " ".join(f"{names[key]}={value}".replace(" ", "") for key, value in options.items())
    return f"\nIts sizes: {given}" if given else ""


def sizes(weights: State) -> dict[str, Any]:
    """Return the sizes that weights by our names have, by dotted key."""
    found: dict[str, Any] = {}
    for part, start in (("encoder", "encoder.vit."), ("encoder", "encoder."), ("predictor", "predictor.")):
        hidden, norm = weights.get(f"{start}blocks.0.mlp.fc1.weight"), weights.get(f"{start}norm.weight")
        if hidden is None or norm is None:
            continue
        found[f"{part}.embed_dim"], found[f"{part}.depth"] = len(norm), count_blocks(weights, f"{start}blocks")
        found[f"{part}.mlp_ratio"] = hidden.shape[0] / len(norm)
    if (kernel := weights.get("encoder.vit.patch_embed.proj.weight")) is not None:
        found["encoder.patch_size"] = side_or_pair(list(kernel.shape[-2:]))
        found["data.channels"] = kernel.shape[1]
    if (tokens := weights.get("predictor.mask_token")) is not None:
        found["predictor.mask_tokens"] = math.prod(tokens.shape[:-1])
    return found
