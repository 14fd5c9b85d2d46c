"""Any checkpoint as a model: ours, published ones, bare encoders, and models known by name.

    loaded = load("outputs/2026-11-22/15-22-41-120331")
    loaded = load("timm:vit_small_patch16_224.augreg_in21k", image_size=(224, 224), channels=3)
    loaded.model.encode_target(x)                   # (B, N, D)

A new format is a file with an `Adapter`, and a row of `ADAPTERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn

from jepa.interop import hugging_face, ijepa, ours, timm_models, vit_files, vjepa
from jepa.interop.adapter import Adapter, Loaded, Source
from jepa.interop.sizes import by
from jepa.utils.errors import CheckpointError, UserError
from jepa.utils.read_data import printable

FILES: tuple[Adapter, ...] = (ours.RUN, ours.EXPORT, vjepa.MODEL, vjepa.ENCODER, ijepa.ADAPTER, vit_files.FILE)
"""The formats of files, in the order in which they are tried: last what takes any encoder of pictures."""

ADAPTERS: tuple[Adapter, ...] = (ours.RANDOM, timm_models.NAME, hugging_face.ADAPTER, *FILES)


def find(name: str, key: str = "checkpoint", trusted: Collection[str] | None = ()) -> Source:
    """Find a checkpoint and its format: a run folder or file, `timm:<name>`, `hf:<name or folder>`, or `random`.

    key, trusted: see `Source`.

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
    image_size: tuple[int, int] | None = None,
    channels: int | None = None,
    build: Callable[..., nn.Module] | None = None,
    seed: int | None = None,
    trust: bool = False,
) -> Loaded:
    """Load a checkpoint's model with its weights.

    checkpoint: as `find` takes it, or what it has found. The others are described in `Source`.
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

    Widths, depths and channels are read off the file; image_size, patch_size (pixels) and num_heads are not in it.
    predictor_heads None takes num_heads, as published (V-JEPA 2 has 12).
    Of clips: num_frames and tubelet_size (frames) are compared with the file where it holds them. rotary_convention
    None takes that of the file's format (see `jepa.interop.vjepa`). rotary_reference_side: see `RotaryPositions`.

    Raises CheckpointError when the file is not such a checkpoint, or does not fit these sizes.
    """
    if not Path(path).exists():
        raise CheckpointError(f"no checkpoint at {path}")
    source = find(str(path), key="path")
    file = source.file
    if source.adapter not in (vjepa.MODEL, ijepa.ADAPTER):
        raise CheckpointError(
            f"{path} is not a published I-JEPA checkpoint, nor one of V-JEPA: expected "
            f"['encoder', 'predictor', 'target_encoder'], found {sorted(file.run or file.parts)}"
        )
    kernel = file.encoder.get("patch_embed.proj.weight")
    if kernel is not None and (patch := tuple(kernel.shape[-2:])) != (patch_size, patch_size):
        raise CheckpointError(f"{path} has patches of {by(patch)} pixels, got patch_size={patch_size}")
    heads = {"encoder.num_heads": num_heads, "predictor.num_heads": predictor_heads}
    if file.is_video:
        vjepa.check_clip(file, image_size=image_size, num_frames=num_frames, tubelet_size=tubelet_size)
        rotary = {"rotary_convention": rotary_convention, "rotary_reference_side": rotary_reference_side}
        return load(source, overrides=heads | {f"encoder.{name}": value for name, value in rotary.items()}).model
    clip = {"num_frames": num_frames, "tubelet_size": tubelet_size, "rotary_convention": rotary_convention}
    if of_clips := [name for name, value in clip.items() if value is not None]:
        raise CheckpointError(f"{path} is of pictures, not of clips: leave out {', '.join(of_clips)}")
    return load(source, overrides=heads | {"encoder.image_size": image_size}).model
