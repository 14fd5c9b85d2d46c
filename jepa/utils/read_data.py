"""Files as plain values: bounded, without code, and without what a terminal would obey.

Whoever can write into a folder can write anything into its files, and so can a crash. What cannot be right is a
`DamagedFileError`, before it takes memory.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import yaml
from omegaconf._utils import get_yaml_loader

from jepa.utils.errors import UserError, first_line

MAX_JSON = 4 * 2**20  # bytes of a JSON file
MAX_YAML = 2**20  # bytes of a YAML file, which take more time and memory than those of JSON
MAX_LINES = 2**29  # bytes of a file of lines, of which one alone is in memory
MAX_LINE = 2**20  # bytes of a line
MAX_DEPTH = 64  # brackets within each other
MAX_DIGITS = 20  # digits of a whole number; what has more is no count of anything, and may not fit into a float


class DamagedFileError(UserError):
    """A file that does not hold what it should; `brief` says so without its folder."""

    def __init__(self, path: str | os.PathLike, problem: str) -> None:
        path = Path(path)
        self.brief = f"{printable(path.name, keep='')} is damaged: {problem}"
        super().__init__(f"{printable(str(path), keep='')} is damaged: {problem}")


def printable(text: str, keep: str = "\n\t") -> str:
    r"""Return a text with what cannot be printed made visible: "\x1b[2J" for the escape that clears a terminal.

    keep: unprintable characters that stay; none in names, which stand in one line.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def exists(path: Path) -> bool:
    """Return whether anything has this name, be it a link that leads nowhere."""
    return os.path.lexists(path)


def read_json(path: Path) -> Any:
    """Return what a JSON file holds, as `parse_json` does. Raise DamagedFileError where it does not."""
    return parse_json(read_bytes(path, MAX_JSON), path)


def parse_json(text: str | bytes, path: str | os.PathLike) -> Any:
    """Return the value of a JSON text: its texts and keys printable, its whole numbers of at most MAX_DIGITS digits.

    NaN and infinities are read as such. Raise DamagedFileError, which names `path`, for what is no JSON, and for
    brackets deeper than MAX_DEPTH.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        return _checked(_DECODER.decode(text), path)
    except RecursionError:
        raise DamagedFileError(path, f"brackets are nested more than {MAX_DEPTH} deep") from None
    except UnicodeDecodeError as error:
        raise DamagedFileError(path, f"byte {error.start} is no UTF-8") from error
    except ValueError as error:
        raise DamagedFileError(path, printable(first_line(error))) from error


def read_yaml(path: Path, *, verbatim: bool = False) -> Any:
    """Return what a YAML file holds, with numbers as OmegaConf reads them; None for an empty one.

    verbatim: leave texts as they are, where a run is built from them, instead of printable.

    Raise DamagedFileError for what is no YAML, tags, anchors and aliases, and what `parse_json` refuses.
    """
    data = read_bytes(path, MAX_YAML)
    try:
        text = data.decode()
        _check_events(text, path)
        return _checked(yaml.load(text, Loader=_Loader), path, verbatim=verbatim)
    except UnicodeDecodeError as error:
        raise DamagedFileError(path, f"byte {error.start} is no UTF-8") from error
    except (yaml.YAMLError, ValueError, TypeError, LookupError) as error:  # the last from odd scalars
        problem = getattr(error, "problem", None) or first_line(error)
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise DamagedFileError(path, printable(f"{problem}{where}")) from error


def read_mapping(path: Path, **options: Any) -> dict[str, Any]:
    """Return the dict that a JSON or YAML file holds. Raise DamagedFileError where it holds another thing.

    options: of `read_yaml`.
    """
    content = read_json(path) if path.suffix == ".json" else read_yaml(path, **options)
    if not isinstance(content, dict):
        raise DamagedFileError(path, f"it holds {kind_of(content)}, expected names and values")
    return content


def read_bytes(path: Path, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes. Raise DamagedFileError for any other."""
    with open_regular(path, limit) as file:
        content = file.read(limit + 1)
    if len(content) > limit:  # it has grown meanwhile
        raise DamagedFileError(path, f"it has more than {limit:,} bytes")
    return content


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file with their newline; of one that is longer than MAX_LINE bytes an empty one.

    Raise DamagedFileError for what is no regular file of at most MAX_LINES bytes.
    """
    with open_regular(path, MAX_LINES) as file:
        while line := file.readline(MAX_LINE):
            long = len(line) == MAX_LINE and not line.endswith(b"\n")
            while len(line) == MAX_LINE and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE)
            yield b"" if long else line


def open_regular(path: Path, limit: int) -> BinaryIO:
    """Open a file for reading, never to wait for a writer. Raise DamagedFileError unless it is a regular file.

    limit: bytes that it may have.
    """
    try:
        # Where the flag is missing, so are the files that would block.
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        nowhere = isinstance(error, FileNotFoundError) and os.path.islink(path)
        if not nowhere and os.path.isdir(path):  # which only Windows refuses to open
            raise DamagedFileError(path, "it is a folder") from error
        problem = "it is a link that leads nowhere" if nowhere else f"it cannot be read ({error.strerror})"
        raise DamagedFileError(path, problem) from error
    status = os.fstat(number)
    if stat.S_ISREG(status.st_mode) and status.st_size <= limit:
        return os.fdopen(number, "rb")
    os.close(number)
    if stat.S_ISREG(status.st_mode):
        raise DamagedFileError(path, f"it has {status.st_size:,} bytes, expected at most {limit:,}")
    raise DamagedFileError(path, "it is a folder" if stat.S_ISDIR(status.st_mode) else "it is no regular file")


def kind_of(value: Any) -> str:
    """Return the kind of a plain value in words: "a text", "a list"."""
    names = {dict: "names and values", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "a number")


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has {len(digits):,} digits")
    return int(digits)


_DECODER = json.JSONDecoder(parse_int=_parse_int)


def _checked(value: Any, path: str | os.PathLike, *, verbatim: bool = False, depth: int = 0) -> Any:
    """Return a value with printable texts. Raise DamagedFileError for one that is not plain, or too deep."""
    if isinstance(value, str):
        return value if verbatim else printable(value)
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int):
        if abs(value) >= 10**MAX_DIGITS:
            raise DamagedFileError(path, f"a number has more than {MAX_DIGITS} digits")
        return value
    if depth == MAX_DEPTH:
        raise DamagedFileError(path, f"brackets are nested more than {MAX_DEPTH} deep")
    if isinstance(value, list):
        return [_checked(item, path, verbatim=verbatim, depth=depth + 1) for item in value]
    if isinstance(value, dict):
        found = {}
        for name, item in value.items():
            if not isinstance(name, (str, int, float)):
                raise DamagedFileError(path, f"it has {kind_of(name)} in place of a name")
            key = printable(name, keep="") if isinstance(name, str) and not verbatim else name
            plain = isinstance(item, float)  # most of what runs log
            found[key] = item if plain else _checked(item, path, verbatim=verbatim, depth=depth + 1)
        return found
    raise DamagedFileError(path, f"it holds a value of type {type(value).__name__}")


def _check_events(text: str, path: Path) -> None:
    """Raise DamagedFileError for YAML that would be code, grow when it is read, or overflow libyaml's stack."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if getattr(event, "anchor", None) is not None:
            raise DamagedFileError(path, f"line {event.start_mark.line + 1} has an anchor or alias")
        if getattr(event, "tag", None) is not None:
            tag = printable(event.tag[:60], keep="")
            raise DamagedFileError(path, f"line {event.start_mark.line + 1} has a tag, {tag}")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise DamagedFileError(path, f"brackets are nested more than {MAX_DEPTH} deep")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # the C one is ten times faster
    """As OmegaConf's: 1e-3 is a number, and a date a text."""

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """Return a number. Raise ValueError for one of too many digits, before they take time."""
        if len(node.value) > 2 * MAX_DIGITS:
            raise ValueError(f"a number has {len(node.value):,} digits")
        whole = node.tag == "tag:yaml.org,2002:int"
        return self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)


_Loader.yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers
for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_number)
