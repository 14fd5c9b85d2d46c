"""Reading files of weights, and loading state dicts strictly."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jepa.utils.errors import CheckpointError, first_line

UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, LookupError, pickle.UnpicklingError, zipfile.BadZipFile)
"""Errors of torch.load for a damaged file."""

SHOWN = 12
"""Keys that an error lists."""


def locate(path: str | Path) -> Path:
    """Return the checkpoint, a file or a folder of shards, at a path: itself, a run folder or its checkpoints folder.

    Raises CheckpointError without one.
    """
    path = Path(path)
    folders = (path / "checkpoints", path, *_configured_folder(path))
    for candidate in (path, *(folder / name for folder in folders for name in ("last.pt", "last.sharded"))):
        if candidate.is_file() or (candidate / "state.pt").is_file():
            return candidate
    if path.is_dir():
        raise CheckpointError(f"the folder {path} holds no checkpoint (no checkpoints/last.pt)")
    raise CheckpointError(f"no run folder or checkpoint at {path}")


def _configured_folder(path: Path) -> list[Path]:
    """Return [trainer.checkpoint_dir] of the config of a run folder, or []."""
    from omegaconf import OmegaConf

    config = path / "config.yaml"
    folder = OmegaConf.select(OmegaConf.load(config), "trainer.checkpoint_dir") if config.is_file() else None
    return [Path(folder)] if folder else []


def read_file(path: Path) -> Any:
    """Return the content of a file written by torch, or of a folder of shards, on the CPU; runs no code from it.

    Raises CheckpointError when it is missing or cannot be read.
    """
    if path.is_dir():
        from jepa.checkpoint.sharded import read

        return read(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise CheckpointError(_why_unreadable(path, error)) from None


def _why_unreadable(path: Path, error: Exception) -> str:
    """Return what is wrong with a file, without torch's advice to load one that executes code all the same."""
    text = str(error)
    name = re.search(r"(?:GLOBAL|global|class|function) ([\w.]+\.[\w.]+)", text)
    if "Weights only load failed" in text and name:
        return (
            f"the checkpoint {path} was not read, as that would execute code: it holds {name[1]}, and not only tensors "
            "and plain values; use a file of tensors alone, such as .safetensors, from whom you trust"
        )
    shown = "no tensors and plain values" if "Weights only load failed" in text else first_line(error)
    return (
        f"cannot read the checkpoint {path} ({path.stat().st_size:,} bytes): it is cut short or not a checkpoint "
        f"({shown}). Nothing was overwritten; use another checkpoint, or start a new run"
    )


@torch.no_grad()
def load_state(model: nn.Module, weights: Mapping[str, Tensor], path: Path, keep: tuple[str, ...] = ()) -> None:
    """Load a state dict strictly; the model is unchanged when it does not fit.

    keep: prefixes of names that are not loaded: the model keeps its own values.

    Raises CheckpointError with the missing, unexpected and mis-shaped keys.
    """
    for name, tensor in check_state(model, weights, path, keep).items():
        tensor.copy_(weights[name])


def check_state(
    model: nn.Module, weights: Mapping[str, Tensor], path: Path, keep: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Return the model's tensors that a state dict is loaded into. Raises as `load_state` does."""
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith(keep)} if keep else weights
    own = {name: t for name, t in model.state_dict().items() if not (keep and name.startswith(keep))}
    missing = [f"  {name}: missing in the file" for name in own if name not in weights]
    unexpected = [f"  {name}: in the file only" for name in weights if name not in own]
    shapes = [
        f"  {name}: {tuple(weights[name].shape)} in the file, {tuple(tensor.shape)} in the model"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if lines := missing + unexpected + shapes:
        more = [f"  ... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        raise CheckpointError(
            f"the checkpoint {path} is of another model: {len(missing)} keys missing, {len(unexpected)} unexpected, "
            f"{len(shapes)} of another shape; give the options that it was made with\n"
            + "\n".join(lines[:SHOWN] + more)
        )
    return own
