"""What the first lines of a run say of it: which one is tuned, what an experiment still sets, how much is padding."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from jepa.config.compose import CONFIG_DIR
from jepa.config.stored import CommandLine
from jepa.data import AudioData, SeriesData, TextData
from jepa.data.sources.sound_files import SoundTensor
from jepa.data.stream import blamed
from jepa.utils.nested import flatten

LENGTHS = {AudioData: ("seconds", "s"), TextData: ("max_length", "tokens"), SeriesData: ("window_size", "steps")}
"""Data -> setting that says how long an input is, and its unit."""


def notes(config: DictConfig) -> list[str]:
    """Return sentences about a run's configuration; `config.overrides` says what the command line gave."""
    given = CommandLine(config.get("overrides") or [])
    if given.experiment:
        return _still_set(given.options["experiment"], given)
    tuned = OmegaConf.select(config, "data.hints.experiment")
    if tuned is None or {"model", "loss"} & set(given.options):
        return []
    return [f"plain defaults: experiment={tuned} is the run that is tuned for these data"]


def padding_notes(data: Any, key: str = "data") -> list[str]:
    """Return what to type where most samples fill less than half of an input, or sounds have another rate."""
    if hasattr(data, "parts"):
        return [line for name, part in data.parts.items() for line in padding_notes(part, f"{key}.parts.{name}")]
    if not isinstance(data, tuple(LENGTHS)):
        return []
    name, unit = next(said for kind, said in LENGTHS.items() if isinstance(data, kind))
    samples, lengths, rates, said, options = data.splits["train"], [], [], [], []
    for index in range(0, len(samples), math.ceil(len(samples) / 48)):
        try:
            value = samples[index][0]
            if name == "seconds":
                sound = SoundTensor(*value) if isinstance(value, tuple) else value
                rates += [sound.rate]
                lengths += [sound.frames / sound.rate]
            else:
                seen = data.to_ids(value) != 0 if name == "max_length" else (~value.isnan()).any(dim=0)
                lengths += [max(seen.nonzero().flatten().tolist(), default=-1) + 1]
        except Exception as error:
            blamed(error, "")
    full = data.seconds if name == "seconds" else data.spec.input_shape[-1]
    if lengths and (usual := sorted(lengths)[math.ceil(0.95 * len(lengths)) - 1]) <= full / 2:
        padding = 1 - sum(min(length, full) for length in lengths) / (full * len(lengths))
        said = [f"they have {min(lengths):.3g} to {max(lengths):.3g} {unit}, so {padding:.0%} of an input is padding"]
        step = 10 ** math.floor(math.log10(usual)) / 2 if unit == "s" else 8
        longest = max(lengths) if max(lengths) <= full / 2 else usual
        options = [f"{key}.{name}={math.ceil(longest / step) * step:.3g}"]
    if rates and data.sample_rate not in rates:
        rate = max(rates, key=rates.count)
        said += [f"they are stored at {rate:,} Hz, not {data.sample_rate:,}"]
        options += [f"{key}.sample_rate={rate}"]
    return [f"by {len(lengths)} of the samples {', and '.join(said)}: {' '.join(options)}"] if said else []


def _still_set(name: str, given: CommandLine) -> list[str]:
    """Name what an experiment still sets in groups of which the command line chose another option.

    With other data also the options that it chose for these groups by name.
    """
    node, own, lines = _experiment(name), {}, []
    for line in node.pop("defaults", []):
        for key, option in line.items() if isinstance(line, dict) else ():
            own[key.removeprefix("override ").lstrip("/")] = option
    values = flatten(node)
    for group, option in given.options.items():
        if group == "experiment" or own.get(group) == option:
            continue
        prefix = f"{group.replace('/', '.')}."
        held = {key: value for key, value in values.items() if key.startswith(prefix) and key not in given.values}
        kept = {key: value for key, value in own.items() if group == "data" and key not in given.options}
        if held or kept:
            shown = ", ".join(f"{key}={value}" for key, value in {**kept, **held}.items())
            lines.append(f"with {group}={option}, experiment={name} still sets {shown}")
    return lines


def _experiment(name: str) -> dict[str, Any]:
    """Return an experiment's file as plain values, from conf/ or --config-dir; {} where it is found in neither."""
    folders = [CONFIG_DIR]
    if HydraConfig.initialized():
        sources = HydraConfig.get().runtime.config_sources
        folders += [source.path for source in sources if source.schema == "file"]
    for folder in folders:
        path = Path(folder) / "experiment" / f"{name}.yaml"
        if path.is_file():
            return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return {}
