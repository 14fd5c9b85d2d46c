"""What `--help` shows: commands, the groups, and the keys of the chosen data, model and trainer."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from jepa.config.check import shown
from jepa.config.compose import CONFIG_DIR, compose_with_choices
from jepa.utils.nested import flatten

GROUPS = ("experiment", "data", "model", "model/encoder", "model/predictor", "model/mask", "model/target", "loss")
GROUPS += ("optimizer", "scheduler", "trainer", "evaluation", "callbacks", "monitor", "visualise", "logger", "sweep")
GROUPS += ("hydra/launcher",)
"""Those that people use."""
SECTIONS = ("data", "model", "trainer")  # whose keys are shown
WIDTH = 100
KEYS_FOOT = """\
Trainer, data and model take more: jepa/trainer/trainer_parts.py and docs/ name it. All other keys
of the run: --cfg job. Words of other projects and what they are here: docs/words.md"""
FOOT = """\
Flags: -m (a sweep), --cfg job (print the run), --config-dir DIR (your own files); all: --hydra-help"""


def help_text(overrides: Sequence[str], config_dir: str | Path | None, config_name: str) -> str:
    """Return what `--help` shows beside overrides, at most 100 columns wide."""
    config, choices = compose_with_choices(overrides, config_dir=config_dir, config_name=config_name)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        template = compose(config_name, return_hydra_config=True).hydra.help.template
    head, placed, _ = template.partition("$APP_CONFIG_GROUPS")
    if not placed:
        return f"{head.rstrip()}\n\n{FOOT}"
    lines = [head.rstrip(), ""]
    for group in GROUPS:
        names = sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))
        lines += textwrap.wrap(f"{group:16}{', '.join(names)}", WIDTH, subsequent_indent=" " * 16)
    lines += [line for section in SECTIONS for line in _keys(section, config, choices)]
    return "\n".join([*lines, "", KEYS_FOOT, FOOT])


def _keys(section: str, config: DictConfig, choices: Mapping[str, Any]) -> Iterator[str]:
    """Return the keys of a section with their values and what its files say of them."""
    yield from ("", f"Keys of {section}={choices[section]}:")
    said = _comments(section, choices)
    plain = OmegaConf.to_container(config[section], resolve=False)
    for key in flatten(plain):
        if not any(part.startswith("_") or part == "hints" for part in key.split(".")):
            full = f"{section}.{key}"
            line = f"  {full}={_value(config, full)}"
            indent = " " * 44
            yield from textwrap.wrap(f"{line:43} {said.get(full, '')}", WIDTH, subsequent_indent=indent)


def _value(config: DictConfig, key: str) -> str:
    """Return a value as the command line has it, `???` where it must be given."""
    try:
        value = OmegaConf.select(config, key, default=None) if not OmegaConf.is_missing(config, key) else "???"
    except OmegaConfBaseException:
        value = "(by the data)"
    if OmegaConf.is_config(value):
        return str(OmegaConf.to_container(value)).replace(" ", "").replace("'", "")
    return shown(value)


def _comments(section: str, choices: Mapping[str, Any]) -> dict[str, str]:
    """Return the comments at the keys of a section's files, by dotted key."""
    files = {group: CONFIG_DIR / group / f"{option}.yaml" for group, option in choices.items()}
    said = _comments_of(CONFIG_DIR / "config.yaml", "")
    for group, path in files.items():
        if path.is_file() and group.split("/")[0] == section:
            said |= _comments_of(path, f"{group.replace('/', '.')}.")
    return said


def _comments_of(path: Path, prefix: str) -> dict[str, str]:
    """Return the comments at the keys of a file: `views: 1 # crops of each`."""
    said: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not (found := re.match(r"( *)(\w+):(?: [^#]*)?(?:# (.*))?$", line)):
            continue
        indent, name, comment = len(found[1]), found[2], found[3]
        parents = [(depth, parent) for depth, parent in parents if depth < indent]
        if comment:
            said[prefix + ".".join([*(parent for _, parent in parents), name])] = comment
        parents.append((indent, name))
    return said
