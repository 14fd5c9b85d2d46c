"""Pictures with masks: how they are paired, read, cropped, and what is said of those that do not fit."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from PIL import Image

from jepa.data import ImageData, VideoData
from jepa.data.sources import moving_mnist, segmentation_folder
from jepa.utils.errors import DataError

SIZE = (20, 30)


def left_half(number, classes=3):
    mask = np.zeros(SIZE, np.uint8)
    mask[:, : 5 + number] = 1 + number % (classes - 1)
    mask[0, 0] = 255
    return mask


def write(folder, count=10, kind=Image.fromarray):
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        mask = left_half(number)
        picture = np.repeat(np.where(mask == 255, 0, mask * 100)[..., None], 3, axis=2).astype(np.uint8)
        Image.fromarray(picture).save(folder / "images" / f"{number}.png")
        kind(mask).save(folder / "masks" / f"{number}.png")
    return folder


def palette(mask):
    image = Image.fromarray(mask, mode="P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    return image


def data(root, *, image_size=(20, 30), score_on="test", **source):
    source = functools.partial(segmentation_folder, **source)
    options = {"channels": 3, "mean": 0.0, "std": 1.0, "batch_size": 4, "score_on": score_on}
    return ImageData(source=source, root=str(root), image_size=image_size, **options)


def truths(module, split="train", **options):
    return [pair for b in module.truth_batches(split, batch_size=4, **options) for pair in zip(b["x"], b["truth"])]


@pytest.mark.parametrize("kind", [Image.fromarray, palette])
def test_masks_lie_over_their_pictures(kind, tmp_path):
    module = data(write(tmp_path / "own", kind=kind), val_fraction=0.2)
    assert (module.spec.num_train, module.spec.num_test, module.spec.classes) == (8, 2, None)
    assert module.truth_names == ("0", "1", "2")
    assert "masks of 3 classes" in module.lines[-1]
    for x, truth in truths(module) + truths(module, "test"):
        assert truth[0, 0] == -1  # 255
        assert torch.equal((x[0] * 255 / 100).round().long(), truth.clamp(min=0))


def test_a_mask_is_cropped_as_its_picture_and_keeps_its_resolution(tmp_path):
    folder = write(tmp_path / "own")
    for x, truth in truths(data(folder, image_size=10)):  # the centre square, at half the size
        assert (tuple(x.shape), tuple(truth.shape)) == ((3, 10, 10), (20, 20))
        edge = int((truth[5] > 0).sum())  # columns of the left part within the square
        assert abs(int((x[0, 2] > 0.2).sum()) - edge / 2) <= 1


def test_folders_of_splits_names_and_ignored_values(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / "own" / split, count=4)
    assert data(tmp_path / "own", score_on="validation").spec.num_test == 1  # of the training samples
    module = data(tmp_path / "own", class_names=["a", "b", "c"], ignore=[0, 255])
    assert (module.spec.num_train, module.spec.num_test, module.truth_names) == (4, 4, ("a", "b", "c"))
    assert set(truths(module)[0][1].unique().tolist()) == {-1, 1}
    write(tmp_path / "own" / "test", count=3)
    for score_on, count in {"test": 3, "validation": 4}.items():
        assert data(tmp_path / "own", score_on=score_on).spec.num_test == count
    (tmp_path / "own" / "valid").mkdir()
    with pytest.raises(DataError, match=r"own has test/, val/, valid/: expected one of them beside test/"):
        data(tmp_path / "own")


def test_numbers_such_as_depth(tmp_path):
    folder = write(tmp_path / "own")
    depth = np.linspace(0, 60000, 600).reshape(SIZE)
    for number in range(10):
        path = folder / "masks" / f"{number}.png"
        if number % 2:
            path.unlink()
            np.save(path.with_suffix(".npy"), depth.astype(np.float32))
        else:
            Image.fromarray(depth.astype(np.uint16)).save(path)
    module = data(folder, masks="values", ignore=0)
    assert module.truth_names is None
    for _, truth in truths(module):
        assert truth.isnan().sum() == 1
        assert np.allclose(truth.flatten()[1:], depth.flatten()[1:], atol=1)


def spoil(folder, what):
    if what == "lonely picture":
        (folder / "masks" / "3.png").unlink()
    elif what == "lonely mask":
        (folder / "images" / "3.png").unlink()
    elif what == "two masks":
        (folder / "masks" / "3.npy").touch()
    elif what == "no masks":
        (folder / "masks").rename(folder / "labels")
    elif what == "colours":
        for path in (folder / "masks").iterdir():
            Image.open(path).convert("RGB").save(path)
    elif what == "size":
        for number in (1, 2, 3):
            Image.fromarray(left_half(number)[:10]).save(folder / "masks" / f"{number}.png")
    elif what == "one class":
        for path in (folder / "masks").iterdir():
            Image.fromarray(np.zeros(SIZE, np.uint8)).save(path)


@pytest.mark.parametrize(
    ("what", "options", "said"),
    [
        ("lonely picture", {}, "1 of the images have no file of the same name in masks/: 3"),
        ("lonely mask", {}, "1 of the masks have no file of the same name in images/: 3"),
        ("two masks", {}, "3.* has another file of the same name beside it"),
        ("no masks", {}, "masks is not a folder: expected pictures in images/"),
        ("colours", {}, "expected a mask of one number for each pixel"),
        ("size", {}, "the mask has 10 x 30 pixels, its picture 20 x 30"),
        ("one class", {}, "hold a single class"),
        ("", {"num_classes": 2}, "holds class 2, beyond the 2 classes from 0 to 1: set data.source.num_classes=3"),
    ],
)
def test_what_does_not_fit_is_named(what, options, said, tmp_path):
    folder = write(tmp_path / "own")
    spoil(folder, what)
    with pytest.raises((DataError, ValueError), match=said):
        truths(data(folder, **options))


def test_the_digits_of_moving_mnist_are_known_exactly(shared_dir):
    source = functools.partial(moving_mnist, root=str(shared_dir / "mnist"), train_clips=6, test_clips=2)
    options = {"image_size": 64, "channels": 1, "mean": 0.0, "std": 1.0, "num_frames": 8, "frame_stride": 2}
    module = VideoData(source=lambda: source(), **options)
    for x, truth in truths(module):
        assert truth.shape == (8, 64, 64)
        assert torch.equal(truth > 0, x[0] > 0)
        assert x[0][truth == 2].max() <= 0.5
        assert x[0][truth == 1].max() > 0.5
    # One digit alone: its centre of mass moves as the truth says, between bounces.
    alone = moving_mnist(root=str(shared_dir / "mnist"), digits=1, train_clips=20, test_clips=2).train
    columns = torch.arange(64.0)
    off = []
    for index in range(len(alone)):
        video, _ = alone[index]
        frames, speed = video.frames[:, 0].float(), alone.motion(index, video)
        weight = frames.sum(dim=(1, 2))
        centre = torch.stack([(frames.sum(1) * columns).sum(1), (frames.sum(2) * columns).sum(1)], 1) / weight[:, None]
        steady = (speed[1:] == speed[:-1]).all(dim=1)
        off.append((centre.diff(dim=0) - speed[:-1])[steady].abs().max())
    assert max(off) <= 1.01  # places are whole pixels
    assert bool(((speed.norm(dim=1) >= 2) & (speed.norm(dim=1) <= 5)).all())
