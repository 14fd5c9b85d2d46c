"""Files of deltas: my.yaml with `trainer: {max_epochs: 3}` is the same as trainer.max_epochs=3 on the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jepa.config.check import shown
from jepa.config.keys import is_group
from jepa.utils.errors import UserError
from jepa.utils.read_data import read_mapping


def with_files_read(arguments: Sequence[str]) -> list[str]:
    """Return arguments with the overrides that each file among them stands for: "my.yaml" -> "trainer.max_epochs=3".

    Raise UserError for a file that is missing or is no file of deltas.
    """
    result: list[str] = []
    for number, argument in enumerate(arguments):
        is_file = re.fullmatch(r"[^-+~=][^=]*\.ya?ml", argument) and arguments[number - 1 : number] != ["--config-dir"]
        result += overrides_of(Path(argument)) if is_file else [argument]
    return result


def overrides_of(path: Path) -> list[str]:
    """Return what a file of deltas sets as overrides, options first."""
    if not path.is_file():
        raise UserError(f"{path} is not a file: expected names and values, such as trainer: {{max_epochs: 3}}")
    values = read_mapping(path, verbatim=True)
    if "overrides" in values:
        raise UserError(f"{path} is the configuration of a run: go on with it by resume={path.parent}")
    options = [option for entry in values.pop("defaults", None) or [] for option in _option(entry, path)]
    found = list(_overrides(values, ""))
    chosen = [override for override in found if is_group(override.partition("=")[0])]
    return [*options, *chosen, *(override for override in found if override not in chosen)]


def _option(entry: Any, path: Path) -> Iterator[str]:
    """Return an entry of defaults as options: {"override /data": "mnist"} -> data=mnist."""
    if entry == "_self_":
        return
    if not isinstance(entry, dict):
        raise UserError(f"{path}: defaults: {entry}: expected a group and its option, such as data: mnist")
    for key, option in entry.items():
        yield f"{str(key).removeprefix('override ').strip().lstrip('/')}={_written(option)}"


def _overrides(node: Mapping[str, Any], above: str, sign: str = "") -> Iterator[str]:
    """Return the values below a node as overrides; those of a class of the user's own may be new."""
    for name, value in node.items():
        key = f"{above}{name}"
        if isinstance(value, dict) and value:
            yield from _overrides(value, f"{key}.", "++" if above and (sign or "_target_" in value) else "")
        elif is_group(group := key.replace(".", "/")) and isinstance(value, (str, list)):
            yield f"{group}={_written(value)}"
        else:
            yield f"{sign}{key}={_written(value)}"


def _written(value: Any) -> str:
    """Return a value as the command line has it."""
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}: {_written(item)}' for key, item in value.items())}}}"
    if isinstance(value, str) and not re.fullmatch(r"(?!(?i:null|true|false)$)[A-Za-z_]\w*", value):
        return "'" + re.sub(r"(\\*)'", r"\1\1\\'", value) + "'"
    return shown(value)
