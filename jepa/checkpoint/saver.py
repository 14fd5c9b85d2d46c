"""Saving checkpoints under names, plain or sharded, in the foreground or in the background."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_map_only

from jepa.checkpoint import plain as checkpoint
from jepa.checkpoint.load import cause
from jepa.distributed.collectives import broadcast_from_rank0, is_distributed, is_rank0
from jepa.utils.errors import CheckpointError, reason

Format = Literal["plain", "sharded"]
SUFFIXES: dict[str, str] = {"plain": ".pt", "sharded": ".sharded"}


class Saver:
    """Writes checkpoints into one folder: "plain", files of rank 0, or "sharded", folders of all ranks' shards.

    asynchronous: return once the state is copied, and write in the background, one checkpoint at a time.

    Raises CheckpointError when a checkpoint cannot be written, in the background from the next call of a method.
    """

    def __init__(self, folder: Path, *, kind: Format, asynchronous: bool) -> None:
        if kind not in SUFFIXES:
            raise ValueError(f"trainer.checkpoint_format: got {kind!r}, expected 'plain' or 'sharded'")
        self.folder, self.kind, self.asynchronous = folder, kind, asynchronous
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saver") if asynchronous else None
        background = asynchronous and kind == "sharded" and is_distributed()
        self._group = dist.new_group(backend="gloo") if background else None
        self._writing: Future | None = None
        self._then: Callable[[], None] | None = None
        self._unwritable: tuple[type[BaseException], ...] = (OSError, RuntimeError)  # beside CheckpointError

    def path(self, name: str) -> Path:
        """Return the file or folder of a checkpoint, such as last.pt."""
        return self.folder / f"{name}{SUFFIXES[self.kind]}"

    def save(self, state: dict[str, Any], names: list[str], dropped: list[str]) -> None:
        """Write a state under names, in their order, so that a run killed meanwhile resumes from the one before.

        dropped: names to remove.
        """
        self.wait()
        if self.kind == "sharded":
            self._save_sharded(state, names, dropped)
        elif is_rank0() and self._pool is not None:
            self._writing = self._pool.submit(self._write_plain, copied(state), names, dropped)
        elif is_rank0():
            self._write_plain(state, names, dropped)

    def wait(self) -> None:
        """Wait until the checkpoint in the background is written and has its names."""
        writing, then, self._writing, self._then = self._writing, self._then, None, None
        try:
            if writing is not None:
                writing.result()
        except self._unwritable as error:
            raise CheckpointError(
                f"could not write a checkpoint: {reason(cause(error), self.folder / 'last')}. "
                f"What was written before is intact in {self.folder}"
            ) from error
        if then is not None and is_rank0():
            then()

    def poll(self) -> None:
        """Finish a checkpoint written in the background, and raise its error; does not wait."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def close(self) -> None:
        """Wait for the checkpoint in the background, and end the thread that writes."""
        try:
            self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()

    def _write_plain(self, state: dict[str, Any], names: list[str], dropped: list[str]) -> None:
        checkpoint.write(self.path(names[0]), state)
        for name in names[1:]:
            link_or_copy(self.path(names[0]), self.path(name))
        self._drop(dropped)

    def _save_sharded(self, state: dict[str, Any], names: list[str], dropped: list[str]) -> None:
        from jepa.checkpoint import sharded  # torch.distributed.checkpoint takes a second to import

        self._unwritable = sharded.UNWRITABLE
        folder = broadcast_from_rank0(lambda: sharded.free_folder(self.folder, state["step"]))

        def publish() -> None:
            sharded.publish(self.folder, folder, [self.path(name).name for name in names])
            self._drop(dropped)

        if self._pool is not None and not is_distributed():
            self._writing = self._pool.submit(sharded.write, folder, copied(checkpoint.with_format(state)))
        else:
            self._writing = sharded.write(folder, checkpoint.with_format(state), self._group)
        self._then = publish
        if not self.asynchronous:
            self.wait()

    def _drop(self, names: list[str]) -> None:
        """Remove these names, and the last checkpoint of the other format."""
        gone = [self.folder / f"{name}{suffix}" for name in names for suffix in SUFFIXES.values()]
        if self.path("last").exists():
            gone += [self.folder / f"last{suffix}" for kind, suffix in SUFFIXES.items() if kind != self.kind]
        for path in gone:
            path.unlink(missing_ok=True)
        if next(self.folder.glob("sharded_*"), None) is not None:
            from jepa.checkpoint import sharded

            sharded.prune(self.folder)


def find_checkpoint(folder: Path, name: str = "last") -> Path | None:
    """Return the checkpoint of a name, the newer one where a killed run leaves both formats; None without one.

    A broken link counts, so that reading it raises.
    """
    found = [path for suffix in SUFFIXES.values() if os.path.lexists(path := folder / f"{name}{suffix}")]
    return max(found, key=lambda path: path.lstat().st_mtime_ns, default=None)


def link_or_copy(source: Path, target: Path) -> None:
    """Add another name for a file, atomically: a hard link, or a copy where links are not supported."""
    temporary = target.with_name(f".{target.name}.writing")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"could not write {target}: {reason(error, target)}") from error


def copied(node: Any) -> Any:
    """Return a nested state with its tensors copied into CPU memory, pinned for those of a GPU, once they are there."""

    def copy(tensor: Tensor) -> Tensor:
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return empty.copy_(tensor.detach(), non_blocking=True)

    result = tree_map_only(Tensor, copy, node)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return result
