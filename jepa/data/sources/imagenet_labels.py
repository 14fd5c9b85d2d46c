"""Classes of ImageNet's validation pictures, from the devkit or from Kaggle's table."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jepa.data.sources.download import read_archive
from jepa.utils.errors import DataError, first_line
from jepa.utils.read_data import read_bytes

GROUND_TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
DEVKIT_FOLDERS = ("", "data", "devkit", "devkit/data", "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12/data")
SOLUTION = "LOC_val_solution.csv"
MOST_BYTES = 2**26  # of a file with labels

NO_LABELS = (
    f"have no class folders and no labels: put {DEVKIT} of image-net.org, or its {GROUND_TRUTH} and {META}, or "
    f"Kaggle's {SOLUTION}"
)

ClassOf = Callable[[str], str | None]  # name of a picture without its ending -> class; None where it is not known


def validation_labels(folders: Sequence[Path]) -> ClassOf | None:
    """What tells the class of a validation picture, from the files in the first folder that has them; None if none has.

    Raises DataError for files that are damaged or do not belong together.
    """
    for folder in folders:
        for name in DEVKIT_FOLDERS:
            if (folder / name / GROUND_TRUTH).is_file() and (folder / name / META).is_file():
                return _of_devkit(*(_read(folder / name / file) for file in (GROUND_TRUTH, META)), folder / name)
        for packed in sorted(folder.glob("ILSVRC2012_devkit*.tar*")):
            files = read_archive(packed, lambda name: os.path.basename(name) in (GROUND_TRUTH, META))
            files = {os.path.basename(name): content for name, content in files.items()}
            if len(files) < 2:
                raise DataError(f"{packed} lacks {GROUND_TRUTH} or {META}: get it again")
            return _of_devkit(files[GROUND_TRUTH], files[META], packed)
        if (folder / SOLUTION).is_file():
            return _of_kaggle(_read(folder / SOLUTION), folder / SOLUTION).get
    return None


def _read(path: Path) -> bytes:
    return read_bytes(path, MOST_BYTES)


def _of_devkit(ground_truth: bytes, meta: bytes, where: Path) -> ClassOf:
    """Line n of the ground truth is the number of the class of picture n, which meta.mat has the WordNet number of."""
    from scipy.io import loadmat  # here, as other data do without it

    try:
        numbers = [int(line) for line in ground_truth.decode().split()]
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        wnids = {int(number): str(wnid) for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"])}
        classes = [wnids[number] for number in numbers]
    except Exception as error:  # SciPy raises many kinds for a damaged file
        raise DataError(
            f"{where}: {GROUND_TRUTH} and {META} do not fit ({first_line(error)}): get them again"
        ) from error

    def class_of(name: str) -> str | None:
        number = re.search("[0-9]+$", name)
        place = int(number[0][-9:]) if number else 0
        return classes[place - 1] if 0 < place <= len(classes) else None

    return class_of


def _of_kaggle(content: bytes, where: Path) -> Mapping[str, str]:
    """Picture -> class, the first word of its PredictionString."""
    try:
        rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig")))
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, csv.Error) as error:
        raise DataError(f"{where} is not Kaggle's table of ImageId and PredictionString ({error!r})") from error
