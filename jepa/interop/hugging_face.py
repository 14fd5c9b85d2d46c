"""Vision models of Hugging Face: `hf:<organisation/name>` of the hub, or `hf:<folder>` in its format."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jepa.checkpoint.load import listed
from jepa.interop import vjepa
from jepa.interop.adapter import Adapter, Loaded, Source
from jepa.interop.frozen_networks import OtherEncoder, load_by_name
from jepa.interop.sizes import side_or_pair, to_pair
from jepa.interop.timm_models import check_named, fetching, load_by_timm, quiet, read_from_timm
from jepa.interop.weights_file import HUGGING_FACE_FILES, WeightsFile, find_parts
from jepa.types import Grid
from jepa.utils.errors import CheckpointError, UserError
from jepa.utils.lazy_import import MissingPackageError, require
from jepa.utils.read_data import exists, read_mapping

HEADS = ("classifier.", "pooler.", "head.", "lm_head.", "decoder.", "mask_token", "embeddings.mask_token")
"""Starts of names of what stands behind the features, or serves training alone: these may differ, and are listed."""

RUN_FILE = "jepa.pt"
"""A run in a repository, which `scripts/push.py` writes."""

NATIVE = ("vjepa2", "ijepa", "vit", "vit_mae", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit")
"""Model types whose weights are read without `transformers`, from a file alone."""

NEEDED = ("hidden_size", "patch_size", "num_hidden_layers", "num_channels")
"""What the configuration of every encoder of patches has."""


class TransformersEncoder(OtherEncoder):
    """A vision model of `transformers` as an encoder of patches: the last ones of its tokens, one for each patch.

    Class and register tokens stand before them and are dropped. model: gives `last_hidden_state` (B, T, D).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, model.config.hidden_size, model.config.num_hidden_layers)
        self.patch_size: tuple[int, int] = to_pair(model.config.patch_size)
        accepted = inspect.signature(model.forward).parameters
        self.resamples = "interpolate_pos_encoding" in accepted
        self.masks = "noise" in accepted  # MAE, which would hide three quarters of the patches and shuffle the rest
        if self.masks:
            model.config.mask_ratio = 0.0

    def grid(self, x: Tensor) -> Grid:
        """Return (rows, columns) of patches of pictures (B, C, H, W)."""
        return tuple(side // patch for side, patch in zip(x.shape[2:], self.patch_size))

    def tokens(self, x: Tensor) -> Tensor:
        """Return features (B, N, D)."""
        return self._patches(self._run(x).last_hidden_state, x)

    def layer_tokens(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return features (B, N, D) after each of some blocks."""
        states = self._run(x, output_hidden_states=True).hidden_states
        norm = next((getattr(self.model, n) for n in ("layernorm", "norm") if hasattr(self.model, n)), nn.Identity())
        return [self._patches(norm(states[number + 1]), x) for number in layers]

    def _run(self, x: Tensor, **others: Any) -> Any:
        own = to_pair(getattr(self.model.config, "image_size", None))
        if self.resamples and own not in (None, tuple(x.shape[2:])):
            others["interpolate_pos_encoding"] = True
        if self.masks:
            others["noise"] = torch.arange(math.prod(self.grid(x)), device=x.device).expand(len(x), -1)
        return self.model(pixel_values=x, **others)

    def _patches(self, tokens: Tensor, x: Tensor) -> Tensor:
        """The patches' part (B, N, D) of the tokens (B, T, D)."""
        count = math.prod(self.grid(x))
        registers = getattr(self.model.config, "num_register_tokens", 0) or 0
        most = registers + (2 if self.model.config.model_type == "deit" else 1)  # DeiT distils by a token of its own
        if tokens.shape[1] - count not in {0, registers, most}:
            raise UserError(
                f"{type(self.model).__name__} gives {tokens.shape[1]} tokens for {count} patches: expected one each, "
                f"and at most a class token and {registers} registers"
            )
        return tokens[:, tokens.shape[1] - count :]


def load(source: Source) -> Loaded:
    """Load a model: a repository in timm's format by timm, any other by `transformers`.

    Raises UserError when it cannot be fetched or does not take such pictures, CheckpointError with the missing,
    unexpected and mis-shaped keys when its weights do not fit the model its config names.
    """
    name, folder = named(source)
    with fetching(source.name):
        transformers = library(source)
        settings, _ = transformers.PreTrainedConfig.get_config_dict(name)
    if str(settings.get("model_type")).startswith("vjepa2"):
        source.file = read(source)
        return vjepa.load_encoder(source)
    check_named(source)
    if is_timm(settings):
        loaded = load_by_timm(source, f"local-dir:{name}" if folder else f"hf-hub:{name}")
        loaded.lines.insert(0, f"{source.name} is in timm's format")
        return loaded
    with fetching(source.name):
        config = transformers.AutoConfig.from_pretrained(name)
    if missing := [key for key in NEEDED if key not in config]:
        raise UserError(f"{source.name} ({config.model_type}) is no encoder of patches: its config lacks {missing}")
    if config.num_channels != source.channels:
        raise UserError(
            f"{source.name} takes {config.num_channels} channels, data.channels={source.channels}: add "
            f"data.channels={config.num_channels} (grey pictures are repeated)"
        )
    with fetching(source.name):
        model, found = transformers.AutoModel.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True
        )
    heads = check_loading(found, source.name)
    try:
        pictures, _ = transformers.BaseImageProcessor.get_image_processor_dict(name)
    except OSError:  # many repositories have none
        pictures = {}

    def make_encoder(model: nn.Module | None) -> nn.Module:
        return TransformersEncoder(transformers.AutoModel.from_config(config) if model is None else model).eval()

    loaded = load_by_name(source, make_encoder, model)
    loaded.mean, loaded.std = (statistics_of(pictures, key) for key in ("image_mean", "image_std"))
    own = check_pictures(source, loaded.model.encoder)
    kind = type(model).__name__
    loaded.lines.append(f"transformers {kind}, width {config.hidden_size}, patches of {config.patch_size} pixels")
    if heads:
        loaded.lines.append(f"not used for features: {', '.join(heads)}")
    if source.image_size != own:
        size = source.image_size
        loaded.lines.append(f"its positions are made for {own} and adapted to pictures of {size} by itself")
    return loaded


def named(source: Source) -> tuple[str, Path | None]:
    """Return the name of a repository or folder, and the folder if it is one. Raises UserError for one of no model."""
    name = source.name.partition(":")[2]
    folder = Path(name) if os.path.isdir(name) else None
    if folder and not exists(folder / "config.json"):
        raise UserError(
            f"{source.key}={source.name}: the folder has no config.json, so is no model in Hugging Face's format"
        )
    for file in ("config.json", "preprocessor_config.json"):
        if folder and exists(folder / file):
            read_mapping(folder / file)  # which says what is damaged
    return name, folder


def library(source: Source) -> Any:
    """Return `transformers`. Raises UserError where it is not installed."""
    return require("transformers", extra="hub", purpose=f"{source.key}={source.name}")


def is_timm(settings: Mapping[str, Any]) -> bool:
    """Return whether a configuration is of a model of timm."""
    return "architecture" in settings and settings.get("model_type", "timm_wrapper") == "timm_wrapper"


def read(source: Source) -> WeightsFile:
    """Return the weights of a model by the names of the files that we read. Raises as `load` does."""
    name, folder = named(source)
    transformers = library(source)
    with fetching(source.name):
        settings, _ = transformers.PreTrainedConfig.get_config_dict(name)
    if is_timm(settings):
        return read_from_timm(source, f"local-dir:{name}" if folder else f"hf-hub:{name}")
    with fetching(source.name):
        model, found = transformers.AutoModel.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True, dtype="auto"
        )
    heads = check_loading(found, source.name)
    file = find_parts(model.state_dict(), Path(name), model.config.to_dict())
    more = (f"left alone: {', '.join(heads)}",) if heads else ()
    return dataclasses.replace(file, lines=(*file.lines, *more))


def run_of(name: str) -> str | None:
    """Return the file of a run in the repository or folder `hf:<name>`; None where it holds none, or is out of reach.

    A tokenizer comes to lie beside it.
    """
    name = name.partition(":")[2]
    if os.path.isdir(name):
        return str(Path(name) / RUN_FILE) if exists(Path(name) / RUN_FILE) else None
    try:
        hub = require("huggingface_hub", extra="hub", purpose=f"hf:{name}")
        with quiet("huggingface_hub"):
            path = hub.hf_hub_download(name, RUN_FILE)
            with contextlib.suppress(hub.errors.EntryNotFoundError):
                hub.hf_hub_download(name, "tokenizer.json")
    except (OSError, ValueError, RuntimeError, MissingPackageError):  # what reads models of others says what is wrong
        return None
    return path


def repository_of(name: str) -> str | None:
    """Return "hf:<folder>" for a folder with a config.json, and for a file in it of a model that is not in NATIVE.

    None for any other name.
    """
    folder = Path(name) if os.path.isdir(name) else Path(name).parent
    if folder == Path(name):
        return f"hf:{name}" if exists(folder / "config.json") and not exists(folder / "config.yaml") else None
    if Path(name).name not in HUGGING_FACE_FILES or not exists(folder / "config.json"):
        return None
    settings = read_mapping(folder / "config.json")
    act = "silu" if settings.get("use_gated_mlp") else "gelu"
    ours = settings.get("model_type") in NATIVE and settings.get("hidden_act", act) == act
    return f"hf:{folder}" if is_timm(settings) or ("model_type" in settings and not ours) else None


def check_pictures(source: Source, encoder: TransformersEncoder) -> tuple[int, int]:
    """Return the size of pictures (H, W) that a model is made for. Raises UserError where it takes no others."""
    config, size = encoder.model.config, source.image_size
    own = to_pair(config.image_size)
    wanted = str(side_or_pair(list(own))).replace(" ", "")
    if any(side % patch for side, patch in zip(size, encoder.patch_size)):
        raise UserError(
            f"data.image_size={size} is not a multiple of the patches of {source.name}, {encoder.patch_size} pixels: "
            f"use data.image_size={wanted}"
        )
    rotary = getattr(config, "rope_theta", None) is not None
    if size != own and not encoder.resamples and not rotary and config.model_type != "dinov2":
        raise UserError(f"{source.name} takes pictures of {own} only: add data.image_size={wanted}")
    return own


def check_loading(found: Mapping[str, Any], source: str) -> list[str]:
    """Return what of a model's head was not loaded, in words. Raises CheckpointError when something else was not."""
    words = {
        "missing_keys": "missing in the file",
        "unexpected_keys": "in the file only",
        "mismatched_keys": "of another shape in the file",
    }
    heads, problems = [], []
    for kind, word in words.items():
        names = sorted(name if isinstance(name, str) else name[0] for name in found[kind])
        may_differ = [name for name in names if name.startswith(HEADS) and kind != "mismatched_keys"]
        heads += [f"{name} ({word})" for name in may_differ]
        problems += [f"  {name}: {word}" for name in names if name not in may_differ]
    if problems:
        raise CheckpointError(
            f"the weights of {source} are not of the model its config.json names: {len(problems)} keys differ\n"
            f"{listed(problems)}"
        )
    return heads


def statistics_of(pictures: Mapping[str, Any], key: str) -> tuple[float, ...] | None:
    """Return one number for each channel; None where nothing is said. Raises UserError for anything else."""
    value = pictures.get(key)
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(type(number) in (int, float) for number in value):
        raise UserError(f"preprocessor_config.json has {key}={value!r:.60}, expected a list of numbers")
    return tuple(value)


ADAPTER = Adapter("hf", lambda source: source.name.startswith("hf:"), load, read=read)
