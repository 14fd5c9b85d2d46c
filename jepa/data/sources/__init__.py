"""Where samples come from. A source is a function, of `root` and its own settings, that returns `Splits`."""

from jepa.data.sources.base import Splits, TensorImages
from jepa.data.sources.cifar import cifar10
from jepa.data.sources.folders import image_folder
from jepa.data.sources.grey import digits, fashion_mnist, mnist

__all__ = ["Splits", "TensorImages", "cifar10", "digits", "fashion_mnist", "image_folder", "mnist"]
