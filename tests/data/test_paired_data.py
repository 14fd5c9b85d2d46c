"""Pairs: partners of one label, splits apart, missing modalities, and the sources of pictures and captions."""

from __future__ import annotations

import json
import tarfile
from functools import partial

import pytest
import torch
from PIL import Image

from jepa.data import DataModule, ImageData, PicturesAndCaptions, TextData
from jepa.data.paired_data import PairedData, labels_of
from jepa.data.sources import Splits, coco_captions, coco_pictures
from jepa.data.stream import UnreadableSample
from jepa.utils.errors import DataError, UserError


class Numbers:
    """Samples that are their own number, from `first` on, with labels in turn."""

    def __init__(self, count: int, first: int, classes: int = 3, broken: int | None = None) -> None:
        self.labels = [i % classes for i in range(count)]
        self.first, self.broken = first, broken

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        if index == self.broken:
            raise UnreadableSample(f"number {index}", "broken")
        return self.first + index, self.labels[index]


def single(train: Numbers, test: Numbers, *, ids: bool = False, views: int = 1) -> DataModule:
    def prepare(number: int, random: torch.Generator | None) -> torch.Tensor:
        return torch.full((2,), number, dtype=torch.int64 if ids else torch.float32)

    splits = Splits(train=train, test=test, class_names=("a", "b", "c"))
    data = DataModule(views=views, max_bad_share=0.5)
    data.setup(splits, prepare=prepare, input_shape=(2,))
    return data


def pairs(**settings) -> PairedData:
    modalities = {
        "few": single(Numbers(9, 1000), Numbers(6, 2000)),
        "many": single(Numbers(60, 3000), Numbers(30, 4000), ids=True),
    }
    return PairedData(**{"modalities": modalities, "anchor": "few", "batch_size": 6, **settings})


def train(data: PairedData, steps: int = 6, seed: int = 0):
    return list(data.train_batches(seed=seed, start_step=0, stop_step=steps))


def test_partners_have_the_label_of_the_anchor_and_come_from_its_split():
    data = pairs()
    assert (data.spec.num_train, data.spec.num_test, data.spec.classes) == (9, 6, 3)
    for batch in train(data):
        few, many = batch["x"]["few"][:, 0] - 1000, batch["x"]["many"][:, 0] - 3000
        assert torch.equal(few.long() % 3, batch["label"])
        assert torch.equal(many % 3, batch["label"])
        assert many.min() >= 0
        assert many.max() < 60
    for batch in data.evaluation_batches("test", batch_size=4):
        assert ((batch["x"]["many"] >= 4000) & (batch["x"]["many"] < 4030)).all()


def test_partners_change_from_epoch_to_epoch_and_depend_on_seed_and_counter_alone():
    data = pairs()
    first, again, other = (train(data, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a["x"]["many"], b["x"]["many"]) for a, b in zip(first, again))
    assert not all(torch.equal(a["x"]["many"], b["x"]["many"]) for a, b in zip(first, other))
    partners: dict[int, set[int]] = {}
    for batch in train(data, steps=60):
        for few, many in zip(batch["x"]["few"][:, 0].tolist(), batch["x"]["many"][:, 0].tolist()):
            partners.setdefault(few, set()).add(many)
    assert all(len(found) > 10 for found in partners.values())  # of 20
    ranks = [
        next(data.train_batches(seed=0, start_step=2, stop_step=3, rank=rank, world_size=2))["x"]["many"]
        for rank in (0, 1)
    ]
    assert torch.equal(torch.cat(ranks), first[2]["x"]["many"])
    evaluated = [next(data.evaluation_batches("test", batch_size=6))["x"]["many"] for _ in range(2)]
    assert torch.equal(*evaluated)


def test_workers_give_the_same_pairs():
    alone, helped = train(pairs(missing={"many": 0.3})), train(pairs(missing={"many": 0.3}, num_workers=2))
    assert all(torch.equal(a["x"]["many"], b["x"]["many"]) for a, b in zip(alone, helped))


def test_missing_modalities_are_empty_in_training_alone_and_never_all():
    data = pairs(missing={"few": 0.5, "many": 0.5})
    lost = torch.zeros(2)
    for batch in train(data, steps=50):
        few, many = batch["x"]["few"].isnan().all(dim=1), (batch["x"]["many"] == 0).all(dim=1)
        assert not (few & many).any()
        lost += torch.tensor([few.sum(), many.sum()])
    assert torch.allclose(lost / 300, torch.tensor(0.375), atol=0.08)  # where both would be lost, one is kept
    for batch in data.evaluation_batches("train", batch_size=9):
        assert not batch["x"]["few"].isnan().any()


@pytest.mark.faults
def test_a_sample_that_cannot_be_read_is_missing_and_not_its_neighbour():
    modalities = {
        "few": single(Numbers(9, 1000), Numbers(6, 2000)),
        "many": single(Numbers(3, 3000, broken=1), Numbers(30, 4000), ids=True),
    }
    data = PairedData(modalities=modalities, anchor="few", batch_size=9, max_bad_share=0.5)
    (batch,) = data.evaluation_batches("train", batch_size=9)
    empty = (batch["x"]["many"] == 0).all(dim=1)
    assert torch.equal(empty, batch["label"] == 1)
    assert "number 1" in data.bad_samples


def test_what_cannot_be_paired_is_explained():
    good = single(Numbers(9, 0), Numbers(6, 0))
    several, lacking = single(Numbers(9, 0), Numbers(6, 0), views=2), single(Numbers(9, 0), Numbers(6, 0, classes=2))
    for settings, error, message in [
        ({"anchor": "none"}, ValueError, r"data\.anchor"),
        ({"missing": {"some": 0.5}}, ValueError, r"data\.missing\.some"),
        ({"modalities": {"few": several, "many": good}}, ValueError, "views=1"),
        (
            {"modalities": {"few": good, "many": lacking}},
            DataError,
            r"test split of many has no sample .* labels \[2\]",
        ),
    ]:
        with pytest.raises(error, match=message):
            pairs(**settings)
    with pytest.raises(UserError, match="no labels to pair by"):
        labels_of("few", [1, 2])


def write_coco(root, pictures: int = 3):
    for folder in ("train2017", "val2017"):
        (root / folder).mkdir(parents=True)
        images, annotations = [], []
        for number in range(pictures):
            Image.new("RGB", (40, 30), (60 * number, 0, 0)).save(root / folder / f"{number}.jpg")
            images.append({"id": 10 - number, "file_name": f"{number}.jpg"})
            annotations += [{"image_id": 10 - number, "caption": f" {folder} {number} {c} "} for c in range(5)]
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"captions_{folder}.json").write_text(
            json.dumps({"images": images, "annotations": annotations})
        )
    return root


@pytest.mark.parametrize("packed", [False, True])
def test_pictures_and_captions_are_numbered_alike(tmp_path, packed):
    root = write_coco(tmp_path / "coco")
    if packed:
        with tarfile.open(tmp_path / "coco.tar", "w") as archive:
            archive.add(root, "coco")
        root = tmp_path / "coco.tar"
    pictures, captions = coco_pictures(root=str(root)), coco_captions(root=str(root))
    assert (len(pictures.train), len(captions.train)) == (3, 15)
    for index in range(15):
        text, number = captions.train[index]
        picture, same = pictures.train[number]
        assert same == number
        assert text.startswith(f"train2017 {round(picture[0, 5, 5].item() / 60)} ")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="COCO's layout"):
        coco_pictures(root=str(tmp_path / "nothing"))


@pytest.mark.parametrize("name", ["../../secret.png", "link.png"])
def test_captions_may_not_name_pictures_outside_of_the_folder(tmp_path, name):
    root = tmp_path / "coco"
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
        (root / split / "link.png").symlink_to(tmp_path / "secret.png")
        Image.new("RGB", (8, 8)).save(root / split / "0.png")
        content = {
            "images": [{"id": 0, "file_name": "0.png"}, {"id": 1, "file_name": name}],
            "annotations": [{"image_id": number, "caption": "a picture"} for number in range(2)],
        }
        (root / "annotations" / f"captions_{split}.json").write_text(json.dumps(content))
    given = {
        "root": str(root),
        "picture": partial(
            ImageData, source=partial(coco_pictures), image_size=8, channels=3, mean=[0.0], std=[1.0], max_bad_share=0
        ),
        "caption": partial(TextData, source=partial(coco_captions), vocab_size=300),
        "batch_size": 2,
    }
    with pytest.raises(DataError, match=r"captions_train2017.json, file_name: .*data.allow_outside=true"):
        PicturesAndCaptions(**given)
    assert len(train(PicturesAndCaptions(**given, allow_outside=True), steps=1)[0]["label"]) == 2
