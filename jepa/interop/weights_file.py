"""Reading a file of weights: which networks it holds, without the prefixes of what owns them.

An encoder of patches is found by its patch embedding, at any depth of a file and behind any names. Of two, one that is
named target, teacher, momentum or EMA makes the targets; what else cannot be told apart is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from jepa.checkpoint.load import read_file
from jepa.checkpoint.plain import is_plain
from jepa.interop.network_names import PATCHES, PREDICTOR, State, encoder_by_timm_names, predictor_by_published_names
from jepa.utils.errors import CheckpointError, first_line
from jepa.utils.read_data import exists, read_mapping

TARGETS = ("target_encoder", "ema_encoder")
TARGET = re.compile(r"target|teacher|momentum|(?<![a-z])ema(?![a-z])")  # in the name of a network that makes targets
DEEPEST = 3  # levels of entries that are searched for weights
SHOWN = 8  # names of what is left alone that are listed
CARD = "jepa_encoder"  # key of the safetensors header under which an exported encoder says how it is built
HUGGING_FACE_FILES = ("model.safetensors", "pytorch_model.bin")
FACTS = {
    "encoder.num_heads": "num_attention_heads",
    "predictor.num_heads": "pred_num_attention_heads",
    "encoder.norm_eps": "layer_norm_eps",
}
"""What no weights tell -> its name in a configuration of Hugging Face."""
EXPECTED = (
    "expected a run folder or checkpoint of this project, or weights of a Vision Transformer, alone or beside its "
    "target (teacher, target_encoder, ema_encoder)"
)


@dataclass(frozen=True)
class Network:
    """A network in a file: the entry it stands in, the names of its owners there, and its tensors by names below."""

    entry: str
    prefix: str
    weights: State

    @property
    def place(self) -> str:
        """Entry and owners, "student.module.backbone"."""
        return f"{self.entry}.{self.prefix}".strip(".")


@dataclass(frozen=True)
class WeightsFile:
    """The content of a file of weights.

    parts: "encoder", "target_encoder", "predictor" -> state dict with plain names; those that are there.
    target_place: of the network that makes the targets. run: all of a checkpoint of ours. card: an export's header.
    lines: what was found, in words. facts: what no weights tell and the file or config.json beside it says.
    """

    path: Path
    parts: dict[str, State] = field(default_factory=dict)
    target_place: str = ""
    run: Mapping[str, Any] | None = None
    card: str | None = None
    lines: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def encoders(self) -> list[State]:
        """The state dicts of the encoder and of the target encoder, those that are there."""
        return [self.parts[name] for name in ("encoder", "target_encoder") if name in self.parts]

    @property
    def encoder(self) -> State:
        """The encoder's state dict, or that of the target encoder where there is no other."""
        return next(iter(self.encoders), {})

    @property
    def is_whole(self) -> bool:
        """Whether encoder, predictor and target are there, as I-JEPA and V-JEPA are published."""
        return len(self.parts) == 3

    @property
    def is_video(self) -> bool:
        """Whether the encoder embeds tubelets of clips rather than patches of pictures."""
        kernel = self.encoder.get("patch_embed.proj.weight")
        return kernel is not None and kernel.ndim == 5


def read_weights_file(path: Path) -> WeightsFile:
    """Read a file, or a folder of sharded parts. Raises CheckpointError if that fails or it holds nothing known."""
    config = path.with_name("config.json")
    beside = read_mapping(config) if path.name in HUGGING_FACE_FILES and exists(config) else {}
    if path.suffix != ".safetensors" or path.is_dir():
        return find_parts(read_file(path, leave_out=True), path, beside)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"cannot read {path} ({path.stat().st_size:,} bytes): it is cut short or not a safetensors file "
            f"({first_line(error)})"
        ) from error
    if CARD in header:
        return WeightsFile(path, {"encoder": weights}, card=header[CARD])
    return find_parts(weights, path, beside)


def find_parts(content: Any, path: Path, config: Mapping[str, Any] | None = None) -> WeightsFile:
    """Find the networks in what a file holds. config: Hugging Face's of it. Raises CheckpointError without any."""
    config = config or {}
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}: {EXPECTED}")
    if content.get("format") == "jepa":
        config = content.get("config")
        described = isinstance(config, Mapping) and isinstance(config.get("model"), Mapping)
        if not described or not is_state_dict(content.get("model")):
            raise CheckpointError(f"{path} is a checkpoint of this project but lacks its config or model: damaged")
        return WeightsFile(path, run=content)
    states = list(state_dicts(content, path))
    encoders, predictors = (
        [network for entry, state in states for network in networks_in(entry, state, mark)]
        for mark in (PATCHES, PREDICTOR)
    )
    if not encoders:
        if len(states) != 1 or predictors:
            kinds = [f"{len(v)} tensors" if is_state_dict(v) else type(v).__name__ for v in content.values()]
            entries = ", ".join(f"{name} ({kind})" for name, kind in zip(content, kinds)) or "nothing"
            raise CheckpointError(f"{path} is of no known layout; it holds {entries}: {EXPECTED}")
        encoders = [Network(states[0][0], "", states[0][1])]  # whose names the reader will miss
    parts = told_apart(encoders, path) | ({"predictor": predictors[0]} if len(predictors) == 1 else {})
    weights, left = {}, []
    for name, network in parts.items():
        by_known_names = predictor_by_published_names if name == "predictor" else encoder_by_timm_names
        weights[name], unused = by_known_names(network.weights, path)
        left += [(network.entry, f"{network.prefix}{other}") for other in unused]
    used = {(network.entry, network.prefix + name) for network in parts.values() for name in network.weights}
    left += [(entry, name) for entry, state in states for name in state if (entry, name) not in used]
    facts = {"encoder.norm_eps": 1e-12} if any(".layernorm_before." in n for _, s in states for n in s) else {}
    facts |= {fact: config[name] for fact, name in FACTS.items() if type(config.get(name)) in (int, float)}
    target = parts["target_encoder"].place if "target_encoder" in parts else ""
    return WeightsFile(path, weights, target, lines=tuple(_lines(content, parts, left)), facts=facts)


def state_dicts(content: Mapping[Any, Any], path: Path, entry: str = "", depth: int = 0) -> Iterator[tuple[str, State]]:
    """Yield the state dicts in what a file holds, each with the entry that it stands in, such as "model.state_dict".

    Raises CheckpointError for one of a network with other things, and for tensors of more values than are stored.
    """
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    others = {str(name): value for name, value in content.items() if not isinstance(value, Tensor)}
    if any(pattern.fullmatch(name) for name in tensors for pattern in (PATCHES, PREDICTOR)):
        strange = [name for name, value in others.items() if not (isinstance(value, Mapping) or "_extra_state" in name)]
        if entry and strange:
            raise CheckpointError(f"{path}: its entry {entry!r} holds other things than tensors: {EXPECTED}")
        for name, tensor in tensors.items():
            if not is_plain(tensor):
                raise CheckpointError(f"{path}: {name} claims {tuple(tensor.shape)}, more values than the file holds")
    if tensors:
        yield entry, tensors
    for name, value in content.items():
        if isinstance(value, Mapping) and isinstance(name, str) and depth < DEEPEST:
            yield from state_dicts(value, path, f"{entry}.{name}".lstrip("."), depth + 1)


def networks_in(entry: str, state: State, mark: re.Pattern[str]) -> Iterator[Network]:
    """Yield the networks in a state dict that have such a tensor, each with the names below its owner's."""
    owners = sorted({match["owner"] for name in state if (match := mark.fullmatch(name))})
    for owner in owners:
        below = tuple(other for other in owners if other.startswith(owner) and other != owner)
        names = [name for name in state if name.startswith(owner) and not name.startswith(below)]
        yield Network(entry, owner, {name.removeprefix(owner): state[name] for name in names})


def told_apart(encoders: list[Network], path: Path) -> dict[str, Network]:
    """Return "encoder" and "target_encoder", by their names. Raises CheckpointError where these do not tell."""
    first = encoders[0]
    if len(encoders) == 1:
        is_target = any(word in first.place for word in TARGETS)
        return {"target_encoder" if is_target else "encoder": first}
    targets = [network for network in encoders if TARGET.search(network.place)]
    if len(encoders) == 2 and len(targets) == 1:
        (encoder,) = [network for network in encoders if network not in targets]
        return {"encoder": encoder, "target_encoder": targets[0]}
    entries = "".join(f"[{name!r}]" for name in first.entry.split(".") if name)
    raise CheckpointError(
        f"{path} holds {len(encoders)} encoders, {', '.join(network.place for network in encoders)}: which is meant "
        f"cannot be told. Write the one you mean to a file of its own, as here the first:\n"
        f"import torch\n"
        f"weights = torch.load({str(path)!r}, weights_only=True){entries}\n"
        f"start = {first.prefix!r}\n"
        "torch.save({k[len(start):]: v for k, v in weights.items() if k.startswith(start)}, 'encoder.pt')"
    )


def _lines(content: Mapping[Any, Any], parts: Mapping[str, Network], left: list[tuple[str, str]]) -> list[str]:
    entries = {name: network.entry for name, network in parts.items()}
    found = [f"the entry {entry!r}" if entry else "one state dict" for n, entry in entries.items() if n != "predictor"]
    lines = [f"the file holds {', '.join(dict.fromkeys(found + ['a predictor'] * ('predictor' in parts)))}"]
    tops = {entry.partition(".")[0] for entry in entries.values()}
    if "" not in tops and (others := [str(name) for name in content if name not in tops]):
        lines[0] += f"; left alone: {', '.join(others)}"
    if prefixes := sorted({network.prefix for network in parts.values()} - {""}):
        lines.append(f"names without their prefix {' '.join(prefixes)}")
    inside = [name for entry, name in left if entry in entries.values()]
    if starts := list(dict.fromkeys(".".join(name.split(".")[:-1][:3]) or name for name in inside)):
        more = f", ... ({len(starts)} in all)" if len(starts) > SHOWN else ""
        lines.append(f"left alone: {', '.join(starts[:SHOWN])}{more}")
    if "target_encoder" in parts:
        target = parts["target_encoder"]
        lines.append(f"{target.place if entries.get('encoder') == target.entry else target.entry} makes the targets")
        if "encoder" not in parts:
            lines.append("it holds the network that makes the targets alone: context and target are both that one")
    return lines


def is_state_dict(value: Any) -> bool:
    """Return whether a value is a mapping of names to tensors, and not empty."""
    return isinstance(value, Mapping) and bool(value) and all(isinstance(item, Tensor) for item in value.values())
