"""What a file of weights holds: its layout is detected, what is taken off or left alone is told, nothing is guessed.

Known layouts: our checkpoints; `encoder`, `predictor` and `target_encoder` (or `ema_encoder`) side by side, as those of
I-JEPA and V-JEPA; encoders alone, bare or below one entry, as torch or safetensors files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from torch import Tensor

from jepa.checkpoint.load import first_line, read_file
from jepa.utils.errors import CheckpointError

State = dict[str, Tensor]

TARGETS = ("target_encoder", "ema_encoder")
PREFIXES = ("module.", "_orig_mod.", "backbone.", "encoder.", "model.", "vit.")
"""What wrappers put before every name: DDP, torch.compile, V-JEPA's multi-mask wrapper, and owners of the encoder."""

CARD = "jepa_encoder"
"""Key of the safetensors header under which an exported encoder says how it is built."""

EXPECTED = (
    "expected a run folder or checkpoint of this project, a published file with encoder, predictor and target_encoder "
    "(or ema_encoder), or the state dict of one encoder"
)


@dataclass(frozen=True)
class Layout:
    """What a file holds.

    kind: "run" (ours), "published" (encoder, predictor and target) or "encoder" (one or both encoders, no predictor).
    parts: "encoder", "target_encoder", "predictor" -> state dict with plain names; those that are there.
    content: all of a checkpoint of ours. metadata: what an export of ours says of itself.
    lines: what was detected, in words. target_name: what a published file calls the network that makes the targets.
    """

    kind: Literal["run", "published", "encoder"]
    parts: dict[str, State] = field(default_factory=dict)
    content: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    target_name: str = "target_encoder"


def read_layout(path: Path) -> Layout:
    """Read a file (or folder of sharded parts) and detect its layout.

    Raises CheckpointError when it cannot be read, or is of no known layout.
    """
    if path.suffix == ".safetensors" and path.is_file():
        weights, metadata = read_safetensors(path)
        return detect(weights, path, {key: value for key, value in metadata.items() if key == CARD})
    return detect(read_file(path), path)


def read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    """Tensors and header of a safetensors file. Raises CheckpointError when it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"cannot read {path} ({path.stat().st_size:,} bytes): it is cut short or not a safetensors file "
            f"({first_line(error)})"
        ) from error


def detect(content: Any, path: Path, metadata: Mapping[str, str] | None = None) -> Layout:
    """The layout of what a file holds. Raises CheckpointError when it is none of the known ones."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}: {EXPECTED}")
    if content.get("format") == "jepa":
        return _run(content, path)
    if is_state(content):
        # With a header that says what they are the names are right as they stand.
        state, told = (dict(content), "") if metadata else plain_names(content)
        return Layout("encoder", {"encoder": state}, metadata=metadata or {}, lines=_lines("one state dict", told))
    states = {str(name): value for name, value in content.items() if is_state(value)}
    targets = [name for name in TARGETS if name in states]
    for name in ("encoder", "predictor", *TARGETS):
        if isinstance(content.get(name), Mapping) and name not in states:
            raise CheckpointError(f"{path}: its entry {name!r} holds other things than tensors: {EXPECTED}")
    if len(targets) == 2:
        raise CheckpointError(f"{path} holds both {' and '.join(TARGETS)}: which makes the targets cannot be told")
    others = [n for n, s in states.items() if n not in ("encoder", "predictor", *targets) and looks_like_encoder(s)]
    if (targets or "encoder" in states) and not others:
        return _side_by_side(content, states, targets)
    if len(states) == 1:
        ((name, inner),) = states.items()
        state, told = plain_names(inner)
        words = [f"the state dict in its entry {name!r}", *_left(content, [name])]
        return Layout("encoder", {"encoder": state}, lines=_lines(", ".join(words), told))
    found = ", ".join(f"{name} ({_describe(value)})" for name, value in content.items()) or "nothing"
    raise CheckpointError(f"{path} is of no known layout; it holds {found}: {EXPECTED}")


def is_state(value: Any) -> bool:
    """Whether this is a state dict: names to tensors, and nothing else."""
    return isinstance(value, Mapping) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


def looks_like_encoder(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has what only encoders have, an embedding of patches."""
    return any("patch_embed" in name for name in state)


def plain_names(state: Mapping[str, Tensor]) -> tuple[State, str]:
    """A state dict without the wrappers' prefixes that all its names share, and these prefixes."""
    state, taken = dict(state), ""
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        taken += prefix
    return state, taken


def _run(content: Mapping[str, Any], path: Path) -> Layout:
    config = content.get("config")
    described = isinstance(config, Mapping) and isinstance(config.get("model"), Mapping)
    if not described or not is_state(content.get("model")):
        raise CheckpointError(f"{path} says it is a checkpoint of this project but lacks its config or model: damaged")
    return Layout("run", content=content)


def _side_by_side(content: Mapping[str, Any], states: Mapping[str, State], targets: list[str]) -> Layout:
    parts, prefixes = {}, {}
    for name in ("encoder", "predictor", *targets):
        if name in states:
            parts["target_encoder" if name in TARGETS else name], prefixes[name] = plain_names(states[name])
    words = [", ".join(parts if "ema_encoder" not in targets else [*prefixes])]
    if "ema_encoder" in targets:
        words.append("ema_encoder makes the targets")
    words += _left(content, list(prefixes))
    kind = "published" if len(parts) == 3 else "encoder"
    taken = " ".join(dict.fromkeys(prefix for prefix in prefixes.values() if prefix))
    return Layout(kind, parts, lines=_lines("; ".join(words), taken), target_name=(targets or TARGETS)[0])


def _left(content: Mapping[str, Any], used: list[str]) -> list[str]:
    left = [str(name) for name in content if name not in used]
    return [f"left alone: {', '.join(left)}"] if left else []


def _lines(words: str, taken: str) -> tuple[str, ...]:
    prefix = (f"names without their prefix {taken}",) if taken else ()
    return (f"the file holds {words}", *prefix)


def _describe(value: Any) -> str:
    if is_state(value):
        return f"{len(value)} tensors{', an encoder' if looks_like_encoder(value) else ''}"
    return type(value).__name__
