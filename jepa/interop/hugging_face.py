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

RUN_FILE = "jepa.pt"  # a run in a repository, which `scripts/push.py` writes
NATIVE = ("vjepa2", "ijepa", "vit", "vit_mae", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit")
"""Model types whose weights are read without `transformers`, from a file alone."""
NEEDED = ("hidden_size", "patch_size", "num_hidden_layers", "num_channels")
"""What the configuration of every encoder of patches has."""
PROBLEMS = {
    "missing_keys": "missing in the file",
    "unexpected_keys": "in the file only",
    "mismatched_keys": "of another shape in the file",
}
"""What `transformers` tells of loading, in our words."""


class TransformersEncoder(OtherEncoder):
    """A vision model of `transformers` with `last_hidden_state` (B, T, D), of which the last are one for each patch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, model.config.hidden_size, model.config.num_hidden_layers)
        self.patch_size: tuple[int, int] = to_pair(model.config.patch_size)
        accepted = inspect.signature(model.forward).parameters
        self.resamples = "interpolate_pos_encoding" in accepted
        self.masks = "noise" in accepted  # MAE, which would hide three quarters of the patches and shuffle the rest
        if self.masks:
            model.config.mask_ratio = 0.0

    def grid(self, x: Tensor) -> Grid:
        return tuple(side // patch for side, patch in zip(x.shape[2:], self.patch_size))

    def tokens(self, x: Tensor) -> Tensor:
        return self._patches(self._run(x).last_hidden_state, x)

    def layer_tokens(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
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
        config, count = self.model.config, math.prod(self.grid(x))
        registers = getattr(config, "num_register_tokens", 0) or 0
        most = registers + (2 if config.model_type == "deit" else 1)  # DeiT distils by a token of its own
        if tokens.shape[1] - count not in {0, registers, most}:
            raise UserError(
                f"{type(self.model).__name__} gives {tokens.shape[1]} tokens for {count} patches: expected one each, "
                f"and at most a class token and {registers} registers"
            )
        return tokens[:, tokens.shape[1] - count :]


def load(source: Source) -> Loaded:
    """Load a model: a repository in timm's format by timm, any other by `transformers`.

    Raises UserError when it cannot be fetched or does not take such pictures, CheckpointError where weights do not fit.
    """
    name, timm_name, settings = found_at(source)
    if str(settings.get("model_type")).startswith("vjepa2"):
        source.file = read(source)
        return vjepa.load_encoder(source)
    check_named(source)
    if timm_name:
        loaded = load_by_timm(source, timm_name)
        loaded.lines.insert(0, f"{source.name} is in timm's format")
        return loaded
    transformers = library(source)
    with fetching(source.name):
        config = transformers.AutoConfig.from_pretrained(name)
    if missing := [key for key in NEEDED if key not in config]:
        raise UserError(f"{source.name} ({config.model_type}) is no encoder of patches: its config lacks {missing}")
    model, heads = pretrained(source, name)
    try:
        pictures, _ = transformers.BaseImageProcessor.get_image_processor_dict(name)
    except OSError:  # many repositories have none
        pictures = {}

    def make_encoder(model: nn.Module | None) -> nn.Module:
        return TransformersEncoder(transformers.AutoModel.from_config(config) if model is None else model).eval()

    loaded = load_by_name(source, make_encoder, model)
    loaded.channels = config.num_channels
    for key in ("mean", "std"):
        values = pictures.get(f"image_{key}")
        if values is not None and (not isinstance(values, list) or {*map(type, values)} - {int, float}):
            raise UserError(f"preprocessor_config.json has image_{key}={values!r:.60}, expected a list of numbers")
        setattr(loaded, key, tuple(values) if values else None)
    own, kind = check_pictures(source, loaded.model.encoder), type(model).__name__
    loaded.lines.append(f"transformers {kind}, width {config.hidden_size}, patches of {config.patch_size} pixels")
    if heads:
        loaded.lines.append(f"not used for features: {', '.join(heads)}")
    if (size := source.image_size) != own:
        loaded.lines.append(f"its positions are made for {own} and adapted to pictures of {size} by itself")
    return loaded


def found_at(source: Source) -> tuple[str, str | None, dict[str, Any]]:
    """Return the name of a repository or folder, timm's name of it if it is in its format, and its configuration."""
    name = source.name.partition(":")[2]
    folder = Path(name) if os.path.isdir(name) else None
    if folder and not exists(folder / "config.json"):
        raise UserError(
            f"{source.key}={source.name}: the folder has no config.json, so is no model in Hugging Face's format"
        )
    for file in ("config.json", "preprocessor_config.json"):
        if folder and exists(folder / file):
            read_mapping(folder / file)  # which says what is damaged
    with fetching(source.name):
        settings, _ = library(source).PreTrainedConfig.get_config_dict(name)
    return name, f"{'local-dir' if folder else 'hf-hub'}:{name}" if is_timm(settings) else None, settings


def library(source: Source) -> Any:
    """Return the module transformers. Raise UserError with the extra to install if it is missing."""
    return require("transformers", extra="hub", purpose=f"{source.key}={source.name}")


def is_timm(settings: Mapping[str, Any]) -> bool:
    """Return whether settings of a Hugging Face model are those of a timm model."""
    return "architecture" in settings and settings.get("model_type", "timm_wrapper") == "timm_wrapper"


def pretrained(source: Source, name: str, **options: Any) -> tuple[nn.Module, list[str]]:
    """Return a model, and what of its head has no weights, in words. Raises CheckpointError where others do not fit."""
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with fetching(source.name):
        model, found = library(source).AutoModel.from_pretrained(name, **options)
    heads, problems = [], []
    for kind, word in PROBLEMS.items():
        for key in sorted(key if isinstance(key, str) else key[0] for key in found[kind]):
            is_head = key.startswith(HEADS) and kind != "mismatched_keys"
            heads += [f"{key} ({word})"] * is_head
            problems += [f"  {key}: {word}"] * (not is_head)
    if problems:
        raise CheckpointError(
            f"the weights of {source.name} are not of the model its config.json names: {len(problems)} keys differ\n"
            f"{listed(problems)}"
        )
    return model, heads


def read(source: Source) -> WeightsFile:
    """Return the weights of a model by the names of the files that we read. Raises as `load` does."""
    name, timm_name, _ = found_at(source)
    if timm_name:
        return read_from_timm(source, timm_name)
    model, heads = pretrained(source, name, dtype="auto")
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
    """Return "hf:<folder>" of a folder with a config.json, or of a file in it that is not of NATIVE; None of others."""
    folder = Path(name) if os.path.isdir(name) else Path(name).parent
    if not exists(folder / "config.json"):
        return None
    if folder == Path(name):
        return None if exists(folder / "config.yaml") else f"hf:{name}"
    if Path(name).name not in HUGGING_FACE_FILES:
        return None
    settings = read_mapping(folder / "config.json")
    act = "silu" if settings.get("use_gated_mlp") else "gelu"
    ours = settings.get("model_type") in NATIVE and settings.get("hidden_act", act) == act
    return f"hf:{folder}" if is_timm(settings) or ("model_type" in settings and not ours) else None


def check_pictures(source: Source, encoder: TransformersEncoder) -> tuple[int, int]:
    """Return the size of pictures (H, W) that a model is made for. Raises UserError where it takes no others."""
    config, size = encoder.model.config, source.image_size
    own = to_pair(config.image_size)
    wanted = f"data.image_size={side_or_pair(own)}".replace(" ", "")
    if any(side % patch for side, patch in zip(size, encoder.patch_size)):
        raise UserError(
            f"data.image_size={size} is not a multiple of the patches of {source.name}, {encoder.patch_size} pixels: "
            f"use {wanted}"
        )
    rotary = getattr(config, "rope_theta", None) is not None
    if size != own and not encoder.resamples and not rotary and config.model_type != "dinov2":
        raise UserError(f"{source.name} takes pictures of {own} only: add {wanted}")
    return own


ADAPTER = Adapter("hf", lambda source: source.name.startswith("hf:"), load, read=read)
