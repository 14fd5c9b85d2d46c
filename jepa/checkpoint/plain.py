"""Plain checkpoints: one file, written atomically, read with weights_only.

A checkpoint is a dict with `format`, `version`, `step`, `pending`, `ended`, `model`, `optimizer`, `scaler`, `best`,
`metrics` (the last value of each), `callbacks` and `loggers` (name -> state), `config` and `libraries`. As everything
random is a function of (seed, step), no random state is needed to resume exactly.
"""

from __future__ import annotations

import os
import platform
import textwrap
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa.checkpoint.load import read_file
from jepa.checkpoint.stored_objects import is_plain_config
from jepa.utils.errors import CheckpointError, reason

FORMAT = "jepa"
VERSION = 2


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_dict_of(value: Any, kind: type = object) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, kind) for k, v in value.items())


def _is_table(value: Any) -> bool:
    def is_row(row: Any) -> bool:
        is_pair = isinstance(row, (list, tuple)) and len(row) == 2
        return is_pair and isinstance(row[0], (int, float)) and _is_count(row[1])

    whole = _is_dict_of(value) and {"metric", "mode", "table"} <= value.keys()
    return whole and isinstance(value["table"], list) and all(map(is_row, value["table"]))


def _is_optimizer_state(value: Any) -> bool:
    groups, state = (value.get(name) for name in ("param_groups", "state")) if _is_dict_of(value) else (None, None)
    return (
        isinstance(groups, list)
        and isinstance(state, dict)
        and len(groups) > 0
        and all(_is_dict_of(group) and isinstance(group.get("params"), list) for group in groups)
        and all(_is_count(number) and _is_dict_of(entry) for number, entry in state.items())
    )


def _is_configuration(value: Any) -> bool:
    sections = ("data", "model", "loss", "trainer", "evaluation")
    plain = _is_dict_of(value) and is_plain_config(value)
    return plain and all(isinstance(value.get(name) or {}, dict) for name in sections)


FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "step": (_is_count, "a number from 0 on"),
    "pending": (lambda value: isinstance(value, bool), "True or False"),
    "ended": (lambda value: value is None or isinstance(value, str), "a reason or None"),
    "model": (lambda value: _is_dict_of(value, Tensor), "a dict of tensors"),
    "optimizer": (lambda value: value is None or _is_optimizer_state(value), "the state of an optimizer or None"),
    "scaler": (lambda value: value is None or _is_dict_of(value), "a dict or None"),
    "best": (_is_table, "a metric, a mode and a table of values and steps"),
    "metrics": (lambda value: _is_dict_of(value, (int, float)), "a dict of numbers"),
    "callbacks": (lambda value: _is_dict_of(value, dict), "a dict of dicts"),
    "loggers": (lambda value: _is_dict_of(value, dict), "a dict of dicts"),
    "config": (_is_configuration, "a dict of sections"),
    "train_seconds": (lambda value: isinstance(value, (int, float)) and 0 <= value < 1e10, "a number of seconds"),
    "rollbacks": (lambda value: isinstance(value, list) and all(map(_is_dict_of, value)), "a list of dicts"),
    "monitor": (lambda value: value is None or _is_dict_of(value), "a dict or None"),
    "run": (_is_dict_of, "a dict"),
}
"""Key of a checkpoint -> what its value must be: a check, and words for it."""
KEYS = [key for key in FIELDS if key not in ("train_seconds", "rollbacks", "monitor", "run")]
"""Those that must be there; the others came later."""


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically. Raises CheckpointError when that fails; an existing file at `path` is kept."""
    temporary = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_flushed(with_format(state), temporary)
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # and so the renaming
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        temporary.unlink(missing_ok=True)
        before = f"The checkpoint written before is intact: {path}"
        kept = before if path.exists() else "No checkpoint was there before."
        raise CheckpointError(f"could not write the checkpoint {path}: {reason(error, path)}. {kept}") from error


def save_flushed(content: Any, path: Path) -> None:
    """Write a file by torch, and return when it is on the disk."""
    with open(path, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, on the CPU. Raises CheckpointError if that fails, as `check` does."""
    check(content := read_file(path), path)
    return content


def with_format(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state with the entries by which `check` knows it, and the versions of libraries."""
    libraries = {"python": platform.python_version(), "torch": str(torch.__version__), "timm": version("timm")}
    return {"format": FORMAT, "version": VERSION, **state, "libraries": libraries}


def check(content: Any, path: Path) -> None:
    """Raise CheckpointError unless this is the complete content of a checkpoint in our format."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"{path} is not a checkpoint of this project (it holds {found}): to start from the weights of a "
            "published file use init_from=<file>; to continue a run use resume=<its folder>"
        )
    if content.get("version") != VERSION:
        raise CheckpointError(f"{path} has format version {content.get('version')}, this code reads {VERSION}")
    if missing := [key for key in KEYS if key not in content]:
        raise CheckpointError(f"{path} lacks {missing}: it is damaged")
    for key, (holds, expected) in FIELDS.items():
        if key in content and not holds(content[key]):
            shown = textwrap.shorten(ascii(content[key]), 60, placeholder="...")
            raise CheckpointError(f"{path} is damaged: {key} is {shown}, expected {expected}")
    for name, value in content["model"].items():
        if not is_plain(value):
            raise CheckpointError(f"{path} is damaged: {name} of the model is no plain tensor with values of its own")
        if value.is_floating_point() and not is_finite(value):
            raise CheckpointError(
                f"{path} is damaged: {name} of the model holds values that are not finite; use another checkpoint"
            )


def is_plain(value: Tensor) -> bool:
    """Return whether a tensor is dense, and has as many values in memory as its shape says."""
    value = value.to_local() if hasattr(value, "to_local") else value
    dense = value.layout is torch.strided and not value.is_quantized and value.device.type != "meta"
    return dense and value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def is_finite(value: Tensor) -> bool:
    """Return whether all values of a tensor, of its shard on this rank, are finite."""
    return bool(torch.isfinite(value.to_local() if hasattr(value, "to_local") else value).all())
