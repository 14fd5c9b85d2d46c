"""Composing a run's configuration. Imports neither torch nor anything slow: `--help` and `--cfg job` need only this."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from jepa.config.overrides import quoted
from jepa.utils.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
CONFIG_DIR = next((path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir()), PACKAGE / "conf")
"""In the package where it is installed from a wheel (see setup.py), beside it in a checkout."""


def compose_with_choices(
    overrides: Sequence[str], *, config_dir: str | Path | None = None, config_name: str = "config"
) -> tuple[DictConfig, dict[str, Any]]:
    """Return what Hydra composes, and the option of each group: {"model/encoder": "vit", ...}."""
    register_resolvers()
    search = [] if config_dir is None else [f"hydra.searchpath=[{quoted(f'file://{Path(config_dir).resolve()}')}]"]
    inside_run = GlobalHydra.instance().is_initialized()  # whose search path is the right one
    with contextlib.nullcontext() if inside_run else initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        try:
            config = compose(config_name, overrides=[*overrides, *search], return_hydra_config=True)
        except (HydraException, OmegaConfBaseException):
            raise
        except COMPOSING as error:
            raise UserError(f"cannot compose {' '.join(overrides)}: {error}") from error
    with open_dict(config):
        choices = config.pop("hydra").runtime.choices
    return config, {group: option for group, option in choices.items() if not group.startswith("hydra/")}


def register_resolvers() -> None:
    """Make the resolvers that files in conf/ use known; may be called again."""
    OmegaConf.register_new_resolver("run_dir", run_folder_of, replace=True)
    for resolver in (sweep_name, first_given, gpus_of, size, product, last, required):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


COMPOSING = (ValueError, TypeError, AttributeError, LookupError, AssertionError)
"""What Hydra raises for a few overrides, beside its own errors."""

SIZES = {
    "toy": {"embed_dim": 128, "depth": 4, "num_heads": 4, "predictor_embed_dim": 64, "predictor_depth": 1},
    "toy_text": {"embed_dim": 128, "depth": 2, "num_heads": 4, "predictor_embed_dim": 64, "predictor_depth": 1},
    "toy_series": {"embed_dim": 128, "depth": 3, "num_heads": 4, "predictor_embed_dim": 64, "predictor_depth": 1},
    "mini": {"embed_dim": 192, "depth": 6, "num_heads": 6, "predictor_embed_dim": 96, "predictor_depth": 2},
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3, "predictor_embed_dim": 96, "predictor_depth": 4},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6, "predictor_embed_dim": 384, "predictor_depth": 6},
}
"""What `data.hints.size` stands for: the encoder, and the predictor beside it."""


def required(*expected: str) -> None:
    """Raise UserError: a value has to be given. For experiments, whose ??? does not replace that of config.yaml."""
    raise UserError(f"not set; give it on the command line: {', '.join(expected)}")


def size(name: str, key: str) -> int | str:
    """Return one number of a size by name, for `${size:toy,embed_dim}` in a yaml; `auto` for that, see `auto_size`.

    Raise UserError for another name.
    """
    if name == "auto":
        return name
    if name not in SIZES:
        raise UserError(f"data.hints.size={name}: expected auto or one of {', '.join(SIZES)}")
    return SIZES[name][key]


def product(*factors: Any) -> Any:
    """Return the product of numbers; of others the first, which the check of types then names where it was given."""
    words = [factor for factor in factors if not isinstance(factor, (int, float))]
    return words[0] if words else math.prod(factors)


def last(value: Any) -> Any:
    """Return the last of a list, such as the time steps of a patch of (frequency, time); any other value as it is."""
    return value[-1] if OmegaConf.is_list(value) else value


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
    """Return where a run writes: the folder of the run or checkpoint that it resumes, else `default`."""
    if resume in (None, "auto"):
        return default
    path = Path(str(resume))
    # os.path says False for a name that the system refuses. A sharded checkpoint has state.pt.
    if os.path.isdir(path) and not os.path.isfile(path / "state.pt"):
        return str(path.parent if path.name == "checkpoints" else path)
    return str(path.parent.parent if path.parent.name == "checkpoints" else path.parent)


def default_run_dir() -> str:
    """outputs/<date>/<time> of now."""
    return datetime.now().strftime("outputs/%Y-%m-%d/%H-%M-%S-%f")


def known_keys() -> list[str]:
    """Return every group and every dotted key of the files in conf/, by the group they stand in."""
    keys = {"optimized_metric"}
    for path in CONFIG_DIR.rglob("*.yaml"):
        group = ".".join(path.relative_to(CONFIG_DIR).parts[:-1])
        keys.add(group.replace(".", "/"))
        found = dotted_keys(OmegaConf.to_container(OmegaConf.load(path)))
        if path.read_text().startswith("# @package _global_") or not group:
            keys |= {key for key in found if not key.startswith(("defaults", "hydra"))}
        else:
            keys |= {f"{group}.{key}" for key in found}
    return sorted(keys)


def option_with(key: str) -> str | None:
    """Return the option whose file lists a key: hydra.launcher.partition -> hydra/launcher=slurm."""
    parts = key.split(".")
    for depth in range(min(2, len(parts) - 1), 0, -1):
        group, below = "/".join(parts[:depth]), ".".join(parts[depth:])
        for path in sorted((CONFIG_DIR / group).glob("*.yaml")):
            listed = dotted_keys(OmegaConf.to_container(OmegaConf.load(path)))
            if key in listed or (below in listed and "_global_" not in path.read_text(encoding="utf-8")):
                return f"{group}={path.stem}"
    return None


def dotted_keys(node: object) -> list[str]:
    """Return all dotted keys of a nested dict."""
    if not isinstance(node, dict):
        return []
    return [full for k, v in node.items() for full in (k, *(f"{k}.{sub}" for sub in dotted_keys(v)))]
