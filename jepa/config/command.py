"""Running a Hydra entry point as a command: one sentence on stderr for a mistake, and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from jepa.config.compose import COMPOSING, CONFIG_DIR, compose_with_choices, run_folder_of
from jepa.config.help import help_text
from jepa.config.keys import Compose, with_new_keys
from jepa.config.mistakes import check_flags, explain
from jepa.config.overrides import literal, override_key, with_quoted_paths
from jepa.config.resume import StoredRun, with_stored_options
from jepa.config.settings_file import with_files_read
from jepa.distributed.launch import read_launch, report_on_rank0
from jepa.utils.errors import (
    SYSTEM_ERRORS,
    Interrupted,
    OtherRankError,
    UserError,
    convert_system_errors,
    system_error_message,
)
from jepa.utils.read_data import printable

OF_SINGLE_RUNS = ("visualise",)  # groups that the runs of a sweep go without, unless they are asked for
failed_jobs: set[str] = set()
"""Runs of this process's sweep that have failed, for its exit code; noted at the end of the sweep."""

composed = False  # whether a configuration has been composed: errors from then on are not of options
sweep_file: tuple[Path, bytes] | None = None
"""The file that makes a sweep go on, and what it was before this process's sweep; for when that is refused."""


def run_command(main: Callable[[], object], config_name: str = "config") -> None:
    """Call a function decorated with `hydra.main` and turn what the user can mend into a message and exit code 1.

    config_name: that of the decorator.

    A sweep goes on where runs fail, and ends with exit code 1 then.

    Of several processes only rank 0 leaves what Hydra writes; the others write to a folder that goes when they end.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here instead of being printed and swallowed by Hydra
    rank = 0
    with contextlib.ExitStack() as stack:
        try:
            rank = read_launch().rank
            with report_on_rank0():
                config_dir = _config_dir(sys.argv[1:])
                check_flags(sys.argv[1:], _composing(config_dir, config_name), sys.argv[0])
                arguments = full_arguments(sys.argv[1:], config_dir, config_name)
                # Overrides side by side, as argparse wants them.
                sys.argv[1:] = sorted(arguments, key=lambda argument: bool(re.match(r"~|[^-].*=", argument, re.DOTALL)))
                if {"--help", "-h"} & set(sys.argv[1:]):
                    overrides = [a for a in sys.argv[1:] if "=" in a and a[0] != "-"]
                    return print(help_text(overrides, config_dir, config_name)) if rank == 0 else None
            if rank > 0:
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                sys.argv += [f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}"]
            main()
            leave_process_group()
            if failed_jobs:
                sys.exit(1)
        except UserError as error:
            if not getattr(error, "reported", False):
                print(f"error: {printable(str(error))}", file=sys.stderr)
            if sweep_file is not None and rank == 0:
                sweep_file[0].write_bytes(sweep_file[1])
            sys.exit(1)
        except (HydraException, OmegaConfBaseException) as error:
            sys.exit(f"error: {printable(explain(error))}" if rank == 0 else 1)  # the same on every rank
        except COMPOSING as error:
            if composed:  # so it is a bug
                raise
            sys.exit(f"error: {printable(explain(error))}" if rank == 0 else 1)
        except RuntimeError as error:
            if "Unknown plugin class" not in str(error):
                raise
            sys.exit(
                "error: hydra/launcher=local, hydra/launcher=slurm and the sweeps of Optuna are for train.py alone"
            )
        except OSError as error:  # Hydra could not make the run folder
            if error.errno not in SYSTEM_ERRORS | {errno.ENOENT}:  # the latter from below /proc
                raise
            sys.exit(f"error: {printable(system_error_message(error))}")
        except Interrupted as stop:
            if rank == 0:
                print(stop, file=sys.stderr)
            if stop.agreed:
                leave_process_group()
            sys.exit(stop.exit_code)
        except KeyboardInterrupt:
            sys.exit(130)


def leave_process_group() -> None:
    """Leave the other processes, if any were joined; torch is imported only where that can be."""
    if "jepa.distributed.collectives" in sys.modules:
        from jepa.distributed.collectives import destroy_process_group

        destroy_process_group()


@contextlib.contextmanager
def reported_errors() -> Iterator[None]:
    """A context that prints a UserError at once: a sweep raises it only after its last job.

    Outside a sweep there is nothing to raise it to but Hydra, which would add a line. The failure of another rank is
    printed there.
    """
    global composed
    composed = True
    try:
        with convert_system_errors():
            yield
    except BrokenPipeError:  # who reads the output has seen enough, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except UserError as error:
        if not (isinstance(error, OtherRankError) or getattr(error, "reported", False)):
            print(f"error: {printable(str(error))}", file=sys.stderr, flush=True)
        error.reported = True
        if HydraConfig.get().mode == RunMode.RUN:
            raise SystemExit(1) from error
        raise


def load_config(
    overrides: str | Path | Sequence[str] = (), *, config_dir: str | Path | None = None, config_name: str = "config"
) -> DictConfig:
    """Compose a configuration as the command line does: load_config(["data=mnist", "optimizer.lr=1e-3"]).

    A file of deltas stands for what it sets, alone or among others: load_config("my.yaml"). With "resume=<folder>" that
    of the run there. Raise UserError for an unknown key or option.

    config_dir: a folder of yours that is searched besides conf/, like --config-dir.
    """
    if isinstance(overrides, Path) or str(overrides).endswith((".yaml", ".yml")):
        overrides = [str(overrides)]
    if isinstance(overrides, str):
        raise UserError(f"load_config({overrides!r}): expected a list of overrides, [{overrides!r}]")
    if config_dir is not None and not Path(config_dir).is_dir():
        raise UserError(f"config_dir={config_dir} is not a folder")
    try:
        full = full_arguments(overrides, config_dir, config_name)
        config, choices = compose_with_choices(full, config_dir=config_dir, config_name=config_name)
        return _of_run(config, choices, full, config_dir)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error


def complete(config: DictConfig) -> DictConfig:
    """Return a composed configuration with what Hydra alone knows, the run folder and the overrides.

    With `resume=<folder>` the configuration of the run there, with what the command line gives.
    """
    global composed
    hydra = HydraConfig.get()
    given = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    config = _of_run(config, hydra.runtime.choices, given)
    composed = True
    with open_dict(config):
        config.run_dir = literal(hydra.runtime.output_dir)
        if hydra.mode == RunMode.MULTIRUN:  # where nobody looks at each run
            asked = {override_key(line).partition(".")[0] for line in config.overrides}
            config.update({group: {} for group in OF_SINGLE_RUNS if group not in asked})
    return config


def _of_run(
    config: DictConfig, choices: Mapping[str, Any], overrides: list[str], config_dir: str | Path | None = None
) -> DictConfig:
    """Return a composed configuration, that of the run that goes on if it names one, with its overrides."""
    run = StoredRun.find(config.get("resume"), config_dir)
    if run is not None:
        folder = run_folder_of(config.resume, "")
        config = run.continued(config, choices)
        config.run_dir = literal(folder)
    with open_dict(config):
        config.overrides = list(map(literal, overrides))
    return config


def full_arguments(
    arguments: Sequence[str], config_dir: str | Path | None = None, config_name: str = "config"
) -> list[str]:
    """Return arguments as Hydra takes them: files read, paths quoted, options of the run that goes on, new keys added.

    Raise UserError for a group that is left out, `~monitor`.
    """
    arguments = with_files_read(arguments)
    for argument in arguments:
        key = override_key(argument)
        if argument.startswith("~") and key != "experiment" and (CONFIG_DIR / key).is_dir():
            none = f"{key}=none turns it off" if (CONFIG_DIR / key / "none.yaml").is_file() else "choose another option"
            raise UserError(f"{argument}: a run needs every group; {none}")
    arguments = with_stored_options(with_quoted_paths(arguments), config_dir)
    return with_new_keys(arguments, _composing(config_dir, config_name))


def _composing(config_dir: str | Path | None, config_name: str) -> Compose:
    """Return the function that makes the configuration of overrides, and the option of each group."""
    return functools.partial(compose_with_choices, config_dir=config_dir, config_name=config_name)


def _config_dir(arguments: Sequence[str]) -> str | None:
    """Return what `--config-dir` names."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")
    return parser.parse_known_args(arguments)[0].config_dir
