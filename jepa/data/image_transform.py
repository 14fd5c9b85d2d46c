"""Applies augmentation to images: from PIL images or tensors to normalised float views."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from jepa.data.augment import Augment, centre_box
from jepa.data.image_operations import change, crop_and_resize, to_float
from jepa.data.sources.image_files import WithAlpha, size_of, to_mode
from jepa.data.stream import UnfitSample
from jepa.utils.errors import DataError
from jepa.utils.lazy_import import lazy_import

v2 = lazy_import("torchvision.transforms.v2")
F = lazy_import("torchvision.transforms.v2.functional")


class ImageTransform:
    """Makes float32 inputs of one size and number of channels, normalised by mean and std; one each, or one for all.

    size: (H, W), or one side of a square. augment: how training views are made. 8-bit pixels have values in [0, 1],
    those of float tensors are taken as they are. `pixels` crops and resizes one picture by torch, with antialiasing: of
    photographs 0.6 % of the values differ from Pillow's, by up to 3 of 255. Pillow does it where there is alpha. A
    batch of uint8 tensors is cropped as a whole, and so is all else done, by `finish`.
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
        return self.finish(self.pixels(images))[:, 0]

    def augmented(self, images: Image.Image | Tensor, uniform: Tensor) -> Tensor:
        """What `pixels` takes as normalised views (B, V, C, H, W)."""
        return self.finish(self.pixels(images, uniform), uniform)

    def cropped(self, pixels: Tensor) -> Tensor:
        """Pixels (..., h, w) of what `plain` shows, not resized."""
        left, top, w, h = centre_box(*pixels.shape[-2:], self.size)
        return pixels[..., top : top + h, left : left + w]

    def whole(self, image: Image.Image | Tensor) -> Image.Image | Tensor:
        """One PIL image, or tensor (C, h, w), or a batch of these, as a batch with the channels asked for.

        One with alpha stays a PIL image.
        """
        if isinstance(image, Tensor) and image.ndim == 3:
            by_pillow = image.dtype == torch.uint8 and (len(image), self.channels) == (3, 1)
            image = F.to_pil_image(image) if by_pillow else image[None]
        return _to_tensor(self._match_channels(image))

    def pixels(self, images: Image.Image | Tensor, uniform: Tensor | None = None) -> Tensor:
        """One image, or uint8 (B, C, h, w), and numbers (B, V, NUMBERS) as crops (B, V, C, H, W) where they are.

        uniform None: one crop of each, of the centre. uint8 but where the images are floats.
        """
        many = isinstance(images, Tensor) and images.ndim == 4 and images.dtype == torch.uint8
        images = self.whole(images)
        height, width = size_of(images)
        if uniform is None:
            return self._crop(images, centre_box(height, width, self.size))[:, None]
        batch = uniform.shape[:2]
        boxes = self.augment.boxes(uniform.flatten(0, 1), height=height, width=width, size=self.size)
        if many:
            if self.augment.crop_scale is not None or self.size != (height, width):
                boxes = boxes.to(images.device, non_blocking=True).unflatten(0, batch)
                views = [crop_and_resize(images, each, self.size, self.interpolation) for each in boxes.unbind(dim=1)]
                return torch.stack(views, dim=1)  # one view at a time, as all are large until they are resized
            return images[:, None].expand(-1, batch[1], -1, -1, -1)
        ranged = [name for name in ("color_jitter", "solarize") if getattr(self.augment, name)]
        if isinstance(images, Tensor) and images.is_floating_point() and ranged:
            low, high = images.aminmax()
            if low < 0 or high > 1:
                found = f"one has values from {low:g} to {high:g}: set data.augment.{ranged[0]}=0"
                raise DataError(f"data.augment.{ranged[0]} needs pixels in [0, 1], and {found}")
        return torch.stack([self._crop(images, box) for box in boxes.tolist()], dim=1)

    def finish(self, pixels: Tensor, uniform: Tensor | None = None, device: torch.device | None = None) -> Tensor:
        """Crops (..., C, H, W), with the numbers (B, V, NUMBERS) behind them or without, as inputs on the device.

        device: None for where they are.
        """
        pixels = pixels.to(device or pixels.device, non_blocking=True)
        if uniform is not None:
            views = self.augment.views(uniform.flatten(0, 1).to(pixels.device, non_blocking=True))
            pixels = change(pixels.reshape(-1, *pixels.shape[-3:]), views, self.interpolation).reshape(pixels.shape)
        white = 255 if pixels.dtype == torch.uint8 else 1
        mean, std = (white * each.to(pixels.device, non_blocking=True) for each in (self.mean, self.std))
        return (pixels - mean if white == 1 else pixels.float().sub_(mean)).div_(std)

    def augmented_clip(self, frames: Tensor, uniform: Tensor) -> Tensor:
        """Frames uint8 (T, C, h, w) and numbers (1, NUMBERS): one view (T, C, H, W), all frames changed alike."""
        frames = self._match_channels(frames)
        (box,) = self.augment.boxes(uniform, height=frames.shape[-2], width=frames.shape[-1], size=self.size).tolist()
        frames = self._crop(frames, box)
        return self.finish(frames[:, None], uniform.expand(len(frames), 1, -1))[:, 0]

    def _crop(self, image: Image.Image | Tensor, box: Sequence[int]) -> Tensor:
        """Images (B, C, h, w), or one PIL image, cropped to left, top, width and height: (B, C, H, W)."""
        left, top, w, h = box
        if (h, w) == self.size == size_of(image):
            return _to_tensor(image, alpha=True)
        if isinstance(image, Image.Image):
            mode = v2.InterpolationMode(self.interpolation)
            return _to_tensor(F.resized_crop(image, top, left, h, w, list(self.size), mode), alpha=True)
        part = image[..., top : top + h, left : left + w]
        bytes_on_gpu = image.dtype == torch.uint8 and image.device.type != "cpu"  # which torch does not resize
        part = part.float() if bytes_on_gpu else part
        resized = interpolate(part, self.size, mode=self.interpolation, antialias=True)
        if image.dtype == torch.uint8:
            return resized.round().clamp(0, 255).to(torch.uint8) if bytes_on_gpu else resized
        return resized.clamp(image.amin((-2, -1), keepdim=True), image.amax((-2, -1), keepdim=True))

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
