"""Data: sources of samples, augmentation, and the sample stream that brings batches.

Classes are imported when they are used, as each modality brings libraries along.
"""

from __future__ import annotations

import importlib
from typing import Any

FILES = {
    "AudioData": "audio_data",
    "SoundAugment": "audio_data",
    "DataModule": "data_module",
    "hugging_face": "huggingface_data",
    "Augment": "image_augment",
    "ImageData": "image_data",
    "MixedData": "mixed_data",
    "PairedData": "paired_data",
    "PicturesAndCaptions": "paired_data",
    "WrittenAndSpokenDigits": "paired_data",
    "SeriesAugment": "series_augment",
    "SeriesData": "series_data",
    "TaskData": "task_data",
    "TextData": "text_data",
    "VideoData": "video_data",
}


def __getattr__(name: str) -> Any:
    if name not in FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{FILES[name]}"), name)
