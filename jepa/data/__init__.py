"""Data: sources of samples, the augmentation of images, and the sample stream that brings batches."""

from jepa.data.augment import Augment
from jepa.data.images import ImageData

__all__ = ["Augment", "ImageData"]
