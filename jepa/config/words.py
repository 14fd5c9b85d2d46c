"""Words of other projects and guides, from words.yaml; docs/words.md shows the table."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jepa.utils.read_data import read_mapping

SWITCH = dict.fromkeys(("true", "yes", "on", "1"), "true")
SWITCH |= dict.fromkeys(("false", "no", "off", "0", "none", "null"), "false")


@dataclass(frozen=True)
class Word:
    """Names that others give to one thing; see words.yaml."""

    names: str
    here: str
    note: str = ""
    values: Mapping[str, str] | str = field(default_factory=dict)

    def written(self, value: str) -> list[str]:
        """Return the overrides that say it with a value."""
        plain = SWITCH.get(value.lower(), value.lower())
        if isinstance(self.values, str):  # 1 - value
            try:
                value = f"{1 - float(value):.6g}"
            except ValueError:
                value = f"<1 - {value}>"
        elif plain == "false" and "{}" not in self.here:
            return []
        else:
            value = self.values.get(plain, self.values.get("*", value))
        return self.here.format(value).split()


@functools.cache
def _file() -> dict[str, Any]:
    return read_mapping(Path(__file__).with_suffix(".yaml"), verbatim=True)


@functools.cache
def words() -> list[Word]:
    """Return all words, in the order of the table."""
    return [Word(**word) for word in _file()["words"]]


def options(group: str) -> dict[str, str]:
    """Return names that others give to the options of a group, without _ and -, with ours."""
    return _file()["options"].get(group, {})


@functools.cache
def _by_name() -> dict[str, Word]:
    return {name.replace("_", ""): word for word in words() for name in word.names.split()}


def table() -> str:
    """Return the words as docs/words.md shows them."""
    rows = ["| elsewhere | here | |", "|---|---|---|"]
    for word in words():
        names = ", ".join(f"`{name}`" for name in word.names.split())
        shown = "..." if isinstance(word.values, str) else word.values.get("*", word.values.get("true", "..."))
        here = " ".join(f"`{part}`" for part in word.here.format(shown).split())
        rows.append(f"| {names} | {here or 'nothing'} | {word.note} |")
    return "\n".join(rows)


def plain(name: str) -> str:
    """Return a name in small letters without _ and -."""
    return name.lower().replace("_", "").replace("-", "")


def find_word(name: str, cutoff: float = 1.0) -> Word | None:
    """Return what a name stands for; below a cutoff of 1 also one that is near ("epoch")."""
    close = difflib.get_close_matches(plain(name), _by_name(), n=1, cutoff=cutoff)
    return _by_name()[close[0]] if close else None


def closest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the name nearest to a misspelt one, or the one that has it as a word ("dim" -> "embed_dim").

    cutoff: how near, up to 1; only at 0.6 words count.
    """
    others = [other for other in names if other != name]
    by_plain = {plain(other): other for other in reversed(others)}
    close = difflib.get_close_matches(plain(name), by_plain, n=1, cutoff=cutoff)
    if close:
        return by_plain[close[0]]
    return next((other for other in others if cutoff == 0.6 and name in other.split("_")), None)


def accumulated(overrides: Sequence[str], batch_size: int | None) -> list[str]:
    """Return overrides with the accumulation of others as the micro-batches of a step.

    A batch size among them is that of others, a micro-batch; `batch_size` is that of the step.
    """
    parts = dict(override.partition("=")[::2] for override in overrides)
    size, steps = parts.get("data.batch_size", ""), parts.get("trainer.micro_batch_size", "")
    steps = steps.removeprefix("<data.batch_size/").removesuffix(">")
    if f"trainer.micro_batch_size=<data.batch_size/{steps}>" not in overrides or not steps.isdigit() or steps == "0":
        return list(overrides)
    if size.isdigit():
        parts |= {"data.batch_size": str(int(size) * int(steps)), "trainer.micro_batch_size": size}
    elif not size and batch_size is not None and batch_size % int(steps) == 0:
        parts["trainer.micro_batch_size"] = str(batch_size // int(steps))
    return [
        f"{key}={value}" if "=" in override else override for override, (key, value) in zip(overrides, parts.items())
    ]
