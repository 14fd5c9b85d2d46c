"""Image files made on the spot, small image data, and the comparison of batches."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from jepa.data import Augment, ImageData
from jepa.data.sources import image_folder

CROPS = Augment(crop_scale=(0.3, 1.0))


def write_image(path: Path, *, seed: int = 0, size: tuple[int, int] = (20, 16), mode: str = "RGB") -> Path:
    """A file of random pixels; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = len(Image.new(mode, (1, 1)).getbands())
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], channels), generator=random, dtype=torch.uint8)
    Image.fromarray(pixels.squeeze(-1).numpy()).convert(mode).save(path)
    return path


def write_classes(root: Path, *, classes: int = 2, each: int = 6) -> Path:
    """Class folders a, b, ... of PNG files, all pixels of which are 60 times the label."""
    for label in range(classes):
        for i in range(each):
            folder = root / "abcdefgh"[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("L", (10, 8), 60 * label).save(folder / f"{i}.png")
    return root


def folder_data(root: Path, **settings) -> ImageData:
    """Image data of a folder with small inputs; pixels in [0, 1]."""
    defaults = {
        "image_size": 8,
        "channels": 3,
        "mean": [0.0],
        "std": [1.0],
        "batch_size": 4,
        "max_bad_share": 0.5,
        "source": image_folder,
    }
    return ImageData(root=str(root), **{**defaults, **settings})


def same(first, second) -> bool:
    """Whether two lists of batches are equal, bit by bit."""
    first, second = list(first), list(second)
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in zip(first, second)
    )


def write_videos(root: Path) -> dict[str, str]:
    """Folders of frames in class folders, all in train/, and the list clips.csv; gives the `root`."""
    lines = ["clip,class,split"]
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            for number in range(3):
                clip = root / name / f"{split}{number}"
                clip.mkdir(parents=True)
                for frame in range(4):
                    Image.new("RGB", (20, 16), (30 * frame, 40, 50)).save(clip / f"{frame}.png")
                lines.append(f"{clip.name},{name},{split}")
    (root / "clips.csv").write_text("\n".join(lines))
    return {"root": str(root)}
