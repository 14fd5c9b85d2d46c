"""Folders of image files: layouts, kinds of files, and what is wrong with them."""

from __future__ import annotations

import os

import pytest
import torch
from data_helpers import folder_data, write_classes, write_image
from PIL import Image

from jepa.data.sources import image_folder
from jepa.utils.errors import DataError


def pixels(root, **settings) -> torch.Tensor:
    """The plain inputs of all images of a flat folder, in [0, 1]; (N, C, H, W)."""
    data = folder_data(root, **settings)
    return torch.cat([b["x"] for split in ("train", "test") for b in data.evaluation_batches(split, batch_size=9)])


@pytest.mark.parametrize("name", ["val", "test", "valid", "validation"])
def test_train_and_test_folders(tmp_path, name):
    write_classes(tmp_path / "train", classes=3, each=4)
    write_classes(tmp_path / name, classes=2, each=1)
    data = folder_data(tmp_path)
    assert (data.spec.num_train, data.spec.num_test, data.spec.classes) == (12, 2, 3)
    assert data.spec.class_names == ("a", "b", "c")
    assert data.spec.input_shape == (3, 8, 8)
    for split in ("train", "test"):
        for batch in data.evaluation_batches(split, batch_size=5):
            grey = (batch["x"][:, 0, 4, 4] * 255).round().long()
            assert torch.equal(grey, 60 * batch["label"]), "files have the labels of their folders"


@pytest.mark.parametrize("folder", ["", "train"])
def test_without_a_test_folder_a_share_of_each_class_is_kept_aside(tmp_path, folder):
    write_classes(tmp_path / folder, classes=2, each=10)
    splits = image_folder(root=str(tmp_path), val_fraction=0.2)
    assert splits.train.labels.tolist() == [0] * 8 + [1] * 8
    assert splits.test.labels.tolist() == [0] * 2 + [1] * 2
    train, test = set(splits.train.paths.tolist()), set(splits.test.paths.tolist())
    assert len(train | test) == 20
    again = image_folder(root=str(tmp_path), val_fraction=0.2)
    assert again.test.paths.tolist() == splits.test.paths.tolist()
    other = image_folder(root=str(tmp_path), val_fraction=0.2, split_seed=1)
    assert other.test.paths.tolist() != splits.test.paths.tolist()


@pytest.mark.parametrize("folder", ["", "train"])
def test_a_flat_folder_is_data_without_labels(tmp_path, folder):
    for i in range(10):
        write_image(tmp_path / folder / f"{i}.png", seed=i)
    data = folder_data(tmp_path, batch_size=3)
    assert (data.spec.num_train, data.spec.num_test, data.spec.classes) == (9, 1, None)
    assert data.spec.class_names is None
    (batch,) = data.train_batches(seed=0, start_step=0, stop_step=1)
    assert batch.keys() == {"x"}


@pytest.mark.parametrize("test_folder", [None, "val", "val/a", "val/b"])
def test_a_single_class_folder_is_data_without_labels(tmp_path, test_folder):
    write_classes(tmp_path / ("train" if test_folder else ""), classes=1)
    if test_folder:
        write_image(tmp_path / test_folder / "x.png")
    data = folder_data(tmp_path)
    assert (data.spec.num_train, data.spec.num_test, data.spec.classes) == ((6, 1) if test_folder else (5, 1)) + (None,)
    assert data.lines == (f"data.root={tmp_path}: all labels are alike (a), so this is data without labels",)
    assert "label" not in next(data.evaluation_batches("train", batch_size=2))


def test_files_are_found_at_any_depth_through_links_and_without_the_hidden(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    write_classes(root, classes=1, each=2)
    write_image(elsewhere / "deep" / "x.JPG")
    write_image(elsewhere / ".hidden.jpg")
    write_image(elsewhere / ".cache" / "y.jpg")
    (elsewhere / "notes.txt").write_text("no image")
    os.symlink(elsewhere, root / "b")
    os.symlink(root, elsewhere / "loop")
    splits = image_folder(root=str(root))
    found = [os.fsdecode(path) for part in (splits.train, splits.test) for path in part.paths]
    assert splits.class_names == ("a", "b")
    assert sorted(path for path in found if path.startswith("a")) == ["a/0.png", "a/1.png"]
    assert "b/deep/x.JPG" in found
    assert not any("hidden" in path or "cache" in path or "notes" in path for path in found)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_file_is_converted(tmp_path, channels):
    grey = Image.new("L", (8, 8), 128)
    kinds = {
        "grey.png": grey,
        "colour.JPG": grey.convert("RGB"),
        "colour.webp": grey.convert("RGB"),
        "colour.bmp": grey.convert("RGB"),
        "alpha.png": grey.convert("RGBA"),
        "grey_alpha.png": grey.convert("LA"),
        "palette.png": grey.convert("RGB").quantize(4),
        "cmyk.jpeg": grey.convert("RGB").convert("CMYK"),
        "wide.png": Image.frombytes("I;16", (8, 8), (128 * 257).to_bytes(2, "little") * 64),
    }
    for name, image in kinds.items():
        image.save(tmp_path / name)
    clear = grey.convert("RGB").quantize(4)
    clear.save(tmp_path / "palette_alpha.png", transparency=bytes([128, 255, 255, 255]))
    values = pixels(tmp_path, channels=channels)
    assert values.shape == (10, channels, 8, 8)
    torch.testing.assert_close(values, torch.full_like(values, 128 / 255), atol=0.02, rtol=0)


def test_the_orientation_in_exif_data_is_honoured(tmp_path):
    image = Image.new("L", (8, 8))
    image.paste(255, (0, 0, 4, 8))  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # held so that the top is on the right
    image.save(tmp_path / "a.png", exif=exif)
    image.save(tmp_path / "b.png", exif=exif)
    values = pixels(tmp_path)
    assert values[:, :, :4].eq(1).all()
    assert values[:, :, 4:].eq(0).all()


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (None, "is not a folder"),
        ([], "holds no images"),
        (["train/a/"], "holds no images .*, neither do its folders a"),
        (["train/a/x.png", "train/b/x.png", "train/empty/"], "no images in the class folders empty; fill or remove"),
        (
            ["train/a/x.png", "train/b/x.png", "val/c/x.png"],
            "classes c of the test split are not in train, which has a",
        ),
        (
            ["train/a/x.png", "train/b/x.png", "val/ILSVRC2012_val_00000001.JPEG"],
            "holds 1 images but no class folders; expected val/<class>/<file>",
        ),
        (["a/x.png", "b/x.png", "stray.png"], r"holds 1 images \(stray.png\) beside the folders a, b"),
        (["train/x.png", "train/y.png", "val/"], "val holds no images"),
        (["only.png"], "none can be kept aside"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(tmp_path, layout, message):
    root = tmp_path / "root"
    for name in layout or []:
        if name.endswith("/"):
            (root / name).mkdir(parents=True)
        else:
            write_image(root / name)
    if layout == []:
        root.mkdir()
    with pytest.raises(DataError, match=message):
        image_folder(root=str(root))
    if "stray" in message:
        splits = image_folder(root=str(root), labels=False, val_fraction=0.3)
        assert (len(splits.train), len(splits.test), splits.train.labels, splits.class_names) == (2, 1, None, None)


@pytest.mark.parametrize("workers", [0, 2])
def test_tiny_imagenet(unpacked, workers):
    data = folder_data(unpacked("tiny_imagenet10.tar.gz"), image_size=64, num_workers=workers, batch_size=32)
    assert (data.spec.num_train, data.spec.num_test, data.spec.classes) == (5000, 500, 10)
    (batch,) = data.train_batches(seed=0, start_step=3, stop_step=4)
    assert batch["x"].shape == (32, 3, 64, 64)
    test = list(data.evaluation_batches("test", batch_size=100))
    assert torch.cat([batch["label"] for batch in test]).bincount().tolist() == [50] * 10
    assert data.bad_samples == {}


def test_photographs_of_odd_sizes(unpacked):
    data = folder_data(unpacked("clothing10.tar"), image_size=[48, 32], batch_size=10)
    assert (data.spec.num_train, data.spec.num_test, data.spec.classes) == (120, 60, 10)
    (batch,) = data.train_batches(seed=0, start_step=0, stop_step=1)
    assert batch["x"].shape == (10, 3, 48, 32)
