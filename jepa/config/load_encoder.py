"""A trained encoder in one's own code: it makes its inputs of pictures, texts, sounds, series or clips by itself.

encoder = jepa.load_encoder("outputs/mine")
features = encoder(["a.jpg", "b.jpg"])          # (2, D)
grid = encoder.tokens("a.jpg")                  # (1, H, W, D)
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor, nn

from jepa.config.build import convert_errors
from jepa.config.command import load_config
from jepa.config.open_checkpoint import open_checkpoint
from jepa.config.overrides import quoted
from jepa.config.stored import CommandLine, addable
from jepa.data import AudioData, ImageData, SeriesData, TextData, VideoData
from jepa.data.data_module import DataModule, Reading
from jepa.data.sources.decoders import TensorVideo, decode_image, open_video
from jepa.data.sources.image_files import image_of
from jepa.data.sources.series_tables import SeriesSplits
from jepa.data.sources.sound_files import SoundFile
from jepa.data.sources.splits import Splits
from jepa.evaluation.features import evaluation_mode
from jepa.interop import Loaded
from jepa.models.encoders.spectrogram_stem import SpectrogramStem
from jepa.models.encoders.text_stem import TextStem
from jepa.models.encoders.tubelet_stem import TubeletStem
from jepa.trainer.precision import Precision, resolve_device
from jepa.utils.errors import UserError
from jepa.utils.tensors import masked_mean, token_valid

Item = str | PathLike | Image.Image | np.ndarray | Tensor | tuple[Any, int]


def load_encoder(
    checkpoint: str | PathLike,
    *options: str,
    device: str = "cpu",
    precision: str = "fp32",
    batch_size: int = 64,
    trust: bool = False,
) -> Encoder:
    """Return the frozen encoder of a checkpoint: the network that makes the targets, where there are two.

    checkpoint: a run folder or file, a published or exported file or folder, `timm:<name>`, `hf:<name or folder>`.
    options: as the command line has them, for what the file does not say: "model.encoder.num_heads=16",
        "data.image_size=448". Pictures of a checkpoint that does not know its own are normalised as ImageNet's are.
    precision: "fp32", "bf16", "fp16" or "auto". batch_size: inputs that are encoded at once.
    trust: build also what is not jepa's own, of a checkpoint that is yours.

    Raise UserError for what is missing or contradicts the file, CheckpointError for what cannot be read.
    """
    given = [f"checkpoint={quoted(str(checkpoint))}", f"trust={trust}".lower(), *addable(options)]
    config = load_config(given, config_name="evaluate")
    loaded, joined = open_checkpoint(config, data="inputs")
    data = reader(joined.data, loaded, CommandLine(config.overrides))
    place = resolve_device(device)
    settings = Precision(precision, place)
    return Encoder(loaded.model.to(place), data, settings, batch_size=batch_size, name=loaded.source)


class Encoder:
    """A frozen encoder, called as encoder(inputs) -> features (B, D), see `load_encoder`.

    Inputs are one or many, in a list or along a first axis; B is their number. By what the encoder was trained on:
    pictures: paths, PIL images, or arrays and tensors (h, w), (h, w, C) or (C, h, w) as a .npy file has them.
    texts: str. sounds: paths, (waveform (t,), its rate in Hz), or waveforms (t,) at `data.sample_rate`.
    series: arrays and tensors (C, T), or (T,) of one channel, in the units of the training data; NaN is missing.
    clips: paths of videos or folders of frames, or uint8 frames (T, h, w, C).

    data: prepares the inputs as in evaluation. name: of the checkpoint.
    """

    def __init__(self, model: nn.Module, data: DataModule, precision: Precision, *, batch_size: int, name: str) -> None:
        self.model, self.data, self.precision = model, data, precision
        self.batch_size, self.name = batch_size, name
        precision.choose_attention(model)

    @property
    def embed_dim(self) -> int:
        """D."""
        return self.model.encoder.embed_dim

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.model.parameters()).device

    def to(self, device: str | torch.device) -> Encoder:
        """Move it to a device, and return it."""
        self.precision = Precision(self.precision.name, resolve_device(str(device)))
        self.model.to(device)
        self.precision.choose_attention(self.model)
        return self

    def __call__(self, inputs: Item | Sequence[Item]) -> Tensor:
        """Return features (B, D) float32 on the CPU: the mean over the tokens that are not padding.

        Raise UserError for inputs of another kind, and UnreadableSample for a file that is damaged.
        """
        pooled = [masked_mean(tokens, valid).cpu() for tokens, valid, _ in self._encoded(inputs)]
        return torch.cat(pooled)

    def tokens(self, inputs: Item | Sequence[Item]) -> Tensor:
        """Return the features of every token, (B, *grid, D) float32 on the CPU; grid: (H, W) of pictures."""
        found = [tokens.float().unflatten(1, grid).cpu() for tokens, _, grid in self._encoded(inputs)]
        return torch.cat(found)

    def prepare(self, item: Item) -> Tensor:
        """Return the input (C, *S), or ids (L,), of one item, as in evaluation."""
        value = VALUES[type(self.data)](item, self.data)
        return self.data.make_inputs(value, 0, Reading("train", seed=None, views=None, bad_limit=0))["x"]

    def _encoded(self, inputs: Any) -> Iterator[tuple[Tensor, Tensor | None, tuple[int, ...]]]:
        """Yield tokens (b, N, D), which of them are valid (b, N), and the grid, in batches."""
        items = as_items(inputs, SINGLE_AXES[type(self.data)])
        if not items:
            raise UserError(f"{self.name}: got no inputs")
        for start in range(0, len(items), self.batch_size):
            batch = [self.prepare(item) for item in items[start : start + self.batch_size]]
            x = torch.stack(batch).to(self.device)
            with evaluation_mode(self.model), self.precision.kernels(), self.precision.autocast():
                tokens = self.model.encode_target(x)
            yield tokens, token_valid(self.model.encoder, x), tuple(self.model.encoder.grid(x))


def as_items(inputs: Any, axes: Sequence[int]) -> list[Any]:
    """Return inputs as a list of single ones. axes: how many a single array may have."""
    if isinstance(inputs, (np.ndarray, Tensor)):
        if inputs.ndim in axes:
            return [inputs]
        if inputs.ndim == max(axes) + 1:
            return list(inputs)
        raise UserError(f"got an array of shape {tuple(inputs.shape)}, expected {' or '.join(map(str, axes))} axes")
    is_sound = isinstance(inputs, tuple) and len(inputs) == 2 and isinstance(inputs[1], int)
    return [inputs] if is_sound or not isinstance(inputs, (list, tuple)) else list(inputs)


def as_picture(item: Item, data: ImageData) -> Image.Image | Tensor:
    if isinstance(item, (str, PathLike)):
        return decode_image(str(item))
    if isinstance(item, Image.Image):
        return item
    return image_of(as_array(item, "a picture", "a path, PIL image or array"), "the array")


def as_clip(item: Item, data: VideoData) -> Any:
    if isinstance(item, (str, PathLike)):
        return open_video(str(item))
    frames = as_tensor(item, "a clip", "a path or uint8 frames (T, h, w, C)")
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] not in (1, 3):
        raise UserError(f"a clip of {frames.dtype} {tuple(frames.shape)}: expected uint8 frames (T, h, w, C), C 1 or 3")
    return TensorVideo(frames.permute(0, 3, 1, 2))


def as_text(item: Item, data: TextData) -> str:
    if not isinstance(item, str):
        raise UserError(f"a text is {type(item).__name__}, expected str")
    return item


def as_sound(item: Item, data: AudioData) -> Any:
    if isinstance(item, (str, PathLike)):
        return SoundFile(str(item))
    wave, rate = item if isinstance(item, tuple) else (item, data.sample_rate)
    wave = as_tensor(wave, "a sound", "a path, a waveform (t,) or (waveform, rate)").float()
    if wave.ndim != 1 or not len(wave):
        raise UserError(f"a sound of shape {tuple(wave.shape)}: expected (t,): average the channels")
    return wave, int(rate)


def as_series(item: Item, data: SeriesData) -> Tensor:
    series = as_tensor(item, "a series", "an array (C, T)").float()
    series = series[None] if series.ndim == 1 else series
    if tuple(series.shape) != data.spec.input_shape:
        raise UserError(f"a series of shape {tuple(series.shape)}, expected {data.spec.input_shape}: channels, steps")
    return (series - data.level) / data.scale


def reader(settings: DictConfig, loaded: Loaded, given: CommandLine) -> DataModule:
    """Return a data module without samples, which makes inputs as in evaluation.

    settings: the data of the checkpoint or of `data=`; else the default ones, of which only what is given holds.
    Raise UserError for data of which samples have several parts.
    """
    stem = getattr(loaded.model.encoder, "stem", None)
    stored = OmegaConf.to_container(settings, resolve=True)
    if loaded.data is None and loaded.format != "random" and not given.option("data"):  # published, or exported
        kind = VideoData if isinstance(stem, TubeletStem) else ImageData
        known = {"image_size": loaded.image_size, "channels": loaded.channels, "mean": loaded.mean, "std": loaded.std}
        found = {name: value for name, value in known.items() if value is not None}
        stored = PUBLISHED | found | {name: stored[name] for name in given.below("data") if name in stored}
    else:
        if stored["_target_"] == "jepa.data.hugging_face":
            part = "text" if isinstance(stem, TextStem) else "audio" if isinstance(stem, SpectrogramStem) else "image"
            stored = stored | stored[part]
        kind = next((each for each in PREPARING if stored["_target_"] == f"jepa.data.{each.__name__}"), None)
        if kind is None:
            raise UserError(f"{loaded.source} was trained on {stored['_target_']}, whose samples have several parts")
    kept = {name: stored[name] for name in PREPARING[kind] if name in stored}
    if stored.get("split_channels"):
        raise UserError(
            f"{loaded.source} was trained on single channels of series (data.split_channels): not taken yet"
        )
    if "spectrogram" in kept:
        kept["spectrogram"] = instantiate(kept["spectrogram"])
    return convert_errors("data", kind)(source=functools.partial(no_samples, kind, stored), root="", **kept)


def no_samples(kind: type, settings: Mapping[str, Any], root: str) -> Splits | SeriesSplits:
    """Return splits of one sample that nobody reads."""
    if kind is SeriesData:
        blank = torch.zeros(settings["channels"], settings["length"])
        return SeriesSplits(train=[blank], test=[blank])
    return Splits([("", None)], [("", None)])


PUBLISHED = {"image_size": 224, "channels": 3, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
"""Of a checkpoint that says nothing of its inputs: those of ImageNet."""
OF_PICTURES = ("image_size", "channels", "mean", "std", "interpolation")
PREPARING = {
    ImageData: OF_PICTURES,
    VideoData: (*OF_PICTURES, "num_frames", "frame_stride", "fps", "short_videos"),
    TextData: ("tokenizer", "vocab_size", "max_length"),
    AudioData: ("sample_rate", "seconds", "spectrogram"),
    SeriesData: ("window_size", "z_score", "normalise", "mean", "std"),
}
"""Kind of data -> its settings that say how a single sample becomes an input."""
VALUES = {ImageData: as_picture, VideoData: as_clip, TextData: as_text, AudioData: as_sound, SeriesData: as_series}
"""Kind of data -> what makes one input a value as its sources give it."""
SINGLE_AXES = {ImageData: (2, 3), VideoData: (4,), TextData: (), AudioData: (1,), SeriesData: (1, 2)}
"""Kind of data -> axes of a single input that is an array."""


def as_array(item: Any, what: str, expected: str) -> np.ndarray:
    """Return an array or tensor as an array. Raise UserError for any other."""
    return as_tensor(item, what, expected).numpy()


def as_tensor(item: Any, what: str, expected: str) -> Tensor:
    """Return an array or tensor as a tensor on the CPU. Raise UserError for any other."""
    if not isinstance(item, (np.ndarray, Tensor)):
        raise UserError(f"{what} is {type(item).__name__}, expected {expected}")
    return torch.tensor(item) if isinstance(item, np.ndarray) else item.detach().cpu()
