"""timm: models by name with their own weights, and state dicts with the names of its Vision Transformers."""

from __future__ import annotations

import contextlib
import logging
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from jepa.checkpoint.load import load_state
from jepa.interop.adapter import Adapter, Loaded, Source
from jepa.interop.frozen_networks import OtherEncoder, frozen, load_by_name, load_our_encoders
from jepa.interop.sizes import by, check_overrides, is_sincos, num_heads, table_side, to_pair, vit_sizes
from jepa.interop.weights_file import State
from jepa.types import Grid
from jepa.utils.errors import CheckpointError, UserError, first_line

OFFLINE = (
    "Is there a network? Once fetched, models are read from the cache of Hugging Face (HF_HOME); a folder works "
    "without: hf:<folder>, timm:local-dir:<folder>"
)
SHOWN = 1000
"""Characters of an error that are shown, such as torch's list of keys that do not fit."""


class TimmEncoder(OtherEncoder):
    """A timm model as an encoder of patches: its tokens after the final norm, without class and register tokens.

    model: one without classifier, with features (B, N, D) or (B, D, H, W); UserError is raised for others.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, model.num_features, len(model.blocks) if hasattr(model, "blocks") else None)
        self.prefix_tokens: int = getattr(model, "num_prefix_tokens", 0)
        if getattr(model, "output_fmt", "NCHW") == "NHWC":
            raise UserError(f"{type(model).__name__} of timm gives maps with channels last, expected tokens or NCHW")

    def grid(self, x: Tensor) -> Grid:
        """Return (rows, columns) of the features of pictures (B, C, H, W)."""
        if hasattr(self.model, "patch_embed"):
            return tuple(side // patch for side, patch in zip(x.shape[2:], self.model.patch_embed.patch_size))
        with torch.no_grad():
            return tuple(self.model.forward_features(x[:1]).shape[2:])

    def tokens(self, x: Tensor) -> Tensor:
        """Return features (B, N, D)."""
        features = self.model.forward_features(x)
        if features.ndim == 4:
            return features.flatten(2).transpose(1, 2)  # (B, D, H, W) -> (B, N, D)
        if features.ndim != 3:
            raise UserError(f"{type(self.model).__name__} of timm gives features of shape {tuple(features.shape)}")
        return features[:, self.prefix_tokens :]

    def layer_tokens(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return features (B, N, D) after each of some blocks."""
        order = sorted(set(layers))
        found = self.model.forward_intermediates(x, indices=order, norm=True, output_fmt="NLC", intermediates_only=True)
        return [found[order.index(number)] for number in layers]


def check_named(source: Source) -> None:
    """Raise UserError where a model known by its name is overridden, or pictures' size and channels are not given."""
    if source.overrides:
        raise UserError(
            f"model.{next(iter(source.overrides))}: the name {source.name} says what the model is; leave it out"
        )
    if source.image_size is None or source.channels is None:
        raise UserError(f"checkpoint={source.name} needs data= (or data.image_size and data.channels)")


def load_by_timm(source: Source, name: str | None = None) -> Loaded:
    """Load a model by the name that `timm.create_model` takes: also `hf-hub:<repository>` and `local-dir:<folder>`.

    name: None takes that in `timm:<name>`. timm resamples positions to image_size and adapts the first layer to
    channels.

    Raises UserError for a name that timm does not know or that has no weights, or when they cannot be fetched.
    """
    check_named(source)
    name = name or source.name.partition(":")[2]
    if ":" not in name:
        plain, _, tag = name.partition(".")
        check_timm_name(plain, f"checkpoint={source.name}")
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{plain}.*")]
        if tag and tag not in tags:
            has = ", ".join(tags)
            raise UserError(f"checkpoint={source.name}: timm has no weights {tag!r} of {plain}; it has {has}")
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
    encoder = loaded.model.encoder
    model, settings = encoder.model, encoder.model.pretrained_cfg
    loaded.mean, loaded.std = (settings.get(key) and tuple(settings[key]) for key in ("mean", "std"))
    loaded.lines.append(f"timm {name}: {type(model).__name__}, features of width {model.num_features}")
    trained = tuple(settings.get("input_size", ()))
    if trained and trained[0] != channels:
        loaded.lines.append(f"timm has adapted its first layer from {trained[0]} channels to data.channels={channels}")
    if trained and trained[1:] != image_size and hasattr(model, "pos_embed"):
        loaded.lines.append(f"timm has resampled its positions from pictures of {trained[1:]} to {image_size}")
    if not isinstance(getattr(model, "fc_norm", nn.Identity()), nn.Identity):
        loaded.lines.append("its last norm (fc_norm) acts on pooled features and is left out of its tokens")
    if encoder.prefix_tokens:
        loaded.lines.append(f"its {encoder.prefix_tokens} class or register tokens are no features")
    return loaded


def check_timm_name(name: str, key: str) -> None:
    """Raise UserError for a name that timm does not know."""
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_patch')[0]}*")[:8] or timm.list_models("vit_*_patch16_224")
        raise UserError(f"{key}: timm has no model {name!r}; it has {', '.join(close)}, ...")


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """A context without warnings, and without what these loggers say below an error."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    try:
        for name in loggers:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def fetching(source: str) -> Iterator[None]:
    """A context in which weights are fetched; what goes wrong there becomes a CheckpointError."""
    try:
        with quiet("huggingface_hub"):  # its retries are no news beside the error at the end
            yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, LookupError, SafetensorError) as error:
        message = f"checkpoint={source} cannot be opened: {textwrap.shorten(str(error), SHOWN)}"
        if isinstance(error, OSError) and not Path(source.partition(":")[2]).exists():
            message += f". {OFFLINE}"
        raise CheckpointError(message) from error


def load_file(source: Source) -> Loaded:
    """Load the encoders of state dicts with timm's names: as our Vision Transformer where that computes the same.

    overrides: `encoder.num_heads`, or `encoder.name` of a timm model. Learned positions are resampled to image_size.

    Raises CheckpointError with the missing, unexpected and mis-shaped keys, UserError for what no file says.
    """
    weights, path = source.file.encoder, source.path
    sizes, name = vit_sizes(source), source.overrides.get("encoder.name")
    if "pos_embed" not in weights:
        raise CheckpointError(
            f"{path} holds no positions (pos_embed), and no header that says how they are computed: expected a file "
            "written by scripts/export.py or by timm"
        )
    prefix = sum(weights[token].shape[1] for token in ("cls_token", "reg_token") if token in weights)
    side, extra = table_side(weights["pos_embed"], path, prefix)
    stored = tuple(side * patch for patch in to_pair(sizes["patch_size"]))
    if name is None:
        sizes["num_heads"] = num_heads(source, sizes["embed_dim"])
    heads = sorted(weights.keys() - without_classifier(weights).keys())
    lines = [f"left alone: {', '.join(heads)}"] if heads else []
    lines.append(
        f"ViT of width {sizes['embed_dim']}, depth {sizes['depth']}, {sizes['channels']} channels, positions of "
        f"{by((side, side))} patches of {sizes['patch_size']} pixels (pictures of {by(stored)})"
    )
    ignored = ("encoder.name", "encoder.image_size", "encoder.num_heads")
    if name is None and not prefix and is_sincos(weights["pos_embed"][0], (side, side)):
        config = {"_target_": "jepa.models.vision_transformer", "image_size": list(stored), **sizes}
        check_overrides(source, {"encoder": config}, ignored)
        lines.append("its positions are sine-cosine, computed for the grid that comes")
        return load_our_encoders(source, config, lines, our_weights)
    config = {"img_size": list(stored), **timm_arguments(weights, sizes, name)}
    if name is None:
        config["no_embed_class"] = extra == 0
    check_overrides(source, {"encoder": {**config, **sizes}}, ignored)
    if prefix:
        lines.append(f"{prefix} class or register tokens, which are no features")
    if source.image_size not in (None, stored):
        lines.append(f"learned positions resampled from pictures of {stored} to {source.image_size}")
    return frozen(
        lambda state: make_timm(source, config, state),
        source.file.encoders,
        lines=[*source.file.lines, *lines],
        description={"encoder": config},
        image_size=stored,
        channels=sizes["channels"],
    )


def without_classifier(state: Mapping[str, Tensor]) -> State:
    """Return a state dict without the tensors that stand behind the features."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(("head.", "head_dist."))}


def our_weights(state: State) -> State:
    """Return the tensors of a timm ViT with sine-cosine positions by our names."""
    return {f"vit.{name}": tensor for name, tensor in without_classifier(state).items() if name != "pos_embed"}


def timm_arguments(weights: Mapping[str, Tensor], sizes: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """Return arguments of a timm ViT into which weights should fit. name: of the variant, which has its own sizes."""
    with_class = "cls_token" in weights
    arguments = {"patch_size": sizes["patch_size"], "in_chans": sizes["channels"], "num_classes": 0, "fc_norm": False}
    arguments |= {"class_token": with_class, "global_pool": "token" if with_class else "avg"}
    if name is not None:
        return {"model_name": name, **arguments}
    return arguments | {
        **{key: sizes[key] for key in ("embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias")},
        "qk_norm": "blocks.0.attn.q_norm.weight" in weights,
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in weights else None,
        "reg_tokens": weights["reg_token"].shape[1] if "reg_token" in weights else 0,
    }


def make_timm(source: Source, config: Mapping[str, Any], state: State | None) -> TimmEncoder:
    """Build a timm ViT with learned positions and load a state dict, None for none. Raises UserError if it cannot."""
    name = config.get("model_name")
    if name is not None:
        check_timm_name(name, "model.encoder.name")
    try:
        vit = timm.create_model(**{"model_name": "vit_base_patch16_224", **config})
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"model.encoder.name={name}: timm cannot build it so: {first_line(error)}") from error
    if state is not None:
        try:
            load_state(vit, without_classifier(state), source.path)
        except CheckpointError as error:
            hint = "" if name else "\nIf it is one of timm's variants, name it: model.encoder.name=<name in timm>"
            raise CheckpointError(f"{error}{hint}") from None
    if source.image_size not in (None, tuple(config["img_size"])):
        vit.set_input_size(img_size=source.image_size)
    return TimmEncoder(vit).eval()


NAME = Adapter("timm", lambda source: source.name.startswith("timm:"), load_by_timm)
FILE = Adapter("encoder", lambda source: True, load_file)
