"""Moving MNIST, made from MNIST: digits that drift over a canvas and bounce off its sides."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from jepa.data.sources.decoders import TensorVideo
from jepa.data.sources.small_images import mnist
from jepa.data.sources.splits import Splits, TensorImages
from jepa.utils.random import generator


def moving_mnist(
    *,
    root: str,
    download: bool = True,
    digits: int = 2,
    canvas: int = 64,
    length: int = 20,
    speed: tuple[float, float] = (2.0, 5.0),
    others_brightness: float = 0.5,
    train_clips: int = 10_000,
    test_clips: int = 2_000,
    seed: int = 0,
) -> Splits:
    """Clips of moving digits (Srivastava et al. 2015, arXiv 1502.04681), generated when they are read.

    Clip i of a split is a function of (seed, split, i): its digits, of the same split of MNIST, their places,
    directions and speeds. The label is the class of the first digit, which is drawn at full brightness and the others
    at `others_brightness`, as otherwise nothing would show which one the label means (in the original: 1.0).

    root, download: see `mnist`. digits: per clip. canvas: pixels of its side. length: frames. speed: (least, most)
    pixels per frame. Raises ValueError for digits that do not fit, and DataError as `mnist` does.
    """
    if digits < 1 or length < 1 or train_clips < 1 or test_clips < 1:
        raise ValueError("data.source: digits, length, train_clips and test_clips must be at least 1")
    if not 0 <= speed[0] <= speed[1] or not 0 <= others_brightness <= 1:
        raise ValueError(f"data.source: got speed={speed}, others_brightness={others_brightness}")
    images = mnist(root=root, download=download)
    side = images.train.images.shape[-1]
    if canvas < side:
        raise ValueError(f"data.source.canvas={canvas} is smaller than a digit, {side} pixels")
    make = partial(
        MovingDigits,
        digits=digits,
        canvas=canvas,
        length=length,
        speed=tuple(speed),
        brightness=others_brightness,
        seed=seed,
    )
    train = make(images=images.train, split="train", clips=train_clips)
    test = make(images=images.test, split="test", clips=test_clips)
    return Splits(train, test, images.class_names)


@dataclass(frozen=True, kw_only=True)
class MovingDigits:
    images: TensorImages
    split: str
    clips: int
    digits: int
    canvas: int
    length: int
    speed: tuple[float, float]
    brightness: float
    seed: int

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, index: int) -> tuple[TensorVideo, int]:
        chosen, uniform = self._draw(index)
        frames, _ = self._paint(chosen, uniform)
        return TensorVideo(frames.unsqueeze(1)), int(self.images.labels[chosen[0]])

    @property
    def truth_names(self) -> tuple[str, ...]:
        return ("background", "bright digit", "other digits")

    def truth(self, index: int, video: TensorVideo) -> Tensor:
        """Return which digit each pixel of a clip shows, (length, canvas, canvas) int64: a class of truth_names."""
        return self._paint(*self._draw(index))[1]

    def motion(self, index: int, video: TensorVideo) -> Tensor:
        """Return the velocity of the bright digit in each frame, (length, 2): pixels per frame, right and down."""
        return self._paths(self.images.images.shape[-1], self._draw(index)[1])[1][0].flip(-1)

    def _draw(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the digits (digits,) of a clip and numbers (digits, 4) for their paths."""
        random = generator("cpu", self.seed, f"moving mnist/{self.split}", index)
        chosen = torch.randint(len(self.images), (self.digits,), generator=random)
        return chosen, torch.rand(self.digits, 4, generator=random)

    def _paint(self, chosen: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Return the frames (length, canvas, canvas) uint8 and what each pixel shows, see `truth`."""
        pixels = self.images.images[chosen, 0]  # (digits, h, w)
        places = self._paths(pixels.shape[-1], uniform)[0].tolist()
        frames = torch.zeros(self.length, self.canvas, self.canvas, dtype=torch.uint8)
        classes = torch.zeros(self.length, self.canvas, self.canvas, dtype=torch.int64)
        for number, digit in enumerate(pixels):
            shown = digit if number == 0 else (digit * self.brightness).to(torch.uint8)
            for frame, known, (top, left) in zip(frames, classes, places[number]):
                place = slice(top, top + digit.shape[0]), slice(left, left + digit.shape[1])
                known[place][shown > frame[place]] = min(number + 1, 2)
                torch.maximum(frame[place], shown, out=frame[place])
        return frames, classes

    def _paths(self, side: int, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Return top left corners in pixels and velocities, each (digits, length, 2), down and right.

        uniform: numbers (digits, 4) for start, direction and speed.
        """
        room = self.canvas - side
        angle = 2 * torch.pi * uniform[:, 2]
        pace = self.speed[0] + (self.speed[1] - self.speed[0]) * uniform[:, 3]
        step = torch.stack([angle.sin(), angle.cos()], dim=-1) * pace[:, None]  # (digits, 2)
        straight = room * uniform[:, None, :2] + step[:, None] * torch.arange(self.length)[:, None]
        folded = straight % max(1, 2 * room)  # there and back again
        places = torch.minimum(folded, 2 * room - folded).clamp(0, room).round().long()
        return places, torch.where(folded < room, step[:, None], -step[:, None])
