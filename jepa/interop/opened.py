"""What opening a checkpoint gives, and which code a checkpoint may name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from jepa.interop.bare import targets_in
from jepa.utils.errors import CheckpointError

Kind = Literal["run", "published", "encoder", "timm", "hf", "random"]
OURS = ("jepa.", "torch.nn.", "torch.optim.")


@dataclass
class Opened:
    """A model opened from a checkpoint, in evaluation mode on the CPU.

    model: has `encoder(x)` and `encode_target(x)`. random_init: builds the same kind untrained.
    lines: what was found, in words. description: what the model is beside its weights, as plain values.
    encoder: the configuration that builds its encoder, where that is one of ours. image_size: (H, W) it was made for.
    mean, std: of the pictures it was trained on, where that is known and may differ from the data's.
    step, metrics, data: of a run's checkpoint, and the data's configuration.
    """

    source: str
    kind: Kind
    model: nn.Module
    random_init: Callable[[], nn.Module]
    lines: list[str]
    description: dict[str, Any]
    encoder: dict[str, Any] | None = None
    image_size: tuple[int, int] | None = None
    channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    step: int | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] | None = None

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the weights and of what the model is, the same wherever they are stored."""
        digest = hashlib.blake2b(json.dumps(self.description, sort_keys=True, default=str).encode(), digest_size=16)
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def check_trust(config: Mapping[str, Any], path: Path, name: Path) -> None:
    """Refuse a file that names code from elsewhere, as building it would run that code with the file's arguments.

    In a run folder, which has its config.yaml, it is one's own. path: of the file; name: as it was asked for.

    Raises CheckpointError.
    """
    folders = [name, *path.parents[:2]]
    if (foreign := foreign_code(config)) and not any((folder / "config.yaml").is_file() for folder in folders):
        raise CheckpointError(
            f"{path} would call {', '.join(foreign)}, code from outside this repository, and is not in a run "
            "folder: if you trust it, put the run's config.yaml beside it"
        )


def foreign_code(config: Mapping[str, Any]) -> list[str]:
    """What the model, loss, data and evaluation of a configuration call outside of this repository."""
    sections = [config.get(section, {}) for section in ("model", "loss", "data", "evaluation")]
    return list(dict.fromkeys(t for section in sections for t in targets_in(section) if not t.startswith(OURS)))
