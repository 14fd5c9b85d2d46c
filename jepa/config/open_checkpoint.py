"""A checkpoint opened as a script's configuration asks: what `checkpoint=`, `data=` and `model.*` mean together."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from omegaconf import DictConfig, OmegaConf

from jepa.checkpoint.moved import upgrade
from jepa.checkpoint.stored_objects import DATA_TABLE, check_stored
from jepa.config.build import build_model, settled
from jepa.config.check import check_config
from jepa.config.compose import dotted_keys, known_keys
from jepa.config.stored import CommandLine, in_force, model_overrides, named_parts, remove, with_stored
from jepa.distributed.launch import read_launch
from jepa.interop import Loaded, Source, find, load
from jepa.interop.sizes import to_pair
from jepa.utils.errors import UserError
from jepa.utils.read_data import read_mapping

TOKENIZER = "tokenizer.json"  # of a run on text, in its folder
PICTURES = ("image_size", "mean", "std")  # keys of data that say how pictures become inputs


def open_checkpoint(
    config: DictConfig, *, data: Literal["splits", "inputs", "pictures", "none"]
) -> tuple[Loaded, DictConfig]:
    """Return the model of `checkpoint=`, and the configuration in force.

    A run brings its own model, loss, data, evaluation and precision, of which the command line may change all but the
    model and loss. What else brings no data needs `data=`.

    config: composed, with `checkpoint` and `overrides`.
    data: what the caller does with it: reads its "splits", makes "inputs" as it does where the checkpoint has any,
        the same and "pictures" where it does not, or "none".

    Raises UserError for what is missing or contradicts the checkpoint, CheckpointError for what does not fit.
    """
    if OmegaConf.is_missing(config, "checkpoint") or not config.checkpoint:
        raise UserError(
            "checkpoint is not set: give checkpoint=<run folder or file>, timm:<name>, hf:<name or folder> or random"
        )
    if read_launch().world_size > 1:
        raise UserError("this script runs as one process: start it without torchrun or srun")
    given = CommandLine(config.overrides)
    source = find(str(config.checkpoint), trusted=None if config.trust else named_parts(config, given))
    stored = source.config or {}
    if "loss" in stored and (given.option("loss") or given.below("loss")):
        raise UserError(f"loss: {source.name} brings its own, on which its features do not depend; leave it out")
    kept = in_force(stored, given)
    if not config.trust:
        _check_kept(kept, source, builds=data != "none", reads=data == "splits")
    joined = with_stored(config, kept, given)
    if data != "none":
        _keep_tokenizer(joined, stored, given, source)
    is_random = source.adapter.format == "random"
    data_known = "data" in stored or given.option("data") or is_random
    if not data_known:
        _check_data_given(data, given, source.name)
    if is_random:
        joined, _ = settled(joined)
    unused = () if "model" in stored or is_random else ("model", "loss")  # made from the file, not as composed
    if data != "splits":
        unused = (*unused, "data", "evaluation")
    sections = [key for key in joined if key not in unused and OmegaConf.is_dict(joined[key])]
    check_config({key: _resolved(joined, key) for key in sections})
    if data == "splits":
        _check_probes(joined, stored, given)
    known = {key for key in ("image_size", "channels") if data_known or key in given.below("data")}
    loaded = load(
        source,
        build=functools.partial(build_model, joined),  # a partial, so that a seed can be given where it takes one
        seed=joined.trainer.seed,
        overrides={} if is_random else model_overrides(config, given),
        image_size=to_pair(joined.data.get("image_size")) if "image_size" in known else None,
        channels=joined.data.get("channels") if "channels" in known else None,
    )
    if loaded.channels is not None and "channels" not in known:
        joined.data.channels = loaded.channels  # the composed default is of other data
    if data != "none" and (data_known or given.below("data")):
        loaded.lines += _other_statistics(loaded, joined, stored.get("data") or {})
    return loaded, joined


def _other_statistics(loaded: Loaded, config: DictConfig, trained: Mapping[str, Any]) -> list[str]:
    """Lines on where pictures are normalised unlike those that the model was trained on."""
    ours = {name: _values(config.data[name]) for name in ("mean", "std") if name in config.data}  # text has none
    lines = []
    for name, values in ours.items():
        if (theirs := getattr(loaded, name)) is None:
            continue
        wide = values * len(theirs) if len(values) == 1 else values
        if values == "auto" or len(wide) != len(theirs) or not np.allclose(wide, theirs, rtol=0, atol=2e-3):
            right = f"set data.{name}=[{','.join(f'{value:g}' for value in theirs)}]"
            lines.append(f"warning: data.{name}={values}, but the model was trained with {list(theirs)}: {right}")
    return lines + [
        f"inputs are normalised with data.{name}={values}, in training {_values(trained[name])}"
        for name, values in ours.items()
        if name in trained and _values(trained[name]) != values
    ]


def _values(given: str | float | Sequence[float]) -> str | list[float]:
    """A mean or deviation as a list; `auto` as it is."""
    return given if isinstance(given, str) else [given] if isinstance(given, (int, float)) else list(given)


def _check_probes(joined: DictConfig, stored: Mapping[str, Any], given: CommandLine) -> None:
    """Raise UserError for a given value of a probe that does not exist, as the command line may add any name."""
    named = {key.split(".")[1] for key in given.below("evaluation") if key.startswith("probes.")}
    if not named:
        return
    known = {*known_keys(), *(f"evaluation.{key}" for key in dotted_keys(stored.get("evaluation")))}
    names = [name.removeprefix("evaluation.probes.") for name in known if name.startswith("evaluation.probes.")]
    for name in named - set(names):
        node = joined.evaluation.probes[name]
        if node is None or "_target_" not in node:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]}?" if close else "a new one needs its _target_"
            raise UserError(f"evaluation.probes.{name}: there is no such probe; {hint}")


def _check_kept(kept: Mapping[str, Any], source: Source, *, builds: bool, reads: bool) -> None:
    """Raise CheckpointError for stored data or evaluation with foreign code, and for a path that a lone file brings.

    builds: whether parts of data and evaluation are built; model and loss were checked when they were found.
    reads: whether samples are read.
    """
    check_stored(kept["trainer"], "trainer", source.name, names=())
    sections = kept.keys() & {"data", "evaluation"}
    own = _beside(source) if reads and sections else {}
    for section in sections:
        names = DATA_TABLE if builds else None
        check_stored(kept[section], section, source.name, names=names, trusted=source.trusted, paths=True)
        if reads:
            lone = _without_same(kept[section], own.get(section))
            for key in _text_settings(kept["data"]) if section == "data" else ():  # none is kept, see below
                remove(lone, f"{key}.tokenizer_folder".removeprefix("data."))
            check_stored(lone, section, source.name, names=None)


def _beside(source: Source) -> Mapping[str, Any]:
    """Return the config.yaml of the run folder that a checkpoint lies in; {} where there is none."""
    path = _first_file("config.yaml", [Path(source.name), *source.path.parents[:2]])
    return upgrade(read_mapping(path, verbatim=True)) if path else {}


def _first_file(name: str, folders: Sequence[Path]) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _without_same(node: Any, other: Any) -> Any:
    """Return a nested configuration without the values that another has under the same keys."""
    if not isinstance(node, dict):
        return None if node == other else node
    others = other if isinstance(other, dict) else {}
    return {key: _without_same(value, others.get(key)) for key, value in node.items()}


def _resolved(config: DictConfig, key: str) -> object:
    """One section as plain values. Raises UserError for a value that is not set."""
    for name in sorted(OmegaConf.missing_keys(config[key])):
        name = name if name.startswith(f"{key}.") else f"{key}.{name}"
        raise UserError(f"{name} is not set: give it on the command line, {name}=...")
    return OmegaConf.to_container(config[key], resolve=True)


def _check_data_given(data: str, given: CommandLine, name: str) -> None:
    """Raise UserError where inputs are needed and nothing says how they are made."""
    if data == "splits":
        raise UserError(f"data is not set: checkpoint={name} does not say what it was trained on; give data=<option>")
    if data == "pictures" and (missing := [key for key in PICTURES if key not in given.below("data")]):
        raise UserError(
            f"checkpoint={name} does not say how pictures become its inputs: give "
            + " ".join(f"data.{key}=..." for key in missing)
            + " or a data set with them, data=imagenet"
        )


def _keep_tokenizer(joined: DictConfig, stored: Mapping[str, Any], given: CommandLine, source: Source) -> None:
    """Let a run's ids mean on any texts what they meant in training: its own tokenizer and vocabulary, unless given.

    Raises UserError when the tokenizer is not in the run folder.
    """
    for section, trained in _text_settings(stored.get("data") or {}).items():
        alone = section in ("data", "data.text")
        if alone:  # also on other texts
            section = "data" if OmegaConf.select(joined, "data.text") is None else "data.text"
        node = OmegaConf.select(joined, section)
        if node is None or "tokenizer" not in node:
            continue
        node.tokenizer_folder = None  # evaluating stores none
        for name in ("vocab_size", "max_length") if alone else ():  # learned positions reach no further
            if name not in given.below("data") and stored["data"].get(name) is not None:
                joined.data[name] = stored["data"][name]
        if "tokenizer" not in given.below(section):
            node.tokenizer = str(_find_tokenizer(source, trained, section))


def _find_tokenizer(source: Source, trained: Mapping[str, Any], section: str) -> Path:
    """Return the tokenizer that a run has kept. Raise UserError where it is not in the run folder."""
    folders = [*source.path.parents[:2], Path(str(trained.get("tokenizer_folder") or source.path.parent))]
    path = _first_file(TOKENIZER, folders)
    if path is None:
        raise UserError(
            f"{source.name}: its {TOKENIZER} is not in the run folder (looked in {folders[1]}): put it there, or give "
            f"{section}.tokenizer=<file>"
        )
    return path


def _text_settings(data: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the parts of a configuration of data that say how texts become ids, by their keys.

    Of several modalities those that keep their tokenizer; runs of old do not, and train it again.
    """
    part = data.get("text") if isinstance(data.get("text"), Mapping) else data
    if "tokenizer" in part:
        return {"data" if part is data else "data.text": part}
    groups = ((f"{name}.", data[name]) for name in ("parts", "modalities") if isinstance(data.get(name), Mapping))
    parts = {**data, **{f"{group}{name}": node for group, nodes in groups for name, node in nodes.items()}}
    return {
        f"data.{name}": node
        for name, node in parts.items()
        if isinstance(node, Mapping) and node.get("tokenizer_folder")
    }
