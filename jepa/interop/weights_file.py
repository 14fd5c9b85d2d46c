"""Reading a file of weights: which state dicts it holds, without the prefixes that wrappers put before their names.

Known are our checkpoints; `encoder`, `predictor` and `target_encoder` (or `ema_encoder`) side by side, as those of
I-JEPA and V-JEPA; encoders alone, bare or below one entry, as torch or safetensors files. Nothing is guessed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from jepa.checkpoint.load import read_file
from jepa.utils.errors import CheckpointError, first_line

State = dict[str, Tensor]

TARGETS = ("target_encoder", "ema_encoder")
WRAPPERS = re.compile(r"((module|_orig_mod|backbone|encoder|model|vit)\.)*")
"""What wrappers put before every name: DDP, torch.compile, V-JEPA's multi-mask wrapper, and owners of the encoder."""

CARD = "jepa_encoder"
"""Key of the safetensors header under which an exported encoder says how it is built."""

EXPECTED = (
    "expected a run folder or checkpoint of this project, a published file with encoder, predictor and target_encoder "
    "(or ema_encoder), or the state dict of one encoder"
)


@dataclass(frozen=True)
class WeightsFile:
    """The content of a file of weights.

    parts: "encoder", "target_encoder", "predictor" -> state dict with plain names; those that are there.
    target_name: what the file calls the network that makes the targets. run: all of a checkpoint of this project.
    card: the header of an encoder that was exported here. lines: what was found, in words.
    """

    path: Path
    parts: dict[str, State] = field(default_factory=dict)
    target_name: str = "target_encoder"
    run: Mapping[str, Any] | None = None
    card: str | None = None
    lines: tuple[str, ...] = ()

    @property
    def encoders(self) -> list[State]:
        """The state dicts of the encoder and of the target encoder, those that are there."""
        return [self.parts[name] for name in ("encoder", "target_encoder") if name in self.parts]

    @property
    def encoder(self) -> State:
        """The encoder's state dict, or that of the target encoder where there is no other."""
        return next(iter(self.encoders), {})

    @property
    def is_video(self) -> bool:
        """Whether the encoder embeds tubelets of clips rather than patches of pictures."""
        kernel = self.encoder.get("patch_embed.proj.weight")
        return kernel is not None and kernel.ndim == 5


def read_weights_file(path: Path) -> WeightsFile:
    """Read a file, or a folder of sharded parts. Raises CheckpointError if that fails or it holds nothing known."""
    if path.suffix != ".safetensors" or path.is_dir():
        return find_parts(read_file(path), path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"cannot read {path} ({path.stat().st_size:,} bytes): it is cut short or not a safetensors file "
            f"({first_line(error)})"
        ) from error
    return WeightsFile(path, {"encoder": weights}, card=header[CARD]) if CARD in header else find_parts(weights, path)


def find_parts(content: Any, path: Path) -> WeightsFile:
    """Find the state dicts in what a file holds. Raises CheckpointError when it is of no known form."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}: {EXPECTED}")
    if content.get("format") == "jepa":
        config = content.get("config")
        described = isinstance(config, Mapping) and isinstance(config.get("model"), Mapping)
        if not described or not is_state_dict(content.get("model")):
            raise CheckpointError(f"{path} is a checkpoint of this project but lacks its config or model: damaged")
        return WeightsFile(path, run=content)
    known = ("encoder", "predictor", *TARGETS)
    states = {str(name): value for name, value in content.items() if is_state_dict(value)}
    for name in known:
        if isinstance(content.get(name), Mapping) and name not in states:
            raise CheckpointError(f"{path}: its entry {name!r} holds other things than tensors: {EXPECTED}")
    if all(name in states for name in TARGETS):
        raise CheckpointError(f"{path} holds both {' and '.join(TARGETS)}: which makes the targets cannot be told")
    others = [name for name in states if name not in known and _embeds_patches(states[name])]
    if is_state_dict(content):
        return _with_plain_names(path, {"encoder": content}, "one state dict")
    if not others and any(name in states for name in ("encoder", *TARGETS)):
        parts = {name: states[name] for name in known if name in states}
        found = [", ".join(parts), *(["ema_encoder makes the targets"] if "ema_encoder" in parts else [])]
    elif len(states) == 1:
        ((entry, state),) = states.items()
        parts, found = {"encoder": state}, [f"the state dict in its entry {entry!r}"]
    else:
        entries = ", ".join(f"{name} ({_describe(value)})" for name, value in content.items()) or "nothing"
        raise CheckpointError(f"{path} is of no known layout; it holds {entries}: {EXPECTED}")
    if left := [str(name) for name, value in content.items() if all(value is not state for state in parts.values())]:
        found.append(f"left alone: {', '.join(left)}")
    return _with_plain_names(path, parts, "; ".join(found))


def _with_plain_names(path: Path, states: Mapping[str, State], found: str) -> WeightsFile:
    parts, prefixes = {}, set()
    for name, state in states.items():
        prefix = WRAPPERS.match(os.path.commonprefix(list(state)))[0]  # noqa: RUF071
        part = "target_encoder" if name in TARGETS else name
        parts[part] = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
        prefixes |= {prefix} - {""}
    lines = [f"the file holds {found}"]
    if prefixes:
        lines.append(f"names without their prefix {' '.join(sorted(prefixes))}")
    if "encoder" not in parts:
        lines.append("it holds the network that makes the targets alone: context and target are both that one")
    return WeightsFile(path, parts, "ema_encoder" if "ema_encoder" in states else "target_encoder", lines=tuple(lines))


def is_state_dict(value: Any) -> bool:
    """Return whether this maps names to tensors, and nothing else."""
    return isinstance(value, Mapping) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


def _embeds_patches(value: Any) -> bool:
    return is_state_dict(value) and any("patch_embed" in name for name in value)


def _describe(value: Any) -> str:
    words = f"{len(value)} tensors" if is_state_dict(value) else type(value).__name__
    return f"{words}, an encoder" if _embeds_patches(value) else words
