"""A trained encoder in one's own code: it makes its inputs of pictures, texts, sounds, series or clips by itself.

encoder = jepa.load_encoder("outputs/mine")
features = encoder(["a.jpg", "b.jpg"])          # (2, D)
grid = encoder.tokens("a.jpg")                  # (1, H, W, D)
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from jepa.config.build import convert_errors
from jepa.config.command import load_config
from jepa.config.encoder_inputs import KINDS, Inputs
from jepa.config.open_checkpoint import open_checkpoint
from jepa.config.overrides import quoted
from jepa.config.stored import CommandLine, addable
from jepa.data import ImageData, SeriesData, TextData, VideoData
from jepa.data.data_module import DataModule
from jepa.data.sources.series_tables import SeriesSplits
from jepa.data.sources.splits import Splits
from jepa.evaluation.features import evaluation_mode
from jepa.evaluation.modalities import modality_of
from jepa.interop import Loaded
from jepa.models.encoders.spectrogram_stem import SpectrogramStem
from jepa.models.encoders.text_stem import TextStem
from jepa.models.encoders.tubelet_stem import TubeletStem
from jepa.trainer.precision import Precision, resolve_device
from jepa.utils.errors import UserError
from jepa.utils.tensors import masked_mean, token_valid


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
    if type(batch_size) is not int or batch_size < 1:
        raise UserError(f"batch_size={batch_size!r}: expected a whole number of at least 1")
    given = [f"checkpoint={quoted(str(checkpoint))}", f"trust={trust}".lower(), *addable(options)]
    config = load_config(given, config_name="evaluate")
    loaded, joined = open_checkpoint(config, data="inputs")
    settings = Precision(precision, resolve_device(device))
    inputs = inputs_of(joined.data, loaded, CommandLine(config.overrides))
    return Encoder(loaded.model, inputs, settings, batch_size=batch_size, name=loaded.source)


class Encoder:
    """A frozen encoder, called as encoder(inputs) -> features (B, D), see `load_encoder`.

    Inputs are one or many, in a list or along a first axis; B is their number. By what the encoder was trained on:
    pictures: paths, PIL images, or arrays and tensors (h, w), (h, w, C) or (C, h, w) as a .npy file has them.
    texts: str. sounds: paths, (waveform (t,), its rate in Hz), or waveforms (t,) at `data.sample_rate`; whole numbers
    are scaled by their type, as files are, and channels averaged.
    series: paths of tables, DataFrames, or arrays (C, T), or (T,) of one channel, in the units of the training data;
    NaN is missing. Of a run on single channels (`data.split_channels`), each channel is an input of its own.
    clips: paths of videos or folders of frames, or uint8 frames (T, h, w, C).

    Keywords of all calls:
    modality: of a run on several, which one the inputs are of. pieces: all of each sound or series, in pieces of the
    length of training, each an input of its own; stride: where they begin, every so many seconds of a sound or steps of
    a series, None for one after another. The last piece of a sound may be shorter, a window of a series may not.

    inputs: modality -> how its inputs are made; one with the name "" is taken where none is named. name: of the
    checkpoint.
    """

    def __init__(
        self, model: nn.Module, inputs: Mapping[str, Inputs], precision: Precision, *, batch_size: int, name: str
    ) -> None:
        self.model, self.inputs, self.precision = model.to(precision.device), dict(inputs), precision
        self.batch_size, self.name = batch_size, name
        precision.choose_attention(model)

    @property
    def modalities(self) -> list[str]:
        """Their names, of a run on several."""
        return [name for name in self.inputs if name]

    @property
    def data(self) -> DataModule:
        """What prepares the inputs, where these are of one modality."""
        return self.inputs_of(None).data

    @property
    def embed_dim(self) -> int:
        """D."""
        return self._of("" if "" in self.inputs else self.modalities[0])[0].encoder.embed_dim

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

    def __repr__(self) -> str:
        """Return what it is, takes and gives, in words."""
        lines = [f"Encoder of {self.name} on {self.device} in {self.precision.name}"]
        for name, inputs in self.inputs.items():
            size = sum(parameter.numel() for parameter in self._of(name)[0].encoder.parameters()) / 1e6
            x = " x ".join(map(str, inputs.data.spec.input_shape))
            made = f"made {x}, then {self.embed_dim} features by {size:.1f} million parameters"
            lines.append(f"{name or inputs.kind.name}: {inputs.kind.forms}; {made}")
        return "\n  ".join(lines)

    def __call__(
        self, inputs: Any, *, modality: str | None = None, pieces: bool = False, stride: float | None = None
    ) -> Tensor:
        """Return features (B, D) float32 on the CPU: the mean over the tokens that are not padding.

        Raise UserError for inputs of another kind, and UnreadableSample for a file that is damaged.
        """
        return self._over(inputs, modality, pieces, stride, lambda tokens, valid, _: masked_mean(tokens, valid))

    def tokens(
        self, inputs: Any, *, modality: str | None = None, pieces: bool = False, stride: float | None = None
    ) -> Tensor:
        """Return the features of every token, (B, *grid, D) float32 on the CPU; grid: (H, W) of pictures."""
        return self._over(inputs, modality, pieces, stride, lambda tokens, _, grid: tokens.float().unflatten(1, grid))

    def embed(self, inputs: Any, *, modality: str) -> Tensor:
        """Return embeddings (B, E) in the space where a model of pairs compares its modalities.

        Raise UserError for a model without such a space.
        """
        if not hasattr(self.model, "embed"):
            raise UserError(f"{self.name}: {type(self.model).__name__} has no space that its modalities share")
        found = (
            self._run(lambda x: self.model.embed({modality: x})[modality], x) for x in self._batches(inputs, modality)
        )
        return torch.cat([each.float().cpu() for each in found])

    def prepare(self, item: Any, *, modality: str | None = None) -> Tensor:
        """Return the input (C, *S), or ids (L,), of one item, as in evaluation."""
        return self.inputs_of(modality).prepare(item)[0][1]

    def encode(
        self, x: Tensor, *, modality: str | None = None, network: str = "target", layers: Sequence[int] | None = None
    ) -> tuple[list[Tensor], Tensor | None, tuple[int, ...]]:
        """Return tokens (b, N, D) of inputs x (b, C, *S), of the last or of some blocks, which are valid, and the grid.

        network: "target", or "context", the trained encoder. Raise UserError for blocks that do not exist.
        """
        model, _ = self._of(modality)
        call = model.encode_target if network == "target" else model.encoder
        x = x.to(self.device)
        found = self._run(convert_errors("layers" if layers else "data", functools.partial(call, layers=layers)), x)
        return [found] if layers is None else found, token_valid(model.encoder, x), tuple(model.encoder.grid(x))

    def _run(self, function: Callable[[Tensor], Any], x: Tensor) -> Any:
        with evaluation_mode(self.model), self.precision.kernels(), self.precision.autocast():
            return function(x.to(self.device))

    def _over(
        self, inputs: Any, modality: str | None, pieces: bool, stride: float | None, function: Callable[..., Tensor]
    ) -> Tensor:
        """Return what a function makes of the tokens, which of them are valid, and the grid, of all inputs."""
        found = (self.encode(x, modality=modality) for x in self._batches(inputs, modality, pieces, stride))
        return torch.cat([function(tokens, valid, grid).cpu() for (tokens,), valid, grid in found])

    def _batches(
        self, given: Any, modality: str | None, pieces: bool = False, stride: float | None = None
    ) -> Iterator[Tensor]:
        """Yield inputs (b, C, *S)."""
        inputs = self.inputs_of(modality)
        items = inputs.items(given)
        if not items:
            raise UserError(f"{self.name}: got no inputs")
        names = ["the input"] if len(items) == 1 else [f"input {number}" for number in range(len(items))]
        made = (inputs.prepare(item, name, pieces=pieces, stride=stride) for item, name in zip(items, names))
        found = (x for parts in made for _, x in parts)
        while batch := list(itertools.islice(found, self.batch_size)):
            yield torch.stack(batch)

    def inputs_of(self, modality: str | None) -> Inputs:
        """Return how the inputs of a modality are made. Raise UserError for one the run has not."""
        return self._of(modality)[1]

    def _of(self, modality: str | None) -> tuple[nn.Module, Inputs]:
        """Return the model of a modality, and how its inputs are made. Raise UserError for one the run has not."""
        name = modality or ""
        if name not in self.inputs:
            names = ", ".join(self.modalities) or "one modality alone, which needs no name"
            raise UserError(f"modality={modality}: {self.name} was trained on {names}")
        parts = hasattr(self.model, "tasks") or hasattr(self.model, "modalities")
        return modality_of(self.model, name) if parts else self.model, self.inputs[name]


def inputs_of(settings: DictConfig, loaded: Loaded, given: CommandLine) -> dict[str, Inputs]:
    """Return how inputs are made as in evaluation, by modality; "" is that of a run on one, or on mixed sets of one.

    settings: the data of the checkpoint or of `data=`; else the default ones, of which only what is given holds.
    Raise UserError for data of a kind that is not known.
    """
    stem = getattr(loaded.model.encoder, "stem", None) if hasattr(loaded.model, "encoder") else None
    stored = OmegaConf.to_container(settings, resolve=True)
    if loaded.data is None and loaded.format != "random" and not given.option("data"):  # published, or exported
        kind = VideoData if isinstance(stem, TubeletStem) else ImageData
        known = {"image_size": loaded.image_size, "channels": loaded.channels, "mean": loaded.mean, "std": loaded.std}
        found = {name: value for name, value in known.items() if value is not None}
        chosen = {name: stored[name] for name in given.below("data") if name in stored}
        return {"": _inputs(PUBLISHED | found | chosen | {"_target_": f"jepa.data.{kind.__name__}"})}
    if stored["_target_"] in ("jepa.data.hugging_face", "jepa.data.packed"):
        parts = {TextStem: "text", SpectrogramStem: "audio", TubeletStem: "video"}
        stored |= stored[next((name for kind, name in parts.items() if isinstance(stem, kind)), "image")]
    if stored["_target_"] in TARGETS:
        return {"": _inputs(stored)}
    nodes = stored.get("parts") or stored.get("modalities") or stored
    parts = {name: node for name, node in nodes.items() if isinstance(node, dict) and node.get("_target_") in TARGETS}
    if not parts:
        raise UserError(f"{loaded.source} was trained on {stored['_target_']}: its inputs are of no kind that is known")
    found = {name: _inputs(node) for name, node in parts.items()}
    if stored["_target_"] == "jepa.data.MixedData":
        found[""] = found[stored.get("evaluate") or next(iter(found))]
    return found


def _inputs(stored: Mapping[str, Any]) -> Inputs:
    """Return how inputs are made by stored settings of one kind of data, of which no samples are read."""
    kind = TARGETS[stored["_target_"]]
    kept = {name: stored[name] for name in KINDS[kind].settings if name in stored}
    if kind is TextData and kept.get("tokenizer") == "train":
        raise UserError("the run has kept no tokenizer.json: give data.<part>.tokenizer=<file>")
    if "spectrogram" in kept:
        kept["spectrogram"] = instantiate(kept["spectrogram"])
    source = stored.get("source") or {}
    tables = {name: source[name] for name in TABLES if name in source} if kind is SeriesData else {}
    return Inputs(
        convert_errors("data", kind)(source=functools.partial(_no_samples, kind, stored), root="", **kept), tables
    )


def _no_samples(kind: type, settings: Mapping[str, Any], root: str) -> Splits | SeriesSplits:
    """Return splits of one sample that nobody reads."""
    if kind is SeriesData:
        single = settings.get("split_channels") and isinstance(settings["mean"], list)
        blank = torch.zeros(len(settings["mean"]) if single else settings["channels"], settings["length"])
        return SeriesSplits(train=[blank], test=[blank])
    return Splits([("", None)], [("", None)])


PUBLISHED = {"image_size": 224, "channels": 3, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
"""Of a checkpoint that says nothing of its inputs: those of ImageNet."""
TABLES = ("columns", "time_column", "separator", "decimal", "resample", "missing_markers")
"""Settings of a source of series that say how a table is read."""
TARGETS = {f"jepa.data.{kind.__name__}": kind for kind in KINDS}
