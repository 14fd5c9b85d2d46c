"""Pictures that live as one tensor: the same views as from files, and what cannot be held."""

from __future__ import annotations

import logging
import multiprocessing
from dataclasses import fields

import numpy as np
import pytest
import torch
from data_helpers import CROPS, folder_data, same, write_image

from jepa.data import Augment, ImageData, MixedData, PairedData, TaskData, image_data
from jepa.data.stream import Request
from jepa.utils.errors import DataError

FULL = Augment(crop_scale=(0.3, 1.0), horizontal_flip=0.5, rotation=10, translate=0.1, color_jitter=0.5, blur=0.5)
LOCAL = {"local_views": 2, "local_size": 6, "local_augment": FULL}


@pytest.fixture
def pictures(tmp_path):
    """40 of one size in two classes, of which one file is damaged."""
    for seed in range(40):
        write_image(tmp_path / "ab"[seed % 2] / f"{seed}.png", seed=seed, mode="L" if seed % 5 == 0 else "RGB")
    (tmp_path / "a" / "8.png").write_bytes(b"damaged")
    return tmp_path


@pytest.mark.parametrize("settings", [{"augment": None}, {"augment": CROPS}, {"augment": FULL, "views": 2, **LOCAL}])
@pytest.mark.parametrize("channels", [1, 3])
def test_views_and_labels_are_those_of_files(pictures, settings, channels, caplog):
    """Up to a level, of which jitter makes a few; also those of evaluation, which are exact, and the bad sample."""
    files, held = (
        folder_data(pictures, channels=channels, in_memory=how, num_workers=2 if how else 0, **settings)
        for how in (False, "auto")
    )
    with caplog.at_level(logging.INFO, "jepa"):
        steps = {"seed": 1, "start_step": 3, "stop_step": 14}  # of two epochs
        for batch, wanted in zip(held.train_batches(**steps), files.train_batches(**steps), strict=True):
            assert multiprocessing.active_children() == []
            assert batch.keys() == wanted.keys()
            assert torch.equal(batch["label"], wanted["label"])
            for name in batch.keys() - {"label"}:
                assert batch[name].shape == wanted[name].shape
                difference = (batch[name] - wanted[name]).abs()
                assert difference.max() < (8 if settings["augment"] is FULL else 1.01) / 255
                assert difference.mean() < 0.5 / 255
    assert f"36 train pictures of {channels} x 16 x 20 are held in memory" in caplog.text
    assert held.bad_samples.keys() == files.bad_samples.keys()
    for split in ("train", "test"):
        assert same(*(data.evaluation_batches(split, batch_size=8) for data in (held, files)))
    # Data of which this is a part still hears of what is bad.
    sides = {split: range(len(held.splits[split])) for split in ("train", "test")}
    told = [held.make_batch(Request(side, side), held.reading(split))["bad"] for split, side in sides.items()]
    assert {name for bad in told for name in bad} == held.bad_samples.keys()
    # Where nothing is read any more, it does not matter what has become of the files.
    for path in pictures.glob("*/*.png"):
        path.unlink()
    assert len(list(held.evaluation_batches("test", batch_size=8, limit=3))) == 1


def test_the_device_makes_the_views(pictures):
    data = folder_data(pictures, augment=FULL, views=2, **LOCAL)
    data.finish_on = torch.device("meta")
    batch = next(data.train_batches(seed=0, start_step=0, stop_step=1))
    assert {name: (x.device.type, tuple(x.shape)) for name, x in batch.items()} == {
        "views": ("meta", (4, 2, 3, 8, 8)),
        "local_views": ("meta", (4, 2, 3, 6, 6)),
        "label": ("cpu", (4,)),
    }

    # Which make batches of those of their parts, on the CPU and maybe in workers.
    assert not any(hasattr(kind, "finish_on") for kind in (MixedData, PairedData, TaskData))


def test_what_cannot_be_held_is_read_from_files_or_refused(pictures, monkeypatch):
    class Doubled(ImageData):
        def make_inputs(self, value, counter, reading):
            return {name: 2 * x for name, x in super().make_inputs(value, counter, reading).items()}

    def check(error: str | None, make=folder_data, **settings):
        plain = list(make(pictures, in_memory=False, **settings).train_batches(seed=0, start_step=0, stop_step=2))
        auto = make(pictures, **settings)
        assert same(auto.train_batches(seed=0, start_step=0, stop_step=2), plain)
        assert not any(auto._held.values())
        if error:
            with pytest.raises(DataError, match=error):
                make(pictures, in_memory=True, **settings).train_batches(seed=0, start_step=0, stop_step=2)

    def doubled(root, **settings):
        return Doubled(**{each.name: getattr(folder_data(root), each.name) for each in fields(ImageData)} | settings)

    check(r"data.in_memory=true is not for data.channels=4", channels=4)
    check(r"is not for Doubled, which makes its own inputs", doubled)
    for name, value, error in (("LARGEST_SIDE", 19, "up to 19 pixels"), ("MOST_MEMORY", 36 * 3 * 16 * 20 - 1, None)):
        with monkeypatch.context() as patch:
            patch.setattr(image_data, name, value)
            check(error, augment=CROPS)
    write_image(pictures / "b" / "last.png", seed=99, size=(20, 17))
    check(r"data.in_memory=true needs pictures of one size.*\(3, 16, 20\).*: set data.in_memory=false", augment=CROPS)
    (pictures / "b" / "last.png").unlink()
    np.save(pictures / "b" / "last.npy", np.ones((16, 20, 3), np.float32))
    check(r"data.in_memory=true needs pictures of .*8 bits.*float32", augment=CROPS)
