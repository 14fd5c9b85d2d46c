"""Labels that are all alike, as published lists have them, mean data without labels: in every source, and said once."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
from data_helpers import write_classes, write_image

from jepa.data import SeriesData
from jepa.data.huggingface_data import read_columns
from jepa.data.sources import audio_folder, fsdd, image_folder, text_csv, ucr, video_folder


def pictures(root: Path):
    return image_folder(root=str(write_classes(root, classes=1)))


def sounds(root: Path):
    (root / "rain").mkdir()
    for number in range(4):
        soundfile.write(root / "rain" / f"{number}.wav", np.zeros(80), 8000)
    return audio_folder(root=str(root))


def spoken_digits(root: Path):
    for number in range(8):
        soundfile.write(root / f"7_jackson_{number}.wav", np.zeros(80), 8000)
    return fsdd(root=str(root), download=False)


def video_list(root: Path):
    for number in range(4):
        write_image(root / f"clip{number}" / "0.png")
    (root / "list.csv").write_text("".join(f"clip{number} 0\n" for number in range(4)))
    return video_folder(csv=str(root / "list.csv"))


def texts(root: Path):
    (root / "train.csv").write_text("text,label\n" + "some words,0\n" * 8)
    (root / "test.csv").write_text("text,label\n" + "some words,0\nothers,1\n")
    return text_csv(root=str(root), text_column="text", label_column="label")


def series(root: Path):
    x, y = np.random.default_rng(0).normal(size=(8, 1, 20)), np.zeros(8, int)
    np.savez(root / "Toy.npz", train_x=x, train_y=y, test_x=x, test_y=y)
    return SeriesData(source=ucr, root=str(root), name="Toy")


def hub(feature, value):
    def rows(root: Path):
        features = datasets.Features(sentence=datasets.Value("string"), label=feature)
        table = datasets.Dataset.from_dict({"sentence": ["some words"] * 8, "label": [value] * 8}, features=features)
        return read_columns(table.select(range(6)), table.select([6, 7]), "sentence", "label")[1]

    return rows


CASES = {
    "pictures": pictures,
    "sounds": sounds,
    "spoken digits": spoken_digits,
    "video list": video_list,
    "texts": texts,
    "series": series,
    "hub, whole numbers": hub(datasets.Value("int64"), 0),
    "hub, strings": hub(datasets.Value("string"), "none"),
    "hub, one of two classes": hub(datasets.ClassLabel(names=["no", "yes"]), 1),
    "hub, no label": hub(datasets.ClassLabel(names=["no", "yes"]), -1),
}


@pytest.mark.parametrize("source", CASES.values(), ids=CASES)
def test_labels_that_are_all_alike_are_none(source, tmp_path):
    data = source(tmp_path)
    if isinstance(data, SeriesData):
        assert data.spec.classes is None
        assert "label" not in next(data.evaluation_batches("test", batch_size=4))
    else:
        assert data.class_names is None
        assert all(split[0][1] is None for split in (data.train, data.test))
    (line,) = data.lines
    assert line.endswith(", so this is data without labels")
    assert ("all labels are alike (" in line) != ("no sample has a label" in line)
