"""Data that scripts/pack.py has packed, as the data of its kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from jepa.data.data_module import DataModule
from jepa.data.sources.packed import read_packed
from jepa.data.sources.sound_files import in_pieces
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
    score_on: Literal["test", "validation"] = "test",
    hints: Mapping[str, Any] | None = None,
) -> DataModule:
    """Data of a packed folder; piece_seconds: of sounds, cuts each into samples of that length.

    image, audio, video: make the data of a folder of these, called with `source=`, the two or three arguments of their
    own and those from views on; None: such folders are refused. Raises DataError for a folder that is not packed.
    """
    loader = {"views": views, "batch_size": batch_size, "num_workers": num_workers, "pin_memory": pin_memory}
    loader |= {"prefetch_factor": prefetch_factor, "max_bad_share": max_bad_share}
    loader |= {"score_on": score_on, "hints": hints}
    kind, splits = read_packed(root)
    if piece_seconds is not None and kind != "audio":
        raise ValueError(f"data.piece_seconds={piece_seconds}: expected null, as data.root holds {kind}")
    splits = in_pieces(splits, piece_seconds, "data.piece_seconds")
    pictures = {"image_size": image_size, "channels": channels}
    make, own = {
        "image": (image, pictures),
        "audio": (audio, {"sample_rate": sample_rate, "seconds": seconds, "spectrogram": spectrogram}),
        "video": (video, pictures),
    }[kind]
    if make is None:
        raise DataError(f"data.root={root} holds {kind}, but data.{kind}=null: set there how to read it")
    return make(source=lambda: splits, **own, **loader)
