"""Sheets of samples beside the colours of their tokens: images, clips, spectrograms, series and texts.

Drawn with Pillow, as a figure of matplotlib would take longer than a training step.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from jepa.utils.pixels import pixel_statistics, to_pixels

SIDE = 112  # pixels of the longer side of an image; other kinds are twice as wide
FRAMES = 4
GAP, LINE, LETTER = 6, 13, 6  # pixels between samples, of a line of text and of a letter
KINDS = {
    3: "series (time to the right, a line for each channel, each sample over its own range)",
    4: "images",
    5: "clips (frames in order of time)",
}
"""Axes of inputs -> what they are drawn as, to stand in a sentence."""

LINES = ("#0b6e99", "#d9480f", "#2b8a3e", "#862e9c", "#a61e4d", "#5f3dc4", "#e67700", "#1f2933")
"""Colours of the channels of a series; further ones are not drawn."""


class SampleArtist:
    """Draws inputs x (b, ...) of one kind as the network gets them.

    encoder: on the device; that of sound has `stem.log_mel_image`, its spectrogram. data: with `mean` and `std` of
        pixels, or `words` of ids.
    """

    def __init__(self, encoder: Any, data: Any, device: torch.device | str = "cpu") -> None:
        self.device = device
        self.log_mel = getattr(getattr(encoder, "stem", None), "log_mel_image", None)
        self.words: Callable[[Tensor], Sequence[str]] | None = getattr(data, "words", None)
        self.statistics = pixel_statistics(getattr(data, "evaluated", data))

    def kind(self, x: Tensor) -> str | None:
        """Return what such inputs are drawn as; None where there is no picture of them."""
        if self.is_text(x) or not x.is_floating_point():
            return "texts" if self.is_text(x) else None
        if self.is_sound(x):
            return "log-mel spectrograms (time to the right, high frequencies on top)"
        return KINDS.get(x.dim())

    def is_text(self, x: Tensor) -> bool:
        return not x.is_floating_point() and x.dim() == 2 and self.words is not None

    def is_sound(self, x: Tensor) -> bool:
        return x.dim() == 3 and self.log_mel is not None

    def tiles(self, x: Tensor, colours: np.ndarray) -> list[Image.Image]:
        """Return a picture of each sample beside the colours (b, *grid, 3) of its tokens, or above where it is wide."""
        if self.is_text(x):
            return [text_tile(self.words(ids.cpu()), c.reshape(-1, 3)) for ids, c in zip(x, colours)]
        if colours.ndim == 5:  # (b, T, H, W, 3): those of the frames drawn
            tubes = frame_numbers(x.shape[2]) * colours.shape[1] // x.shape[2]
            colours = np.concatenate([colours[:, tube] for tube in tubes], axis=2)
        if colours.ndim == 3:
            colours = colours[:, None]
        if self.is_sound(x):
            colours = colours[:, ::-1]
        return [beside(image, c) for image, c in zip(self.images(x), colours)]

    def images(self, x: Tensor) -> list[Image.Image]:
        """Return a picture of each sample but texts; of clips some frames side by side, of sound the spectrogram."""
        statistics, size = self.statistics, None
        if x.dim() == 5:
            x = x[:, :, frame_numbers(x.shape[2])].transpose(2, 3).flatten(3)  # (b, C, H, frames * W)
        elif self.is_sound(x):
            with torch.no_grad():
                x, statistics, size = self.log_mel(x.to(self.device)).flip(2), None, (2 * SIDE, SIDE // 2)
        elif x.dim() == 3:
            return [plot(series) for series in x.float().cpu()]
        return [fitted(image, size) for image in to_pixels(x, statistics)]

    def thumbnails(self, x: Tensor, side: int = 32) -> np.ndarray | None:
        """Return (b, side, side, 3) uint8, the middle frame of clips; None for texts."""
        if self.is_text(x):
            return None
        images = self.images(x[:, :, x.shape[2] // 2] if x.dim() == 5 else x)
        return np.stack([np.asarray(image.resize((side, side), Image.Resampling.BOX)) for image in images])


def sheet(tiles: Sequence[Image.Image], captions: Sequence[str], head: str, columns: int | None = None) -> np.ndarray:
    """Return tiles with a caption above each, in rows below a sentence, as (H, W, 3) uint8.

    columns: of tiles; None: as many as make the sheet somewhat wider than high.
    """
    width, height = (max(size) for size in zip(*(tile.size for tile in tiles)))
    width, height = width + GAP, height + LINE + GAP
    columns = columns or min(len(tiles), max(1, round(math.sqrt(1.6 * len(tiles) * height / width))))
    across = max(columns * width + GAP, 60 * LETTER)
    lines = textwrap.wrap(head, (across - 2 * GAP) // LETTER)
    top = len(lines) * LINE + 2 * GAP
    page = Image.new("RGB", (across, top + -(-len(tiles) // columns) * height), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default()
    draw.text((GAP, GAP), "\n".join(lines), fill="black", font=font)
    for number, (tile, caption) in enumerate(zip(tiles, captions)):
        left, upper = GAP + number % columns * width, top + number // columns * height
        draw.text((left, upper), caption[: tile.width // LETTER], fill="black", font=font)
        page.paste(tile, (left, upper + LINE))
    return np.asarray(page)


def frame_numbers(frames: int) -> np.ndarray:
    """Return the frames of a clip that are drawn, evenly spaced."""
    return np.linspace(0, frames - 1, min(frames, FRAMES)).round().astype(int)


def fitted(pixels: np.ndarray, size: tuple[int, int] | None = None) -> Image.Image:
    """Return an image of a (width, height); of SIDE pixels, or twice that for a wide one, without."""
    image = Image.fromarray(pixels)
    if size is None:
        scale = SIDE * (2 if image.width >= 2 * image.height else 1) / max(image.size)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.NEAREST if size[0] > image.width else Image.Resampling.BOX)


def beside(image: Image.Image, colours: np.ndarray) -> Image.Image:
    """Return an image and the colours (h, w, 3) of its tokens at the same size; a single row of these is a strip."""
    wide = image.width > image.height or len(colours) == 1
    size = (image.width, 16) if len(colours) == 1 else image.size
    tokens = Image.fromarray(np.ascontiguousarray(colours)).resize(size, Image.Resampling.NEAREST)
    place = (0, image.height + 2) if wide else (image.width + 2, 0)
    both = Image.new("RGB", (place[0] + size[0], place[1] + size[1]), "white")
    both.paste(image, (0, 0))
    both.paste(tokens, place)
    return both


def plot(series: Tensor) -> Image.Image:
    """Return the curves of a series (C, T) over the range of its values; NaN leaves gaps."""
    width, height = 2 * SIDE, SIDE // 2
    image = Image.new("RGB", (width, height), "#f1f3f5")
    draw, values = ImageDraw.Draw(image), series.numpy()
    real = values[np.isfinite(values)]
    low, high = (real.min(), real.max()) if len(real) else (0.0, 1.0)
    y = 2 + (height - 5) * (1 - (values - low) / max(high - low, 1e-12))
    x = (np.arange(values.shape[1]) + 0.5) * width / values.shape[1]
    for line, colour in list(zip(y, LINES))[::-1]:  # the first on top
        breaks = np.flatnonzero(~np.isfinite(line))
        for part in np.split(np.stack([x, line], axis=1), breaks):
            draw.line([tuple(point) for point in part[np.isfinite(part[:, 1])]], fill=colour)
    return image


def text_tile(words: Sequence[str], colours: np.ndarray) -> Image.Image:
    """Return words on the colours (L, 3) of their tokens, lightened to be legible, in lines; at most eight."""
    width, font = 3 * SIDE, ImageFont.load_default()
    image = Image.new("RGB", (width, 8 * LINE), "white")
    draw, x, y = ImageDraw.Draw(image), 0, 0
    for word, colour in zip(words, colours):
        if not (word := word.strip()):
            continue
        long = math.ceil(font.getlength(word)) + 4
        if x and x + long > width:
            x, y = 0, y + LINE
        draw.rectangle((x, y, x + long - 2, y + LINE - 2), fill=tuple(int(c) // 2 + 127 for c in colour))
        draw.text((x + 1, y), word, fill="black", font=font)
        x += long
    return image.crop((0, 0, width, min(8 * LINE, y + LINE)))
