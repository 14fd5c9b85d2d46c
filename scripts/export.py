"""Export an encoder: python scripts/export.py checkpoint=<run folder, file or name> format=timm output=encoder.pth

Writes the encoder as safetensors, for timm, as TorchScript or ONNX, reads it back, compares its features, and puts a
card beside it: `<output>.json` and, for people, `<output>.md`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from jepa.config.command import complete, reported_errors, run_command
from jepa.config.compose import register_resolvers
from jepa.config.stored import Given, addable

register_resolvers()


@hydra.main(config_path="../conf", config_name="export", version_base="1.3")
def main(config: DictConfig) -> None:
    """Compose, open, write."""
    config = complete(config)
    with reported_errors():
        export_encoder(config)


def export_encoder(config: DictConfig) -> Path:
    """Open a checkpoint and export one of its encoders; gives the file.

    Raises UserError for what is missing, does not fit or cannot be written, and when what was written differs.
    """
    from jepa.config.build import build_model
    from jepa.interop.card import results_of, write_card
    from jepa.interop.configured import open_configured
    from jepa.interop.exports import export
    from jepa.interop.networks import network_of
    from jepa.utils.files import write_atomic, write_text

    path = output_of(config)
    opened, joined = open_configured(config, build_model, data="none")
    for line in opened.lines:
        print(line, flush=True)
    image_size, channels = picture_of(opened, joined, Given(config.overrides))
    results = read_results(config.results) if config.results else results_of(opened.metrics)
    card = {
        "source": opened.source,
        "network": config.network,
        "step": opened.step,
        "fingerprint": opened.fingerprint,
        "encoder": opened.encoder,
        "data": opened.data,
        "model": opened.description,
        "results": results,
    }

    def write(temporary: Path) -> None:
        card["export"] = export(
            network_of(opened.model, config.network),
            temporary,
            kind=config.format,
            config=opened.encoder,
            image_size=image_size,
            channels=channels,
            features=config.features,
            card={key: card[key] for key in ("source", "network", "step", "encoder", "data")},
        )

    write_atomic(path, write)
    print(f"features agree to {card['export']['difference']:.1e}")
    print(", ".join(map(str, [path, *write_card(card, path, write_text)])))
    return path


def output_of(config: DictConfig) -> Path:
    """The file to write. Raises UserError for a format, network or suffix that is not known, or a run's own file."""
    from jepa.interop.exports import SUFFIXES
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


def picture_of(opened: Any, config: DictConfig, given: Given) -> tuple[tuple[int, int], int]:
    """(H, W) and channels of the pictures that the export takes. Raises UserError when they are not known."""
    from jepa.utils.errors import UserError

    told = given.option("data") or "image_size" in given.below("data")
    size = config.data.image_size if told else opened.image_size
    if size is None or opened.channels is None:
        raise UserError(
            f"{opened.source} does not say what pictures it takes: of an encoder of pictures give data.image_size= and "
            "data.channels=, those of other inputs are not exported"
        )
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    for side, patch in zip((height, width), getattr(opened.model.encoder, "patch_size", (1, 1))):
        if side % patch:
            raise UserError(f"data.image_size={side} is not a multiple of the patches of {patch} pixels")
    return (height, width), opened.channels


def read_results(name: str) -> dict[str, Any]:
    """Rows of a JSON file of scripts/evaluate.py. Raises UserError when it is none."""
    from jepa.utils.errors import UserError

    try:
        return json.loads(Path(name).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"results={name} cannot be read: {error}; expected a JSON of scripts/evaluate.py") from error


if __name__ == "__main__":
    sys.argv[1:] = addable(sys.argv[1:])
    run_command(main)
