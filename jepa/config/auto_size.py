"""`auto` in data.hints: sizes of the encoder and its patches, chosen once, by the number and size of the samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from jepa.types import DataSpec
from jepa.utils.errors import UserError

SMALLEST = {"text": "toy_text", "series": "toy_series"}  # kind of samples -> its smallest size, where that is not `toy`
LARGER = {"mini": 1_500_000, "tiny": 20_000_000, "small": 100_000_000}
"""Size -> tokens of all training samples from which on it is chosen: CIFAR-10 has 3 million, ImageNet 250 million."""

FEWEST_PATCHES = 7  # along the side of a picture
FEWEST_TOKENS = 12  # of a series, and along the time of a sound
LARGEST_PATCH = 16


def auto_hints(config: DictConfig) -> list[str]:
    """Return which of `size` and `patch_size` the configuration leaves to be chosen."""
    hints = config.data.get("hints") or {}
    return [name for name in ("size", "patch_size") if hints.get(name) == "auto"]


def chosen_hints(config: DictConfig, spec: DataSpec) -> dict[str, Any]:
    """Return values for what `auto_hints` names.

    Raise UserError for pictures whose sides have no patch size in common.
    """
    kind = kind_of_samples(config.data, spec.input_shape)
    patch = patch_size(kind, config.data, spec.input_shape)
    hints = config.data.hints
    used = patch if hints.get("patch_size", "auto") == "auto" else hints.patch_size
    tokens = spec.num_train * tokens_of(kind, config.data, spec.input_shape, used)
    size = max((s for s in LARGER if tokens >= LARGER[s]), key=LARGER.get, default=SMALLEST.get(kind, "toy"))
    chosen = {"size": size, "patch_size": patch}
    return {name: chosen[name] for name in auto_hints(config)}


def describe(chosen: Mapping[str, Any], spec: DataSpec) -> str:
    """Return a sentence on what was chosen."""
    words = [f"data.hints.{name}={value}".replace(" ", "") for name, value in chosen.items() if value is not None]
    shape = " x ".join(map(str, spec.input_shape))
    return f"chosen for {spec.num_train:,} samples of {shape}: {', '.join(words)}"


def kind_of_samples(data: Mapping[str, Any], shape: Sequence[int]) -> str:
    """Return "text", "series", "sound", "pictures" or "clips"."""
    if len(shape) == 2:
        return "sound" if "spectrogram" in data and shape[0] == 1 else "series"
    return {1: "text", 3: "pictures", 4: "clips"}[len(shape)]


def patch_size(kind: str, data: Mapping[str, Any], shape: Sequence[int]) -> int | list[int] | None:
    """Return pixels, time steps or [mel bins, frames] of a patch; None for text."""
    if kind == "text":
        return None
    if kind == "series":
        return _power_of_two(shape[-1] // FEWEST_TOKENS)
    if kind == "sound":
        bins = data["spectrogram"]["mel_bins"]
        return [_divisor(bins, LARGEST_PATCH), _power_of_two(_frames(data, shape) // FEWEST_TOKENS)]
    side = math.gcd(*shape[-2:])
    patch = _divisor(side, min(LARGEST_PATCH, max(1, min(shape[-2:]) // FEWEST_PATCHES)))
    if max(shape[-2:]) // patch > 4 * LARGEST_PATCH:
        raise UserError(
            f"data.image_size={list(shape[-2:])}: no patch size divides both sides; use sides that are multiples of "
            f"16, such as {16 * max(1, round(shape[-1] / 16))}, or give data.hints.patch_size"
        )
    return patch


def tokens_of(kind: str, data: Mapping[str, Any], shape: Sequence[int], patch: Any) -> int:
    """Return the tokens of a sample; of clips with two frames in each."""
    if kind == "text":
        return shape[0]
    if kind == "series":
        return shape[-1] // patch
    if kind == "sound":
        rows, columns = (patch, patch) if isinstance(patch, int) else patch
        return data["spectrogram"]["mel_bins"] // rows * (_frames(data, shape) // columns)
    plane = shape[-2] // patch * (shape[-1] // patch)
    return plane if kind == "pictures" else plane * max(1, shape[1] // 2)


def _frames(data: Mapping[str, Any], shape: Sequence[int]) -> int:
    return shape[-1] // data["spectrogram"]["hop_length"]


def _divisor(number: int, most: int) -> int:
    """Return the largest divisor of a number up to `most`."""
    return next(size for size in range(min(most, number), 0, -1) if number % size == 0)


def _power_of_two(most: int) -> int:
    """Return the largest of 1, 2, 4, ... up to `most` and LARGEST_PATCH."""
    return 2 ** int(math.log2(min(LARGEST_PATCH, max(1, most))))
