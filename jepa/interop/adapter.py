"""What every format of checkpoints is to the rest: a `Source` that is found, an `Adapter` that reads it, a `Loaded`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jepa.checkpoint.load import locate
from jepa.interop.network_names import State
from jepa.interop.weights_file import WeightsFile, read_weights_file
from jepa.utils.errors import CheckpointError

Config = dict[str, Any]
Size = tuple[int, int] | None  # height and width in pixels


@dataclass(frozen=True)
class Adapter:
    """How one format is recognised and loaded.

    stored_config: what a checkpoint holds of it. weights_for: its weights by the names of a model, to train from.
    read: the weights of a model that is known by name, as those of a file.
    """

    format: str
    recognizes: Callable[[Source], bool]
    load: Callable[[Source], Loaded]
    stored_config: Callable[[Source], Config | None] = lambda source: None
    weights_for: Callable[[nn.Module, Source], State] | None = None
    read: Callable[[Source], WeightsFile] | None = None


@dataclass
class Source:
    """A checkpoint by its name, and what the caller says of its model.

    key: the option that names it. trusted: names that it may build beside jepa's own parts; None for any.
    overrides: values of the model by dotted key, {"encoder.num_heads": 16}, for what no file says.
    image_size (H, W), channels: of the pictures that the model will see; None takes its own.
    build: makes the model, for `random`. seed: of a run's untrained weights; None takes its own.
    """

    name: str
    key: str = "checkpoint"
    trusted: Collection[str] | None = ()
    adapter: Adapter | None = None
    config: Config | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    image_size: Size = None
    channels: int | None = None
    build: Callable[..., nn.Module] | None = None
    seed: int | None = None

    @cached_property
    def file(self) -> WeightsFile:
        """The file. Raises CheckpointError when nothing is there, or it cannot be read or holds nothing known."""
        try:
            path = locate(self.name)
        except CheckpointError as error:
            names = ", timm:<name>, hf:<name or folder>" + (" or random" if self.key == "checkpoint" else "")
            raise CheckpointError(f"{self.key}={self.name}: {error}; expected a run folder, a file{names}") from None
        return read_weights_file(path)

    @property
    def path(self) -> Path:
        return self.file.path


@dataclass
class Loaded:
    """A checkpoint's model, in evaluation mode on the CPU, with `encoder(x)` and `encode_target(x)`.

    random_init: builds the same kind untrained. lines: what was found, adapted or left alone, in words.
    description: what it is beside its weights. encoder: the configuration that builds its encoder, if that is ours.
    image_size (H, W), channels, mean, std: of the pictures it was trained on, where known.
    step, metrics, data, stopped (why it ended early), collapse (as in results.json): of a run's checkpoint.
    """

    model: nn.Module
    random_init: Callable[..., nn.Module]
    lines: list[str]
    description: Config
    encoder: Config | None = None
    image_size: Size = None
    channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    step: int | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] | None = None
    stopped: str | None = None
    collapse: dict[str, Any] = field(default_factory=lambda: not_monitored("this is no checkpoint of a run"))
    source: str = ""
    format: str = ""

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the weights and of what the model is, the same wherever they are stored."""
        digest = hashlib.blake2b(json.dumps(self.description, sort_keys=True, default=str).encode(), digest_size=16)
        return hash_of(self.model.state_dict(), digest)


def hash_of(weights: State, digest: Any = None) -> str:
    """Return a hash of tensors and their names. digest: one of hashlib, that has seen what belongs to them."""
    digest = hashlib.blake2b(digest_size=16) if digest is None else digest
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def not_monitored(why: str) -> dict[str, Any]:
    """Return the `collapse` of a model that no monitor has watched."""
    return {"verdict": "unknown", "evidence": f"{why}, so no monitor has watched it"}
