"""How fast samples are made. Pictures are JPEG files in class folders, or 96 made ones of 500 x 400 pixels and 50 kB.

Samples per second of CPU time on one thread, in turns, for a picture as one view, two views and multi-crop
(2 of 224 and 6 of 96 pixels), each cropped at random, resized bicubically, flipped and normalised:
decoder: Pillow decodes the file to RGB, and nothing else. v1, v2: torchvision's ImageFolder with its transforms, of
PIL images and of uint8 tensors, collated. ours: `jepa.data.ImageData`. ratio_to_v1, ratio_to_v2: ours over theirs.
share_of_decoder: ours over the decoder. small_pictures: 64 x 64 pixels, two views with colour jitter and blur, from
files and from memory. stores: one view from files, packed tars and parquet. video: clips of 16 frames, every fourth of
an H.264 file; share_of_decoder: beside decoding all frames between to RGB, and nothing else. Then windows of series and
tokens of text per second of CPU time, and the share of a run's time in which it waits for data, by the number of
workers.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark_stores import clips, stores
from PIL import Image
from torch.utils.data import default_collate
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from jepa import build_trainer, load_config
from jepa.data import Augment, DataModule, ImageData, SeriesData, TextData
from jepa.data.sources import image_folder, series_csv, text_lines
from jepa.utils.memory import keep_freed_memory
from jepa.utils.read_data import parse_json, read_lines

MADE, SAMPLES = 96, 64  # pictures made; samples of one measurement
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
GLOBAL, LOCAL = (0.3, 1.0), (0.05, 0.3)  # shares of the picture that crops have
VIEWS = {"one_view": (1, 0), "two_views": (2, 0), "multi_crop": (2, 6)}  # of 224 and of 96 pixels
BICUBIC = v1.InterpolationMode.BICUBIC


def make_pictures(folder: Path) -> None:
    """Noise of several scales, as photographs have, in two class folders."""
    random = np.random.default_rng(0)
    for number in range(MADE):
        pixels = np.zeros((400, 500, 3), np.float32)
        for width, strength in ((5, 60), (25, 40), (125, 25), (500, 8)):
            noise = random.normal(128, strength, (width * 4 // 5, width, 3)).clip(0, 255).astype(np.uint8)
            pixels += np.asarray(Image.fromarray(noise).resize((500, 400), Image.Resampling.BICUBIC), np.float32) - 128
        path = folder / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8)).save(path, quality=80)


def in_turns(measured: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median CPU seconds of each call, in turns, after one round to warm up."""
    found: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(rounds + 1):
        for name, call in measured.items():
            begun = time.process_time()
            call()
            found[name].append(time.process_time() - begun)
    return {name: statistics.median(seconds[1:]) for name, seconds in found.items()}


def transforms_v1(size: int, scale: tuple[float, float]) -> Callable[[Image.Image], torch.Tensor]:
    crop = v1.RandomResizedCrop(size, scale, interpolation=BICUBIC)
    return v1.Compose([crop, v1.RandomHorizontalFlip(), v1.ToTensor(), v1.Normalize(MEAN, STD)])


def transforms_v2(size: int, scale: tuple[float, float]) -> Callable[[torch.Tensor], torch.Tensor]:
    crop = v2.RandomResizedCrop(size, scale, interpolation=BICUBIC, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


class Crops:
    """Several views of a picture, all of which begin with what `first` makes of it."""

    def __init__(self, make: Callable[..., Any], first: Callable[..., Any], views: int, local_views: int) -> None:
        self.first = first
        self.made = [make(224, GLOBAL)] * views + [make(96, LOCAL)] * local_views

    def __call__(self, image: Image.Image) -> list[torch.Tensor]:
        image = self.first(image)
        return [transform(image) for transform in self.made]


def images(folder: str, views: int, local_views: int) -> ImageData:
    """Ours, with the same settings."""
    augment = partial(Augment, horizontal_flip=0.5)
    return ImageData(
        source=partial(image_folder, val_fraction=0.01),
        root=folder,
        image_size=224,
        channels=3,
        mean=MEAN,
        std=STD,
        augment=augment(crop_scale=GLOBAL),
        views=views,
        local_views=local_views,
        local_size=96,
        local_augment=augment(crop_scale=LOCAL),
        batch_size=SAMPLES,
    )


def batches_of(data: DataModule) -> Callable[[], Any]:
    """A call that makes the next batch."""
    batches = data.train_batches(seed=0, start_step=0, stop_step=10**6)
    return lambda: next(batches)


def pictures_speed(folder: str, rounds: int) -> dict[str, dict[str, float]]:
    """Samples per second of CPU time for each of VIEWS."""
    paths = [path for path, _ in ImageFolder(folder).samples]
    order = (torch.arange(SAMPLES) * 7919 % len(paths)).tolist()  # of files here and there, as in training

    def decode() -> None:
        for index in order:
            with Image.open(paths[index]) as image:
                image.convert("RGB")

    def collated(data: ImageFolder) -> Callable[[], Any]:
        return lambda: default_collate([data[index] for index in order])

    found = {}
    for name, counts in VIEWS.items():
        of_v1 = ImageFolder(folder, Crops(transforms_v1, lambda image: image, *counts))
        of_v2 = ImageFolder(folder, Crops(transforms_v2, v2.PILToTensor(), *counts))
        calls = {"v1": collated(of_v1), "v2": collated(of_v2), "ours": batches_of(images(folder, *counts))}
        seconds = in_turns({"decoder": decode, **calls}, rounds)
        speed = {key: SAMPLES / value for key, value in seconds.items()}
        ratios = {f"ratio_to_{key}": speed["ours"] / speed[key] for key in ("v1", "v2")}
        found[name] = {**speed, **ratios, "share_of_decoder": speed["ours"] / speed["decoder"]}
    return found


def small_pictures_speed(large: str, folder: Path, rounds: int) -> dict[str, float]:
    """Samples per second of CPU time of 256 pictures of 64 pixels, made of the large ones."""
    paths = sorted(Path(large).rglob("*.jpg"))
    for number in range(256):
        path = folder / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(paths[number % len(paths)]) as image:
            image.convert("RGB").resize((64, 64)).save(path, quality=90)
    augment = Augment(crop_scale=GLOBAL, horizontal_flip=0.5, color_jitter=0.5, blur=0.5)
    calls = {}
    for name, in_memory in (("files", False), ("memory", True)):
        sizes = {"image_size": 64, "local_views": 0, "batch_size": SAMPLES}
        calls[name] = batches_of(replace(images(str(folder), 2, 0), augment=augment, in_memory=in_memory, **sizes))
    return {name: SAMPLES / seconds for name, seconds in in_turns(calls, rounds).items()}


def series_and_text_speed(folder: Path, rounds: int) -> dict[str, float]:
    """Windows of 7 channels x 96 steps, and tokens, per second of CPU time; 256 samples a batch."""
    random = np.random.default_rng(0)
    table, text = folder / "table.csv", folder / "text.txt"
    names = ",".join("abcdefg")
    np.savetxt(table, random.normal(size=(20_000, 7)).cumsum(axis=0), "%.4f", ",", header=names, comments="")
    words = ["".join(random.choice([*"etaoinshrdlu"], random.integers(2, 9))) for _ in range(2000)]
    text.write_text("\n".join(" ".join(random.choice(words, random.integers(5, 80))) for _ in range(5000)))
    series = SeriesData(source=series_csv, root=str(table), window_size=96)
    texts = TextData(source=partial(text_lines, test_fraction=0.05), root=str(text))
    next_batch, tokens = batches_of(texts), 0

    def tokenise() -> None:
        nonlocal tokens
        tokens += int((next_batch()["x"] != 0).sum())

    seconds = in_turns({"series": batches_of(series), "text": tokenise}, rounds)
    return {
        "series_windows_per_second": series.batch_size / seconds["series"],
        "text_tokens_per_second": tokens / (rounds + 1) / seconds["text"],
    }


def wait_shares(folder: str) -> dict[str, float]:
    """By the number of workers, the share of the time that ViT-Ti/16 waits for data, 32 pictures a step; wall time."""
    found = {}
    for workers in (0, 1, 2):
        with tempfile.TemporaryDirectory() as run_dir:
            overrides = [
                "data=image_folder",
                "model=vit",
                f"data.root={folder}",
                "data.hints={size: tiny, patch_size: 16}",
                "data.batch_size=32",
                f"data.num_workers={workers}",
                "trainer.max_steps=9",
                "trainer.log_every=3",
                "trainer.validate_every_epochs=null",
                "trainer.save_every_epochs=null",
                "evaluation=none",
                "logger=[jsonl]",
                f"run_dir={run_dir}",
            ]
            build_trainer(load_config(overrides)).fit()
            path = Path(run_dir) / "metrics.jsonl"
            lines = [parse_json(line, path) for line in read_lines(path)]
        waits = [line["data_wait"] for line in lines if "data_wait" in line]
        found[f"{workers}_workers"] = statistics.mean(waits[1:])
    return found


def input_speed(rounds: int = 5, folder: str | None = None) -> dict[str, Any]:
    """All of the above; a median of so many rounds. folder: of JPEG files in class folders, None makes some."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()  # as a run does on a CPU
    try:
        with tempfile.TemporaryDirectory() as made:
            if folder is None:
                folder = f"{made}/pictures"
                Path(folder).mkdir()
                make_pictures(Path(folder))
            found: dict[str, Any] = pictures_speed(folder, rounds)
            found["small_pictures"] = small_pictures_speed(folder, Path(made) / "small", rounds)
            seconds = in_turns(stores(folder, Path(made)), rounds)
            found["stores"] = {name: 64 / each for name, each in seconds.items()}
            found["stores"] |= {
                f"ratio_{name}_to_files": seconds["files"] / seconds[name] for name in ("packed", "parquet")
            }
            seconds = in_turns(clips(Path(made)), rounds)
            found["video"] = {
                "clips_per_second": 8 / seconds["ours"],
                "share_of_decoder": seconds["decoder"] / seconds["ours"],
            }
            found |= series_and_text_speed(Path(made), rounds)
            return found | {"wait_share": wait_shares(folder)}
    finally:
        torch.set_num_threads(threads)
