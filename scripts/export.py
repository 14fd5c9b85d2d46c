"""Export an encoder: python scripts/export.py checkpoint=<run folder, file or name> format=timm output=encoder.pth

Writes the encoder as safetensors, for timm, as TorchScript or ONNX, reads it back, compares its features, and puts a
card beside it: `<output>.json` and, for people, `<output>.md`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from jepa.config.command import complete, reported_errors, run_command
from jepa.config.compose import register_resolvers
from jepa.config.stored import CommandLine, addable

register_resolvers()


@hydra.main(config_path="../conf", config_name="export", version_base="1.3")
def main(config: DictConfig) -> None:
    """Compose, open, write."""
    config = complete(config)
    with reported_errors():
        export_encoder(config)


def export_encoder(config: DictConfig) -> Path:
    """Open a checkpoint and export one of its encoders; return the file.

    Raises UserError for what is missing, does not fit or cannot be written, and when what was written differs.
    """
    from jepa.config.open_checkpoint import open_checkpoint
    from jepa.interop import export
    from jepa.interop.sizes import to_pair

    path = output_of(config)
    loaded, joined = open_checkpoint(config, data="none")
    for line in loaded.lines:
        print(line, flush=True)
    given = CommandLine(config.overrides)
    sized = given.option("data") or "image_size" in given.below("data")
    card, files = export(
        loaded,
        path,
        format=config.format,
        network=config.network,
        features=config.features,
        image_size=to_pair(joined.data.image_size) if sized else None,
        results=read_results(config.results) if config.results else None,
    )
    print(f"features agree to {card['export']['difference']:.1e}")
    print(", ".join(map(str, files)))
    return path


def output_of(config: DictConfig) -> Path:
    """The file to write. Raises UserError for a format, network or suffix that is not known, or a run's own file."""
    from jepa.interop.exporting import SUFFIXES
    from jepa.utils.errors import UserError
    from jepa.utils.files import check_output

    for key, known in (("format", SUFFIXES), ("network", ("target", "context")), ("features", ("tokens", "pooled"))):
        if config[key] not in known:
            raise UserError(f"{key}={config[key]}: expected one of {', '.join(known)}")
    suffixes = SUFFIXES[config.format]
    stem = "encoder_timm" if config.format == "timm" else "encoder"
    path = Path(config.output or Path(config.run_dir) / f"{stem}{suffixes[0]}")
    if path.suffix not in suffixes:
        raise UserError(f"output={path}: a file of format={config.format} ends with {' or '.join(suffixes)}")
    check_output(path, OmegaConf.select(config, "checkpoint"))
    return path


def read_results(name: str) -> dict[str, Any]:
    """Rows of a JSON file of scripts/evaluate.py. Raises UserError when it is none."""
    from jepa.utils.errors import UserError
    from jepa.utils.read_data import DamagedFileError, read_json

    try:
        results = read_json(Path(name))
    except DamagedFileError as error:
        raise UserError(f"results={name} cannot be read: {error}; expected a JSON of scripts/evaluate.py") from error
    if not isinstance(results, dict):
        raise UserError(f"results={name} holds no names and values; expected a JSON of scripts/evaluate.py")
    return results


if __name__ == "__main__":
    sys.argv[1:] = addable(sys.argv[1:])
    run_command(main, "export")
