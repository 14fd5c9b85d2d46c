"""Command-line overrides before Hydra reads them: their keys, values, and paths that want quotes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

PATHS = ("run", "resume", "init_from", "checkpoint")
WORDS = ("auto", "null")  # values of these keys that are no paths


def override_key(override: str) -> str:
    """Return the key that an override sets: "+a.b=1" -> "a.b"."""
    return override.partition("=")[0].lstrip("+~")


def override_value(arguments: Iterable[str], key: str) -> str | None:
    """Return the last value that arguments give a key, without quotes; None if they give none."""
    given = [argument for argument in arguments if argument.startswith(f"{key}=")]
    if not given:
        return None
    try:
        value = OverridesParser.create().parse_override(given[-1]).value()
        value = OmegaConf.create({key: value})[key]
    except (HydraException, OmegaConfBaseException):
        value = None
    return value if isinstance(value, str) else given[-1].partition("=")[2]


def quoted(text: str) -> str:
    """Return a text as Hydra reads it back unchanged: in quotes, unless it is a path of letters, digits and ._-"""
    if re.fullmatch(r"[\w.-]*/[\w./-]*", text, re.ASCII):  # with a slash, as "123" and "true" are no texts
        return text
    text = literal(text)
    text = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)\Z", r"\1\1", text) + "'"


def literal(text: str) -> str:
    """Return a text as a value of a configuration that stands for itself: OmegaConf would look ${...} up."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def with_quoted_paths(arguments: Sequence[str]) -> list[str]:
    """Return arguments with quotes around what Hydra would read as syntax, or refuse: paths and foreign letters.

    Existing files and folders of PATHS; other values, and items of lists, that hold letters beyond ASCII.
    """
    multirun = bool({"-m", "--multirun"} & set(arguments))
    result = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        bare = value[1:-1] if re.fullmatch(r"'[^'\\]*'|\"[^\"\\]*\"", value) else value
        path = next((p for p in (value, bare) if p not in ("", *WORDS) and os.path.exists(p)), None)
        if key in PATHS and path is not None:
            value = quoted(path)
        elif equals and not value.isascii() and not re.search(r"""['"{}$]""", value):
            if value.startswith("[") and value.endswith("]"):
                value = f"[{','.join(quoted(item.strip()) for item in value[1:-1].split(','))}]"
            elif not (multirun and "," in value):
                value = quoted(value)
        result.append(f"{key}{equals}{value}")
    return result
