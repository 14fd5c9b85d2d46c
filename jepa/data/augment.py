"""Random views of images and of time series: the settings, and the numbers drawn for each view.

Those of images are used in `jepa.data.image_operations`, so that the choices of a batch, each a function of (seed,
sample counter), are applied all at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jepa.utils.errors import check_at_least

CROP_TRIES = 10
# Columns of the uniform numbers behind a view: tries of area and aspect, then position, flip, ..., one each.
_AREA, _ASPECT = slice(0, CROP_TRIES), slice(CROP_TRIES, 2 * CROP_TRIES)
_LEFT, _TOP, _FLIP, _ANGLE, _RIGHT, _DOWN = range(2 * CROP_TRIES, 2 * CROP_TRIES + 6)
_JITTER = slice(2 * CROP_TRIES + 6, 2 * CROP_TRIES + 10)
_BLUR, _SIGMA, _SOLARIZE = range(2 * CROP_TRIES + 10, 2 * CROP_TRIES + 13)
NUMBERS = 2 * CROP_TRIES + 13


@dataclass(frozen=True)
class Views:
    """What is done to R crops, in the order in which it is done; None where a step is off.

    flip (R,) bool: mirrored left to right. angle (R,): degrees, clockwise. shift (R, 2): to the right and
    down, in shares of the view's sides. jitter (R, 4): factors of brightness, contrast and saturation, and
    the shift of the hue in turns. blur (R,): standard deviation in pixels, 0 for none. solarize (R,) bool: values from
    one half on are inverted.
    """

    flip: Tensor | None
    angle: Tensor | None
    shift: Tensor | None
    jitter: Tensor | None
    blur: Tensor | None
    solarize: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Settings of the augmentation; by default each step is off.

    crop_scale: range of the crop's share of the image's area, (0.3, 1.0) in I-JEPA (Assran et al., 2023,
        arXiv:2301.08243); None for the largest centred crop. crop_ratio: range of width / height, log-uniform.
    horizontal_flip: probability. rotation: at most so many degrees; translate: at most this share of the side.
    color_jitter: strength s as in SimCLR (Chen et al., 2020, arXiv:2002.05709): brightness, contrast and
        saturation times 1 +- 0.8 s, hue turned by +- 0.2 s; unlike there, in this order and for every view.
    blur: probability of a Gaussian blur with a standard deviation of 0.1 to 2 pixels, as in SimCLR.
    solarize: probability of inverting the values from one half on, as in BYOL (Grill et al., 2020, arXiv:2006.07733).
    """

    crop_scale: Sequence[float] | None = None
    crop_ratio: Sequence[float] = (0.75, 1.3333)
    horizontal_flip: float = 0.0
    rotation: float = 0.0
    translate: float = 0.0
    color_jitter: float = 0.0
    blur: float = 0.0
    solarize: float = 0.0

    def __post_init__(self) -> None:
        if self.crop_scale is not None:
            _check_range("crop_scale", self.crop_scale, highest=1.0)
        _check_range("crop_ratio", self.crop_ratio, highest=math.inf)
        for name in ("horizontal_flip", "blur", "solarize", "translate", "color_jitter", "rotation"):
            value, highest = getattr(self, name), 180 if name == "rotation" else 1
            if not 0 <= value <= highest:
                raise ValueError(f"augment.{name}={value} is not in [0, {highest}]; 0 switches it off")

    def draw(self, count: int, random: torch.Generator) -> Tensor:
        """The uniform numbers (count, NUMBERS) behind so many views of a sample, as many whatever the settings are."""
        return torch.rand(count, NUMBERS, generator=random)

    def boxes(self, uniform: Tensor, *, height: int, width: int, size: tuple[int, int]) -> Tensor:
        """Uniform numbers (R, NUMBERS) as crops (R, 4) of images of that height and width, for views of size (H, W).

        Left, top, width and height in pixels, as RandomResizedCrop of torchvision draws them: the first try that fits,
        else the largest of allowed aspect.
        """
        if self.crop_scale is None:
            return torch.tensor(centre_box(height, width, size)).expand(len(uniform), 4)
        # By NumPy: for the few numbers of a picture torch's calls would take longer than its resizing.
        numbers, rows = uniform.numpy().astype(np.float64), np.arange(len(uniform))
        (low, high), log_low, log_high = self.crop_scale, *(math.log(ratio) for ratio in self.crop_ratio)
        area = height * width * (low + (high - low) * numbers[:, _AREA])
        aspect = np.exp(log_low + (log_high - log_low) * numbers[:, _ASPECT])
        w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        first = fits.argmax(axis=1)
        w, h = w[rows, first], h[rows, first]
        left, top = (numbers[:, _LEFT] * (width - w + 1)).astype(int), (numbers[:, _TOP] * (height - h + 1)).astype(int)
        found = np.array([left, top, w, h], dtype=np.int64).T
        if not (fitting := fits[rows, first]).all():
            nearest = min(max(width / height, self.crop_ratio[0]), self.crop_ratio[1])
            found[~fitting] = centre_box(height, width, (1, nearest))
        return torch.from_numpy(found)

    def views(self, uniform: Tensor) -> Views:
        """Uniform numbers (R, NUMBERS) as what is done to R crops."""
        signed, strength = uniform * 2 - 1, self.color_jitter
        jitter = [1 + 0.8 * strength * signed[:, _JITTER][:, :3], 0.2 * strength * signed[:, _JITTER][:, 3:]]
        return Views(
            flip=uniform[:, _FLIP] < self.horizontal_flip if self.horizontal_flip else None,
            angle=signed[:, _ANGLE] * self.rotation if self.rotation else None,
            shift=signed[:, _RIGHT : _DOWN + 1] * self.translate if self.translate else None,
            jitter=torch.cat(jitter, dim=1) if strength else None,
            blur=(0.1 + 1.9 * uniform[:, _SIGMA]) * (uniform[:, _BLUR] < self.blur) if self.blur else None,
            solarize=uniform[:, _SOLARIZE] < self.solarize if self.solarize else None,
        )


def centre_box(height: int, width: int, size: tuple[float, float]) -> list[int]:
    """The largest centred crop with the aspect of size (H, W): left, top, width and height in pixels, at least one."""
    aspect = size[1] / size[0]
    w, h = min(1.0, height * aspect / width), min(1.0, width / aspect / height)
    shares, sides = ((1 - w) / 2, (1 - h) / 2, w, h), (width, height, width, height)
    left, top, w, h = (round(float(np.float32(share) * np.float32(side))) for share, side in zip(shares, sides))
    w, h = max(w, 1), max(h, 1)
    return [min(left, width - w), min(top, height - h), w, h]


def _check_range(name: str, value: Sequence[float], *, highest: float) -> None:
    if len(value) != 2 or not 0 < value[0] <= value[1] <= highest:
        limit = "" if highest == math.inf else f" <= {highest:g}"
        raise ValueError(f"augment.{name}={list(value)} is not a range [low, high] with 0 < low <= high{limit}")


@dataclass(frozen=True, kw_only=True)
class SeriesAugment:
    """Settings of the views of series, in units of z-scored values; 0 or null switches a step off.

    crop: [least, most] share of the steps that is cut out and stretched to full length by linear interpolation, which
        moves and warps time. scale: standard deviation of the factor 1 + s of each channel. offset: that of what is
        added to each channel. jitter: that of noise on each value (Um et al. 2017, arXiv 1706.00527).
    """

    crop: Sequence[float] | None = None
    scale: float = 0.0
    offset: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if self.crop is not None and (len(self.crop) != 2 or not 0 < self.crop[0] <= self.crop[1] <= 1):
            raise ValueError(f"data.augment.crop={self.crop}: expected [least, most] within (0, 1], or null")
        check_at_least("data.augment", 0, scale=self.scale, offset=self.offset, jitter=self.jitter)

    def draw(self, views: int, shape: tuple[int, int], random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Random numbers (V, 2), (V, 2, C), (V, C, T) of V views of a sample (C, T), whatever the settings are."""
        channels, steps = shape
        place = torch.rand(views, 2, generator=random)
        level = torch.randn(views, 2, channels, generator=random)
        return place, level, torch.randn(views, channels, steps, generator=random)

    def apply(self, x: Tensor, place: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """Views (R, C, T) of series (R, C, T), NaN staying NaN, by numbers as drawn."""
        if self.crop is not None:
            x = self._crop(x, place)
        x = x * (1 + self.scale * level[:, 0, :, None]) + self.offset * level[:, 1, :, None]
        return x + self.jitter * noise

    def _crop(self, x: Tensor, place: Tensor) -> Tensor:
        """Cut out and stretch what is not padding at the end; between two of which one is missing is missing."""
        steps = torch.arange(x.shape[2])
        last = (~x.isnan().all(dim=1) * steps).amax(dim=1, keepdim=True)  # (R, 1) last step observed
        least, most = self.crop
        share = least + (most - least) * place[:, :1]
        at = place[:, 1:] * last * (1 - share) + steps * share  # (R, T)
        below = at.floor().long().clamp(max=x.shape[2] - 1)
        above = (below + 1).clamp(max=x.shape[2] - 1)
        part = (at - below)[:, None]  # (R, 1, T)
        left, right = (x.gather(2, index[:, None].expand(-1, x.shape[1], -1)) for index in (below, above))
        mixed = torch.where(part > 0, left + part * (right - left), left)
        return mixed.masked_fill((steps > last)[:, None], float("nan"))
