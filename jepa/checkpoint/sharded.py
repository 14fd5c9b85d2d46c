"""Sharded checkpoints: a folder to which every rank writes its shards (torch.distributed.checkpoint).

`<name>.sharded` is a link to a folder `sharded_<step>` with the shards and `state.pt`, which holds the rest of the
state and the key of each tensor. A link is replaced atomically, after every shard is on disk, so that a run killed at
any moment finds the folder before. It loads on any number of ranks, also on one without FSDP.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import shutil
import warnings
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.tensor import DTensor
from torch.utils._pytree import KeyPath, MappingKey, tree_leaves_with_path, tree_map, tree_map_with_path

from jepa.checkpoint.load import cause, check_sums, read_file
from jepa.checkpoint.plain import save_flushed
from jepa.distributed.collectives import is_distributed, is_rank0
from jepa.utils.errors import CheckpointError, first_line, reason

SUFFIX = ".sharded"
STATE = "state.pt"
ALONE = "torch.distributed is disabled"  # of which torch warns
PARTS = ".metadata"
CHECKSUM = f"{PARTS}.crc32"
"""Of the file about the parts; everything else has checksums of its own."""
TENSOR = "tensor of the parts"
DESCRIPTIONS = {
    "torch.distributed.checkpoint.metadata": "Metadata MetadataIndex StorageMeta TensorProperties "
    "TensorStorageMetadata ChunkStorageMetadata _MEM_FORMAT_ENCODING",
    "torch.distributed.checkpoint.filesystem": "_StorageInfo",
    "torch.serialization": "_get_layout",
    "torch": "Size",
    "pathlib": "PosixPath",
    "pathlib._local": "PosixPath",
}
"""Module -> names in it that the file about the parts is made of, beside torch's number formats."""
UNWRITABLE = (OSError, RuntimeError, CheckpointException)


def write(folder: Path, state: Mapping[str, Any], background: dist.ProcessGroup | None = None) -> Future | None:
    """Write the shards of a state; every rank calls this. Raises CheckpointError when they cannot be written.

    background: a gloo group of its own, apart from training's collectives, to write after copying; gives a future.
    """
    rest, tensors = split(state)
    try:
        if is_rank0():
            shutil.rmtree(folder, ignore_errors=True)  # what a killed run has left
            folder.mkdir(parents=True)
            save_flushed(rest, folder / STATE)
        if is_distributed():
            dist.barrier()
        if background is not None:
            return dcp.async_save(tensors, checkpoint_id=folder, process_group=background)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=ALONE)
            dcp.save(tensors, checkpoint_id=folder, no_dist=not is_distributed())
    except UNWRITABLE as error:
        raise CheckpointError(
            f"could not write the checkpoint {folder}: {reason(cause(error), folder)}. "
            "The checkpoint written before is intact"
        ) from error
    return None


def read(path: Path, like: Callable[[tuple], Tensor | None] = lambda keys: None) -> dict[str, Any]:
    """Return a state. like: keys -> the tensor whose sharding to use; None for the full tensor on the CPU.

    Raises CheckpointError when a shard is missing or damaged.
    """
    rest = read_file(path / STATE)
    places = {
        leaf[TENSOR]: keys_of(path)
        for path, leaf in tree_leaves_with_path(rest, is_tensor_name)
        if is_tensor_name(leaf)
    }
    try:
        reader = _Reader(path)
        metadata = reader.read_metadata().state_dict_metadata
        sizes = [math.prod(metadata[name].size) * metadata[name].properties.dtype.itemsize for name in places]
        stored = sum(part.stat().st_size for part in path.glob("*.distcp"))
        if any(size < 0 for size in sizes) or sum(sizes) > stored:  # before memory is taken for them
            raise ValueError(f"its tensors have {sum(sizes):,} bytes, but its parts {stored:,}")
        tensors = {}
        for name, keys in places.items():
            size, dtype, own = metadata[name].size, metadata[name].properties.dtype, like(keys)
            alike = isinstance(own, DTensor) and own.shape == size
            tensors[name] = torch.zeros_like(own, dtype=dtype).detach() if alike else torch.empty(size, dtype=dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=ALONE)
            dcp.load(tensors, storage_reader=reader, no_dist=not is_distributed())
    except (Exception, CheckpointException) as error:  # a damaged pickle may raise nearly anything
        raise CheckpointError(
            f"cannot read the checkpoint {path}: a part of it is missing or damaged ({first_line(cause(error))}). "
            "Nothing was overwritten; use another checkpoint, or start a new run"
        ) from error
    return tree_map(lambda leaf: tensors[leaf[TENSOR]] if is_tensor_name(leaf) else leaf, rest, is_leaf=is_tensor_name)


def publish(checkpoints: Path, folder: Path, names: list[str]) -> None:
    """Link names to a written folder. Rank 0 calls this."""
    with open(folder / CHECKSUM, "w") as file:
        file.write(str(zlib.crc32((folder / PARTS).read_bytes())))
        file.flush()
        os.fsync(file.fileno())
    for name in names:
        link, temporary = checkpoints / name, checkpoints / f".{name}.writing"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(folder.name)
        os.replace(temporary, link)


def prune(checkpoints: Path) -> None:
    """Remove the folders that no link points to."""
    kept = linked_folders(checkpoints)
    for folder in {path for path in checkpoints.glob("sharded_*") if path.name not in kept}:
        shutil.rmtree(folder, ignore_errors=True)


def free_folder(checkpoints: Path, step: int) -> Path:
    """Return a folder for a step's shards that no link points to; a step may be saved again."""
    name, kept = f"sharded_{step:08d}", linked_folders(checkpoints)
    while name in kept:
        name += "_again"
    return checkpoints / name


def linked_folders(checkpoints: Path) -> set[str]:
    """Return the names of the folders that links point to."""
    return {os.readlink(link) for link in checkpoints.glob(f"*{SUFFIX}") if link.is_symlink()}


def split(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a nested state with each tensor replaced by its name, and name -> tensor."""
    tensors: dict[str, Tensor] = {}

    def name_of(path: KeyPath, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        name = "/".join(map(str, keys_of(path)))
        while name in tensors:  # of "a/b" and of "b" in "a"
            name += "'"
        tensors[name] = leaf.detach()
        return {TENSOR: name}

    return tree_map_with_path(name_of, dict(state)), tensors


def is_tensor_name(node: Any) -> bool:
    """Return whether a node of a stored state is the name of a tensor that lies in the shards."""
    return isinstance(node, dict) and set(node) == {TENSOR}


def keys_of(path: KeyPath) -> tuple:
    """Return the keys and list positions that lead to a leaf of a nested state."""
    return tuple(entry.key if isinstance(entry, MappingKey) else entry.idx for entry in path)


class _Unpickler(pickle.Unpickler):
    """Unpickles DESCRIPTIONS and dtypes only, so that reading a checkpoint executes no code."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in DESCRIPTIONS.get(module, "").split():
            return super().find_class(module, name)
        raise UnpicklingError(f"{module}.{name} does not belong into a checkpoint")


class _Reader(dcp.FileSystemReader):
    """torch's reader, without unpickling of arbitrary code in `read_metadata`, and with a look at the checksums."""

    def read_metadata(self, *arguments: Any, **others: Any) -> Metadata:
        content, stored = Path(self.path, PARTS).read_bytes(), Path(self.path, CHECKSUM)
        if stored.is_file() and stored.read_text() != str(zlib.crc32(content)):
            raise UnpicklingError(f"the checksum of {PARTS} is wrong")
        metadata = _Unpickler(io.BytesIO(content)).load()
        if not isinstance(metadata, Metadata):
            raise UnpicklingError(f"it is a {type(metadata).__name__}")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata

    def _slice_file(self, file: IO[bytes], place: Any) -> IO[bytes]:
        part = io.BytesIO(super()._slice_file(file, place).read())
        check_sums(part)
        part.seek(0)
        return part
