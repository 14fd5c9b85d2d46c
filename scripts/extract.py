"""Features of files, or of a run's own data: python scripts/extract.py checkpoint=<run> input=<folder> output=f.npz

Each row has `path`, relative to the folder of input= or data.root, and where it is a part of a file its place: `start`
in seconds of a sound, or steps of a series, and then `time`, `row` of a text; of a run's own data `split`, `index` and
`label`. Beside these it has `features` (n, D), or one `layer_<number>` for each of layers=. What cannot be read is
listed and left out.

The file grows in `<output>.part`, and goes on there when it was interrupted.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from jepa.config.command import complete, reported_errors, run_command
from jepa.config.compose import register_resolvers
from jepa.config.stored import CommandLine, addable

register_resolvers()

SHOWN = 20
"""Unreadable samples that are listed."""


@hydra.main(config_path="../conf", config_name="extract", version_base="1.3")
def main(config: DictConfig) -> None:
    """Compose, open, read, write."""
    config = complete(config)
    with reported_errors():
        extract(config)


def extract(config: DictConfig) -> Path:
    """Open a checkpoint, encode every sample, and write features with their rows; gives the file.

    Raises UserError for what is missing, does not fit or cannot be written, and when nothing can be read.
    """
    from jepa.config.extracted_samples import SplitSamples, samples_of
    from jepa.config.load_encoder import Encoder
    from jepa.config.open_checkpoint import open_checkpoint
    from jepa.tools.feature_file import FeatureFile
    from jepa.trainer.precision import Precision, resolve_device
    from jepa.utils.errors import DataError

    path = check(config)
    loaded, joined = open_checkpoint(config, data="splits" if config.input is None else "pictures")
    settings = joined.trainer
    precision = Precision(
        settings.precision, resolve_device(settings.device), attention=settings.get("attention", "auto")
    )
    parts, lines = inputs_by_modality(config, loaded, joined)
    encoder = Encoder(loaded.model, parts, precision, batch_size=config.batch_size, name=loaded.source)
    inputs = encoder.inputs_of(config.modality)
    if config.input is None:
        samples, given = SplitSamples(inputs), getattr(inputs.data, "root", None)
    else:
        given = OmegaConf.to_container(config.input) if OmegaConf.is_list(config.input) else str(config.input)
        column = joined.data.get("text_column") if config.text_column is None else config.text_column
        samples, said = samples_of(given, inputs, column=column, pieces=config.pieces, stride=config.stride)
        lines += said
    for line in (*loaded.lines, *lines):
        print(shown(line), flush=True)
    check_names(path, samples)
    what = ("network", "pooling", "layers", "modality", "pieces", "stride", "text_column")
    settings = {name: OmegaConf.to_container(config)[name] for name in what}
    settings |= {"model": loaded.fingerprint, "precision": precision.name, "samples": samples.identity}
    settings |= {"data": OmegaConf.to_container(joined.data, resolve=True)}
    file = FeatureFile(path, settings)
    if file.done:
        print(f"goes on at sample {file.done:,} of {len(samples):,}", flush=True)
    named = getattr(samples, "folder", Path()) != Path()  # by names in it
    folder = None if named or not isinstance(given, str) else given
    write(file, samples, encoder, config, folder=folder, workers=joined.data.get("num_workers", 0))
    if bad := file.notes.get("left_out", 0):
        listed = [f"  {shown(name)}: {shown(reason)}" for name, reason in file.notes["first"]]
        more = [f"  ... and {bad - SHOWN:,} more"] if bad > SHOWN else []
        print("\n".join([f"left out {bad:,} of {len(samples):,} {samples.name} that cannot be read:", *listed, *more]))
    if not file.rows:
        file.discard()
        raise DataError(
            f"input={config.input}: none of its {len(samples):,} {samples.name} can be read; the first: "
            f"{shown(file.notes['first'][0][1])}"
        )
    shapes = ", ".join(f"{name} {(file.rows, *shape)}" for name, shape in file.shapes.items())
    file.finish()
    print(f"{path}: {file.rows:,} {samples.name}, {shapes}")
    return path


def check(config: DictConfig) -> Path:
    """The file to write. Raises UserError for values outside what conf/extract.yaml says."""
    from jepa.tools.feature_file import FORMATS
    from jepa.utils.errors import UserError
    from jepa.utils.files import check_output
    from jepa.utils.lazy_import import require

    if OmegaConf.is_missing(config, "checkpoint"):
        raise UserError("checkpoint is not set: give it on the command line, checkpoint=...")
    path = Path(config.output)
    if path.suffix not in FORMATS:
        raise UserError(f"output={path}: expected a file that ends with {' or '.join(FORMATS)}")
    if path.suffix == ".zarr" and path.exists():
        raise UserError(f"output={path} exists: remove it, or give another name")
    check_output(path, config.checkpoint)
    written = FORMATS[path.suffix]
    if written.package is not None:
        require(written.package, extra=written.extra, purpose=f"output={path}")
    if config.pooling not in ("mean", "max", "none"):
        raise UserError(f"pooling={config.pooling}: expected mean, max or none")
    if config.network not in ("context", "target"):
        raise UserError(f"network={config.network!r}: expected context or target")
    if config.pooling == "none" and not written.tokens:
        others = " or ".join(suffix for suffix, each in FORMATS.items() if each.tokens)
        raise UserError(f"pooling=none gives a matrix for each sample: write it to output=<name>{others}")
    if not isinstance(config.batch_size, int) or config.batch_size < 1:
        raise UserError(f"batch_size={config.batch_size}: expected at least 1")
    if not isinstance(config.pieces, bool):
        raise UserError(f"pieces={config.pieces}: expected true or false")
    if config.layers is not None and not (
        OmegaConf.is_list(config.layers) and config.layers and all(isinstance(n, int) for n in config.layers)
    ):
        raise UserError(f"layers={config.layers}: expected a list of block numbers, as layers=[2,3], or null")
    if config.layers is not None and len(set(config.layers)) < len(config.layers):
        raise UserError(f"layers={config.layers}: a block is named twice, expected different ones")
    return path


def check_names(path: Path, samples: Any) -> None:
    """Raise DataError for a name that the format cannot hold."""
    from jepa.tools.feature_file import FORMATS
    from jepa.utils.errors import DataError

    if not FORMATS[path.suffix].any_name:
        names = (
            map(samples.describe, range(len(samples))) if hasattr(samples, "files") else getattr(samples, "paths", ())
        )
        if odd := next((name for name in names if shown(name) != name), None):
            raise DataError(f"{shown(odd)} is no name in UTF-8: rename it, or write output=<name>.npz")


def inputs_by_modality(config: DictConfig, loaded: Any, joined: DictConfig) -> tuple[dict[str, Any], list[str]]:
    """How the inputs of each modality are made, by the run's own data where there is no input=; and its lines."""
    from jepa.config.build import build_data
    from jepa.config.encoder_inputs import Inputs
    from jepa.config.load_encoder import inputs_of

    if config.input is not None:
        return inputs_of(joined.data, loaded, CommandLine(config.overrides)), []
    data = build_data(joined)
    parts = getattr(data, "modalities", None) or getattr(data, "parts", None) or {"": data}
    found = {name: Inputs(part) for name, part in parts.items()}
    if hasattr(data, "evaluated"):  # of mixed sets
        found[""] = Inputs(data.evaluated)
    return found, list(getattr(data, "lines", ()))


def shown(text: str) -> str:
    """A text that can be printed, whatever bytes are in a file's name."""
    return text.encode("utf-8", "backslashreplace").decode()


def write(file: Any, samples: Any, encoder: Any, config: DictConfig, *, folder: str | None, workers: int) -> None:
    """Encode the samples that the file has not got yet, and keep what it has when that is interrupted.

    folder: which paths are relative to, None for as they are.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from jepa.config.extracted_samples import read_samples
    from jepa.data.stream import BadSamples, Request, load
    from jepa.evaluation.feature_source import POOLINGS
    from jepa.utils.tensors import nan_at_padding

    layers = None if config.layers is None else list(config.layers)
    names = ["features"] if layers is None else [f"layer_{number}" for number in layers]

    def pooled(tokens: Any, valid: Any) -> Any:
        pool = nan_at_padding if config.pooling == "none" else POOLINGS[config.pooling]
        return pool(tokens, valid).cpu().numpy()

    starts = range(file.done, len(samples), config.batch_size)
    chunks = (range(start, min(start + config.batch_size, len(samples))) for start in starts)
    batches = load(
        partial(read_samples, samples, folder=folder),
        (Request(chunk, chunk) for chunk in chunks),
        bad=BadSamples(total=1, max_share=0),  # what is bad is left out here, and no other takes its place
        num_workers=workers,
        prefetch_factor=2,
        pin_memory=False,
    )
    console = Console(stderr=True)
    bar = Progress("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console)
    bar.disable = not console.is_terminal
    try:
        with bar:
            task = bar.add_task(samples.name, total=len(samples), completed=file.done)
            for batch in batches:
                if batch["unreadable"]:
                    first = file.notes.setdefault("first", [])
                    first += list(batch["unreadable"].items())[: SHOWN - len(first)]
                    file.notes["left_out"] = file.notes.get("left_out", 0) + batch["samples"] - len(batch["rows"])
                features = {}
                if batch["rows"]:
                    encoded = partial(encoder.encode, modality=config.modality, network=config.network, layers=layers)
                    tokens, valid, _ = encoded(batch["x"])
                    features = {name: pooled(each, valid) for name, each in zip(names, tokens)}
                file.add(batch["rows"], features, samples=batch["samples"])
                bar.advance(task, batch["samples"])
    finally:
        batches.close()
        file.save()


if __name__ == "__main__":
    sys.argv[1:] = addable(sys.argv[1:])
    run_command(main, "extract")
