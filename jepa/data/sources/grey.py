"""Small grey images held in memory: digits of scikit-learn, and the idx files of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import importlib.util
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa.data.sources.base import Splits, TensorImages
from jepa.data.sources.download import fetch, missing_files
from jepa.utils.errors import DataError
from jepa.utils.lazy_import import lazy_import

datasets = lazy_import("torchvision.datasets")

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
    images = torch.from_numpy(rows[:, :-1] * (255 / 16)).round().to(torch.uint8).view(-1, 1, 8, 8)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    labels = torch.from_numpy(rows[:, -1]).long()
    return Splits(
        train=TensorImages(images[train], labels[train]),
        test=TensorImages(images[test], labels[test]),
        class_names=tuple("0123456789"),
    )


def mnist(*, root: str, download: bool = True) -> Splits:
    """MNIST (LeCun, Cortes, Burges): 60,000 + 10,000 handwritten digits of 28 x 28 pixels.

    root holds the four idx files, gzipped or not, itself or in MNIST/raw as torchvision leaves them; nothing
    is written where they exist. Otherwise they are downloaded. Raises DataError if they are damaged or out of
    reach.
    """
    return _read_splits(datasets.MNIST, Path(root), download=download)


def fashion_mnist(*, root: str, download: bool = True) -> Splits:
    """Fashion-MNIST (Xiao et al., 2017, arXiv:1708.07747): 60,000 + 10,000 pieces of clothing, 28 x 28
    pixels.

    Files and errors as for `mnist`, with the folder FashionMNIST/raw.
    """
    return _read_splits(datasets.FashionMNIST, Path(root), download=download)


def _read_splits(facts: Any, root: Path, *, download: bool) -> Splits:
    """facts: torchvision's class, for the name, classes, addresses and md5 sums of the files."""
    folder = _find_folder(facts.__name__, root)
    if folder is None:
        folder = _download(facts, root, download=download)
    splits = {}
    for split, (images_name, labels_name) in IDX_FILES.items():
        images, labels = read_idx(_find_file(folder, images_name)), read_idx(_find_file(folder, labels_name))
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise DataError(
                f"{folder}: {images_name} of shape {tuple(images.shape)} and {labels_name} of shape "
                f"{tuple(labels.shape)} are not (N, H, W) images with (N,) labels; get these files anew"
            )
        if labels.max() >= len(facts.classes):
            raise DataError(f"{folder}: {labels_name} holds the label {labels.max()}; expected 0 .. 9")
        splits[split] = TensorImages(images.unsqueeze(1), labels.long())
    names = tuple(name.split(" - ")[0] for name in facts.classes)
    return Splits(train=splits["train"], test=splits["test"], class_names=names)


def _find_folder(name: str, root: Path) -> Path | None:
    wanted = [file for files in IDX_FILES.values() for file in files]
    for folder in (root, root / name / "raw", root / "raw"):
        if all(_find_file(folder, file) for file in wanted):
            return folder
    return None


def _find_file(folder: Path, name: str) -> Path | None:
    candidates = (folder / name, folder / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def _download(facts: Any, root: Path, *, download: bool) -> Path:
    folder = root / facts.__name__ / "raw"
    files = [file for file, _ in facts.resources]
    if not download:
        raise missing_files(facts.__name__, root, files, "download=false")
    for file, md5 in facts.resources:
        if not (folder / file).is_file():
            try:
                fetch(folder / file, urls=[mirror + file for mirror in facts.mirrors], md5=md5)
            except OSError as error:
                raise missing_files(facts.__name__, root, files, str(error)) from error
    return folder


def read_idx(path: Path) -> Tensor:
    """The uint8 tensor in an idx file, gzipped if its name ends so. Raises DataError if it is damaged.

    The format: two zero bytes, a type (8 for uint8), the number of axes; each axis as a big-endian uint32;
    values.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read()
        kind, axes = struct.unpack_from(">HBB", content)[1:]
        shape = struct.unpack_from(f">{axes}I", content, 4)
        values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * axes)
        if kind != 8 or values.size != np.prod(shape):
            raise ValueError(f"{values.size} values of type {kind} do not fill the shape {shape}")
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise DataError(f"{path} is not a whole idx file of bytes ({error}); get it anew") from error
    return torch.from_numpy(values.reshape(shape).copy())
