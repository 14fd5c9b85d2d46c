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

LAST = ("last.pt", "last.sharded")
"""Names of a run's last checkpoint, whole and in shards."""
SHOWN = 12
"""Keys that an error lists."""


def locate(path: str | Path) -> Path:
    """Return the checkpoint, a file or folder of shards, at a path: or of a run folder. Raises CheckpointError."""
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
    """Yield where it can be, at last in the folder that config.yaml names, which may raise DamagedFileError."""
    yield path
    for folder in (path / "checkpoints", path):
        yield from (folder / name for name in LAST)
    if exists(config := path / "config.yaml"):
        trainer = read_mapping(config, verbatim=True).get("trainer")
        folder = trainer.get("checkpoint_dir") if isinstance(trainer, dict) else None
        yield from (Path(folder) / name for name in (LAST if isinstance(folder, str) else ()))


SETTINGS = (
    "argparse.Namespace builtins.dict builtins.int builtins.list collections.defaultdict numpy.dtype numpy.ndarray "
    "numpy.core.multiarray._reconstruct numpy.core.multiarray.scalar numpy._core.multiarray._reconstruct "
    "numpy._core.multiarray.scalar omegaconf.base.ContainerMetadata omegaconf.base.Metadata "
    "omegaconf.dictconfig.DictConfig omegaconf.listconfig.ListConfig omegaconf.nodes.AnyNode pathlib.PosixPath "
    "pathlib.WindowsPath typing.Any"
)
"""What programs store beside their weights: arguments, settings, results."""


class LeftOut:
    """What stands for an object of SETTINGS: nothing is kept, and nothing done."""

    def __init__(self, *args: Any, **others: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def read_file(path: Path, *, leave_out: bool = False) -> Any:
    """Return the content of a file written by torch, or of a folder of shards, on the CPU; runs no code from it.

    leave_out: a `LeftOut` stands for each object of SETTINGS; else they are refused. Raises CheckpointError.
    """
    if path.is_dir():
        from jepa.checkpoint.sharded import read

        return read(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        if zipfile.is_zipfile(path):
            check_sums(path)
        known = [(LeftOut, name) for name in SETTINGS.split()] if leave_out else []
        with torch.serialization.safe_globals(known):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise nearly anything
        raise CheckpointError(_why_unreadable(path, error)) from None


def _why_unreadable(path: Path, error: Exception) -> str:
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
    first = next(iter((getattr(error, "failures", None) or {0: error}).values()))
    return first[0] if isinstance(first, tuple) else first


def listed(lines: list[str]) -> str:
    """Return the first SHOWN lines, and how many more there are, as the text of an error."""
    more = [f"  ... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join(lines[:SHOWN] + more)


def check_sums(file: Path | IO[bytes]) -> None:
    """Raise ValueError where the content of a file is not what torch has written, which torch.load does not check."""
    with zipfile.ZipFile(file) as archive:
        folders = [entry.filename for entry in archive.infolist() if entry.external_attr & 0x10 and entry.file_size]
        if damaged := archive.testzip() or next(iter(folders), None):  # of a folder torch would read nothing
            raise ValueError(f"the checksum of {damaged} is wrong")


@torch.no_grad()
def load_state(model: nn.Module, weights: Mapping[str, Tensor], path: Path, keep: tuple[str, ...] = ()) -> None:
    """Load a state dict strictly; the model is unchanged where it does not fit. keep: starts of names to leave out.

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
    both = [(name, _shape_and_kind(weights[name]), _shape_and_kind(own[name])) for name in own if name in weights]
    shapes = [f"  {name}: {theirs} in the file, {ours} in the model" for name, theirs, ours in both if theirs != ours]
    if lines := missing + unexpected + shapes:
        raise CheckpointError(
            f"the checkpoint {path} is of another model: {len(missing)} keys missing, {len(unexpected)} unexpected, "
            f"{len(shapes)} of another shape or type; give the options that it was made with\n{listed(lines)}"
        )
    return own


def _shape_and_kind(tensor: Tensor) -> str:
    """Return "(8, 3)"; with the type where a tensor has no real floating-point numbers, "(8, 3) int64"."""
    return f"{tuple(tensor.shape)}" if tensor.is_floating_point() else f"{tuple(tensor.shape)} {str(tensor.dtype)[6:]}"
