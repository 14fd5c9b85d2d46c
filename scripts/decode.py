"""Draw what features and predictions know: python scripts/decode.py checkpoint=<run> [output=<png>]

A small decoder, fitted to frozen features, draws what a model predicts behind masks, and the frames that a world model
rolls out. --help shows what can be set.
"""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from jepa.config.command import complete, reported_errors, run_command
from jepa.config.compose import register_resolvers
from jepa.config.stored import addable

register_resolvers()


@hydra.main(config_path="../conf", config_name="decode", version_base="1.3")
def main(config: DictConfig) -> None:
    """Compose, open, decode, draw."""
    config = complete(config)
    with reported_errors():
        from jepa.config.decode_run import decode_run  # torch is not needed for --help

        for path in decode_run(config):
            print(path)


if __name__ == "__main__":
    sys.argv[1:] = addable(sys.argv[1:])
    run_command(main, "decode")
