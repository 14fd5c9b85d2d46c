"""Composing a run's configuration. Imports neither torch nor anything slow: `--help` and `--cfg job` need only this."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from jepa.utils.errors import UserError

SWEEP_FILE = "multirun.yaml"
"""What Hydra leaves of a sweep in its folder."""

PACKAGE = Path(__file__).resolve().parents[1]
CONFIG_DIR = next((path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir()), PACKAGE / "conf")
"""In the package where it is installed from a wheel (see setup.py), beside it in a checkout."""


def load_config(
    overrides: Sequence[str] = (), *, config_dir: str | Path | None = None, config_name: str = "config"
) -> DictConfig:
    """Compose a configuration as the command line does: load_config(["data=mnist", "optimizer.lr=1e-3"]).

    config_dir: a folder of yours that is searched besides conf/, like --config-dir.

    Raises UserError for an unknown key or option.
    """
    register_resolvers()
    overrides = list(overrides)
    if config_dir is not None:
        overrides.append(f"hydra.searchpath=[file://{Path(config_dir).resolve()}]")
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return compose(config_name, overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error


def register_resolvers() -> None:
    """Make the resolvers that files in conf/ use known; may be called again."""
    OmegaConf.register_new_resolver("run_dir", run_folder_of, replace=True)
    OmegaConf.register_new_resolver("sweep_name", sweep_name, replace=True)
    OmegaConf.register_new_resolver("first_given", first_given, replace=True)
    OmegaConf.register_new_resolver("gpus_of", gpus_of, replace=True)


def first_given(*values: object) -> object:
    """The first that is not None, None if all are."""
    return next((value for value in values if value is not None), None)


def gpus_of(device: str, processes: int) -> int:
    """GPUs for so many processes: one each, none on the processor."""
    return 0 if device == "cpu" else processes


def sweep_name() -> str | None:
    """Name of the folder of the sweep that this run is a job of; None in a single run and from Python."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir).name


def run_folder_of(resume: str | None, default: str) -> str:
    """Where a run writes: in the folder it resumes, else in `default`."""
    if resume in (None, "auto"):
        return default
    path = Path(resume)
    if path.is_dir() and not (path / "state.pt").is_file():  # which a sharded checkpoint has
        return str(path.parent if path.name == "checkpoints" else path)
    return str(path.parent.parent if path.parent.name == "checkpoints" else path.parent)


def default_run_dir() -> str:
    """outputs/<date>/<time> of now."""
    return datetime.now().strftime("outputs/%Y-%m-%d/%H-%M-%S-%f")


def with_stored_overrides(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments, with those of the run that `resume=<folder>` names put before them.

    So `python train.py resume=outputs/...` needs no other option, nor does one with the folder of a sweep. What is
    given now wins.
    """
    given = {override_key(argument) for argument in arguments if "=" in argument or argument.startswith("~")}
    resume = next((a.partition("=")[2] for a in arguments if a.startswith("resume=")), "auto")
    if (Path(resume) / SWEEP_FILE).is_file():
        return _with_stored_sweep(arguments, Path(resume), given)
    stored = Path(run_folder_of(resume, "")) / "config.yaml"  # Hydra's own copy is also of starts that failed
    if resume in ("auto", "null", "") or not stored.is_file():
        return list(arguments)
    overrides = OmegaConf.load(stored).get("overrides") or []
    kept = [line for line in overrides if override_key(line) not in given]
    place = next(number for number, argument in enumerate(arguments) if argument.startswith("resume="))
    return [*arguments[:place], *kept, *arguments[place:]]  # argparse wants overrides side by side


def _with_stored_sweep(arguments: Sequence[str], folder: Path, given: set[str]) -> list[str]:
    """Arguments that go on with the sweep in a folder: its own, each of its runs from where it is."""
    stored = OmegaConf.load(folder / SWEEP_FILE).hydra.overrides
    given = given | {"resume", "hydra.mode", "hydra.sweep.dir"}
    kept = [line for line in [*stored.hydra, *stored.task] if override_key(line) not in given]
    place = next(number for number, argument in enumerate(arguments) if argument.startswith("resume="))
    text = str(folder)
    quoted = "'" + text.replace("'", "\\'") + "'" if re.search(r"[^\w./-]", text, re.ASCII) else text
    flag = [] if {"-m", "--multirun", "-c", "--cfg"} & set(arguments) else ["--multirun"]
    own = [*kept, "resume=auto", f"hydra.sweep.dir={quoted}"]
    return [*flag, *arguments[:place], *own, *arguments[place + 1 :]]


def override_key(override: str) -> str:
    """The key that an override sets: "+a.b=1" -> "a.b"."""
    return override.partition("=")[0].lstrip("+~")


def explain(error: BaseException) -> str:
    """A configuration error in words, with the nearest existing key or option where one is close."""
    lines = [str(part).strip() for part in (error, error.__cause__) if part is not None]
    text = "\n".join(dict.fromkeys(line for line in lines if line))
    key = re.search(r"Could not override '([\w.@/]+)'", text)
    option = re.search(r"Could not find '([\w/]+)/([\w.-]+)'", text)
    if option:
        group, name = option.groups()
        close = difflib.get_close_matches(name, [p.stem for p in (CONFIG_DIR / group).glob("*.yaml")], n=1)
        if close:
            text += f"\nDid you mean {group}={close[0]}?"
    elif key:
        close = difflib.get_close_matches(key[1], known_keys(), n=1, cutoff=0.8)
        if close:
            text += f"\nDid you mean {close[0]}?"
    return text


def known_keys() -> list[str]:
    """Every dotted key of the files in conf/, by the group they stand in."""
    keys = {"resume", "init_from", "optimized_metric", "run_dir"}
    keys |= {"scaling.reference_batch_size", "scaling.rule"}
    for path in CONFIG_DIR.rglob("*.yaml"):
        group = ".".join(path.relative_to(CONFIG_DIR).parts[:-1])
        node = OmegaConf.to_container(OmegaConf.load(path))
        if group.split(".")[0] not in ("", "recipe", "experiment"):
            keys |= {f"{group}.{key}" for key in dotted_keys(node)}
        elif not group and path.stem in node:  # a script's own options
            keys |= {f"{path.stem}.{key}" for key in dotted_keys(node[path.stem])}
    return sorted(keys)


def dotted_keys(node: object) -> list[str]:
    """All dotted keys of a nested dict."""
    if not isinstance(node, dict):
        return []
    return [full for k, v in node.items() for full in (k, *(f"{k}.{sub}" for sub in dotted_keys(v)))]
