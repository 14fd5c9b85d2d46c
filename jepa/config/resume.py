"""Going on: the options of the run or sweep that `resume=` names, and the configuration that the run stored.

A run that goes on is composed from the options it was started with and those given now, as if they had been given
together. Where the files in conf/ have changed since, its stored values win.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from jepa.checkpoint.moved import upgrade
from jepa.config.compose import compose_with_choices, run_folder_of
from jepa.config.overrides import override_key, override_value, quoted
from jepa.config.stored import SECTIONS
from jepa.utils.errors import UserError, first_line
from jepa.utils.read_data import DamagedFileError, exists, kind_of, printable, read_mapping
from jepa.utils.run_status import is_overrides

SWEEP_FILE = "multirun.yaml"  # what Hydra leaves of a sweep in its folder
MISSING = object()


def with_stored_options(arguments: Sequence[str], config_dir: str | Path | None = None) -> list[str]:
    """Return arguments with those of the run or sweep that `resume=` names put before them; what is given now wins.

    Arguments that resume nothing, or a run that stored none, are returned as they are. Raise UserError for a sweep
    over `resume=<run>`.
    """
    resume = override_value(arguments, "resume")
    if resume in (None, "", "auto", "null"):
        return list(arguments)
    multirun = bool({"-m", "--multirun"} & set(arguments))
    if exists(Path(resume) / SWEEP_FILE):
        return _with_stored_sweep(arguments, Path(resume), multirun)
    run = StoredRun.find(resume, config_dir)
    if run is None:
        return list(arguments)
    if multirun:
        raise UserError(f"resume={resume} is a single run: leave out -m (a sweep goes on by resume=<its folder>)")
    place = next(number for number, argument in enumerate(arguments) if argument[:1] != "-" and "=" in argument)
    return [*arguments[:place], *run.options_beside(arguments), *arguments[place:]]


def _with_stored_sweep(arguments: Sequence[str], folder: Path, multirun: bool) -> list[str]:
    """Return arguments that go on with the sweep in a folder: its own, each of its runs from where it is."""
    stored = _sweep_overrides(folder / SWEEP_FILE)
    given = {override_key(argument) for argument in arguments} | {"resume", "hydra.mode", "hydra.sweep.dir"}
    kept = [line for line in stored if override_key(line) not in given]
    own = [*kept, "resume=auto", f"hydra.sweep.dir={quoted(str(folder))}"]
    place = next(number for number, argument in enumerate(arguments) if argument.startswith("resume="))
    flag = [] if multirun or {"-c", "--cfg"} & set(arguments) else ["--multirun"]
    return [*flag, *arguments[:place], *own, *arguments[place + 1 :]]


def _sweep_overrides(path: Path) -> list[str]:
    """Return the options that a sweep was started with. Raise DamagedFileError where its file does not tell."""
    try:
        stored = read_mapping(path, verbatim=True)["hydra"]["overrides"]
        parts = stored["hydra"], stored["task"]
    except (LookupError, TypeError):
        parts = (None,)
    if not all(map(is_overrides, parts)):
        raise DamagedFileError(path, "its hydra.overrides are no lists of options")
    return [*parts[0], *parts[1]]


class StoredRun:
    """What a run folder says of its run: the resolved configuration, and what its options compose to today.

    values: the content of config.yaml.
    """

    def __init__(self, values: Mapping[str, Any], config_dir: str | Path | None = None) -> None:
        options = [line for line in values.get("overrides") or [] if override_key(line) != "resume"]
        self.values = {k: v for k, v in upgrade(values).items() if k not in ("run_dir", "overrides", "resume")}
        try:
            self.composed, self.choices = compose_with_choices(options, config_dir=config_dir)
            self.options = options
        except (HydraException, OmegaConfBaseException):  # options of an earlier version
            self.composed, self.choices = compose_with_choices([], config_dir=config_dir)
            self.options = []

    @classmethod
    def find(cls, resume: str | None, config_dir: str | Path | None = None) -> StoredRun | None:
        """Return the run that `resume=` names; None for null, "auto" and a folder without config.yaml.

        Raise DamagedFileError where that file is no configuration of a run.
        """
        values = None if resume in (None, "auto", "") else cls.values_of(Path(run_folder_of(resume, "")))
        return None if values is None else cls(values, config_dir)

    @staticmethod
    def values_of(folder: Path) -> dict[str, Any] | None:
        """Return the content of a run's config.yaml, None without one. Raise DamagedFileError where it is none."""
        path = folder / "config.yaml"
        if not exists(path):
            return None
        values = read_mapping(path, verbatim=True)
        if not is_overrides(values.get("overrides") or []):
            raise DamagedFileError(path, "its overrides are no list of options")
        for section in SECTIONS:
            if not isinstance(values.get(section, {}), (dict, type(None))):
                raise DamagedFileError(path, f"{section} is {kind_of(values[section])}, expected names and values")
        try:
            upgrade(values)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise DamagedFileError(path, printable(first_line(error))) from error
        return values

    def options_beside(self, now: Sequence[str]) -> list[str]:
        """Return the run's options, less those given now and the values of a group of which another is chosen now.

        Values of the trainer stay, as its options change what they name and no more.
        """
        given = {override_key(argument): argument.partition("=")[2] for argument in now}
        changed = [group for group in given if group in self.choices and given[group] != _plain(self.choices[group])]
        below = tuple(f"{group.replace('/', '.')}." for group in changed if group != "trainer")
        return [line for line in self.options if (key := override_key(line)) not in given and not key.startswith(below)]

    def continued(self, config: DictConfig, choices: Mapping[str, Any]) -> DictConfig:
        """Return the configuration of the run that goes on: what it stored, with what is given now.

        A value that is what an interpolation of today's files gives follows its source, so that `optimizer.lr=1e-4`
        reaches the scheduler. A group of which another option is chosen now is replaced.

        config, choices: composed of the run's options and those given now.
        """
        stored = OmegaConf.create(self.values)
        for section, node in self.composed.items_ex(resolve=False):
            if section in stored:
                _relink(stored, node, section)
        result, before, after = (OmegaConf.to_container(c, resolve=False) for c in (stored, self.composed, config))
        _apply_changes(result, before, after)
        for section in after.keys() - result.keys():
            result[section] = after[section]
        result = OmegaConf.create(result)
        replaced = {group for group, option in choices.items() if option != self.choices.get(group)} - {"trainer"}
        for group in sorted(group.replace("/", ".") for group in replaced):
            if (node := OmegaConf.select(config, group)) is not None:
                OmegaConf.update(result, group, node, merge=False, force_add=True)
        return result


def _plain(option: Any) -> str:
    """Return the option of a group as the command line has it: "['console', 'jsonl']" -> "[console,jsonl]"."""
    return re.sub(r"[\s'\"]", "", str(option))


def _apply_changes(result: dict[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Change in `result` what differs between two nested configurations."""
    for name in before.keys() - after.keys():
        result.pop(name, None)
    for name, value in after.items():
        if isinstance(value, dict) and isinstance(before.get(name), dict) and isinstance(result.get(name), dict):
            _apply_changes(result[name], before[name], value)
        elif name not in before or before[name] != value:
            result[name] = value


def _relink(result: DictConfig, template: Any, key: str) -> None:
    """Put the interpolations of `template` below a key into `result`, where they give the value that stands there."""
    if not isinstance(template, DictConfig) or template._content is None:
        return
    for name, value in template.items_ex(resolve=False):
        full = f"{key}.{name}"
        if not (isinstance(value, str) and "${" in value):
            _relink(result, value, full)
        elif (here := OmegaConf.select(result, full, default=MISSING)) is not MISSING:
            OmegaConf.update(result, full, value)
            try:
                same = OmegaConf.select(result, full) == here
            except OmegaConfBaseException:
                same = False
            if not same:
                OmegaConf.update(result, full, here)
