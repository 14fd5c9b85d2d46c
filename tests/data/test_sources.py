"""The small public data sets, and their errors without network."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import shutil
import struct
import tarfile
import time
import urllib.error

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from jepa.data.sources import cifar10, digits, download, fashion_mnist, mnist, series_tables, small_images
from jepa.utils.errors import DataError


@pytest.fixture
def offline(monkeypatch):
    """No address can be resolved; returns the list of those that were tried."""
    tried = []

    def refuse(url, timeout=None):
        assert timeout, "a server that does not answer must not hang the run"
        tried.append(url)
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(download.urllib.request, "urlopen", refuse)
    return tried


def test_digits_are_scikit_learns_in_the_stated_split():
    splits = digits()
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    assert (len(splits.train), len(splits.test), len(splits.class_names)) == (1437, 360, 10)
    restored = torch.cat([splits.train.images, splits.test.images]).float().flatten(1) / 255 * 16
    np.testing.assert_allclose(restored.numpy(), images[order.numpy()], atol=0.05)
    assert torch.cat([splits.train.labels, splits.test.labels]).tolist() == labels[order.numpy()].tolist()


@pytest.mark.parametrize(("source", "name"), [(mnist, "mnist"), (fashion_mnist, "fashion_mnist")])
def test_idx_files_are_read_from_the_folder_that_holds_them(shared_dir, offline, source, name):
    splits = source(root=str(shared_dir / name))
    assert splits.train.images.shape == (60000, 1, 28, 28)
    assert splits.test.images.shape == (10000, 1, 28, 28)
    ones = splits.test.labels.eq(1).sum()
    assert ones == (1000 if name == "fashion_mnist" else 1135)
    assert splits.class_names[0] == ("T-shirt/top" if name == "fashion_mnist" else "0")
    assert not offline


def idx(values: torch.Tensor) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.numpy().tobytes()


def write_idx(folder, *, zipped: bool, number: int = 12) -> dict[str, bytes]:
    """The four files of a small idx data set."""
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (number, 5, 4), generator=random, dtype=torch.uint8)
    contents = {}
    for names in small_images.IDX_FILES.values():
        for name, values in zip(names, (images, torch.arange(number, dtype=torch.uint8) % 10)):
            contents[name] = idx(values)
            path = folder / (f"{name}.gz" if zipped else name)
            path.write_bytes(gzip.compress(contents[name]) if zipped else contents[name])
    return contents


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["", "FashionMNIST/raw", "raw"])
def test_idx_files_of_torchvisions_layout(tmp_path, place, zipped):
    write_idx(tmp_path / "root" / place, zipped=zipped)
    splits = fashion_mnist(root=str(tmp_path / "root"))
    assert splits.train.images.shape == (12, 1, 5, 4)
    assert splits.train.labels.tolist() == [*range(10), 0, 1]


@pytest.mark.parametrize("damage", ["cut", "text", "short", "other"])
@pytest.mark.faults
def test_a_damaged_idx_file_is_named(tmp_path, damage):
    folder = tmp_path / "root"
    content = write_idx(folder, zipped=True)["train-images-idx3-ubyte"]
    path = folder / "train-images-idx3-ubyte.gz"
    damaged = {"cut": path.read_bytes()[:-20], "text": b"<html>not found</html>"}
    damaged |= {"short": gzip.compress(content[:-7]), "other": gzip.compress(b"<html>not found</html>")}
    path.write_bytes(damaged[damage])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz (cannot be read|is not a complete idx file)"):
        mnist(root=str(folder))


@pytest.mark.parametrize("source", [mnist, fashion_mnist, cifar10])
def test_without_network_the_error_says_which_files_go_where(tmp_path, offline, source):
    root = tmp_path / "nothing"
    start = time.monotonic()
    with pytest.raises(DataError) as error:
        source(root=str(root))
    assert time.monotonic() - start < 2
    assert len(offline) <= 2, "the first file that fails ends the attempt"
    message = str(error.value)
    assert "Name or service not known" in message
    assert f"data.root={root}" in message
    wanted = ["cifar-10-python.tar.gz", "data_batch_5", "batches.meta"]
    if source is not cifar10:
        wanted = [f"{name}.gz" for pair in small_images.IDX_FILES.values() for name in pair]
    assert all(name in message for name in wanted)
    assert not [path for path in root.rglob("*") if path.is_file()], "nothing half-written stays"


def test_no_download_is_tried_when_it_is_switched_off(tmp_path, offline):
    with pytest.raises(DataError, match=r"data\.source\.download=false"):
        mnist(root=str(tmp_path), download=False)
    assert not offline


def test_a_download_is_whole_or_absent(tmp_path, monkeypatch):
    content = b"the published file"
    source = {"urls": ["http://first/x", "http://second/x"], "md5": hashlib.md5(content).hexdigest()}
    source |= {"allowed": True, "name": "X", "root": tmp_path, "wanted": []}
    answers = {"http://first/x": b"<html>a proxy's page</html>", "http://second/x": content}
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(answers[url]))
    path = tmp_path / "new" / "x"
    download.download_file(path, **source)
    assert path.read_bytes() == content
    answers["http://second/x"] = content[:5]
    with pytest.raises(DataError, match="md5 sum differs"):
        download.download_file(tmp_path / "new" / "y", **source)
    assert [p.name for p in path.parent.iterdir()] == ["x"]


@pytest.fixture
def cifar_folder(tmp_path):
    """A cifar-10-batches-py folder with four images a batch, the pixels of each its number."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for number, name in enumerate(names):
        values = np.arange(4 * number, 4 * number + 4, dtype=np.uint8)
        batch = {"data": np.repeat(values[:, None], 3072, axis=1), "labels": [int(v) % 10 for v in values]}
        batch["data"][:, :1024] = 200  # the red channel
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    classes = {"label_names": [f"class {i}" for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(classes, protocol=2))
    return folder


@pytest.mark.parametrize("place", ["parent", "folder", "archive"])
def test_cifar10_from_its_python_batches(cifar_folder, tmp_path, place):
    root = {"parent": tmp_path, "folder": cifar_folder, "archive": tmp_path}[place]
    if place == "archive":
        with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
            archive.add(cifar_folder, cifar_folder.name)
        shutil.rmtree(cifar_folder)
    splits = cifar10(root=str(root), download=False)
    assert splits.train.images.shape == (20, 3, 32, 32)
    assert splits.train.images[:, 0].eq(200).all()
    assert splits.train.images[:, 1, 0, 0].tolist() == list(range(20))
    assert splits.test.labels.tolist() == [0, 1, 2, 3]
    assert splits.class_names[3] == "class 3"


@pytest.mark.faults
def test_a_damaged_cifar_batch_is_named(cifar_folder):
    path = cifar_folder / "data_batch_3"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"data_batch_3 is not a batch of CIFAR-10"):
        cifar10(root=str(cifar_folder))


def test_a_cifar_batch_cannot_run_code(cifar_folder):
    class Harm:
        def __reduce__(self):
            return print, ("harm",)

    (cifar_folder / "test_batch").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(DataError, match=r"it asks for builtins\.print"):
        cifar10(root=str(cifar_folder))


def test_what_unpacks_to_more_than_memory_holds_is_refused_before(tmp_path, monkeypatch):
    monkeypatch.setattr("jepa.data.sources.download.memory_limit", lambda: 2**20)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(2**21)))
    with pytest.raises(DataError, match=r"bomb.gz cannot be read: it does not fit in memory"):
        download.read_packed(tmp_path / "bomb.gz")
    with tarfile.open(tmp_path / "bomb.tar.xz", "w:xz") as archive:
        for number in range(3):
            member = tarfile.TarInfo(f"{number}.bin")
            member.size = 2**19
            archive.addfile(member, io.BytesIO(bytes(2**19)))
    with pytest.raises(DataError, match="unpack it and give the folder"):
        download.read_archive(tmp_path / "bomb.tar.xz", lambda name: True)
    assert len(download.read_archive(tmp_path / "bomb.tar.xz", lambda name: name == "1.bin")) == 1
    (tmp_path / "claim.idx").write_bytes(b"\x00\x00\x08\x03" + b"\xff" * 12 + bytes(100))
    with pytest.raises(DataError, match="not a complete idx file"):
        small_images.read_idx(tmp_path / "claim.idx")


def test_an_npz_that_claims_too_much_is_refused_before(tmp_path, monkeypatch):
    monkeypatch.setattr("jepa.data.sources.series_tables.memory_limit", lambda: 2**20)
    np.savez_compressed(tmp_path / "Bomb.npz", train_x=np.zeros(2**21, np.uint8))
    with pytest.raises(DataError, match=r"Bomb.npz cannot be read .*do not fit in memory"):
        series_tables.ucr(root=str(tmp_path), name="Bomb")
