"""Any checkpoint as a model, or as weights to train from: ours, published ones, bare encoders, models known by name.

    loaded = load("timm:vit_small_patch16_224.augreg_in21k", image_size=(224, 224), channels=3)
    loaded.model.encode_target(x)                   # (B, N, D)

A new format is a file with an `Adapter`, and a row of `ADAPTERS`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn

from jepa.checkpoint.load import load_state
from jepa.interop import hugging_face, ijepa, ours, timm_models, vit_files, vjepa
from jepa.interop.adapter import Adapter, Loaded, Size, Source
from jepa.interop.network_names import State
from jepa.interop.sizes import by, count_blocks, side_or_pair
from jepa.utils.errors import CheckpointError, UserError
from jepa.utils.read_data import printable

log = logging.getLogger("jepa")
FILES: tuple[Adapter, ...] = (ours.RUN, ours.EXPORT, vjepa.MODEL, vjepa.ENCODER, ijepa.ADAPTER, vit_files.FILE)
"""The formats of files, in the order in which they are tried: last what takes any encoder of pictures."""
ADAPTERS: tuple[Adapter, ...] = (ours.RANDOM, timm_models.NAME, hugging_face.ADAPTER, *FILES)


def find(name: str, key: str = "checkpoint", trusted: Collection[str] | None = ()) -> Source:
    """Find a checkpoint and its format: a run folder or file, `timm:<name>`, `hf:<name or folder>`, or `random`.

    Raises CheckpointError when nothing is there, or the file cannot be read or is of no known format.
    """
    if name in ("timm:", "hf:"):
        raise UserError(f"{key}={name}: expected {name}<name>")
    name = hugging_face.repository_of(name) or name
    if name.startswith("hf:"):
        name = hugging_face.run_of(name) or name
    source = Source(name, key, trusted)
    source.adapter = next(adapter for adapter in ADAPTERS if adapter.recognizes(source))
    source.config = source.adapter.stored_config(source)
    return source


def load(
    checkpoint: str | Path | Source,
    *,
    overrides: Mapping[str, Any] | None = None,
    image_size: Size = None,
    channels: int | None = None,
    build: Callable[..., nn.Module] | None = None,
    seed: int | None = None,
    trust: bool = False,
) -> Loaded:
    """Load a checkpoint's model with its weights. checkpoint: as `find` takes it, or gives it; others: see `Source`.

    trust: build also what is not jepa's own, of a run that is yours.

    Raises CheckpointError that lists what does not fit, UserError for what is missing or contradicts the file.
    """
    source = checkpoint if isinstance(checkpoint, Source) else find(str(checkpoint), trusted=None if trust else ())
    source.overrides, source.image_size, source.channels = overrides or {}, image_size, channels
    source.build, source.seed = build, seed
    loaded = source.adapter.load(source)
    loaded.source, loaded.format = source.name, source.adapter.format
    loaded.lines = list(map(printable, loaded.lines))  # they quote the file
    loaded.model.eval()
    if channels is not None and loaded.channels not in (None, channels):
        grey = " (grey pictures are repeated)" if loaded.channels == 3 else ""
        raise UserError(
            f"data.channels={channels}, but {source.name} takes {loaded.channels}: add data.channels={loaded.channels}"
            f"{grey}"
        )
    if image_size is not None and loaded.image_size not in (None, image_size):
        loaded.lines.append(f"made for pictures of {by(loaded.image_size)} pixels, used on {by(image_size)}")
    return loaded


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
    """Load the masked JEPA of a published I-JEPA or V-JEPA checkpoint, with all its weights, in evaluation mode.

        load_published("IN1K-vit.h.14-300e.pth.tar", image_size=224, patch_size=14, num_heads=16)
        load_published("vitl.pt", image_size=256, patch_size=16, num_heads=16, num_frames=64, predictor_heads=12)

    Sizes in pixels and frames; what the file holds must agree. predictor_heads None takes num_heads, rotary_convention
    that of the file's format (see `jepa.interop.vjepa`). rotary_reference_side: see `RotaryPositions`.

    Raises CheckpointError when the file is not such a checkpoint, or does not fit these sizes.
    """
    if not Path(path).exists():
        raise CheckpointError(f"no checkpoint at {path}")
    source = find(str(path), key="path")
    file, overrides = source.file, {"encoder.num_heads": num_heads, "predictor.num_heads": predictor_heads}
    if source.adapter not in (vjepa.MODEL, ijepa.ADAPTER):
        raise CheckpointError(
            f"{path} is not a published I-JEPA checkpoint, nor one of V-JEPA: expected "
            f"['encoder', 'predictor', 'target_encoder'], found {sorted(file.run or file.parts)}"
        )
    kernel = file.encoder.get("patch_embed.proj.weight")
    if kernel is not None and (patch := tuple(kernel.shape[-2:])) != (patch_size, patch_size):
        raise CheckpointError(f"{path} has patches of {by(patch)} pixels, got patch_size={patch_size}")
    clip = {"num_frames": num_frames, "tubelet_size": tubelet_size}
    if file.is_video:
        vjepa.check_clip(file, image_size=image_size, **clip)
        overrides["encoder.rotary_convention"] = rotary_convention
        overrides["encoder.rotary_reference_side"] = rotary_reference_side
    else:
        clip["rotary_convention"] = rotary_convention
        if of_clips := [name for name, value in clip.items() if value is not None]:
            raise CheckpointError(f"{path} is of pictures, not of clips: leave out {', '.join(of_clips)}")
        overrides["encoder.image_size"] = image_size
    return load(source, overrides=overrides).model


def load_into(model: nn.Module, checkpoint: str | Path) -> None:
    """Load weights into a model by parts, encoder, target and predictor; log what is taken, left alone and fresh.

    A target without weights gets the encoder's, and the other way round; other parts and the loss's heads start fresh.
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
    check_settings(model, source)
    own = model.state_dict()
    parts, theirs = (part_names(state) - {"loss"} for state in (own, weights))
    for part, other in (("target.encoder.", "encoder."), ("encoder.", "target.encoder.")):
        if part.partition(".")[0] in parts - theirs:  # starts as the other one
            same = {part + name.removeprefix(other): t for name, t in weights.items() if name.startswith(other)}
            weights = weights | same
    copied = {"encoder", "target"} & parts & part_names(weights) - theirs
    taken, fresh, unused = (parts & theirs) | copied, sorted(parts - theirs - copied), sorted(theirs - parts)
    if not taken:
        raise CheckpointError(f"{source.path} holds {', '.join(unused)}, and the model {', '.join(sorted(parts))}")
    weights = {name: tensor for name, tensor in weights.items() if name.partition(".")[0] not in unused}
    try:
        load_state(model, weights, source.path, keep=("loss.", *(f"{part}." for part in fresh)))
    except CheckpointError as error:
        raise CheckpointError(f"{error}{advice(model, own, weights, source)}") from None
    lines = [*source.file.lines, f"weights taken for {', '.join(sorted(taken))}"]
    lines += ["encoder and target start alike, as it holds one of them"] if copied else []
    if {"encoder", "target"} <= taken - copied and hasattr(model.target, "drift"):
        change, weight = model.target.drift(model.encoder).tolist()
        doubt = ": are they of one run?" if change > weight else ""
        lines.append(f"the weights of target and encoder differ by {(change / weight) ** 0.5:.1%} of their norm{doubt}")
    said = source.file.run is not None or source.file.card is not None or "encoder.num_heads" in source.file.facts
    if not said and (heads := own_settings(model).get("num_heads")):
        lines.append(f"{heads} attention heads, as the model has: the file does not say (model.encoder.num_heads)")
    fresh += ["loss"] * any(name.startswith("loss.") for name in own)
    lines += [f"{what}: {', '.join(names)}" for what, names in (("not used", unused), ("starts fresh", fresh)) if names]
    for line in lines:
        log.info("%s: %s", source.path, printable(line))


def part_names(state: State) -> set[str]:
    """Return the first parts of the names of weights, such as encoder and predictor."""
    return {name.partition(".")[0] for name in state}


def check_settings(model: nn.Module, source: Source) -> None:
    """Raise CheckpointError if the file says other settings of the encoder than the model has."""
    config = source.config or {}
    said = config.get("model", config).get("encoder")
    said = {"attention": "full"} | dict(said) if isinstance(said, Mapping) else {}
    if "encoder.num_heads" in source.file.facts:
        said["num_heads"] = source.file.facts["encoder.num_heads"]
    own = own_settings(model)
    if other := [f"model.encoder.{name}={said[name]}" for name in own if said.get(name, own[name]) != own[name]]:
        raise CheckpointError(f"{source.path} has an encoder of other settings than the model: set {' '.join(other)}")


def own_settings(model: nn.Module) -> dict[str, Any]:
    """Return the values of a model's encoder that change what it computes, but no shape of its weights."""
    encoder = getattr(model, "encoder", None)
    settings = {"num_heads": encoder.num_heads} if isinstance(getattr(encoder, "num_heads", None), int) else {}
    if hasattr(encoder, "causal"):
        settings["attention"] = "block_causal" if encoder.causal else "full"
    if (rotary := getattr(encoder, "rotary", None)) is not None:
        own = {"rotary_convention": rotary.convention, "rotary_reference_side": rotary.reference_side}
        return settings | {"positions": "rotary", **own}
    if hasattr(getattr(encoder, "positions", None), "layout") and hasattr(encoder, "stem"):
        settings |= {"positions": "sincos", "sincos_layout": encoder.positions.layout}
    return settings


def advice(model: nn.Module, own: State, weights: State, source: Source) -> str:
    """Return a line with the options that give the model the sizes of the weights; "" where they are not known."""
    encoder = getattr(model, "encoder", None)
    if type(getattr(encoder, "vit", None)).__module__.startswith("timm."):
        return "\nThe model's encoder is one of timm: name that of the file, model.encoder.name=<name in timm>"
    ours, theirs = sizes(own), sizes(weights)
    kernel, stem = source.file.encoder.get("patch_embed.proj.weight"), getattr(encoder, "stem", None)
    if source.file.is_video and hasattr(stem, "tubelet_size"):
        for found, patch, frames in (
            (ours, stem.patch_size, stem.tubelet_size),
            (theirs, list(kernel.shape[3:]), kernel.shape[2]),
        ):
            found |= {"model.encoder.stem.patch_size": side_or_pair(patch), "model.encoder.stem.tubelet_size": frames}
    options = {key: value for key, value in theirs.items() if key in ours and ours[key] != value}
    heads = getattr(encoder, "num_heads", None)
    for part in ("encoder", "predictor"):
        width, known = options.get(f"model.{part}.embed_dim"), source.file.facts.get(f"{part}.num_heads")
        if width and (known or (isinstance(heads, int) and part == "encoder")):
            usual = width // 64 if width % 64 == 0 else next(n for n in range(heads or 1, 0, -1) if width % n == 0)
            options[f"model.{part}.num_heads"] = known or usual
    given = " ".join(f"{key}={value}".replace(" ", "") for key, value in options.items())
    return f"\nIts sizes: {given}" if given else ""


def sizes(weights: State) -> dict[str, Any]:
    """Return option -> value of the sizes that the shapes of weights tell."""
    found: dict[str, Any] = {}
    for part, start in (("encoder", "encoder.vit."), ("encoder", "encoder."), ("predictor", "predictor.")):
        hidden, norm = weights.get(f"{start}blocks.0.mlp.fc1.weight"), weights.get(f"{start}norm.weight")
        if hidden is not None and norm is not None:
            own = {"embed_dim": len(norm), "depth": count_blocks(weights, f"{start}blocks")}
            own["mlp_ratio"] = hidden.shape[0] / len(norm)
            found |= {f"model.{part}.{name}": value for name, value in own.items()}
    if (kernel := weights.get("encoder.vit.patch_embed.proj.weight")) is not None:
        found["model.encoder.patch_size"] = side_or_pair(list(kernel.shape[-2:]))
        found["data.channels"] = kernel.shape[1]
    if (tokens := weights.get("predictor.mask_token")) is not None:
        found["model.predictor.mask_tokens"] = math.prod(tokens.shape[:-1])
    return found
