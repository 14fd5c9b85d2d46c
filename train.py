"""Train a JEPA: python train.py [group=option] [key=value], see --help."""

from __future__ import annotations

import errno
import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from jepa.utils.config import explain, register_resolvers, with_stored_overrides
from jepa.utils.errors import SYSTEM_ERRORS, Interrupted, UserError, system_error, system_errors

register_resolvers()


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(config: DictConfig) -> float | None:
    """Compose, build, fit; gives the metric that a sweep optimises."""
    from jepa.build import build_trainer  # torch is not needed for --help

    with open_dict(config):
        config.run_dir = HydraConfig.get().runtime.output_dir
        config.overrides = list(HydraConfig.get().overrides.task)  # for resume=<folder>
    try:
        with system_errors():
            trainer = build_trainer(config)
            if trainer.dry_run:
                from jepa.report import preview

                preview(trainer, plan=[f"Would train in {trainer.folder.path}"])
                return None
            metrics = trainer.fit()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # at once: a sweep raises it after its last job
        raise
    wanted = [config.optimized_metric] if config.optimized_metric else ["eval/trained/linear", "val/loss"]
    return next((metrics[name] for name in wanted if name in metrics), None)


if __name__ == "__main__":
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
