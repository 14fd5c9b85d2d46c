"""Data: sources, augmentation, and the stream of batches. Classes, and what they need, are imported when used."""

from __future__ import annotations

import importlib
from typing import Any

NAMES = {
    "audio_data": ("AudioData", "SoundAugment"),
    "data_module": ("DataModule",),
    "huggingface_data": ("hugging_face",),
    "augment": ("Augment", "SeriesAugment"),
    "image_data": ("ImageData",),
    "mixed_data": ("MixedData", "TaskData"),
    "packed_data": ("packed",),
    "paired_data": ("PairedData", "PicturesAndCaptions", "WrittenAndSpokenDigits"),
    "series_data": ("SeriesData",),
    "text_data": ("TextData",),
    "trajectory_data": ("TrajectoryData",),
    "video_data": ("VideoData",),
}


def __getattr__(name: str) -> Any:
    for file, names in NAMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{file}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
