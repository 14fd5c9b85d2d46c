"""A callback that notes what a run takes of the machine."""

from __future__ import annotations

import json

import psutil

from jepa.trainer import Callback


class Usage(Callback):
    """Writes a line to usage.jsonl of the run folder after every `every` steps."""

    def __init__(self, every: int) -> None:
        self.every = every

    def step_end(self, trainer) -> None:
        """Note memory in bytes, numbers of open files, threads, children and files, and disk use in bytes."""
        if trainer.step % self.every:
            return
        process, folder = psutil.Process(), trainer.folder.path
        grows = ("usage.jsonl", "metrics.jsonl")
        files = [path for path in folder.rglob("*") if path.is_file() and path.name not in grows]
        usage = {
            "step": trainer.step,
            "rss": process.memory_info().rss,
            "handles": process.num_fds(),
            "threads": process.num_threads(),
            "children": len(process.children(recursive=True)),
            "files": len(files),
            "disk": sum(path.stat().st_size for path in files),
        }
        with open(folder / "usage.jsonl", "a") as file:
            file.write(json.dumps(usage) + "\n")
