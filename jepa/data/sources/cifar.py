"""CIFAR-10 from its python batches, unpacked or in the tar file."""

from __future__ import annotations

import pickle
import tarfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from jepa.data.sources.base import Splits, TensorImages
from jepa.data.sources.download import fetch, missing_files
from jepa.utils.errors import DataError
from jepa.utils.lazy_import import lazy_import

datasets = lazy_import("torchvision.datasets")
TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
FILES = (*TRAIN_FILES, "test_batch", "batches.meta")


def cifar10(*, root: str, download: bool = True) -> Splits:
    """CIFAR-10 (Krizhevsky, 2009): 50,000 + 10,000 colour images of 32 x 32 pixels in 10 classes.

    root holds cifar-10-python.tar.gz, which is read where it is, or the folder cifar-10-batches-py, or is
    that folder. Otherwise the tar file is downloaded to it. Raises DataError if it is damaged or out of
    reach.
    """
    facts = datasets.CIFAR10
    folder, archive = Path(root), Path(root) / facts.filename
    for candidate in (folder, folder / facts.base_folder):
        if all((candidate / name).is_file() for name in FILES):
            return _from_folder(candidate)
    if not archive.is_file():
        try:
            if not download:
                raise OSError("download=false")
            fetch(archive, urls=[facts.url], md5=facts.tgz_md5)
        except OSError as error:
            wanted = [f"{facts.filename}   or the folder {facts.base_folder} with {', '.join(FILES)}"]
            raise missing_files("CIFAR10", folder, wanted, str(error)) from error
    return _from_archive(archive)


def _from_folder(folder: Path) -> Splits:
    batches = {}
    for name in FILES:
        with (folder / name).open("rb") as file:
            batches[name] = _unpickle(file, folder / name)
    return _splits(batches, folder)


def _from_archive(path: Path) -> Splits:
    batches = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                if member.isfile() and name in FILES:
                    batches[name] = _unpickle(archive.extractfile(member), path)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); delete it, then it is downloaded anew") from error
    return _splits(batches, path)


def _splits(batches: dict[str, dict[str, Any]], origin: Path) -> Splits:
    try:
        names = tuple(batches["batches.meta"]["label_names"])
        train = _images([batches[name] for name in TRAIN_FILES])
        test = _images([batches["test_batch"]])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{origin} does not hold the python batches of CIFAR-10 ({error!r})") from error
    return Splits(train=train, test=test, class_names=names)


def _images(batches: list[dict[str, Any]]) -> TensorImages:
    pixels = np.concatenate([batch["data"] for batch in batches])  # (N, 3072), channel by channel
    labels = [label for batch in batches for label in batch["labels"]]
    return TensorImages(torch.from_numpy(pixels).view(-1, 3, 32, 32), torch.tensor(labels))


class _ArrayUnpickler(pickle.Unpickler):
    """Builds NumPy arrays and plain values and nothing else, as a pickle could otherwise run any code."""

    ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "encode"})

    def find_class(self, module: str, name: str) -> Any:
        if name in self.ALLOWED and module.split(".")[0] in ("numpy", "_codecs"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _unpickle(file: IO[bytes], origin: Path) -> dict[str, Any]:
    try:
        return _ArrayUnpickler(file, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, ImportError, AttributeError) as error:
        raise DataError(f"{origin} is not a batch of CIFAR-10 ({error}); get it anew") from error
