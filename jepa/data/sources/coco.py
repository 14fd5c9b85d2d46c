"""COCO's pictures and captions (Lin et al. 2014, arXiv 1405.0312; Chen et al. 2015, arXiv 1504.00325).

Both sources number the pictures of a split alike by their labels, by which pictures and captions are paired; these are
no classes, and so there are no class names.
"""

from __future__ import annotations

import json
from pathlib import Path

from jepa.data.sources.decoders import decode_image
from jepa.data.sources.download import read_archive
from jepa.data.sources.listed_paths import check_inside
from jepa.data.sources.splits import FileSamples, Splits, first_few
from jepa.data.sources.text_files import Texts
from jepa.utils.errors import DataError

SPLITS = ("train2017", "val2017")


def coco_pictures(*, root: str, allow_outside: bool = False) -> Splits:
    """Pictures of train2017 and of val2017 (the test split) that have captions.

    root: a folder with annotations/captions_{train,val}2017.json and the folders of pictures, one that holds such a
    folder or a .tar of it, or that .tar, which is held in memory. allow_outside: whether file names in the captions may
    leave root, by .., as absolute paths or by links. Raises DataError where these are not there or do not fit.
    """
    place, contents = _open(Path(root))
    splits = []
    for split in SPLITS:
        paths = [path for path, _ in _captions(place, contents, split)]
        if contents is not None and (lacking := [path for path in paths if path not in contents]):
            raise DataError(f"{place} holds no {first_few(lacking)}")
        if contents is None and not allow_outside:
            where = f"{place}/annotations/captions_{split}.json"
            check_inside(((f"{where}, file_name", str(place / path)) for path in paths), root)
        splits.append(FileSamples(paths, range(len(paths)), decode_image, folder=place, contents=contents))
    return Splits(*splits)


def coco_captions(*, root: str) -> Splits:
    """Captions of train2017 and of val2017 (the test split), about five a picture; root as for `coco_pictures`."""
    place, contents = _open(Path(root))
    splits = []
    for split in SPLITS:
        captions = [texts for _, texts in _captions(place, contents, split)]
        labels = [number for number, texts in enumerate(captions) for _ in texts]
        splits.append(Texts([text for texts in captions for text in texts], labels, name=split))
    return Splits(*splits)


def _open(root: Path) -> tuple[Path, dict[str, bytes] | None]:
    """The folder of COCO's layout, or an archive of it and its files by their last two path components."""
    if root.is_dir():
        inside = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
        found = [folder for folder in inside if (folder / "annotations").is_dir()]
        found = found or sorted(root.glob("*coco*.tar*"))
        if not found:
            raise DataError(
                f"data.root={root} holds neither annotations/captions_train2017.json nor a .tar of COCO's layout"
            )
        root = found[0]
    if root.is_dir():
        return root, None
    return root, {"/".join(name.split("/")[-2:]): file for name, file in read_archive(root, lambda name: True).items()}


def _captions(place: Path, contents: dict[str, bytes] | None, split: str) -> list[tuple[str, list[str]]]:
    """(folder/file name, captions) of each picture of a split that has any, by its id."""
    name = f"annotations/captions_{split}.json"
    try:
        content = json.loads((place / name).read_bytes() if contents is None else contents[name])
        pictures = {image["id"]: f"{split}/{image['file_name']}" for image in content["images"]}
        texts: dict[int, list[str]] = {}
        for caption in content["annotations"]:
            texts.setdefault(caption["image_id"], []).append(caption["caption"].strip())
        return [(pictures[key], texts[key]) for key in sorted(texts)]
    except OSError as error:
        raise DataError(f"{place / name} cannot be read ({error.strerror}): it should hold the captions") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise DataError(f"{name} in {place} is missing or not in COCO's form of captions ({error!r})") from error
