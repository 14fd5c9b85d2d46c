"""COCO's pictures and captions (Lin et al. 2014, arXiv 1405.0312; Chen et al. 2015, arXiv 1504.00325).

Both sources number the pictures of a split alike by their labels, by which pictures and captions are paired; these are
no classes, and so there are no class names.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from jepa.data.sources.decoders import decode_image
from jepa.data.sources.splits import Splits
from jepa.data.sources.text_files import Texts
from jepa.utils.errors import DataError

SPLITS = ("train2017", "val2017")


@dataclass(frozen=True)
class CocoPictures:
    """Pictures, in memory as the files are where they come from an archive; items are (PIL image, number)."""

    files: Sequence[tuple[str, Path | bytes]]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        name, content = self.files[index]
        return decode_image(io.BytesIO(content) if isinstance(content, bytes) else content, name), index


def coco_pictures(*, root: str) -> Splits:
    """Pictures of train2017 and of val2017 (the test split) that have captions.

    root: a folder with annotations/captions_{train,val}2017.json and the folders of pictures, one that holds such a
    folder or a .tar of it, or that .tar. Raises DataError where these are not there or do not fit.
    """
    files = _Files(Path(root))
    found = ([(name, files[name]) for name, _ in _captions(files, split)] for split in SPLITS)
    return Splits(*(CocoPictures(pictures, range(len(pictures))) for pictures in found))


def coco_captions(*, root: str) -> Splits:
    """Captions of train2017 and of val2017 (the test split), about five a picture; root as for `coco_pictures`."""
    files = _Files(Path(root))
    numbered = ([(t, i) for i, (_, texts) in enumerate(_captions(files, split)) for t in texts] for split in SPLITS)
    return Splits(*(Texts(*zip(*captions), name=split) for captions, split in zip(numbered, SPLITS)))


class _Files:
    """Files by their last two path components, of a folder (as paths) or a tar archive (as content)."""

    def __init__(self, root: Path) -> None:
        if root.is_dir():
            inside = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
            fits = [folder for folder in inside if (folder / "annotations").is_dir()]
            archives = sorted(root.glob("*coco*.tar*"))
            if not (fits or archives):
                raise DataError(
                    f"data.root={root} holds neither annotations/captions_train2017.json nor a .tar of COCO's layout"
                )
            root = fits[0] if fits else archives[0]
        self.root = root
        self.content: dict[str, bytes] | None = None
        if not root.is_dir():
            try:
                with tarfile.open(root) as archive:
                    files = [member for member in archive if member.isfile()]
                    self.content = {"/".join(m.name.split("/")[-2:]): archive.extractfile(m).read() for m in files}
            except (tarfile.TarError, OSError, EOFError) as error:
                raise DataError(f"data.root={root} is neither a folder nor a complete tar archive ({error})") from error

    def __getitem__(self, name: str) -> Path | bytes:
        if self.content is None:
            return self.root / name
        if name not in self.content:
            raise DataError(f"{self.root} holds no {name}")
        return self.content[name]

    def read(self, name: str) -> bytes:
        """The content of a file. Raises DataError where it is not there."""
        found = self[name]
        try:
            return found if isinstance(found, bytes) else found.read_bytes()
        except OSError as error:
            raise DataError(f"{found} cannot be read ({error.strerror}): it should hold the captions") from error


def _captions(files: _Files, folder: str) -> list[tuple[str, list[str]]]:
    """(folder/file name, captions) of each picture that has any, by its id."""
    name = f"annotations/captions_{folder}.json"
    try:
        content = json.loads(files.read(name))
        pictures = {image["id"]: f"{folder}/{image['file_name']}" for image in content["images"]}
        texts: dict[int, list[str]] = {}
        for caption in content["annotations"]:
            texts.setdefault(caption["image_id"], []).append(caption["caption"].strip())
        return [(pictures[key], texts[key]) for key in sorted(texts)]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{name} in {files.root} is not in COCO's form of captions ({error!r})") from error
