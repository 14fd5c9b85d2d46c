"""Applies augmentation to images: from PIL images or tensors to normalised float views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from jepa.data.augment import Augment, Views, centre_box
from jepa.data.sources.image_files import WithAlpha, size_of, to_mode
from jepa.data.stream import UnfitSample
from jepa.utils.errors import DataError
from jepa.utils.lazy_import import lazy_import

v2 = lazy_import("torchvision.transforms.v2")
F = lazy_import("torchvision.transforms.v2.functional")


class ImageTransform:
    """Makes float32 inputs of one size and number of channels, normalised by mean and std; one each, or one for all.

    size: (H, W), or one side of a square. augment: how training views are made. 8-bit pixels have values in [0, 1],
    those of float tensors are taken as they are. PIL images, uint8 tensors (C, h, w), treated as these are, and float
    tensors are cropped and resized one by one, with antialiasing, by torch: of photographs 0.6 % of the values differ
    from Pillow's, by up to 3 of 255. Pillow does it where there is alpha or a view is turned or shifted. uint8 tensors
    (B, C, h, w) are warped as a whole batch, which for small images is some fifty times faster.
    Raises ValueError for settings that do not fit.
    """

    def __init__(
        self,
        *,
        size: int | Sequence[int],
        channels: int,
        mean: float | Sequence[float],
        std: float | Sequence[float],
        interpolation: str,
        augment: Augment | None,
    ) -> None:
        check_statistics(mean, std, channels)
        self.size, self.channels = height_and_width("image_size", size), channels
        self.mean, self.std = (torch.tensor(as_list(each)).view(-1, 1, 1) for each in (mean, std))
        self.interpolation, self.augment = interpolation, augment

    def plain(self, images: Image.Image | Tensor) -> Tensor:
        """One PIL image, or tensor (B, C, h, w), resized and centre cropped: (1 or B, C, H, W)."""
        return self.normalise(self.pixels(images))

    def cropped(self, pixels: Tensor) -> Tensor:
        """Pixels (..., h, w) of what `plain` shows, not resized."""
        left, top, w, h = _pixel_box(centre_box(*pixels.shape[-2:], self.size), *pixels.shape[-2:])
        return pixels[..., top : top + h, left : left + w]

    def augmented(self, images: Image.Image | Tensor, uniform: Tensor) -> Tensor:
        """One PIL image, or tensor (B, C, h, w), and numbers (B, V, NUMBERS): views (B, V, C, H, W)."""
        return self.normalise(self.pixels(images, uniform))

    def normalise(self, pixels: Tensor, device: torch.device | None = None) -> Tensor:
        """What `pixels` returns as inputs, on the device; None for where it is."""
        pixels = pixels.to(device or pixels.device, non_blocking=True)
        white = 255 if pixels.dtype == torch.uint8 else 1
        mean, std = (white * each.to(pixels.device, non_blocking=True) for each in (self.mean, self.std))
        return (pixels - mean if white == 1 else pixels.float().sub_(mean)).div_(std)

    def pixels(self, images: Image.Image | Tensor, uniform: Tensor | None = None) -> Tensor:
        """`plain`, or with numbers `augmented`, before it is normalised: uint8 where nothing needed floats."""
        moved = uniform is not None and bool(self.augment.rotation or self.augment.translate)
        alone = isinstance(images, Image.Image) or images.ndim == 3
        if alone and isinstance(images, Tensor):
            by_pillow = len(images) in (1, 3) and (moved or len(images) > self.channels)
            images = F.to_pil_image(images) if by_pillow else images[None]
        images = self._match_channels(images)
        if uniform is None:
            images = _to_tensor(images)
            return _to_tensor(self._crop(images, centre_box(*size_of(images), self.size)), alpha=True)
        batch, count = uniform.shape[:2]
        views = self._views(images, uniform.flatten(0, 1))
        if alone:
            images = images if moved else _to_tensor(images)
            pixels = torch.cat([_to_tensor(self._move(images, views, i), alpha=True) for i in range(count)])
        elif images.dtype == torch.uint8:
            pixels = self._warp(to_float(images), views, count)
        else:
            if views.jitter is not None and (images.min() < 0 or images.max() > 1):
                found = f"one has values from {images.min():g} to {images.max():g}: set data.augment.color_jitter=0"
                raise DataError(f"data.augment.color_jitter needs pixels in [0, 1], and {found}")
            pixels = torch.cat([self._move(images[i // count, None], views, i) for i in range(batch * count)]).float()
        return _recolour(pixels, views).unflatten(0, (batch, count))

    def augmented_clip(self, frames: Tensor, uniform: Tensor) -> Tensor:
        """Frames uint8 (T, C, h, w) and numbers (1, NUMBERS): one view (T, C, H, W), all frames changed alike."""
        frames = self._match_channels(frames)
        views = self._views(frames, uniform)
        pixels = to_float(self._move(frames, views, 0))
        colours = {"jitter": views.jitter, "blur": views.blur}
        every = {n: None if v is None else v.expand(len(pixels), *v.shape[1:]) for n, v in colours.items()}
        return self.normalise(_recolour(pixels, replace(views, **every)))

    def _views(self, images: Image.Image | Tensor, uniform: Tensor) -> Views:
        height, width = size_of(images)
        return self.augment.views(uniform, height=height, width=width, size=self.size)

    @property
    def _mode(self) -> Any:
        return v2.InterpolationMode(self.interpolation)

    def _crop(self, image: Image.Image | Tensor, box: Tensor) -> Image.Image | Tensor:
        height, width = size_of(image)
        left, top, w, h = _pixel_box(box, height, width)
        if (h, w) == self.size == (height, width):
            return image
        if isinstance(image, Image.Image):
            return F.resized_crop(image, top, left, h, w, list(self.size), self._mode, antialias=True)
        part = image[..., top : top + h, left : left + w]
        resized = interpolate(part, self.size, mode=self.interpolation, antialias=True)
        if image.dtype == torch.uint8:
            return resized
        return resized.clamp(image.amin((-2, -1), keepdim=True), image.amax((-2, -1), keepdim=True))

    def _move(self, image: Image.Image | Tensor, views: Views, i: int) -> Image.Image | Tensor:
        """Crop, flip, rotate and shift for view i. Outside is black; in floats, the channel's lowest value."""
        view = self._crop(image, views.box[i])
        if views.flip is not None and views.flip[i]:
            view = view.flip(-1) if isinstance(view, Tensor) else F.horizontal_flip(view)
        if views.angle is None and views.shift is None:
            return view
        angle = 0.0 if views.angle is None else views.angle[i].item()
        right, down = (0.0, 0.0) if views.shift is None else views.shift[i].tolist()
        move = [right * self.size[1], down * self.size[0]]
        # torchvision rotates tensors bilinearly at best.
        mode = v2.InterpolationMode.BILINEAR if isinstance(view, Tensor) else self._mode
        fill = view.amin((0, -2, -1)).tolist() if isinstance(view, Tensor) and view.is_floating_point() else None
        return F.affine(view, angle, move, 1.0, [0.0, 0.0], interpolation=mode, fill=fill)

    def _warp(self, images: Tensor, views: Views, count: int) -> Tensor:
        """Crop, flip, rotate and shift images (B, C, h, w) to (B * V, C, H, W), V views each; outside is black."""
        height, width = self.size
        small = [min(images.shape[-2], height), min(images.shape[-1], width)]
        if tuple(small) != tuple(images.shape[-2:]):
            # Sampling a grid skips pixels when it shrinks an image, so that is done beforehand, and well.
            images = F.resize(images, small, self._mode, antialias=True)
        theta = _matrices(views, height, width)
        images = images.repeat_interleave(count, dim=0)
        grid = affine_grid(theta, [len(images), images.shape[1], height, width], align_corners=False)
        mode = self.interpolation
        return grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False).clamp_(0, 1)

    def _match_channels(self, images: Image.Image | Tensor) -> Image.Image | Tensor:
        """Grey is repeated, colour becomes grey for one channel, and alpha is dropped but for four channels."""
        if isinstance(images, WithAlpha):
            images = images.kept_for(self.channels)
        if isinstance(images, Image.Image):
            transparent = "transparency" in images.info or images.mode in ("LA", "La", "PA", "RGBA", "RGBa")
            mode = {1: "L", 3: "RGB", 4: "RGBA" if transparent else None}.get(self.channels)
            if mode is not None:
                return to_mode(images, mode)
            images = to_mode(images, "L" if images.mode in ("1", "L", "LA", "La") else "RGB")
            images = to_float(_to_tensor(images))
        found = images.shape[-3]
        if found == self.channels:
            return images
        if found == 1:
            return images.expand(*images.shape[:-3], self.channels, *images.shape[-2:])
        if found == 3 and self.channels == 1:
            return F.rgb_to_grayscale(images)
        problem = f"the images have {found} channels and cannot become data.channels={self.channels}"
        raise UnfitSample(f"{problem}; set it to the number they have")


def _pixel_box(box: Tensor, height: int, width: int) -> tuple[int, int, int, int]:
    """Left, top, width and height in pixels, at least one, of a box (4,) in shares of an image."""
    shares, sides = box.tolist(), (width, height, width, height)
    left, top, w, h = (round(float(np.float32(share) * np.float32(side))) for share, side in zip(shares, sides))
    w, h = max(w, 1), max(h, 1)
    return min(left, width - w), min(top, height - h), w, h


def _matrices(views: Views, height: int, width: int) -> Tensor:
    """Affine maps (R, 2, 3) from the view to the image, both in [-1, 1]: backwards through the order of `Views`."""
    left, top, w, h = views.box.unbind(dim=1)
    angle = torch.zeros_like(w) if views.angle is None else views.angle * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    # Rows of the inverse rotation; the view's aspect, as an angle is one in pixels and not in [-1, 1].
    xx, xy, yx, yy = cos, sin * (height / width), -sin * (width / height), cos
    shift = torch.zeros(len(w), 2) if views.shift is None else views.shift
    right, down = (2 * shift).unbind(dim=1)
    x, y = -(xx * right + xy * down), -(yx * right + yy * down)
    across = w if views.flip is None else torch.where(views.flip, -w, w)
    row_x = torch.stack([across * xx, across * xy, across * x + (2 * left + w - 1)], dim=1)
    row_y = torch.stack([h * yx, h * yy, h * y + (2 * top + h - 1)], dim=1)
    return torch.stack([row_x, row_y], dim=1)


def _recolour(pixels: Tensor, views: Views) -> Tensor:
    if views.jitter is not None or views.blur is not None:
        pixels = to_float(pixels)
    if views.jitter is not None:
        pixels = _jitter(pixels, views.jitter)
    if views.blur is None:
        return pixels
    # SimCLR's kernel is a tenth of the side; odd, so that it has a centre.
    kernel = [max(3, side // 10 // 2 * 2 + 1) for side in pixels.shape[-2:]]
    pairs = zip(pixels, views.blur.tolist())
    return torch.stack([F.gaussian_blur(view, kernel, [sigma] * 2) if sigma > 0 else view for view, sigma in pairs])


def _jitter(pixels: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue of views (R, C, H, W), as torchvision has them but all views at once."""
    brightness, contrast, saturation, hue = factors[..., None, None, None].unbind(dim=1)  # (R, 1, 1, 1) each
    pixels = (pixels * brightness).clamp(0, 1)
    pixels = _blend(pixels, _grey(pixels).mean(dim=(1, 2, 3), keepdim=True), contrast)
    if pixels.shape[1] != 3:
        return pixels
    pixels = _blend(pixels, _grey(pixels), saturation)
    return torch.stack([F.adjust_hue(view, turn) for view, turn in zip(pixels, hue.flatten().tolist())])


def _grey(pixels: Tensor) -> Tensor:
    return F.rgb_to_grayscale(pixels) if pixels.shape[1] == 3 else pixels


def _blend(pixels: Tensor, other: Tensor, share: Tensor) -> Tensor:
    return (pixels * share + other * (1 - share)).clamp(0, 1)


def to_float(pixels: Tensor) -> Tensor:
    """uint8 as float32 in [0, 1], floats as they are."""
    return pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels.float()


def _to_tensor(image: Image.Image | Tensor, *, alpha: bool = False) -> Image.Image | Tensor:
    """A PIL image as uint8 (1, C, h, w), with channels last in memory; one with alpha stays unless asked for."""
    if isinstance(image, Tensor) or (image.mode == "RGBA" and not alpha):
        return image
    return torch.from_numpy(np.array(image)).view(image.height, image.width, -1).permute(2, 0, 1)[None]


def height_and_width(name: str, size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a side or a pair. Raises ValueError for anything else."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"data.{name}={size} is neither a side nor [height, width], at least 1")
    return pair


def as_list(value: float | Sequence[float]) -> list[float]:
    """Return one number or several as a list."""
    return [value] if isinstance(value, (int, float)) else list(value)


def check_statistics(mean: float | Sequence[float], std: float | Sequence[float], channels: int) -> None:
    """Raise ValueError for means and deviations that do not fit the channels, or deviations not above 0."""
    for name, value in (("mean", mean), ("std", std)):
        if value == "auto":
            raise ValueError(f"data.{name}=auto is of training images, of which there are none here: give numbers")
        if (count := len(as_list(value))) not in (1, channels):
            expected = f"{channels}, one per channel, a single number, or data.{name}=auto for those of training images"
            raise ValueError(f"data.{name} has {count} values; expected {expected}")
    if min(as_list(std)) <= 0:
        raise ValueError(f"data.std={as_list(std)} has a value that is not positive")
