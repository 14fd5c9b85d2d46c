"""Pictures, sounds or videos in shards: python scripts/pack.py data=image_folder data.root=<folder> output=<folder>

A shard is a tar archive as webdataset has them: `00000012.jpg`, the file as it was, and `00000012.json` with its label,
class and name. The frames of a video that lie in a folder become `00000012.tar`. Beside the shards lies the index by
which data=packed reads them (`jepa.data.sources.packed`).

A shard has its name once it is complete; what is interrupted goes on at the first that is not. The same samples give
the same bytes, whatever the number of workers.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from jepa.config.command import complete, reported_errors, run_command
from jepa.config.compose import register_resolvers
from jepa.config.stored import addable

register_resolvers()

BEGUN, LOCK = "packing.json", ".lock"
"""Say what is being packed, until the index is written, and keep out other processes."""
REENCODING = ("longest_side", "shortest_side", "format", "quality")


@hydra.main(config_path="../conf", config_name="pack", version_base="1.3")
def main(config: DictConfig) -> None:
    """Compose, list, write."""
    config = complete(config)
    with reported_errors():
        pack(config)


def pack(config: DictConfig) -> Path:
    """Write the samples of a source as shards, then their index; gives the folder.

    Raises UserError for data that is not of files, a folder with other things, a disk that is full, and when more than
    the share data.max_bad_share of the samples cannot be read.
    """
    from pack_shards import Packer, Reencoding, samples_per_shard, write_shards

    from jepa.utils.errors import UserError
    from jepa.utils.files import write_text

    check(config)
    folder = Path(config.output).expanduser()
    root = os.path.abspath(os.path.expanduser(root_of(config)))
    if config.data.get("root") and not config.data.get("csv") and Path(root).resolve() in folder.resolve().parents:
        raise UserError(f"output={folder} lies in data.root={root}, of which it would become data: give another folder")
    kind, splits = read_splits(config)
    settings = {name: config[name] for name in REENCODING}
    if kind != "image" and (given := [name for name in REENCODING[:3] if settings[name] is not None]):
        raise UserError(f"{', '.join(given)}: for pictures, but data.source gives {kind}")
    packer = Packer(
        folder=folder,
        root=root,
        samples={"train": splits.train, "test": splits.test},
        classes=splits.class_names,
        reencode=Reencoding(**settings) if kind == "image" else None,
        max_bad=config.data.get("max_bad_share", 0.1),
    )
    plan = {"kind": kind, "classes": splits.class_names, "samples": {n: len(s) for n, s in packer.samples.items()}}
    plan |= {"names": hash_of(packer.samples.values()), "settings": settings}
    plan |= {"shard_samples": samples_per_shard(packer, config.shard_megabytes)}
    for line in splits.lines:
        print(line, flush=True)
    if is_complete(folder, plan):
        print(f"{folder} holds these samples already")
        return folder
    with being_written(folder):
        if not is_complete(folder, plan):  # as another process may have finished it
            write_text(folder / BEGUN, json.dumps(plan))
            write_shards(packer, plan, workers=config.workers)
            (folder / BEGUN).unlink()
    model = {"image": "", "audio": " model=audio", "video": " model=video"}[kind]
    pieces = (config.data.source or {}).get("piece_seconds")
    model += f" data.piece_seconds={pieces:g}" if pieces else ""
    print(f"python train.py data=packed{model} data.root={shlex.quote(str(folder))}")
    return folder


def check(config: DictConfig) -> None:
    """Raise UserError for values outside what conf/pack.yaml says."""
    from jepa.utils.errors import UserError

    for key in ("output", "data.root"):
        if OmegaConf.is_missing(config.data if key == "data.root" else config, key.rpartition(".")[2]):
            raise UserError(f"{key} is not set: give a folder on the command line, {key}=...")
    wholes = {name: config[name] for name in ("workers", *REENCODING) if name != "format"}
    for name, value in wholes.items():
        if name.endswith("side") and value is None:
            continue
        most = 100 if name == "quality" else 1 << 20
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise UserError(f"{name}={value}: expected a whole number from 1 to {most:,}")
    share = config.data.get("max_bad_share", 0.1)
    if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 <= share < 1:
        raise UserError(f"data.max_bad_share={share} is not in [0, 1)")
    size = config.shard_megabytes
    if not isinstance(size, (int, float)) or isinstance(size, bool) or not 0 < size < 1e6:
        raise UserError(f"shard_megabytes={size}: expected a number above 0")
    if config.format not in (None, "jpeg", "png"):
        raise UserError(f"format={config.format}: expected jpeg, png or null")
    if config.longest_side is not None and config.shortest_side is not None:
        raise UserError(
            f"longest_side={config.longest_side} and shortest_side={config.shortest_side}: give one of them"
        )


def read_splits(config: DictConfig) -> tuple[str, Any]:
    """The kind of the files of a configuration's data, and its splits; of sounds in pieces their files.

    Raises UserError for data that is not of files, and for what its classes do not take.
    """
    from dataclasses import replace

    from jepa.config.build import build, convert_errors, to_plain
    from jepa.config.check import check_config
    from jepa.data.data_module import read_source
    from jepa.data.sources.packed import kind_of
    from jepa.data.sources.sound_files import SoundPieces
    from jepa.data.sources.splits import KnownSamples
    from jepa.utils.errors import UserError

    target = config.data.get("_target_", "")
    refused = UserError(
        f"data._target_={target}: its samples are no files of pictures, sounds or videos: pack data=image_folder, "
        "imagenet, audio_folder, fsdd, video_folder, or FileSamples of your own, with decode_image, SoundFile or "
        "open_video"
    )
    if "source" not in config.data:
        raise refused
    check_config(to_plain(config.data.source), "data.source")
    source = build(config.data, "source")
    names = [name for name in inspect.signature(source).parameters if name in config.data]
    settings = {name: OmegaConf.to_container(config)["data"][name] for name in names}
    splits = convert_errors("data", read_source)(source, **settings)
    parts = [getattr(splits, name, None) for name in ("train", "test")]
    if all(isinstance(part, SoundPieces) for part in parts):
        parts = [part.files for part in parts]
        splits = replace(splits, train=parts[0], test=parts[1])
    if any(isinstance(part, KnownSamples) for part in parts):
        raise UserError(f"data._target_={target}: shards hold no label tracks: set data.source.label_tracks=false")
    found = {kind_of(part) for part in parts}
    if len(found) > 1 or None in found:
        raise refused
    return found.pop(), splits


def root_of(config: DictConfig) -> str:
    """The folder of the data; of a list without one that of the list."""
    return config.data.get("root") or os.path.dirname(config.data.get("csv") or "")


def hash_of(parts: Any) -> str:
    """A hash of the names and labels of samples, in their order."""
    digest = hashlib.sha256()
    for samples in parts:
        digest.update(samples.paths.tobytes())
        digest.update(b"" if samples.labels is None else samples.labels.tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def being_written(folder: Path) -> Iterator[None]:
    """A context in which no other process packs to a folder. Raises UserError where one does, or nothing can be."""
    from jepa.utils.errors import UserError, reason
    from jepa.utils.files import open_locked

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open_locked(folder / LOCK, folder)
    except OSError as error:
        raise UserError(f"output={folder} cannot be written: {reason(error, folder)}") from error
    try:
        yield
    finally:
        lock.close()
        (folder / LOCK).unlink(missing_ok=True)


def is_complete(folder: Path, plan: dict[str, Any]) -> bool:
    """Whether a folder holds the pack of a plan. Raises UserError for one that holds another, or other files."""
    from jepa.data.sources.packed import INDEX, MOST_INDEX
    from jepa.utils.errors import UserError
    from jepa.utils.read_data import parse_json, read_bytes

    for name in (INDEX, BEGUN):
        if (folder / name).exists():
            stored = parse_json(read_bytes(folder / name, MOST_INDEX), folder / name)
            plan = parse_json(json.dumps(plan), name)
            if not isinstance(stored, dict) or (other := [key for key in plan if stored.get(key) != plan[key]]):
                differs = f"differs in {', '.join(other)}" if isinstance(stored, dict) else "is damaged"
                raise UserError(
                    f"output={folder} holds another pack ({name} {differs}): remove it, or give another name"
                )
            return name == INDEX
    if folder.exists() and (not folder.is_dir() or any(file.name != LOCK for file in folder.iterdir())):
        raise UserError(f"output={folder} holds other things: give the name of a new folder")
    return False


if __name__ == "__main__":
    sys.argv[1:] = addable(sys.argv[1:])
    run_command(main, "pack")
