"""Small images in memory: digits of scikit-learn, MNIST, Fashion-MNIST, CIFAR-10, and Moving MNIST."""

from __future__ import annotations

import importlib.util
import io
import pickle
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from jepa.data.sources.decoders import TensorVideo
from jepa.data.sources.download import download_file, find_packed, read_archive, read_packed
from jepa.data.sources.splits import Splits, TensorImages
from jepa.utils.errors import DataError, check_at_least
from jepa.utils.random import generator

IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def digits() -> Splits:
    """1,797 handwritten digits of 8 x 8 pixels, shipped with scikit-learn: 1,437 to train on, 360 to test.

    The grey values 0 .. 16 become 0 .. 255. The split is a permutation drawn with seed 0.
    """
    package = Path(importlib.util.find_spec("sklearn").origin).parent  # found, not imported: that takes a second
    rows = np.loadtxt(package / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    pixels, labels = rows[:, :-1], rows[:, -1]
    images = torch.from_numpy(pixels * (255 / 16)).round().to(torch.uint8).view(-1, 1, 8, 8)
    labels = torch.from_numpy(labels).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = (TensorImages(images[part], labels[part]) for part in (order[:1437], order[1437:]))
    return Splits(train, test, class_names=tuple("0123456789"))


def mnist(*, root: str, download: bool = True) -> Splits:
    """MNIST (LeCun, Cortes, Burges): 60,000 + 10,000 handwritten digits of 28 x 28 pixels.

    root holds the four idx files, gzipped or not, itself or in MNIST/raw as torchvision leaves them; nothing is written
    where they exist. Otherwise they are downloaded. Raises DataError if they are damaged or out of reach.
    """
    return _read_splits("MNIST", Path(root), download=download)


def fashion_mnist(*, root: str, download: bool = True) -> Splits:
    """Fashion-MNIST (Xiao et al., 2017, arXiv:1708.07747), 60,000 + 10,000 of 28 x 28 pixels; files as for `mnist`."""
    return _read_splits("FashionMNIST", Path(root), download=download)


def _read_splits(name: str, root: Path, *, download: bool) -> Splits:
    """name: of torchvision's class, which has the classes, addresses and md5 sums of the files."""
    from torchvision import datasets  # here, as other data do without it

    facts = getattr(datasets, name)
    files = [file for pair in IDX_FILES.values() for file in pair]
    places = (root, root / name / "raw", root / "raw")
    folder = next((place for place in places if all(find_packed(place, file) for file in files)), None)
    if folder is None:
        folder = root / name / "raw"
        wanted = [file for file, _ in facts.resources]
        for file, md5 in facts.resources:
            if not (folder / file).is_file():
                urls = [mirror + file for mirror in facts.mirrors]
                download_file(folder / file, urls=urls, md5=md5, allowed=download, name=name, root=root, wanted=wanted)
    splits = {}
    for split, pair in IDX_FILES.items():
        images, labels = (read_idx(find_packed(folder, file)) for file in pair)
        if images.ndim != 3 or labels.shape != images.shape[:1] or labels.max() >= len(facts.classes):
            raise DataError(
                f"{folder}: {pair[0]} of shape {tuple(images.shape)} and {pair[1]} of shape {tuple(labels.shape)}, up "
                f"to {labels.max()}, are not (N, H, W) images with (N,) labels from 0 to 9; get these files again"
            )
        splits[split] = TensorImages(images.unsqueeze(1), labels.long())
    return Splits(**splits, class_names=tuple(label.split(" - ")[0] for label in facts.classes))


def read_idx(path: Path) -> Tensor:
    """The uint8 tensor in an idx file, gzipped if its name ends so. Raises DataError if it is damaged."""
    content = read_packed(path)
    try:
        if content[:3] != b"\x00\x00\x08":  # two zeros, and 8 for unsigned bytes
            raise ValueError("it begins otherwise")
        shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape))
        return torch.from_numpy(values.reshape(shape).copy())
    except (ValueError, IndexError) as error:
        raise DataError(f"{path} is not a complete idx file ({error}); get it again") from error


def cifar10(*, root: str, download: bool = True) -> Splits:
    """CIFAR-10 (Krizhevsky, 2009): 50,000 + 10,000 colour images of 32 x 32 pixels in 10 classes.

    root holds cifar-10-python.tar.gz, which is read where it is, or the folder cifar-10-batches-py, or is that folder.
    Otherwise the tar file is downloaded to it. Raises DataError if it is damaged or out of reach.
    """
    from torchvision.datasets import CIFAR10 as facts

    folder = Path(root)
    names = [name for name, _ in (*facts.train_list, *facts.test_list)] + [facts.meta["filename"]]
    places = (folder, folder / facts.base_folder)
    origin = next((place for place in places if all((place / name).is_file() for name in names)), None)
    if origin is not None:
        contents = {name: (origin / name).read_bytes() for name in names}
    else:
        origin = folder / facts.filename
        if not origin.is_file():
            wanted = [f"{facts.filename}   or the folder {facts.base_folder} with {', '.join(names)}"]
            source = {"urls": [facts.url], "md5": facts.tgz_md5}
            download_file(origin, **source, allowed=download, name="CIFAR10", root=folder, wanted=wanted)
        packed = read_archive(origin, lambda name: Path(name).name in names)
        contents = {Path(name).name: content for name, content in packed.items()}
    batches = {name: _unpickle(content, origin / name) for name, content in contents.items()}
    try:
        splits = []
        for listed in (facts.train_list, facts.test_list):
            pixels = np.concatenate([batches[name]["data"] for name, _ in listed])  # (N, 3072), channel by channel
            labels = [label for name, _ in listed for label in batches[name]["labels"]]
            splits.append(TensorImages(torch.from_numpy(pixels).view(-1, 3, 32, 32), torch.tensor(labels)))
        return Splits(*splits, class_names=tuple(batches[names[-1]]["label_names"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{origin} does not hold the python batches of CIFAR-10 ({error!r})") from error


class _ArrayUnpickler(pickle.Unpickler):
    """Builds NumPy arrays and plain values only. A pickle can run any code, which torchvision's reader would allow."""

    ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "encode"})

    def find_class(self, module: str, name: str) -> Any:
        if name in self.ALLOWED and module.split(".")[0] in ("numpy", "_codecs"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _unpickle(content: bytes, origin: Path) -> dict[str, Any]:
    try:
        return _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises errors of any class
        raise DataError(f"{origin} is not a batch of CIFAR-10 ({error}); get it again") from error


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

    Clip i of a split is a function of (seed, split, i). The label is the class of the first digit, drawn at full
    brightness and the others at `others_brightness` (in the original: 1.0), as else nothing would tell which it is.
    root, download: see `mnist`. digits: per clip. canvas: pixels of its side. length: frames. speed: (least, most)
    pixels per frame. Raises ValueError for digits that do not fit, and DataError as `mnist` does.
    """
    check_at_least("data.source", 1, digits=digits, length=length, train_clips=train_clips, test_clips=test_clips)
    if not 0 <= speed[0] <= speed[1] or not 0 <= others_brightness <= 1:
        raise ValueError(f"data.source: got speed={speed}, others_brightness={others_brightness}")
    images = mnist(root=root, download=download)
    side = images.train.images.shape[-1]
    if canvas < side:
        raise ValueError(f"data.source.canvas={canvas} is smaller than a digit, {side} pixels")
    shown = {"digits": digits, "canvas": canvas, "brightness": others_brightness}
    make = partial(MovingDigits, **shown, length=length, speed=tuple(speed), seed=seed)
    parts = (("train", images.train, train_clips), ("test", images.test, test_clips))
    return Splits(*(make(split=name, images=of, clips=clips) for name, of, clips in parts), images.class_names)


@dataclass(frozen=True, kw_only=True)
class MovingDigits:
    """The clips of a split, of (length, 1, canvas, canvas), and what is known of them; see `moving_mnist`."""

    truth_names: ClassVar = ("background", "bright digit", "other digits")
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
        pixels = self.images.images[chosen, 0].numpy()  # (digits, h, w); torch's calls would take longer than the work
        places = self._paths(pixels.shape[-1], uniform)[0].tolist()
        frames = np.zeros((self.length, self.canvas, self.canvas), np.uint8)
        classes = np.zeros(frames.shape, np.int64)
        for number, digit in enumerate(pixels):
            shown = digit if number == 0 else (digit.astype(np.float32) * np.float32(self.brightness)).astype(np.uint8)
            for frame, known, (top, left) in zip(frames, classes, places[number]):
                place = slice(top, top + digit.shape[0]), slice(left, left + digit.shape[1])
                known[place][shown > frame[place]] = min(number + 1, 2)
                np.maximum(frame[place], shown, out=frame[place])
        return torch.from_numpy(frames), torch.from_numpy(classes)

    def _paths(self, side: int, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Return top left corners and velocities, both (digits, length, 2), down and right, by numbers (digits, 4)."""
        room = self.canvas - side
        angle = 2 * torch.pi * uniform[:, 2]
        pace = self.speed[0] + (self.speed[1] - self.speed[0]) * uniform[:, 3]
        step = torch.stack([angle.sin(), angle.cos()], dim=-1) * pace[:, None]  # (digits, 2)
        straight = room * uniform[:, None, :2] + step[:, None] * torch.arange(self.length)[:, None]
        folded = straight % max(1, 2 * room)  # there and back again
        places = torch.minimum(folded, 2 * room - folded).clamp(0, room).round().long()
        return places, torch.where(folded < room, step[:, None], -step[:, None])
