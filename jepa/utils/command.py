"""Running a Hydra entry point as a command: one sentence on stderr for a mistake, and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from jepa.utils.config import explain, with_stored_overrides
from jepa.utils.errors import SYSTEM_ERRORS, Interrupted, UserError, system_error, system_errors


def run_command(main: Callable[[], object]) -> None:
    """Call a function decorated with `hydra.main` and turn what the user can mend into a message and exit code 1."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here instead of being printed and swallowed by Hydra
    sys.argv[1:] = with_stored_overrides(sys.argv[1:])
    try:
        main()
    except UserError:
        sys.exit(1)
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {explain(error)}")
    except OSError as error:  # Hydra could not make the run folder
        if error.errno not in SYSTEM_ERRORS | {errno.ENOENT}:  # the latter from below /proc
            raise
        sys.exit(f"error: {system_error(error)}")
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


@contextlib.contextmanager
def reported_errors() -> Iterator[None]:
    """A context that prints a UserError at once: a sweep raises it only after its last job."""
    try:
        with system_errors():
            yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise


def complete(config: DictConfig) -> None:
    """Put into a composed configuration what Hydra alone knows: the run folder and the overrides."""
    with open_dict(config):
        config.run_dir = HydraConfig.get().runtime.output_dir
        config.overrides = list(HydraConfig.get().overrides.task)  # for resume=<folder>
