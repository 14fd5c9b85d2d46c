"""Vision models of Hugging Face: `hf:<organisation/name>` of the hub, or `hf:<folder>` in its format."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from jepa.checkpoint.load import SHOWN
from jepa.interop.adapter import Adapter, Loaded, Options, Source
from jepa.interop.frozen_networks import OtherEncoder, loaded_by_name
from jepa.interop.sizes import to_pair
from jepa.interop.timm_models import check_named, fetching, load_timm
from jepa.types import Grid
from jepa.utils.errors import CheckpointError, UserError
from jepa.utils.lazy_import import require
from jepa.utils.read_data import exists, read_mapping

HEADS = ("classifier.", "pooler.", "head.", "lm_head.", "decoder.", "mask_token", "embeddings.mask_token")
"""Starts of names of what stands behind the features, or serves training alone: these may differ, and are listed."""


class TransformersEncoder(OtherEncoder):
    """A vision model of `transformers` as an encoder of patches: the last ones of its tokens, one for each patch.

    Class and register tokens stand before them and are dropped. model: gives `last_hidden_state` (B, T, D).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, model.config.hidden_size)
        self.patch_size: tuple[int, int] = to_pair(model.config.patch_size)
        self.resamples = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.model.config.num_hidden_layers

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

    def _run(self, x: Tensor, **others: bool) -> Any:
        own = to_pair(getattr(self.model.config, "image_size", None))
        if self.resamples and own not in (None, tuple(x.shape[2:])):
            others["interpolate_pos_encoding"] = True
        return self.model(pixel_values=x, **others)

    def _patches(self, tokens: Tensor, x: Tensor) -> Tensor:
        """The patches' part (B, N, D) of the tokens (B, T, D)."""
        count = math.prod(self.grid(x))
        registers = getattr(self.model.config, "num_register_tokens", 0) or 0
        if tokens.shape[1] - count not in (0, registers, registers + 1):
            raise UserError(
                f"{type(self.model).__name__} gives {tokens.shape[1]} tokens for {count} patches: expected one each, "
                f"and at most a class token and {registers} registers"
            )
        return tokens[:, tokens.shape[1] - count :]


def load(source: Source, options: Options) -> Loaded:
    """Load a model: a repository in timm's format by timm, any other by `transformers`.

    Raises UserError when it cannot be fetched or does not take such pictures, CheckpointError with the missing,
    unexpected and mis-shaped keys when its weights do not fit the model its config names.
    """
    image_size, channels = check_named(source, options)
    name = source.name.partition(":")[2]
    with fetching(source.name):
        settings = read_settings(name, "config.json")
    if "model_type" not in settings and "architecture" in settings:
        timm_name = f"local-dir:{name}" if Path(name).is_dir() else f"hf-hub:{name}"
        loaded = load_timm(timm_name, image_size, channels, source.name)
        loaded.lines.insert(0, f"{source.name} is in timm's format")
        return loaded
    transformers = require("transformers", extra="hub", purpose=f"checkpoint={source.name}")
    with fetching(source.name):
        config = transformers.AutoConfig.from_pretrained(name)
    missing = [key for key in ("hidden_size", "patch_size", "num_hidden_layers", "num_channels") if key not in config]
    if missing:
        raise UserError(f"{source.name} ({config.model_type}) is no encoder of patches: its config lacks {missing}")
    if config.num_channels != channels:
        raise UserError(
            f"{source.name} takes {config.num_channels} channels, data.channels={channels}: add "
            f"data.channels={config.num_channels} (grey pictures are repeated)"
        )
    with fetching(source.name):
        model, found = transformers.AutoModel.from_pretrained(name, output_loading_info=True)
    own = to_pair(config.image_size)
    lines = [f"transformers {type(model).__name__}, width {config.hidden_size}, patches of {config.patch_size} pixels"]
    lines += check_loading(found, source.name)
    if image_size != own:
        lines.append(f"its positions are made for {own} and adapted to pictures of {image_size} by itself")
    try:
        pictures = read_settings(name, "preprocessor_config.json")
    except (OSError, ValueError):  # many repositories have none
        pictures = {}
    loaded = loaded_by_name(
        source.name,
        lambda model: TransformersEncoder(
            transformers.AutoModel.from_config(config) if model is None else model
        ).eval(),
        model,
        lines,
        image_size,
        channels,
    )
    loaded.mean, loaded.std = (statistics_of(pictures, key) for key in ("image_mean", "image_std"))
    check_pictures(image_size, own, loaded.model.encoder, source.name)
    return loaded


def check_pictures(
    image_size: tuple[int, int], own: tuple[int, int], features: TransformersEncoder, source: str
) -> None:
    """Raise UserError for pictures of a size that a model does not take."""
    if any(side % patch for side, patch in zip(image_size, features.patch_size)):
        raise UserError(
            f"data.image_size={image_size} is not a multiple of the patches of {source}, {features.patch_size} pixels: "
            f"use data.image_size={own[0]}"
        )
    rotary = getattr(features.model.config, "rope_theta", None) is not None
    if image_size != own and not features.resamples and not rotary and features.model.config.model_type != "dinov2":
        raise UserError(f"{source} takes pictures of {own} only: add data.image_size={own[0]}")


def check_loading(found: Mapping[str, Any], source: str) -> list[str]:
    """Return what of a model's head was not loaded, in words. Raises CheckpointError when something else was not."""
    problems, heads = [], []
    for kind, word in (
        ("missing_keys", "missing in the file"),
        ("unexpected_keys", "in the file only"),
        ("mismatched_keys", "of another shape in the file"),
        ("error_msgs", "could not be loaded"),
    ):
        for name in sorted(str(item[0] if isinstance(item, (tuple, list)) else item) for item in found.get(kind, ())):
            if name.startswith(HEADS) and kind in ("missing_keys", "unexpected_keys"):
                heads.append(f"{name} ({word})")
            else:
                problems.append(f"  {name}: {word}")
    if problems:
        more = [f"  ... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise CheckpointError(
            f"the weights of {source} are not of the model its config.json names: {len(problems)} keys differ\n"
            + "\n".join(problems[:SHOWN] + more)
        )
    return [f"not used for features: {', '.join(heads)}"] if heads else []


def read_settings(name: str, file: str) -> dict[str, Any]:
    """Return a JSON file of a local folder, or fetched from the hub; {} for a local folder without the optional one.

    Raises UserError for a folder without config.json, and DamagedFileError for a file that holds no settings.
    """
    path = Path(name) / file
    if not Path(name).is_dir():
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(name, file))
    elif not exists(path) and file != "config.json":
        return {}
    elif not exists(path):
        raise UserError(f"checkpoint=hf:{name}: the folder has no config.json, so is no model in Hugging Face's format")
    return read_mapping(path)


def statistics_of(pictures: Mapping[str, Any], key: str) -> tuple[float, ...] | None:
    """Return one number for each channel; None where nothing is said. Raises UserError for anything else."""
    value = pictures.get(key)
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(type(number) in (int, float) for number in value):
        raise UserError(f"preprocessor_config.json has {key}={value!r:.60}, expected a list of numbers")
    return tuple(value)


ADAPTER = Adapter("hf", lambda source: source.name.startswith("hf:"), load)
