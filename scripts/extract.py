"""Features of a folder of pictures: python scripts/extract.py checkpoint=<run> input=<folder> output=features.npz

The file holds `path`, relative to the folder, and `features` (n, D), or one `layer_<number>` for each of layers=;
in .npz as arrays, in .parquet as columns. Pictures that cannot be read are listed and left out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from jepa.config.command import complete, reported_errors, run_command
from jepa.config.compose import register_resolvers
from jepa.config.stored import addable
from jepa.utils.files import write_atomic

register_resolvers()

SHOWN = 20
"""Unreadable pictures that are listed."""


@hydra.main(config_path="../conf", config_name="extract", version_base="1.3")
def main(config: DictConfig) -> None:
    """Compose, open, read, write."""
    config = complete(config)
    with reported_errors():
        extract(config)


def extract(config: DictConfig) -> Path:
    """Open a checkpoint, encode every picture of a folder, and write features with paths; gives the file.

    Raises UserError for what is missing, does not fit or cannot be written, and when no picture can be read.
    """
    from jepa.config.open_checkpoint import open_checkpoint
    from jepa.interop import network_of
    from jepa.trainer.precision import Precision, resolve_device
    from jepa.utils.errors import DataError

    path = check(config)
    names = pictures_below(config)
    if path.suffix == ".parquet" and (odd := [name for name in names if shown(name) != name]):
        raise DataError(
            f"input={config.input}: {shown(odd[0])} is no name in UTF-8: rename it, or write output=<name>.npz"
        )
    loaded, joined = open_checkpoint(config, data="pictures")
    for line in loaded.lines:
        print(line, flush=True)
    device = resolve_device(joined.trainer.device)
    precision = Precision(joined.trainer.precision, device, attention=joined.trainer.get("attention", "auto"))
    encoder = network_of(loaded.model.to(device), config.network)
    precision.choose_attention(encoder)
    unreadable: dict[str, str] = {}
    pictures = read(Path(config.input), names, joined.data, unreadable)
    with precision.kernels(), precision.autocast():
        kept, columns = encode(encoder, pictures, config, device)
    if unreadable:
        listed = [f"  {shown(name)}: {shown(reason)}" for name, reason in list(unreadable.items())[:SHOWN]]
        more = [f"  ... and {len(unreadable) - SHOWN} more"] if len(unreadable) > SHOWN else []
        print("\n".join([f"left out {len(unreadable)} of {len(names)} pictures that cannot be read:", *listed, *more]))
    if not kept:
        reason = next(iter(unreadable.values()))
        raise DataError(
            f"input={config.input}: none of its {len(names)} pictures can be read; the first: {shown(reason)}"
        )
    write(path, kept, columns)
    shapes = ", ".join(f"{name} {tuple(values.shape)}" for name, values in columns.items())
    print(f"{path}: {len(kept)} pictures, {shapes}")
    return path


def check(config: DictConfig) -> Path:
    """The file to write. Raises UserError for values outside what conf/extract.yaml says."""
    from jepa.utils.errors import UserError

    for key in ("checkpoint", "input"):
        if OmegaConf.is_missing(config, key):
            raise UserError(f"{key} is not set: give it on the command line, {key}=...")
    path = Path(config.output)
    if path.suffix not in (".npz", ".parquet"):
        raise UserError(f"output={path}: expected a file that ends with .npz or .parquet")
    if config.pooling not in ("mean", "max", "none"):
        raise UserError(f"pooling={config.pooling}: expected mean, max or none")
    if config.pooling == "none" and path.suffix == ".parquet":
        raise UserError("pooling=none gives a matrix for each picture: write it to output=<name>.npz")
    if not isinstance(config.batch_size, int) or config.batch_size < 1:
        raise UserError(f"batch_size={config.batch_size}: expected at least 1")
    if config.layers is not None and not (
        OmegaConf.is_list(config.layers) and config.layers and all(isinstance(n, int) for n in config.layers)
    ):
        raise UserError(f"layers={config.layers}: expected a list of block numbers, as layers=[2,3], or null")
    if config.layers is not None and len(set(config.layers)) < len(config.layers):
        raise UserError(f"layers={config.layers}: a block is named twice, expected different ones")
    return path


def pictures_below(config: DictConfig) -> list[str]:
    """Picture files at any depth, relative to the folder, sorted; hidden ones are left out, links followed.

    Others are counted in a line. Raises DataError for a folder that is missing or holds none.
    """
    from collections import Counter

    from jepa.data.sources.folders import left_out
    from jepa.data.sources.image_files import IMAGE_EXTENSIONS
    from jepa.utils.errors import DataError

    folder = Path(config.input)
    if not folder.is_dir():
        raise DataError(f"input={folder} is not a folder")
    found, others, seen = [], Counter(), set()
    for place, below, files in os.walk(folder, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:  # a link back
            below[:] = []
            continue
        seen.add((status.st_dev, status.st_ino))
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in files:
            if name.lower().endswith(IMAGE_EXTENSIONS) and not name.startswith("."):
                found.append(os.path.relpath(os.path.join(place, name), folder))
            elif not name.startswith("."):
                others[os.path.splitext(name)[1].lower()] += 1
    if not found:
        raise DataError(f"input={folder} holds no pictures ({', '.join(IMAGE_EXTENSIONS)})")
    for line in left_out(others):
        print(f"input={folder}: {shown(line)}")
    return sorted(found)


def shown(text: str) -> str:
    """A text that can be printed, whatever bytes are in a file's name."""
    return text.encode("utf-8", "backslashreplace").decode()


def read(folder: Path, names: list[str], data: DictConfig, unreadable: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """Path and input (1, C, H, W) of every picture that can be read; fills `unreadable` with path -> reason.

    Raises UserError for mean and std that do not fit the channels.
    """
    from torch import Tensor

    from jepa.config.build import convert_errors
    from jepa.data.image_transform import ImageTransform, as_list, check_statistics
    from jepa.data.sources.decoders import decode_image
    from jepa.data.stream import blamed

    if "mean" not in data and "image" in data:  # of data=hf
        data = OmegaConf.create({**data, **data.image})
    convert_errors("data", check_statistics)(data.mean, data.std, data.channels)
    size = data.image_size
    transform = ImageTransform(
        size=(size, size) if isinstance(size, int) else tuple(size),
        channels=data.channels,
        mean=as_list(data.mean),
        std=as_list(data.std),
        interpolation=data.get("interpolation", "bicubic"),
        augment=None,
    )
    for name in names:
        try:
            image = decode_image(folder / name)
            pixels = transform.plain(image[None] if isinstance(image, Tensor) else image)
        except Exception as error:
            _, unreadable[name] = blamed(error, name)
            continue
        yield name, pixels


def encode(encoder: Any, pictures: Iterator[tuple[str, Any]], config: DictConfig, device: Any) -> tuple[list[str], Any]:
    """Paths, and column name -> features (n, D) float32, or (n, N, D) with pooling=none."""
    import itertools

    import numpy as np
    import torch

    from jepa.config.build import convert_errors

    pool = {"mean": lambda t: t.mean(dim=1), "max": lambda t: t.amax(dim=1), "none": lambda t: t}[config.pooling]
    layers = None if config.layers is None else list(config.layers)
    columns = ["features"] if layers is None else [f"layer_{number}" for number in layers]
    names: list[str] = []
    parts: dict[str, list[Any]] = {column: [] for column in columns}
    run = convert_errors("layers" if layers else "data.image_size", encoder.__call__)
    with torch.no_grad():
        while batch := list(itertools.islice(pictures, config.batch_size)):
            names += [name for name, _ in batch]
            tokens = run(torch.cat([pixels for _, pixels in batch]).to(device), layers=layers)
            for column, values in zip(columns, [tokens] if layers is None else tokens):
                parts[column].append(pool(values.float()).cpu().numpy())
    return names, {column: np.concatenate(values) for column, values in parts.items()} if names else {}


def write(path: Path, names: list[str], columns: dict[str, Any]) -> None:
    """Write paths and features. Raises UserError when the file cannot be written."""
    from jepa.utils.lazy_import import require

    def npz(temporary: Path) -> None:
        import numpy as np

        with open(temporary, "wb") as file:
            np.savez(file, path=np.array(names), **columns)

    def parquet(temporary: Path) -> None:
        pa = require("pyarrow", extra="export", purpose=f"output={path}")
        import pyarrow.parquet as pq

        arrays = {"path": pa.array(names, pa.string())}
        for name, values in columns.items():
            arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        pq.write_table(pa.table(arrays), temporary)

    write_atomic(path, npz if path.suffix == ".npz" else parquet)


if __name__ == "__main__":
    sys.argv[1:] = addable(sys.argv[1:])
    run_command(main, "extract")
