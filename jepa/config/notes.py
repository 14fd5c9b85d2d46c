"""What the first lines of a run say of its configuration: which run is tuned, what an experiment still sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from jepa.config.compose import CONFIG_DIR
from jepa.config.stored import CommandLine
from jepa.utils.nested import flatten


def notes(config: DictConfig) -> list[str]:
    """Return sentences about a run's configuration; `config.overrides` says what the command line gave."""
    given = CommandLine(config.get("overrides") or [])
    name = given.options.get("experiment")
    if name in (None, "null", ""):
        return _tuned(config, given)
    return _still_set(name, given)


def _tuned(config: DictConfig, given: CommandLine) -> list[str]:
    tuned = OmegaConf.select(config, "data.hints.experiment")
    if tuned is None or {"model", "loss"} & set(given.options):
        return []
    return [f"plain defaults: experiment={tuned} is the run that is tuned for these data"]


def _still_set(name: str, given: CommandLine) -> list[str]:
    """Name what an experiment still sets in groups of which the command line chose another option.

    With other data also the options that it chose for these groups by name.
    """
    node = _experiment(name)
    if node is None:
        return []
    own = {}
    for line in node.pop("defaults", []):
        for key, option in line.items() if isinstance(line, dict) else ():
            own[key.removeprefix("override ").lstrip("/")] = option
    values = flatten(node)
    lines = []
    for group, option in given.options.items():
        if group == "experiment" or own.get(group) == option:
            continue
        prefix = f"{group.replace('/', '.')}."
        held = {key: value for key, value in values.items() if key.startswith(prefix) and key not in given.values}
        kept = {key: value for key, value in own.items() if group == "data" and key not in given.options}
        if held or kept:
            shown = ", ".join(f"{key}={value}" for key, value in {**kept, **held}.items())
            lines.append(f"with {group}={option}, experiment={name} still sets {shown}")
    return lines


def _experiment(name: str) -> dict[str, Any] | None:
    """Return an experiment's file as plain values, from conf/ or --config-dir; None where it is found in neither."""
    folders = [CONFIG_DIR]
    if HydraConfig.initialized():
        sources = HydraConfig.get().runtime.config_sources
        folders += [source.path for source in sources if source.schema == "file"]
    for folder in folders:
        path = Path(folder) / "experiment" / f"{name}.yaml"
        if path.is_file():
            return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return None
