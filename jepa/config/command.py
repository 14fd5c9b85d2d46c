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
from collections.abc import Callable, Iterator
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from jepa.config.compose import compose_config, explain
from jepa.config.overrides import override_key, with_new_keys, with_stored_sweep
from jepa.config.resume import read_stored, resumed
from jepa.config.stored import addable
from jepa.distributed.launch import read_launch
from jepa.utils.errors import (
    SYSTEM_ERRORS,
    Interrupted,
    OtherRankError,
    UserError,
    convert_system_errors,
    system_error_message,
)

failed_jobs: set[str] = set()
"""Runs of this process's sweep that have failed, for its exit code; noted at the end of the sweep."""


removed: list[str] = []
"""Values that the command line takes out of the configuration of a run that goes on, `~logger.tensorboard`.

Hydra would look for them in the default configuration.
"""

sweep_file: tuple[Path, bytes] | None = None
"""The file that makes a sweep go on, and what it was before this process's sweep; for when that is refused."""


def run_command(main: Callable[[], object]) -> None:
    """Call a function decorated with `hydra.main` and turn what the user can mend into a message and exit code 1.

    A sweep goes on where runs fail, and ends with exit code 1 then.

    Of several processes only rank 0 leaves what Hydra writes; the others write to a folder that goes when they end.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here instead of being printed and swallowed by Hydra
    rank = 0
    with contextlib.ExitStack() as stack:
        try:
            sys.argv[1:] = with_stored_sweep(sys.argv[1:])
            rank = read_launch().rank
            sys.argv[1:] = _with_new_keys(sys.argv[1:])
            if rank > 0:
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                # Beside the other overrides, as argparse wants them side by side.
                place = next((n for n, a in enumerate(sys.argv) if n and a[0] != "-" and "=" in a), 1)
                sys.argv[place:place] = [f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}"]
            main()
            leave_process_group()
            if failed_jobs:
                sys.exit(1)
        except UserError as error:
            if not getattr(error, "reported", False):
                print(f"error: {error}", file=sys.stderr)
            if sweep_file is not None and rank == 0:
                sweep_file[0].write_bytes(sweep_file[1])
            sys.exit(1)
        except (HydraException, OmegaConfBaseException) as error:
            sys.exit(f"error: {explain(error)}" if rank == 0 else 1)  # the same on every rank
        except RuntimeError as error:
            if "Unknown plugin class" not in str(error):
                raise
            sys.exit(
                "error: hydra/launcher=local, hydra/launcher=slurm and the sweeps of Optuna are for train.py alone"
            )
        except OSError as error:  # Hydra could not make the run folder
            if error.errno not in SYSTEM_ERRORS | {errno.ENOENT}:  # the latter from below /proc
                raise
            sys.exit(f"error: {system_error_message(error)}")
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
    try:
        with convert_system_errors():
            yield
    except BrokenPipeError:  # who reads the output has seen enough, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except UserError as error:
        if not (isinstance(error, OtherRankError) or getattr(error, "reported", False)):
            print(f"error: {error}", file=sys.stderr, flush=True)
        error.reported = True
        if HydraConfig.get().mode == RunMode.RUN:
            raise SystemExit(1) from error
        raise


def _with_new_keys(arguments: list[str]) -> list[str]:
    """Return arguments in which keys that no yaml lists are added; those of a run that goes on may be new as well."""
    resume = next((a.partition("=")[2].strip("'\"") for a in arguments if a.startswith("resume=")), None)
    if read_stored(resume) is not None:
        removed[:] = [argument for argument in arguments if re.match(r"~\w+\.", argument)]
        return addable([argument for argument in arguments if argument not in removed])
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")
    folder = parser.parse_known_args(arguments)[0].config_dir
    return with_new_keys(arguments, functools.partial(compose_config, config_dir=folder))


def complete(config: DictConfig) -> DictConfig:
    """Return a composed configuration with what Hydra alone knows, the run folder and the overrides.

    With `resume=<folder>` that of the run there, and what the command line gives.
    """
    overrides = list(HydraConfig.get().overrides.task)
    stored = read_stored(config.get("resume"))
    if stored is not None:
        overrides += removed
        with reported_errors():
            config = resumed(config, stored, overrides)
        before = [
            line for line in stored.get("overrides") or [] if override_key(line) not in map(override_key, overrides)
        ]
        overrides = [*before, *overrides]
    with open_dict(config):
        config.run_dir = HydraConfig.get().runtime.output_dir
        config.overrides = overrides
    return config
