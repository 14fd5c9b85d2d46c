"""Pictures with a mask for each: a class, or a number such as depth, for every pixel."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jepa.data.sources.decoders import readable
from jepa.data.sources.folders import IMAGES, left_out, list_samples
from jepa.data.sources.image_files import size_of
from jepa.data.sources.splits import FileSamples, Splits, check_fraction, first_few, hold_out
from jepa.data.stream import UnfitSample, UnreadableSample
from jepa.utils.errors import DataError, check_choice

COUNTED = 1000  # training masks that are read for the number of classes; as many in every run


@dataclass(frozen=True, kw_only=True)
class MaskFormat:
    """What stands in mask files. ignore: values that count as nothing. names: of the classes; None for numbers."""

    ignore: tuple[float, ...]
    names: tuple[str, ...] | None

    def read(self, path: str) -> Tensor:
        """Return a mask (h, w): classes as int64, -1 where ignored, or numbers as float32, NaN where ignored."""
        values = torch.from_numpy(read_mask(path))
        ignored = torch.isin(values, torch.tensor(self.ignore, dtype=values.dtype))
        if self.names is None:
            return values.float().masked_fill(ignored, torch.nan)
        if values.is_floating_point():
            raise DataError(f"{path} holds numbers with decimals and no classes: use data.source.masks=values")
        values = values.long().masked_fill(ignored, -1)
        if (highest := int(values.max())) >= len(self.names) or int(values.min()) < -1:
            raise DataError(
                f"{path} holds class {highest}, beyond the {len(self.names)} classes from 0 to {len(self.names) - 1}: "
                f"set data.source.num_classes={highest + 1}, or data.source.ignore=[{highest}] if it means nothing"
            )
        return values


class MaskedPictures(FileSamples):
    """Pictures and, beside them, the mask of each, which `truth` reads. mask_paths: in the order of `paths`."""

    def __init__(self, paths: Sequence[str], mask_paths: Sequence[str], *, folder: Path, masks: MaskFormat) -> None:
        super().__init__(paths, None, IMAGES.decode, folder=folder)
        self.mask_paths, self.masks = mask_paths, masks
        self.truth_names = masks.names

    def truth(self, index: int, picture: Any) -> Tensor:
        """Return the mask (h, w) of a sample. Raise UnreadableSample where the picture has another size."""
        path = os.path.join(self.folder, self.mask_paths[index])
        mask = self.masks.read(path)
        if tuple(mask.shape) != size_of(picture):
            sizes = [f"{height} x {width}" for height, width in (mask.shape, size_of(picture))]
            raise UnreadableSample(path, f"the mask has {sizes[0]} pixels, its picture {sizes[1]}")
        return mask


def segmentation_folder(
    *,
    root: str,
    masks: Literal["classes", "values"] = "classes",
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    ignore: Sequence[float] | float | None = None,
    val_fraction: float = 0.1,
    split_seed: int = 0,
) -> Splits:
    """Pictures in images/ and a mask of the same name, but for its ending, in masks/.

    Both folders lie in root, of which a share `val_fraction`, drawn by `split_seed`, is the test split, or in
    train/ and val/ (or test/, valid/, validation/) of root; of val/ and test/, val/ is the validation split.

    masks: "classes", numbers from 0 in grey pictures or places in a palette; "values", any numbers, such as depth.
    num_classes: null: one more than the highest class in up to COUNTED training masks. ignore: values that count as
    nothing; null: 255 among classes.

    Raises DataError for folders or files that are missing, and masks without pictures or pictures without masks.
    """
    check_fraction("data.source.val_fraction", val_fraction)
    check_choice("data.source.masks", masks, ("classes", "values"))
    if class_names is not None and num_classes not in (None, len(class_names)):
        raise ValueError(f"data.source.num_classes={num_classes}, but {len(class_names)} data.source.class_names")
    folder, others = Path(root), Counter()
    part = "train" if (folder / "train").is_dir() else ""
    held_out = [name for name in IMAGES.test_folders if part and (folder / name).is_dir()]
    held_out.sort(key="test".__ne__)  # the first is the test split
    if len(held_out) > 1 + ("test" in held_out):
        raise DataError(
            f"data.root={root} has {'/, '.join(held_out)}/: expected one of them beside test/, remove others"
        )
    parts = [list_pairs(folder, name, others) for name in (part, *held_out)]
    if not held_out:
        parts = hold_out(parts[0], val_fraction, split_seed, where=f"data.root={root}")
    nothing = (255,) if masks == "classes" else ()
    if ignore is not None:
        nothing = (ignore,) if isinstance(ignore, (int, float)) else tuple(ignore)
    names, lines = None, [f"data.root={root}: {line}" for line in left_out(others)]
    if masks == "classes":
        count = num_classes or (len(class_names) if class_names else count_classes(folder, parts[0], nothing))
        names = tuple(class_names or map(str, range(count)))
        lines.append(f"data.root={root}: masks of {count} classes")
    form = MaskFormat(ignore=nothing, names=names)
    train, test, *validation = (MaskedPictures(*map(list, zip(*each)), folder=folder, masks=form) for each in parts)
    return Splits(train, test, lines=tuple(lines), validation=validation[0] if validation else None)


def list_pairs(root: Path, part: str, others: Counter[str]) -> list[tuple[str, str]]:
    """Return (picture, mask) of root/part, relative to root. Raise DataError unless each has the other."""
    found = {}
    for kind in ("images", "masks"):
        folder = os.path.join(part, kind)
        if not (root / folder).is_dir():
            raise DataError(
                f"{root / folder} is not a folder: expected pictures in images/ and masks of the same names in masks/, "
                "in data.root or in train/ and val/ of it"
            )
        paths = [path for path, _ in list_samples(root, folder, IMAGES, others, flat=True)]
        found[kind] = {os.path.splitext(os.path.relpath(path, folder))[0]: path for path in paths}
        if twice := set(paths).difference(found[kind].values()):
            raise DataError(f"{root / min(twice)} has another file of the same name beside it: remove or rename one")
    images, masks = found["images"], found["masks"]
    for kind, other, lonely in (("images", "masks", images.keys() - masks), ("masks", "images", masks.keys() - images)):
        if lonely:
            raise DataError(
                f"{root / part}: {len(lonely)} of the {kind} have no file of the same name in {other}/: "
                f"{first_few(sorted(lonely))}; add it, or remove the file"
            )
    return [(images[name], masks[name]) for name in sorted(images)]


def read_mask(path: str) -> np.ndarray:
    """Return the numbers in a mask (h, w), as they are stored. Raise UnfitSample for a picture in colours."""
    with readable(path, None):
        if path.lower().endswith(".npy"):
            values = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as image:  # of a palette, the places in it
                values = np.asarray(image)
    values = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    if values.ndim != 2 or not values.size:
        raise UnfitSample(
            f"{path}: expected a mask of one number for each pixel, got shape {values.shape}: turn its colours into "
            "classes 0, 1, 2, ... (grey or palette)"
        )
    return values.astype(np.float32 if values.dtype.kind == "f" else np.int64)


def count_classes(folder: Path, pairs: Sequence[tuple[str, str]], ignore: Sequence[float]) -> int:
    """Return one more than the highest class in some training masks. Raise DataError where there is only one."""
    highest = 0
    for _, mask in pairs[:: -(-len(pairs) // COUNTED)]:
        with contextlib.suppress(UnreadableSample):  # said where its sample is read
            values = read_mask(os.path.join(folder, mask))
            highest = max(highest, int(values[~np.isin(values, ignore)].max(initial=0)))
    if highest < 1:
        raise DataError(f"{folder}: the training masks hold a single class: expected 0, 1, ... in their pixels")
    return highest + 1
