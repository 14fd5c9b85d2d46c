"""Where samples come from. A source is a function, of `root` and its own settings, that returns `Splits`."""

from jepa.data.sources.coco import coco_captions, coco_pictures
from jepa.data.sources.episode_files import episode_files
from jepa.data.sources.folders import audio_folder, image_folder, video_folder
from jepa.data.sources.imagenet import imagenet
from jepa.data.sources.segmentation import segmentation_folder
from jepa.data.sources.series_tables import ett, series_csv, ucr
from jepa.data.sources.small_images import cifar10, digits, fashion_mnist, mnist, moving_mnist
from jepa.data.sources.sound_files import fsdd
from jepa.data.sources.splits import Splits, TensorImages
from jepa.data.sources.text_files import text_csv, text_lines, wikitext2
