"""ImageNet in every layout that people have; the archives, their index, and what is wrong with them."""

from __future__ import annotations

import gzip
import logging
import os
import re
import shlex
import tarfile
from pathlib import Path

import imagenet_layouts as layouts
import numpy as np
import pytest
import torch
from data_helpers import CROPS, folder_data, same, write_classes
from imagenet_layouts import LAYOUTS, TRAIN, VAL, WNIDS, layout, tar, write

from jepa.config.build import build_data
from jepa.config.command import load_config
from jepa.data.sources import image_folder, imagenet, tar_files
from jepa.data.sources.splits import NO_LABEL
from jepa.utils.errors import DataError

INDEX = ".jepa_index_train.npz"


def packed_data(root: Path, **settings):
    return folder_data(root, source=imagenet, **settings)


def samples(data) -> list[torch.Tensor]:
    batches = [batch for split in ("train", "test") for batch in data.evaluation_batches(split, batch_size=5)]
    return [torch.cat([batch[key] for batch in batches]) for key in ("x", "label")]


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_samples_of_class_folders(tmp_path, name):
    wanted = folder_data(layout(tmp_path / "folders", LAYOUTS[0]), source=image_folder)
    data = packed_data(layout(tmp_path / "other", name))
    assert (data.spec.num_train, data.spec.num_test) == (len(TRAIN), len(VAL))
    assert data.spec.class_names in (WNIDS, ("0", "1", "2"))
    for mine, other in zip(samples(data), samples(wanted)):
        assert torch.equal(mine, other)
    assert not data.bad_samples
    assert not [line for line in data.lines if "left out" not in line]


@pytest.mark.parametrize("name", ["train tar, val tar, devkit tar", "shards"])
def test_a_resumed_run_takes_the_same_samples(tmp_path, name):
    root = layout(tmp_path, name)
    whole = list(packed_data(root, augment=CROPS).train_batches(seed=1, start_step=0, stop_step=8))
    resumed = packed_data(root, augment=CROPS, num_workers=2)  # by the index that was kept
    assert same(resumed.train_batches(seed=1, start_step=5, stop_step=8), whole[5:])


def test_a_part_of_the_data(tmp_path):
    """Numbers of classes stay as they are in shards, and a share is kept aside where there is no validation split."""
    for number in range(2):
        files = {
            f"{n}.{end}": b"7" if end == "cls" else layouts.picture(n) for n in range(10) for end in ("cls", "jpg")
        }
        files |= {f"{n}.cls": b"3" for n in range(5)}
        write(tmp_path / f"some-{number:06}.tar", tar(files))
    splits = imagenet(root=str(tmp_path))
    assert (len(splits.train), len(splits.test)) == (18, 2)
    assert splits.class_names == tuple("01234567")
    assert {*splits.train.labels.tolist()} == {3, 7}
    (tmp_path / "some-000000.tar").unlink()
    write(tmp_path / "some-000001.tar", tar({f"{n}.jpg": layouts.picture(n) for n in range(4)}))
    unlabelled = imagenet(root=str(tmp_path))
    assert (len(unlabelled.train), unlabelled.class_names) == (3, None)
    for root in (write_classes(tmp_path / "classes"), tmp_path / "classes" / "a"):
        (tmp_path / "classes" / "backup-2020.tar").write_bytes(b"another thing")
        mine, other = (source(root=str(root)) for source in (imagenet, image_folder))
        assert mine.train.paths.tolist() == other.train.paths.tolist()
        assert mine.class_names == other.class_names


def test_the_index_is_kept_and_found_anew_for_another_archive(tmp_path, caplog):
    root = layout(tmp_path, "train tar, val folders")
    archive = root / "ILSVRC2012_img_train.tar"
    caplog.set_level(logging.INFO, "jepa")

    def times_indexed() -> int:
        caplog.clear()
        assert len(imagenet(root=str(root)).train) == 12
        return sum("indexing" in record.getMessage() for record in caplog.records)

    assert [times_indexed(), times_indexed()] == [1, 0]
    os.utime(archive, ns=(0, 1))
    assert [times_indexed(), times_indexed()] == [1, 0]
    archive.write_bytes(archive.read_bytes() + bytes(10240))
    os.utime(archive, ns=(0, 1))
    assert [times_indexed(), times_indexed()] == [1, 0]
    assert sorted(path.name for path in root.iterdir()) == [INDEX, archive.name, "val"]


def hostile_index(**changes):
    def write_index(path: Path) -> None:
        with np.load(path) as stored:
            arrays = dict(stored)
        np.savez(
            path,
            **{name: change(arrays[name]) for name, change in changes.items()}
            | {name: array for name, array in arrays.items() if name not in changes},
        )

    return write_index


@pytest.mark.faults
@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no index"),
        lambda path: path.write_bytes(path.read_bytes()[:-300]),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.symlink_to("nowhere")),
        hostile_index(names=lambda names: names.astype(object)),
        hostile_index(names=lambda names: names[:3]),
        hostile_index(labels=lambda labels: np.arange(len(labels))),
        hostile_index(places=lambda places: places.astype(float)),
        hostile_index(places=lambda places: places * 1000),
        hostile_index(places=lambda places: places - 2**40),
        hostile_index(places=lambda places: places + 2**62),
        hostile_index(places=lambda places: places[:, :2]),
    ],
)
def test_a_damaged_index_is_found_anew_and_that_is_said(tmp_path, harm):
    root = layout(tmp_path, "train tar, val folders")
    expected = imagenet(root=str(root)).train.places.tolist()
    harm(root / INDEX)
    splits = imagenet(root=str(root))
    assert splits.train.places.tolist() == expected
    (line,) = splits.lines
    assert re.search(rf"{INDEX} cannot be used \(.+\), so the archives are indexed again", line)
    assert not imagenet(root=str(root)).lines


@pytest.mark.faults
def test_where_no_index_can_be_kept_that_is_said(tmp_path):
    root = layout(tmp_path, "train tar, val folders")
    (root / INDEX / "folder").mkdir(parents=True)
    for _ in range(2):
        splits = imagenet(root=str(root))
        assert len(splits.train) == 12
        assert [line for line in splits.lines if "cannot be written (" in line and "indexed at every start" in line]
    assert sorted(path.name for path in root.iterdir()) == [INDEX, "ILSVRC2012_img_train.tar", "val"]


@pytest.mark.faults
def test_damaged_members_are_bad_samples(tmp_path, monkeypatch):
    good = layouts.picture(50)
    files = {f"{n:02}.{end}": good if end == "jpg" else b"%d" % (n % 2) for n in range(40) for end in ("cls", "jpg")}
    files |= {
        "07.jpg": good[:100],
        "11.jpg": b"",
        "13.jpg": good + bytes(9000),
        "17.cls": b"\xff\x00",
        "19.cls": b"x" * 99,
    }
    files |= {"25.cls": b"cat", "27.cls": b"123456789"}
    del files["23.cls"]
    write(tmp_path / "in-train-0.tar", tar(files))
    write(tmp_path / "in-val-0.tar", tar({name: files[name] for name in ("00.jpg", "00.cls", "01.jpg", "01.cls")}))
    monkeypatch.setattr(tar_files, "MOST_BYTES", 9000)
    data = packed_data(tmp_path)
    assert sum(len(batch["x"]) for batch in data.evaluation_batches("train", batch_size=9)) == 40
    assert data.spec.class_names == ("0", "1")
    bad = {Path(name).name: reason for name, reason in data.bad_samples.items()}
    assert {name: reason for name, reason in bad.items() if name != "07.jpg"} == {
        "11.jpg": "the file is empty",
        "13.jpg": f"it claims {len(good) + 9000:,} bytes, more than 9,000",
        **dict.fromkeys(("17.jpg", "19.jpg", "23.jpg", "25.jpg", "27.jpg"), NO_LABEL),
    }
    assert "truncated" in bad["07.jpg"].lower()
    cut = tmp_path / "in-train-0.tar"
    data = packed_data(tmp_path)
    cut.write_bytes(cut.read_bytes()[:-30_000])
    list(data.evaluation_batches("train", batch_size=9))
    assert "the archive ends before it" in data.bad_samples.values()


def header(size: bytes = b"%011o\0" % 5, kind: bytes = tarfile.REGTYPE) -> bytes:
    """The header of a file n.jpg, with a size as it stands there."""
    block = bytearray(tarfile.TarInfo("n.jpg").tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157] = size, kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


BROKEN = {
    "empty": b"",
    "no archive": b"404 not found" * 99,
    "cut in a picture": layouts.val_tar()[:1300],
    "cut in a header": layouts.val_tar()[:300],
    "cut in an archive inside": layouts.train_tar()[:5000],
    "a header overwritten": layouts.val_tar().replace(b"ILSVRC2012_val_00000003", b"ILSVRC2012_wal_00000003"),
    "compressed": gzip.compress(layouts.val_tar()),
    "claims more than there is": header(b"%011o\0" % 2**32) + bytes(1024),
    "claims less than nothing": header(b"\xff" * 12) + bytes(1024),
    "claims a place before": header(b"\xff" * 7 + bytes(5)) + bytes(1024),
    "claims 2^80 bytes": header(b"\x80\0" + b"\xff" * 10) + bytes(1024),
    "a name of 8 GB": header(b"%011o\0" % (2**33 - 1), tarfile.GNUTYPE_LONGNAME) + bytes(1024),
    "a name of less than nothing": header(b"\xff" * 12, tarfile.GNUTYPE_LONGNAME) + bytes(1024),
    "names of names": header(b"0" * 11 + b"\0", tarfile.GNUTYPE_LONGNAME) * 3000,
}


@pytest.mark.faults
@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_damaged_archive_is_refused_by_name(tmp_path, content):
    layout(tmp_path, "val folders")
    write(tmp_path / "ILSVRC2012_img_train.tar", content)
    problem = (
        "is compressed, .* unpack it" if content[:1] == b"\x1f" else "is no complete tar archive after .*: get it again"
    )
    with pytest.raises(DataError, match=rf"ILSVRC2012_img_train\.tar\S* {problem}"):
        imagenet(root=str(tmp_path))
    assert not (tmp_path / INDEX).exists()


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("", {}, "holds no images"),
        ("train folders, val flat", {}, r"put ILSVRC2012_devkit_t12.tar.gz .* LOC_val_solution.csv into"),
        ("train tar, val tar", {"meta.mat": b""}, r"put ILSVRC2012_devkit_t12.tar.gz"),
        (
            "train folders, val flat, devkit files",
            {"meta.mat": b"MATLAB 5.0"},
            r"ground_truth.txt and meta.mat do not fit",
        ),
        (
            "train folders, val flat, devkit files",
            {"ILSVRC2012_validation_ground_truth.txt": b"1\n2\n3\n1\n2\n"},
            "lack val/ILSVRC2012_val_00000006.JPEG",
        ),
        ("train folders, val flat, devkit files", {"ILSVRC2012_validation_ground_truth.txt": b"7"}, "do not fit"),
        ("train folders, val flat", {"ILSVRC2012_devkit_t12.tar.gz": tar({"x": b""}, "w:gz")}, "lacks ILSVRC2012"),
        ("train folders, val flat, solution", {"LOC_val_solution.csv": b"a,b\n1,2\n"}, "is not Kaggle's table"),
        ("val tar, solution", {}, r"holds ILSVRC2012_img_val.tar, but neither train/ nor ILSVRC2012_img_train.tar"),
        ("val folders", {"in-train-0.tar": tar({"a.txt": b""})}, "there are no pictures in it"),
        ("", {"imagenet-object-localization-challenge.zip": b""}, "compressed archives .* unpack them, with unzip"),
        ("", {"ILSVRC2012_img_train.tar.gz": b""}, "holds ILSVRC2012_img_train.tar.gz, but .* tar -xf"),
    ],
)
def test_what_is_missing_is_said(tmp_path, name, files, message):
    layout(tmp_path, name)
    for file, content in files.items():
        write(tmp_path / file, content)
    with pytest.raises(DataError, match=message):
        imagenet(root=str(tmp_path))


@pytest.mark.parametrize("name", ["ILSVRC2012_test_{:08}.JPEG", "{}.jpg"])
def test_test_pictures_without_labels_are_left_out(tmp_path, name):
    layout(tmp_path, "train folders, val flat, devkit files")
    (tmp_path / "val").rename(tmp_path / "test")
    assert len(imagenet(root=str(tmp_path)).test) == len(VAL), "labelled, whatever their folder is called"
    for number, path in enumerate(sorted((tmp_path / "test").iterdir())):
        path.rename(path.with_name(name.format(number)))
    if "ILSVRC" not in name:
        for path in tmp_path.rglob("*ground_truth.txt"):
            path.unlink()
    splits = imagenet(root=str(tmp_path), val_fraction=0.25)
    assert (len(splits.train), len(splits.test), splits.class_names) == (9, 3, WNIDS)
    assert "6 test pictures without labels left out, the first is test/" in splits.lines[-1]


@pytest.mark.parametrize(("picture", "label"), [("image", "label"), ("the img", "fine_label")])
def test_the_command_for_parquet_files_works(tmp_path, picture, label):
    """That of the message is followed, for the files as they are on the hub: test pictures have no labels."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features({picture: datasets.Image(), label: datasets.ClassLabel(names=list(WNIDS))})
    for split, pictures in (("train", TRAIN), ("validation", VAL), ("test", VAL)):
        rows = {
            picture: [{"bytes": content, "path": None} for _, content in pictures.values()],
            label: [-1 if split == "test" else WNIDS.index(wnid) for wnid, _ in pictures.values()],
        }
        (tmp_path / "the data" / "data").mkdir(parents=True, exist_ok=True)
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(tmp_path / "the data" / "data" / f"{split}-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"Read it with: python train\.py data=hf ") as error:
        imagenet(root=str(tmp_path / "the data"))
    overrides = shlex.split(str(error.value).partition("python train.py ")[2])
    data = build_data(load_config([*overrides, "data.image_size=32", "data.batch_size=4"]))
    assert (data.spec.num_train, data.spec.num_test, data.spec.class_names) == (12, 6, WNIDS)
    (batch,) = data.evaluation_batches("test", batch_size=9)
    assert batch["label"].tolist() == [WNIDS.index(wnid) for wnid, _ in VAL.values()]
