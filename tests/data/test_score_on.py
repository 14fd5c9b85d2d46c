"""`data.score_on=validation`: probes see a part of the training samples, and the test split is left alone."""

from __future__ import annotations

import inspect
import pickle
from dataclasses import fields
from functools import partial

import numpy as np
import pandas
import pytest
import torch

from jepa import load_config
from jepa.data import DataModule, ImageData, MixedData, SeriesData, TaskData, hugging_face, packed
from jepa.data.sources import TensorImages, series_csv
from jepa.data.sources.series_tables import SeriesSplits
from jepa.data.sources.splits import KnownSamples, Splits, keep_aside, scored_on_validation
from jepa.utils.errors import DataError
from tests.data.data_helpers import folder_data, write_image


def numbered_images(count: int = 40) -> Splits:
    """Pictures and labels that are their own numbers; those of the test split begin at 100."""
    numbers = torch.arange(count)
    images = numbers.view(-1, 1, 1, 1).expand(-1, 1, 4, 4).to(torch.uint8)
    return Splits(TensorImages(images, numbers), TensorImages(images + 100, numbers + 100), tuple(map(str, range(140))))


def numbered_series(root: str) -> SeriesSplits:
    series = [torch.full((1, 6), float(number)) for number in range(20)]
    labels = list(range(20))
    return SeriesSplits(series, [torch.full((1, 6), 99.0)], labels, [99], tuple(map(str, range(100))))


def scored(data) -> dict[str, list[int]]:
    return {
        side: [int(y) for b in data.evaluation_batches(side, batch_size=8) for y in b["label"]]
        for side in ("train", "test")
    }


def test_a_part_of_the_training_samples_stands_for_the_test_split(tmp_path):
    for number in range(20):
        write_image(tmp_path / "pictures" / f"c{number:02}" / "a.png", seed=number)
        write_image(tmp_path / "pictures" / f"c{number:02}" / "b.png", seed=number)
    makes = {
        "pictures": partial(ImageData, source=numbered_images, image_size=4, channels=1, mean=[0.0], std=[1.0]),
        "files": partial(folder_data, tmp_path / "pictures"),
        "series": partial(SeriesData, source=numbered_series, root="", z_score=False),
    }
    for name, make in makes.items():
        whole, data = make(), make(score_on="validation", num_workers=1 if name == "files" else 0)
        assert data.spec.num_train + data.spec.num_test == whole.spec.num_train, name
        labels, again = scored(data), scored(make(score_on="validation"))
        assert labels == again
        assert len(labels["test"]) == data.spec.num_test == whole.spec.num_train // 3
        assert sorted(labels["train"] + labels["test"]) == sorted(scored(whole)["train"]), name
        for batch in data.evaluation_batches("test", batch_size=8):  # each with its own label
            if name != "files":
                assert torch.equal(
                    batch["x"].flatten(1).amax(1), batch["label"] / (255.0 if name == "pictures" else 1.0)
                )
    files = pickle.loads(pickle.dumps(folder_data(tmp_path / "pictures", score_on="validation").splits["test"]))
    assert all(f"c{label:02}" in files.describe(number) for number, label in enumerate(files.labels))


def test_enough_is_kept_aside_to_tell_runs_apart_and_each_class_gives_its_share():
    for total, held in ((2, 1), (180, 60), (1437, 200), (9000, 900)):
        parts = keep_aside(total)
        assert len(parts[1]) == held
        assert sorted(np.concatenate(parts)) == list(range(total))
    with pytest.raises(DataError, match=r"^data.score_on=validation: the training split holds 1 samples, expected "):
        keep_aside(1)
    labels = np.random.default_rng(0).permutation(np.repeat(range(4), (292, 177, 28, 3)))
    shares = np.bincount(labels[keep_aside(500, labels.tolist())[1]])
    assert abs(shares - np.bincount(labels) / 3).max() < 1


def test_pieces_of_a_file_stay_together_and_keep_the_truth_at_their_times():
    class Pieces(list):
        wholes = np.arange(20) // 4 + 7
        labels = np.arange(20) // 4

    samples = KnownSamples(Pieces(range(20)), lambda times, sound: times, ("none",))
    found = scored_on_validation(Splits(samples, samples))
    (held,) = {found.test[number] // 4 for number in range(len(found.test))}
    assert [found.train[number] for number in range(16)] == [n for n in range(20) if n // 4 != held]
    assert found.test.labels.tolist() == [held] * 4
    assert found.test.truth(torch.tensor([0.5]), None) == 0.5


def test_series_are_scored_on_their_validation_part(tmp_path):
    steps = np.arange(300.0)
    dates = pandas.date_range("2020-01-01", periods=300, freq="1h")
    pandas.DataFrame({"date": dates, "a": steps, "state": steps // 10 % 2}).to_csv(tmp_path / "t.csv", index=False)
    source = partial(series_csv, step_labels="state")
    parts = {}
    for score_on in ("test", "validation"):
        data = SeriesData(source=source, root=str(tmp_path / "t.csv"), window_size=20, z_score=False, score_on=score_on)
        windows = data.windows("test", horizon=4)
        parts[score_on] = windows.values
        batch = next(data.truth_batches("test", batch_size=400))
        assert all(torch.equal(x[0] // 10 % 2, truth.float()) for x, truth in zip(batch["x"], batch["truth"]))
        assert torch.equal(batch["x"][0, 0], windows.values[0, :20])
    assert torch.equal(parts["validation"], data.windows("validation", horizon=4).values)
    assert parts["validation"].max() < parts["test"].max()


def test_parts_of_a_whole_are_scored_on_the_same(tmp_path):
    make = partial(ImageData, source=numbered_images, image_size=4, channels=1, mean=[0.0], std=[1.0])
    parts = {"one": make(score_on="validation"), "two": make(score_on="validation")}
    assert MixedData(parts=parts, score_on="validation").spec.num_test == 13
    for kind in (MixedData, TaskData):
        with pytest.raises(ValueError, match=r"data.parts.one.score_on=validation, but data.score_on=test: give both"):
            kind(parts=parts)
    for function in (packed, hugging_face):  # which pass on what all data take
        assert {each.name for each in fields(DataModule)} <= inspect.signature(function).parameters.keys()
    where = [f"data.{name}_root={tmp_path}" for name in ("mnist", "fsdd")]
    assert (
        load_config(["experiment=crossmodal_digits", *where, "data.score_on=validation"]).data.score_on == "validation"
    )
