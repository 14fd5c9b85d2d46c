"""Small images held in memory: digits of scikit-learn, MNIST, Fashion-MNIST and CIFAR-10."""

from __future__ import annotations

import importlib.util
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa.data.sources.download import download_file, find_packed, read_archive, read_packed
from jepa.data.sources.splits import Splits, TensorImages
from jepa.utils.errors import DataError

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
    """Fashion-MNIST (Xiao et al., 2017, arXiv:1708.07747): 60,000 + 10,000 pieces of clothing, 28 x 28 pixels.

    Files and errors as for `mnist`, with the folder FashionMNIST/raw.
    """
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
