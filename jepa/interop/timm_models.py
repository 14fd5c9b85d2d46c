"""timm: models by name with their own weights."""

from __future__ import annotations

import contextlib
import logging
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from jepa.interop.adapter import Adapter, Loaded, Source
from jepa.interop.frozen_networks import OtherEncoder, load_by_name
from jepa.interop.weights_file import WeightsFile, find_parts
from jepa.types import Grid
from jepa.utils.errors import CheckpointError, UserError
from jepa.utils.lazy_import import lazy_import

timm = lazy_import("timm")

OFFLINE = (
    "Is there a network? Once fetched, models are read from the cache of Hugging Face (HF_HOME); a folder works "
    "without: hf:<folder>, timm:local-dir:<folder>"
)


class TimmEncoder(OtherEncoder):
    """A timm model without classifier as an encoder of patches: no class and register tokens, after the final norm.

    Raises UserError for one whose features are not (B, N, D) or (B, D, H, W).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, model.num_features, len(model.blocks) if hasattr(model, "blocks") else None)
        self.prefix_tokens: int = getattr(model, "num_prefix_tokens", 0)
        if getattr(model, "output_fmt", "NCHW") == "NHWC":
            raise UserError(f"{type(model).__name__} of timm gives maps with channels last, expected tokens or NCHW")

    def grid(self, x: Tensor) -> Grid:
        if hasattr(self.model, "patch_embed"):
            return tuple(side // patch for side, patch in zip(x.shape[2:], self.model.patch_embed.patch_size))
        with torch.no_grad():
            return tuple(self.model.forward_features(x[:1]).shape[2:])

    def tokens(self, x: Tensor) -> Tensor:
        features = self.model.forward_features(x)
        if features.ndim == 4:
            return features.flatten(2).transpose(1, 2)  # (B, D, H, W) -> (B, N, D)
        if features.ndim != 3:
            raise UserError(f"{type(self.model).__name__} of timm gives features of shape {tuple(features.shape)}")
        return features[:, self.prefix_tokens :]

    def layer_tokens(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        order = sorted(set(layers))
        found = self.model.forward_intermediates(x, indices=order, norm=True, output_fmt="NLC", intermediates_only=True)
        return [found[order.index(number)] for number in layers]


def check_named(source: Source) -> None:
    """Raise UserError for options of a model that its name already settles, or for an unknown size of the input."""
    if source.overrides:
        key = next(iter(source.overrides))
        raise UserError(f"model.{key}: the name {source.name} says what the model is; leave it out")
    if source.image_size is None or source.channels is None:
        raise UserError(f"checkpoint={source.name} needs data= (or data.image_size and data.channels)")


def load_by_timm(source: Source, name: str | None = None) -> Loaded:
    """Load a model by the name that `timm.create_model` takes, None for that in `timm:<name>`.

    timm resamples positions to image_size and adapts the first layer to channels. Raises UserError for a name that timm
    does not know or that has no weights, or when they cannot be fetched.
    """
    check_named(source)
    name = name or name_of_weights(source)
    image_size, channels = source.image_size, source.channels

    def create(pretrained: bool | None) -> nn.Module:
        arguments = {"pretrained": bool(pretrained), "num_classes": 0, "in_chans": channels}
        try:
            return TimmEncoder(timm.create_model(name, img_size=image_size, **arguments)).eval()
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return TimmEncoder(timm.create_model(name, **arguments)).eval()  # a convolutional one takes any size

    with fetching(source.name):
        loaded = load_by_name(source, create, True)
    encoder, model = loaded.model.encoder, loaded.model.encoder.model
    loaded.mean, loaded.std = (tuple(model.pretrained_cfg.get(key) or ()) or None for key in ("mean", "std"))
    trained = tuple(model.pretrained_cfg.get("input_size", ()))
    loaded.lines.append(f"timm {name}: {type(model).__name__}, features of width {model.num_features}")
    if trained and trained[0] != channels:
        loaded.lines.append(f"timm has adapted its first layer from {trained[0]} channels to data.channels={channels}")
    if trained and trained[1:] != image_size and hasattr(model, "pos_embed"):
        loaded.lines.append(f"timm has resampled its positions from pictures of {trained[1:]} to {image_size}")
    if not isinstance(getattr(model, "fc_norm", nn.Identity()), nn.Identity):
        loaded.lines.append("its last norm (fc_norm) acts on pooled features and is left out of its tokens")
    if encoder.prefix_tokens:
        loaded.lines.append(f"its {encoder.prefix_tokens} class or register tokens are no features")
    return loaded


def read_from_timm(source: Source, name: str | None = None) -> WeightsFile:
    """Return the weights of a model as those of a file. name: see `load_by_timm`, and for what is raised."""
    name = name or name_of_weights(source)
    with fetching(source.name):
        model = timm.create_model(name, pretrained=True, num_classes=0)
    heads = {"num_attention_heads": model.blocks[0].attn.num_heads} if hasattr(model, "blocks") else {}
    return find_parts(model.state_dict(), Path(source.name), heads)


def name_of_weights(source: Source) -> str:
    """Return the name in `timm:<name>`. Raises UserError where timm does not know it, or has no such weights of it."""
    name = source.name.partition(":")[2]
    if ":" not in name:  # else a repository or folder
        plain, _, tag = name.partition(".")
        check_timm_name(plain, f"{source.key}={source.name}")
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{plain}.*")]
        if tag and tag not in tags:
            has = ", ".join(tags)
            raise UserError(f"{source.key}={source.name}: timm has no weights {tag!r} of {plain}; it has {has}")
    return name


def check_timm_name(name: str, key: str) -> None:
    """Raise UserError with similar names if timm has no model of this name. key: the option that gives it."""
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_patch')[0]}*")[:8] or timm.list_models("vit_*_patch16_224")
        raise UserError(f"{key}: timm has no model {name!r}; it has {', '.join(close)}, ...")


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """A context without warnings, and without what these loggers say below an error."""
    levels = {logger: logger.level for logger in map(logging.getLogger, loggers)}
    try:
        for logger in levels:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


@contextlib.contextmanager
def fetching(source: str) -> Iterator[None]:
    """A context in which weights are fetched; what goes wrong there becomes a CheckpointError."""
    try:
        with quiet("huggingface_hub"):  # its retries are no news beside the error at the end
            yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, LookupError, SafetensorError) as error:
        message = f"checkpoint={source} cannot be opened: {textwrap.shorten(str(error), 1000)}"
        if isinstance(error, OSError) and not Path(source.partition(":")[2]).exists():
            message += f". {OFFLINE}"
        raise CheckpointError(message) from error


NAME = Adapter("timm", lambda source: source.name.startswith("timm:"), load_by_timm, read=read_from_timm)
