"""What torchvision does to a picture, for a batch of pictures with numbers of their own, on any device.

All are sums and products without a loop over the pictures or a look at their numbers, so a GPU never waits for the CPU.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from jepa.data.augment import Views
from jepa.utils.lazy_import import lazy_import

F = lazy_import("torchvision.transforms.v2.functional")


def crop_and_resize(images: Tensor, boxes: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Crops (R, 4) of images uint8 (R, C, h, w), in pixels, as uint8 (R, C, H, W), antialiased: `resized_crop`."""
    left, top, width, height = boxes.unbind(dim=1)
    down = _resizing(top, height, images.shape[-2], size[0], mode)  # (R, H, h)
    across = _resizing(left, width, images.shape[-1], size[1], mode)  # (R, W, w)
    pixels = (images.float() @ across[:, None].mT).clamp_(0, 255)
    return (down[:, None] @ pixels).round_().clamp_(0, 255).to(torch.uint8)


def _resizing(first: Tensor, count: Tensor, length: int, size: int, mode: str) -> Tensor:
    """Weights (R, size, length) of a line of `length` pixels, of which `count` (R,) from `first` (R,) become `size`."""
    place = torch.arange(length, device=first.device) - first[:, None]  # (R, length)
    place = place.where(place >= 0, length)  # past the end, where all weights are 0
    rows = torch.arange(size, device=first.device)
    return _weights(length, size, mode, first.device)[count[:, None, None], rows[:, None], place[:, None]]


@lru_cache(maxsize=8)
def _weights(length: int, size: int, mode: str, device: torch.device) -> Tensor:
    """Those with which torch resizes 0 .. `length` pixels to `size`: (length + 1, size, length + 1)."""
    weights = torch.zeros(length + 1, size, length + 1)
    for count in range(1, length + 1):
        one_each = torch.eye(count)[None, None]
        weights[count, :, :count] = interpolate(one_each, (size, count), mode=mode, antialias=True)[0, 0]
    return weights.to(device)


def change(pixels: Tensor, views: Views, mode: str) -> Tensor:
    """Crops (R, C, H, W), uint8 or float, as R views: float where more was done than to mirror them."""
    if views.flip is not None:
        pixels = _mirror(pixels, views.flip)
    if views.angle is not None or views.shift is not None:
        pixels = _move(to_float(pixels), views, mode)
    if views.jitter is not None:
        pixels = _jitter(to_float(pixels), views.jitter)
    if views.blur is not None:
        pixels = _blur(to_float(pixels), views.blur)
    if views.solarize is not None:
        pixels = to_float(pixels)
        pixels = (1 - pixels).where(views.solarize[:, None, None, None] & (pixels >= 0.5), pixels)
    return pixels


def _mirror(pixels: Tensor, flip: Tensor) -> Tensor:
    if pixels.device.type != "cpu":
        return pixels.flip(-1).where(flip[:, None, None, None], pixels)
    mirrored = pixels.clone()
    for number in flip.nonzero()[:, 0].tolist():  # a sixth of the time of the above for pictures of 224 pixels
        mirrored[number] = pixels[number].flip(-1)
    return mirrored


def _move(pixels: Tensor, views: Views, mode: str) -> Tensor:
    """Rotate and shift. Outside is black; of a picture with values outside of [0, 1], the channel's lowest."""
    height, width = pixels.shape[-2:]
    zero = pixels.new_zeros(len(pixels))
    angle = zero if views.angle is None else views.angle * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    # The inverse rotation, in [-1, 1]; with the view's aspect, as an angle is one in pixels.
    xx, xy, yx, yy = cos, sin * (height / width), -sin * (width / height), cos
    right, down = (zero, zero) if views.shift is None else (2 * views.shift).unbind(dim=1)
    x, y = -(xx * right + xy * down), -(yx * right + yy * down)
    theta = torch.stack([xx, xy, x, yx, yy, y], dim=1).unflatten(1, (2, 3))
    low, high = pixels.amin((-2, -1), keepdim=True), pixels.amax((-2, -1), keepdim=True)
    usual = (low.amin(1, keepdim=True) >= 0) & (high.amax(1, keepdim=True) <= 1)
    low = low.masked_fill(usual, 0.0)
    grid = affine_grid(theta, list(pixels.shape), align_corners=False)
    moved = grid_sample(pixels - low, grid, mode=mode, padding_mode="zeros", align_corners=False) + low
    return moved.clamp(low, high)


def _jitter(pixels: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue, in this order."""
    brightness, contrast, saturation, turn = factors[..., None, None, None].unbind(dim=1)  # (R, 1, 1, 1) each
    pixels = (pixels * brightness).clamp(0, 1)
    pixels = _blend(pixels, _grey(pixels).mean(dim=(1, 2, 3), keepdim=True), contrast)
    if pixels.shape[1] != 3:
        return pixels
    pixels = _blend(pixels, _grey(pixels), saturation)
    red, green, blue = pixels.unbind(dim=1)
    value = pixels.amax(dim=1)
    chroma = value - pixels.amin(dim=1)
    each = chroma.where(chroma > 0, 1.0)
    hue = (2 + (blue - red) / each).where(value == green, 4 + (red - green) / each)
    hue = ((green - blue) / each).where(value == red, hue)  # in sixths of a turn
    places = torch.arange(5, 0, -2, device=pixels.device)[:, None, None]
    places = (places + (hue[:, None] + 6 * turn)).remainder(6)
    return value[:, None] - chroma[:, None] * torch.minimum(places, 4 - places).clamp(0, 1)


def _grey(pixels: Tensor) -> Tensor:
    return F.rgb_to_grayscale(pixels) if pixels.shape[1] == 3 else pixels


def _blend(pixels: Tensor, other: Tensor, share: Tensor) -> Tensor:
    return (pixels * share + other * (1 - share)).clamp(0, 1)


def _blur(pixels: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur; SimCLR's kernel is a tenth of the side; odd, so that it has a centre."""
    for side in (-1, -2):
        length = pixels.shape[side]
        reach = max(3, length // 10 // 2 * 2 + 1) // 2
        distance = torch.arange(-reach, reach + 1, device=pixels.device)
        kernel = (-0.5 * (distance / sigma[:, None].clamp(min=1e-3)).square()).exp()  # without a blur 1 in the middle
        kernel = kernel / kernel.sum(dim=1, keepdim=True)  # (R, K)
        weights = (kernel @ _shifts(length, reach, pixels.device).flatten(1)).view(-1, 1, length, length)
        pixels = pixels @ weights.mT if side == -1 else weights @ pixels
    return pixels


@lru_cache(maxsize=8)
def _shifts(length: int, reach: int, device: torch.device) -> Tensor:
    """(K, length, length): 1 where pixel j is that at distance k from pixel i, mirrored at the edges."""
    places = torch.arange(length) + torch.arange(-reach, reach + 1)[:, None]  # (K, length)
    places = (length - 1 - (length - 1 - places.abs()).abs()).clamp(min=0)
    return torch.nn.functional.one_hot(places, length).float().to(device)


def to_float(pixels: Tensor) -> Tensor:
    """uint8 as float32 in [0, 1], floats as they are."""
    return pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels.float()
