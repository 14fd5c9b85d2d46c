"""Every file of conf/data that is of images builds image data and yields batches of the promised shapes."""

from __future__ import annotations

from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from data_helpers import write_classes, write_videos
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from test_segmentation import write as write_masks

import jepa.data
from jepa.data import ImageData
from jepa.data.stream import SampleOrder

CONFIGS = Path(__file__).parents[2] / "conf" / "data"
FACTS = ("source", "image_size", "channels", "mean", "std")


def load(name: str) -> DictConfig:
    """A file of conf/data, with those that it starts from."""
    config = OmegaConf.load(CONFIGS / f"{name}.yaml")
    bases = [base for base in config.pop("defaults", []) if base != "_self_"]
    config.pop("hints", None)  # for other groups
    return OmegaConf.merge(*(load(base) for base in bases), config)


IMAGES = sorted(p.stem for p in CONFIGS.glob("*.yaml") if load(p.stem).get("_target_") == "jepa.data.ImageData")


def build(name: str, **changes) -> ImageData:
    config = load(name)
    config = OmegaConf.merge(config, changes)
    return instantiate(config, _convert_="all")


def root_of(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    if name == "digits":
        return {}
    if name in ("image_folder", "imagenet"):
        return {"root": str(write_classes(tmp_path))}
    if name in ("video_folder", "fight_frames"):
        return write_videos(tmp_path)
    if name == "segmentation_folder":
        return {"root": str(write_masks(tmp_path / "own", count=20))}
    if name == "moving_mnist":
        return {"root": str(request.getfixturevalue("shared_dir") / "mnist")}
    if name == "cifar10":
        pytest.skip("needs the data set; its source is tested with a synthetic one")
    return {"root": str(request.getfixturevalue("shared_dir") / name)}


@pytest.mark.parametrize("name", IMAGES)
def test_config_builds_and_yields_batches(name, request, tmp_path):
    data = build(name, **root_of(name, request, tmp_path), batch_size=4, num_workers=0)
    (batch,) = data.train_batches(seed=0, start_step=0, stop_step=1)
    channels, *size = data.spec.input_shape
    if data.views > 1:
        assert batch["views"].shape == (4, data.views, channels, *size)
    else:
        assert batch["x"].shape == (4, channels, *size)
    if name != "segmentation_folder":
        assert batch["label"].shape == (4,)
        assert batch["label"].dtype == torch.int64
    test = next(data.evaluation_batches("test", batch_size=2))
    assert test["x"].shape == (2, channels, *size)
    assert test["x"].dtype == torch.float32


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_config_names_the_facts_and_how_to_run_it(path):
    config = load(path.stem)
    assert [key for key in ("batch_size", *(FACTS if path.stem in IMAGES else ())) if key not in config] == []
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("python train.py " in line and f"data={path.stem}" in line for line in comments)


@pytest.mark.parametrize("size", [16, [12, 20]])
def test_images_take_the_size_asked_for(size):
    data = build("digits", image_size=size)
    expected = (1, size, size) if isinstance(size, int) else (1, *size)
    assert data.spec.input_shape == expected
    (batch,) = data.train_batches(seed=0, start_step=0, stop_step=1)
    assert batch["x"].shape == (64, *expected)


@pytest.mark.parametrize("name", ["digits", "fashion_mnist", "mnist"])
def test_mean_and_std_are_those_of_the_data(name, request, tmp_path):
    data = build(name, **root_of(name, request, tmp_path))
    pixels = torch.cat([b["x"] for b in data.evaluation_batches("train", batch_size=500, limit=5000)])
    assert pixels.mean() == pytest.approx(0, abs=0.02)
    assert pixels.std() == pytest.approx(1, abs=0.02)


def test_without_augmentation_training_sees_what_evaluation_sees():
    data = build("digits", augment=None, views=1)
    (batch,) = data.train_batches(seed=0, start_step=0, stop_step=1)
    (everything,) = data.evaluation_batches("train", batch_size=2000)
    order = SampleOrder(num_samples=data.spec.num_train, batch_size=64, seed=0).request(0)
    assert torch.equal(batch["x"], everything["x"][order.indices])


@pytest.mark.parametrize(
    "name", sorted({name for names in jepa.data.NAMES.values() for name in names if "Data" in name})
)
def test_types_of_constructors_resolve(name):
    """Also of inherited fields, in the subclass's file: without them `jepa.config.check` accepts any value."""
    data_class = getattr(jepa.data, name)
    assert get_type_hints(data_class.__init__)["batch_size"] is int
    assert name == "TaskData" or issubclass(data_class, jepa.data.DataModule)
