"""Models by name: `timm:<name>` and `hf:<organisation/name or local folder>`, with their own weights."""

from __future__ import annotations

import contextlib
import json
import logging
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from torch import nn

from jepa.checkpoint.load import SHOWN, first_line
from jepa.interop.networks import TimmFeatures, TransformersFeatures
from jepa.utils.errors import CheckpointError, UserError
from jepa.utils.lazy_import import require

HEADS = ("classifier.", "pooler.", "head.", "lm_head.", "decoder.", "mask_token", "embeddings.mask_token")
"""Starts of names that belong to what stands behind the features, or to training: they may differ, and are told."""


LISTED = 1000
"""Characters of torch's list of keys that do not fit."""


@dataclass(frozen=True)
class Named:
    """A model opened by name.

    fresh: builds the same without its weights. mean, std: of the pictures it was trained on, where it says so.
    lines: what was found, in words.
    """

    encoder: nn.Module
    fresh: Callable[[], nn.Module]
    channels: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    lines: list[str] = field(default_factory=list)


def open_timm(name: str, image_size: tuple[int, int], channels: int) -> Named:
    """A pretrained timm model, its positions resampled to image_size and its first layer adapted to channels by timm.

    name: as `timm.create_model` takes it: `vit_small_patch16_224.augreg_in21k`, `hf-hub:<repository>`,
    `local-dir:<folder>`.

    Raises UserError for a name that timm does not know or that has no weights, or when they cannot be fetched.
    """
    plain = name.split(".")[0]
    if ":" not in name and not timm.is_model(plain):
        close = timm.list_models(f"*{plain.split('_patch')[0]}*")[:8] or timm.list_models("vit_*_patch16_224")
        raise UserError(f"checkpoint=timm:{name}: timm has no model {plain!r}; it has {', '.join(close)}, ...")
    if ":" not in name and (tag := name.partition(".")[2]) and tag not in timm_tags(plain):
        raise UserError(
            f"checkpoint=timm:{name}: timm has no weights {tag!r} of {plain}; it has {', '.join(timm_tags(plain))}"
        )

    def create(pretrained: bool) -> nn.Module:
        arguments = {"pretrained": pretrained, "num_classes": 0, "in_chans": channels}
        try:
            return timm.create_model(name, img_size=image_size, **arguments)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return timm.create_model(name, **arguments)  # a convolutional one takes any size

    with fetched(f"timm:{name}"):
        model = create(True)
    settings = model.pretrained_cfg
    lines = [f"timm {name}: {type(model).__name__}, features of width {model.num_features}"]
    trained = tuple(settings.get("input_size", ()))
    if trained and trained[0] != channels:
        lines.append(f"timm has adapted its first layer from {trained[0]} channels to data.channels={channels}")
    if trained and trained[1:] != image_size and hasattr(model, "pos_embed"):
        lines.append(f"timm has resampled its positions from pictures of {trained[1:]} to {image_size}")
    if not isinstance(getattr(model, "fc_norm", nn.Identity()), nn.Identity):
        lines.append("its last norm (fc_norm) acts on pooled features and is left out of its tokens")
    features = TimmFeatures(model)
    if features.prefix_tokens:
        lines.append(f"its {features.prefix_tokens} class or register tokens are no features")
    mean, std = settings.get("mean"), settings.get("std")
    return Named(
        features.eval(),
        lambda: TimmFeatures(create(False)).eval(),
        channels,
        mean and tuple(mean),
        std and tuple(std),
        lines,
    )


def timm_tags(name: str) -> list[str]:
    """The weights that timm has of an architecture."""
    return [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]


def open_hugging_face(name: str, image_size: tuple[int, int], channels: int) -> Named:
    """A vision model of the Hugging Face hub or of a local folder in its format.

    A repository in timm's format is opened by timm, any other by `transformers`.

    Raises UserError when it cannot be fetched or does not take such pictures, CheckpointError with the missing,
    unexpected and mis-shaped keys when its weights do not fit the model its config names.
    """
    source = f"hf:{name}"
    with fetched(source):
        settings = json.loads(Path(config_file(name)).read_text())
    if "model_type" not in settings and "architecture" in settings:
        named = open_timm(f"local-dir:{name}" if Path(name).is_dir() else f"hf-hub:{name}", image_size, channels)
        named.lines.insert(0, f"{source} is in timm's format")
        return named
    transformers = require("transformers", extra="hub", purpose=f"checkpoint={source}")
    with fetched(source):
        config = transformers.AutoConfig.from_pretrained(name)
    missing = [key for key in ("hidden_size", "patch_size", "num_hidden_layers", "num_channels") if key not in config]
    if missing:
        raise UserError(f"{source} ({config.model_type}) is no encoder of patches: its config lacks {missing}")
    if config.num_channels != channels:
        raise UserError(
            f"{source} takes {config.num_channels} channels, data.channels={channels}: add "
            f"data.channels={config.num_channels} (grey pictures are repeated)"
        )
    with fetched(source):
        model, found = transformers.AutoModel.from_pretrained(name, output_loading_info=True)
    lines = [f"transformers {type(model).__name__}, width {config.hidden_size}, patches of {config.patch_size} pixels"]
    lines += check_loading(found, source)
    features = TransformersFeatures(model)
    own = config.image_size if isinstance(config.image_size, int) else tuple(config.image_size)
    sides = (own, own) if isinstance(own, int) else own
    check_pictures(image_size, sides, features, source)
    if image_size != sides:
        lines.append(f"its positions are made for {sides} and adapted to pictures of {image_size} by itself")
    mean, std = preprocessing(name)
    fresh = lambda: TransformersFeatures(transformers.AutoModel.from_config(config)).eval()  # noqa: E731
    return Named(features.eval(), fresh, channels, mean, std, lines)


def check_pictures(
    image_size: tuple[int, int], own: tuple[int, int], features: TransformersFeatures, source: str
) -> None:
    """Raise UserError for pictures of a size that a model does not take."""
    if any(side % patch for side, patch in zip(image_size, features.patch_size)):
        raise UserError(
            f"data.image_size={image_size} is not a multiple of the patches of {source}, {features.patch_size} pixels: "
            f"use data.image_size={own[0]}"
        )
    rotary = getattr(features.model.config, "rope_theta", None) is not None
    if image_size != own and not features.resamples and not rotary and features.model.config.model_type != "dinov2":
        raise UserError(f"{source} takes pictures of {own} only: add data.image_size={own[0]}")


def check_loading(found: Mapping[str, Any], source: str) -> list[str]:
    """What of a model's head was not loaded, in words. Raises CheckpointError when something else was not."""
    problems, told = [], []
    for kind, word in (
        ("missing_keys", "missing in the file"),
        ("unexpected_keys", "in the file only"),
        ("mismatched_keys", "of another shape in the file"),
        ("error_msgs", "could not be loaded"),
    ):
        names = sorted(str(item[0] if isinstance(item, (tuple, list)) else item) for item in found.get(kind, ()))
        heads = [n for n in names if n.startswith(HEADS) and kind in ("missing_keys", "unexpected_keys")]
        problems += [f"  {n}: {word}" for n in names if n not in heads]
        told += [f"{n} ({word})" for n in heads]
    if problems:
        more = [f"  ... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise CheckpointError(
            f"the weights of {source} are not of the model its config.json names: {len(problems)} keys differ\n"
            + "\n".join(problems[:SHOWN] + more)
        )
    return [f"not used for features: {', '.join(told)}"] if told else []


def config_file(name: str) -> str:
    """Path of a model's config.json, fetched unless it is in a local folder. Raises UserError for a folder without."""
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise UserError(
                f"checkpoint=hf:{name}: the folder has no config.json, so is no model in Hugging Face's format"
            )
        return str(Path(name) / "config.json")
    from huggingface_hub import hf_hub_download

    return hf_hub_download(name, "config.json")


def preprocessing(name: str) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and std of a model's preprocessor_config.json; None where it has none."""
    try:
        if Path(name).is_dir():
            path = Path(name) / "preprocessor_config.json"
        else:
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(name, "preprocessor_config.json"))
        settings = json.loads(path.read_text())
    except (OSError, ValueError):  # many repositories have none
        return None, None
    mean, std = settings.get("image_mean"), settings.get("image_std")
    return mean and tuple(mean), std and tuple(std)


@contextlib.contextmanager
def fetched(source: str) -> Iterator[None]:
    """A context in which weights are fetched, that turns what goes wrong there into a UserError."""
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)  # its retries are no news beside the error at the end
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, LookupError, SafetensorError) as error:
        unfit = isinstance(error, RuntimeError) and "state_dict" in str(error)  # it lists the keys
        cause = textwrap.shorten(str(error), LISTED) if unfit else first_line(error)
        offline = isinstance(error, OSError) and not Path(source.partition(":")[2]).exists()
        advice = (
            ". Is there a network? Once fetched, models are read from the cache of Hugging Face (HF_HOME); a folder "
            "works without: hf:<folder>, timm:local-dir:<folder>"
        )
        raise CheckpointError(f"checkpoint={source} cannot be opened: {cause}{advice if offline else ''}") from error
    finally:
        hub.setLevel(level)


def differing(name: str, theirs: Sequence[float] | None, ours: Sequence[float]) -> str | None:
    """A warning where the data is normalised unlike the pictures that a model was trained on."""
    if theirs is None:
        return None
    wide = list(ours) * (len(theirs) if len(ours) == 1 else 1)
    if len(wide) == len(theirs) and all(abs(a - b) < 2e-3 for a, b in zip(wide, theirs)):
        return None
    values = ",".join(f"{value:g}" for value in theirs)
    return (
        f"warning: data.{name}={list(ours)}, but the model was trained with {list(theirs)}: set data.{name}=[{values}]"
    )
