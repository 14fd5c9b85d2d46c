"""COCO's pictures and captions (Lin et al. 2014, arXiv 1405.0312; Chen et al. 2015, arXiv 1504.00325).

The labels of both sources number the pictures of a split alike, which pairs them; they are no classes.
"""

from __future__ import annotations

import json
from pathlib import Path

from jepa.data.sources.decoders import decode_image
from jepa.data.sources.download import read_archive, read_packed
from jepa.data.sources.splits import MOST_LEFT_OUT, FileSamples, Splits, check_inside, first_few
from jepa.data.sources.text_files import Texts
from jepa.data.sources.text_tables import is_utf8
from jepa.utils.errors import DataError

SPLITS = ("train2017", "val2017")


def coco_pictures(*, root: str, allow_outside: bool = False) -> Splits:
    """Pictures of train2017 and of val2017 (the test split) that have captions.

    root: a folder with annotations/captions_{train,val}2017.json and the folders of pictures, or one that holds it or a
    .tar of it, or that .tar, held in memory. allow_outside: whether names may leave root. Raises DataError without.
    """
    place, contents = _open(Path(root))
    splits = []
    for split in SPLITS:
        listed, _ = _captions(place, contents, split)
        paths = [path for path, _ in listed]
        if contents is None and not allow_outside:
            where = f"{place}/annotations/captions_{split}.json"
            check_inside(((f"{where}, file_name", str(place / path)) for path in paths), root)
        splits.append(FileSamples(paths, range(len(paths)), decode_image, folder=place, contents=contents))
    return Splits(*splits)


def coco_captions(*, root: str) -> Splits:
    """The captions of the pictures, about five each; root as for `coco_pictures`. `lines` counts those left out."""
    place, contents = _open(Path(root))
    splits, lines = [], []
    for split in SPLITS:
        listed, left_out = _captions(place, contents, split)
        labels = [number for number, (_, texts) in enumerate(listed) for _ in texts]
        splits.append(Texts([text for _, texts in listed for text in texts], labels, name=split))
        lines += [f"{split}: {len(left_out)} captions left out: {first_few(left_out)}"] if left_out else []
    return Splits(*splits, lines=tuple(lines))


def _open(root: Path) -> tuple[Path, dict[str, bytes] | None]:
    if root.is_dir():
        inside = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
        found = [folder for folder in inside if (folder / "annotations").is_dir()] or sorted(root.glob("*coco*.tar*"))
        if not found:
            wanted = f"annotations/captions_{SPLITS[0]}.json nor a .tar of COCO's layout"
            raise DataError(f"data.root={root} holds neither {wanted}")
        root = found[0]
    if root.is_dir():
        return root, None
    return root, {"/".join(name.split("/")[-2:]): file for name, file in read_archive(root, lambda name: True).items()}


def _captions(
    place: Path, contents: dict[str, bytes] | None, split: str
) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """(path, captions) of each picture that has any, and why captions are left out. Raise DataError for damage."""
    name = f"annotations/captions_{split}.json"
    try:
        content = json.loads(read_packed(place / name) if contents is None else contents[name])
        images, annotations = (
            [entry if isinstance(entry, dict) else {} for entry in content[name]] for name in ("images", "annotations")
        )
    except (ValueError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise DataError(f"{name} in {place} is missing or not in COCO's form of captions ({error!r})") from error
    pictures = {image["id"]: image.get("file_name") for image in images if isinstance(image.get("id"), (int, str))}
    texts: dict[int | str, list[str]] = {}
    left_out = []
    for number, annotation in enumerate(annotations):
        key, caption = annotation.get("image_id"), annotation.get("caption")
        file_name = pictures.get(key) if isinstance(key, (int, str)) else None
        if not isinstance(caption, str) or not caption.strip():
            left_out.append(f"number {number} has no text")
        elif not isinstance(file_name, str) or "\0" in file_name or not is_utf8(file_name):
            left_out.append(f"number {number} is of no picture with a file name")
        else:
            texts.setdefault(key, []).append(caption.strip())
    if not texts or len(left_out) > MOST_LEFT_OUT * len(annotations):
        reason = f"{len(left_out)} of {len(annotations)} captions cannot be used: {first_few(left_out)}"
        raise DataError(f"{name} in {place} is not in COCO's form of captions ({reason})")
    keys = sorted(texts, key=lambda key: (isinstance(key, str), key))
    return [(f"{split}/{pictures[key]}", texts[key]) for key in keys], left_out
