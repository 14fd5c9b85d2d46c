"""Reading files of weights, and loading state dicts strictly."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from jepa.utils.errors import CheckpointError, first_line
from jepa.utils.read_data import exists, read_mapping

UNREADABLE = Exception
"""Errors of torch.load for a damaged file, whose pickle may raise nearly anything."""

LAST = ("last.pt", "last.sharded")
"""Names of a run's last checkpoint, whole and in shards."""

SHOWN = 12
"""Keys that an error lists."""


def locate(path: str | Path) -> Path:
    """Return the checkpoint, a file or a folder of shards, at a path: itself, a run folder or its checkpoints folder.

    Raises CheckpointError without one, DamagedFileError where config.yaml may say where it is and cannot be read.
    """
    path = Path(path)
    for candidate in _candidates(path):
        if os.path.isfile(candidate) or os.path.isfile(candidate / "state.pt"):  # False for a name that is too long
            return candidate
    if os.path.isdir(path):
        newest = _newest_run(path)
        hint = f"; the newest run with one is {newest}" if newest else ""
        raise CheckpointError(f"the folder {path} holds no checkpoint (no checkpoints/last.pt){hint}")
    raise CheckpointError(f"no run folder or checkpoint at {path}")


def _newest_run(path: Path) -> Path | None:
    """Return the newest run with a checkpoint in a folder, or beside it; of a run at <date>/<time> of any day."""
    path = path.absolute()
    folders = [path, path.parent, *([path.parent.parent] if re.fullmatch(r"\d{4}-\d\d-\d\d", path.parent.name) else [])]
    found = [
        each for folder in folders for depth in ("*", "*/*") for each in folder.glob(f"{depth}/checkpoints/last.*")
    ]
    newest = max(found, key=lambda each: each.lstat().st_mtime, default=None)
    return newest and newest.parent.parent


def _candidates(path: Path) -> Iterator[Path]:
    """Yield where the checkpoint can be: at last in the folder that config.yaml names, which is read only then."""
    yield path
    for folder in (path / "checkpoints", path):
        yield from (folder / name for name in LAST)
    if exists(config := path / "config.yaml"):
        trainer = read_mapping(config, verbatim=True).get("trainer")
        folder = trainer.get("checkpoint_dir") if isinstance(trainer, dict) else None
        yield from (Path(folder) / name for name in (LAST if isinstance(folder, str) else ()))


SETTINGS = (
    "argparse.Namespace",
    *(f"builtins.{name}" for name in ("int", "list", "dict")),
    "collections.defaultdict",
    *(f"numpy.{name}" for name in ("dtype", "ndarray")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"omegaconf.base.{name}" for name in ("Metadata", "ContainerMetadata")),
    *(f"omegaconf.{name}" for name in ("dictconfig.DictConfig", "listconfig.ListConfig", "nodes.AnyNode")),
    *(f"pathlib.{name}" for name in ("PosixPath", "WindowsPath")),
    "typing.Any",
)
"""What programs store beside their weights: arguments, settings, results."""


class LeftOut:
    """What stands for an object of SETTINGS: nothing is kept, and nothing done."""

    def __new__(cls, *args: Any, **others: Any) -> LeftOut:
        return super().__new__(cls)

    def __init__(self, *args: Any, **others: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def read_file(path: Path, *, leave_out: bool = False) -> Any:
    """Return the content of a file written by torch, or of a folder of shards, on the CPU; runs no code from it.

    leave_out: a `LeftOut` stands for each object of SETTINGS; else they are refused.

    Raises CheckpointError when it is missing or cannot be read.
    """
    if path.is_dir():
        from jepa.checkpoint.sharded import read

        return read(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        if zipfile.is_zipfile(path):
            check_sums(path)
        known = [(LeftOut, name) for name in SETTINGS] if leave_out else []
        with torch.serialization.safe_globals(known):
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
        f"cannot read the checkpoint {path} ({path.stat().st_size:,} bytes): it is cut short, damaged or not a "
        f"checkpoint ({shown}). Nothing was overwritten; use another checkpoint, or start a new run"
    )


def cause(error: BaseException) -> BaseException:
    """Return the first rank's error in a CheckpointException of torch.distributed; any other error itself."""
    failures = getattr(error, "failures", None)
    if not failures:
        return error
    first = next(iter(failures.values()))
    return first[0] if isinstance(first, tuple) else first


def listed(lines: list[str]) -> str:
    """Return lines as the text of an error: the first SHOWN of them, and how many more there are."""
    more = [f"  ... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join(lines[:SHOWN] + more)


def check_sums(file: Path | IO[bytes]) -> None:
    """Raise ValueError where the content of a file that torch has written is not what was written.

    torch.load does not look at the checksums.
    """
    with zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
        for entry in archive.infolist():
            if entry.external_attr & 0x10 and entry.file_size:  # a folder, of which torch would read nothing
                damaged = damaged or entry.filename
    if damaged:
        raise ValueError(f"the checksum of {damaged} is wrong")


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
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith(keep)}
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(keep)}
    missing = [f"  {name}: missing in the file" for name in own if name not in weights]
    unexpected = [f"  {name}: in the file only" for name in weights if name not in own]
    shapes = [
        f"  {name}: {_shape_and_kind(weights[name])} in the file, {_shape_and_kind(tensor)} in the model"
        for name, tensor in own.items()
        if name in weights and _shape_and_kind(weights[name]) != _shape_and_kind(tensor)
    ]
    if lines := missing + unexpected + shapes:
        raise CheckpointError(
            f"the checkpoint {path} is of another model: {len(missing)} keys missing, {len(unexpected)} unexpected, "
            f"{len(shapes)} of another shape or type; give the options that it was made with\n{listed(lines)}"
        )
    return own


def _shape_and_kind(tensor: Tensor) -> str:
    """Return "(8, 3)"; with the type where a tensor has no real floating-point numbers, "(8, 3) int64"."""
    return f"{tuple(tensor.shape)}" if tensor.is_floating_point() else f"{tuple(tensor.shape)} {str(tensor.dtype)[6:]}"
