"""A tiny ImageNet in every layout: three classes of four training and two validation pictures."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

WNIDS = ("n01440764", "n01443537", "n01484850")
DEVKIT_NUMBERS = {"n01484850": 1, "n01440764": 2, "n01443537": 3}
"""ILSVRC2012_ID, in another order than that of the WordNet numbers."""


def picture(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (12, 10), (value, value, value)).save(file, "JPEG")
    return file.getvalue()


TRAIN = {f"{wnid}_{n}.JPEG": (wnid, picture(40 * k + 5 * n)) for k, wnid in enumerate(WNIDS) for n in (2, 5, 11, 30)}
VAL = {f"ILSVRC2012_val_{n:08}.JPEG": (WNIDS[n % 3], picture(180 + 10 * n)) for n in range(1, 7)}
"""Name -> class and content."""


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    """A tar archive of these files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def class_folders(root: Path, pictures: dict[str, tuple[str, bytes]]) -> None:
    for name, (wnid, content) in pictures.items():
        write(root / wnid / name, content)


def flat(root: Path) -> None:
    for name, (_, content) in VAL.items():
        write(root / name, content)


def devkit() -> dict[str, bytes]:
    """The two files of the devkit that tell the classes of validation pictures."""
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(number, wnid, "a, b", 0) for wnid, number in DEVKIT_NUMBERS.items()] + [(4, "n00000000", "fish", 3)]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=kinds)[:, None]})
    truth = "".join(f"{DEVKIT_NUMBERS[wnid]}\n" for wnid, _ in VAL.values())
    return {"ILSVRC2012_validation_ground_truth.txt": truth.encode(), "meta.mat": meta.getvalue()}


def solution() -> str:
    """Kaggle's table, in no order."""
    rows = [f"{Path(name).stem},{wnid} 1 2 3 4 {wnid} 5 6 7 8" for name, (wnid, _) in VAL.items()]
    return "\n".join(["ImageId,PredictionString", *rows[::-1]])


def train_tar() -> bytes:
    """A tar of a tar for each class."""
    inner = {wnid: {n: c for n, (of, c) in reversed(TRAIN.items()) if of == wnid} for wnid in WNIDS}
    return tar({f"{wnid}.tar": tar(inner[wnid]) for wnid in (WNIDS[2], WNIDS[0], WNIDS[1])})


def val_tar() -> bytes:
    return tar({name: content for name, (_, content) in reversed(VAL.items())})


def shards(pictures: dict[str, tuple[str, bytes]], label: Callable[[str], dict[str, bytes]]) -> list[bytes]:
    """Two webdataset shards of shuffled samples; label: ending -> content, of a class."""
    names = list(pictures)
    names = names[1::2] + names[::2]
    packed = []
    for part in (names[:3], names[3:]):
        files = {}
        for name in part:
            wnid, content = pictures[name]
            stem = Path(name).stem
            files |= {f"{stem}.{end}": text for end, text in label(wnid).items()} | {f"{stem}.jpg": content}
        packed.append(tar(files))
    return packed


def write_shards(root: Path, train: str, val: str, label: Callable[[str], dict[str, bytes]]) -> None:
    for pattern, pictures in ((train, TRAIN), (val, VAL)):
        for number, content in enumerate(shards(pictures, label)):
            write(root / pattern.format(number), content)


def cls(wnid: str) -> dict[str, bytes]:
    return {"cls": f"{WNIDS.index(wnid)}\n".encode()}


def json_number(wnid: str) -> dict[str, bytes]:
    return {"json": json.dumps({"label": WNIDS.index(wnid), "width": 12}).encode(), "txt": b"a caption"}


def json_wnid(wnid: str) -> dict[str, bytes]:
    return {"json": json.dumps({"filename": "x", "wnid": wnid}).encode()}


def layout(root: Path, name: str) -> Path:
    """Write a layout, such as "train folders, val flat, devkit files"; gives the folder for data.root."""
    for part in name.split(", "):
        if part in PARTS:
            PARTS[part](root)
    return root / name.partition(" at ")[2]


PARTS: dict[str, Callable[[Path], None]] = {
    "train folders": lambda root: class_folders(root / "train", TRAIN),
    "train tar": lambda root: write(root / "ILSVRC2012_img_train.tar", train_tar()),
    "train class tars": lambda root: [
        write(root / "train" / f"{wnid}.tar", tar({n: c for n, (of, c) in TRAIN.items() if of == wnid}))
        for wnid in WNIDS
    ],
    "val folders": lambda root: class_folders(root / "val", VAL),
    "val flat": lambda root: flat(root / "val"),
    "val tar": lambda root: write(root / "ILSVRC2012_img_val.tar", val_tar()),
    "devkit files": lambda root: [write(root / name, content) for name, content in devkit().items()],
    "devkit folder": lambda root: [
        write(root / "ILSVRC2012_devkit_t12" / "data" / name, content) for name, content in devkit().items()
    ],
    "devkit tar": lambda root: write(
        root / "ILSVRC2012_devkit_t12.tar.gz",
        tar({f"ILSVRC2012_devkit_t12/data/{name}": content for name, content in devkit().items()}, "w:gz"),
    ),
    "solution": lambda root: write(root / "LOC_val_solution.csv", solution()),
    "kaggle": lambda root: (
        class_folders(root / "ILSVRC/Data/CLS-LOC/train", TRAIN),
        flat(root / "ILSVRC/Data/CLS-LOC/val"),
        write(root / "ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG", picture(0)),
        write(root / "LOC_val_solution.csv", solution()),
        write(root / "LOC_synset_mapping.txt", "".join(f"{wnid} a fish, fish\n" for wnid in WNIDS)),
    ),
    "train flat": lambda root: [write(root / "train" / name, content) for name, (_, content) in TRAIN.items()],
    "val flat with classes": lambda root: [
        write(root / "val" / name.replace(".", f"_{wnid}."), content) for name, (wnid, content) in VAL.items()
    ],
    "tars of folders": lambda root: [
        write(root / f"{split}.tar", tar({f"{split}/{wnid}/{name}": c for name, (wnid, c) in pictures.items()}))
        for split, pictures in (("train", TRAIN), ("val", VAL))
    ],
    "shards": lambda root: write_shards(root, "imagenet1k-train-{:06}.tar", "imagenet1k-validation-{:02}.tar", cls),
    "shards in folders": lambda root: write_shards(root, "train/{:06}.tar", "val/{:06}.tar", json_number),
    "shards by wnid": lambda root: write_shards(root, "in-train-{:06}.tar", "in-val-{:06}.tar", json_wnid),
}

LAYOUTS = [
    "train folders, val folders",
    "train folders, val flat, devkit files",
    "train folders, val flat, devkit folder",
    "train folders, val flat, devkit tar",
    "train folders, val flat, solution",
    "train folders, val tar, devkit tar",
    "train tar, val tar, devkit tar",
    "train tar, val tar, solution",
    "train tar, val flat, devkit files",
    "train class tars, val folders",
    "train class tars, val tar, devkit folder",
    "kaggle, root at ",
    "kaggle, root at ILSVRC",
    "kaggle, root at ILSVRC/Data/CLS-LOC",
    "train flat, val flat with classes",
    "train flat, val flat, devkit tar",
    "tars of folders",
    "shards",
    "shards in folders",
    "shards by wnid",
]
