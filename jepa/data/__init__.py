"""Data: sources of samples, augmentation, and the sample stream that brings batches."""

from jepa.data.audio_data import AudioData, SoundAugment
from jepa.data.data_module import DataModule
from jepa.data.huggingface_data import hugging_face
from jepa.data.image_augment import Augment
from jepa.data.image_data import ImageData
from jepa.data.mixed_data import MixedData
from jepa.data.paired_data import PairedData, PicturesAndCaptions, WrittenAndSpokenDigits
from jepa.data.series_augment import SeriesAugment
from jepa.data.series_data import SeriesData
from jepa.data.task_data import TaskData
from jepa.data.text_data import TextData
from jepa.data.video_data import VideoData

__all__ = [
    "AudioData",
    "Augment",
    "DataModule",
    "ImageData",
    "MixedData",
    "PairedData",
    "PicturesAndCaptions",
    "SeriesAugment",
    "SeriesData",
    "SoundAugment",
    "TaskData",
    "TextData",
    "VideoData",
    "WrittenAndSpokenDigits",
    "hugging_face",
]
