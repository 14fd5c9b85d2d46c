"""Data that scripts/pack.py has packed, as the data of its kind.

python train.py data=packed data.root=packed
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from jepa.data.data_module import DataModule, read_source
from jepa.data.sources.packed import read_packed
from jepa.utils.errors import DataError
from jepa.utils.log_mel import LogMel


def packed(
    *,
    root: str,
    piece_seconds: float | None = None,
    image: Callable[..., DataModule] | None = None,
    audio: Callable[..., DataModule] | None = None,
    video: Callable[..., DataModule] | None = None,
    image_size: int | Sequence[int] = 224,
    channels: int = 3,
    sample_rate: int = 16000,
    seconds: float = 4.0,
    spectrogram: LogMel | None = None,
    views: int = 1,
    batch_size: int = 256,
    num_workers: int = 0,
    pin_memory: bool | Literal["auto"] = "auto",
    prefetch_factor: int = 2,
    max_bad_share: float = 0.1,
    hints: Mapping[str, Any] | None = None,
) -> DataModule:
    """Data of a packed folder of pictures, sounds or videos.

    piece_seconds: cuts each sound into samples of that length.
    image, audio, video: make the data of such a folder, called with `source=`, the two or three arguments of their own
        and those from views on. None: such folders are refused.

    Raises DataError for a folder that is not packed, or damaged.
    """
    loader = {"views": views, "batch_size": batch_size, "num_workers": num_workers, "pin_memory": pin_memory}
    loader |= {"prefetch_factor": prefetch_factor, "max_bad_share": max_bad_share, "hints": hints}
    DataModule(**loader)  # checked before anything is read
    kind, splits = read_source(read_packed, root=root, piece_seconds=piece_seconds)
    pictures = {"image_size": image_size, "channels": channels}
    make, own = {
        "image": (image, pictures),
        "audio": (audio, {"sample_rate": sample_rate, "seconds": seconds, "spectrogram": spectrogram}),
        "video": (video, pictures),
    }[kind]
    if make is None:
        raise DataError(f"data.root={root} holds {kind}, but data.{kind}=null: set there how to read it")
    return make(source=lambda: splits, **own, **loader)
