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
WORDS = ("auto", "null")
"""Values of these keys that are no paths."""


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
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # which OmegaConf would look up
    text = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)\Z", r"\1\1", text) + "'"


def with_quoted_paths(arguments: Sequence[str]) -> list[str]:
    """Return arguments with quotes around paths of existing files and folders that Hydra would read as syntax."""
    result = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        exists = key in PATHS and value not in ("", *WORDS) and os.path.exists(value)
        result.append(f"{key}={quoted(value)}" if exists else argument)
    return result
