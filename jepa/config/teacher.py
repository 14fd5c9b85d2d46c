"""A frozen network from a checkpoint, as the target of a model, or as the encoder of a world model.

python train.py model/target=teacher model.target.checkpoint=outputs/large model/encoder=vit_tiny
python train.py experiment=two_rooms model/encoder=frozen model.encoder.checkpoint=outputs/pictures
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from jepa.config.load_encoder import PUBLISHED
from jepa.interop import Loaded, find, load, network_of
from jepa.interop.adapter import hash_of
from jepa.interop.ours import TEACHER, absent_teachers
from jepa.interop.sizes import by, to_pair
from jepa.models import TeacherTarget
from jepa.utils.errors import CheckpointError, UserError
from jepa.utils.read_data import printable

log = logging.getLogger("jepa")

Values = float | Sequence[float] | None
FROZEN = "jepa.config.teacher.frozen_encoder"


def teacher_target(
    *,
    encoder: nn.Module,
    checkpoint: str,
    network: Literal["target", "context"] = "target",
    image_size: int | Sequence[int] | None = None,
    data_image_size: int | Sequence[int] | None = None,
    mean: Values = None,
    std: Values = None,
    settings: Mapping[str, Any] | None = None,
    trust: bool = False,
    out_dim: int | None = None,
    average_layers: int | None = None,
    concat_layers: Sequence[int] | None = None,
) -> TeacherTarget:
    """Return the target of an encoder whose own network is that of a checkpoint; log what is done to its inputs.

    checkpoint: as `checkpoint=` of the scripts. network: of one with two, see `network_of`. image_size: in pixels, of
    what the teacher sees; None takes data_image_size, that of the data. mean, std: by which the data is normalised;
    None where it is not. settings: what the file does not say, {"num_heads": 16}, as `model.encoder` has it elsewhere.
    trust: build also what is not jepa's own. out_dim, average_layers, concat_layers: see `TeacherTarget`.

    Raises CheckpointError for a checkpoint that cannot be read, UserError for one that says too little or does not fit.
    """
    size = to_pair(data_image_size)
    sees = to_pair(image_size) or size
    channels = getattr(encoder, "channels", None) or getattr(getattr(encoder, "stem", None), "channels", None)
    loaded = _open("model.target", checkpoint, settings or {}, sees, channels, trust)
    wanted = loaded.channels or channels
    if channels not in (wanted, 1):
        raise UserError(f"model.target.checkpoint={checkpoint} takes {wanted} channels, and data.channels={channels}")
    theirs = [_statistics(loaded, name) for name in ("mean", "std")]
    if loaded.data is None and None in theirs and size is not None:
        theirs = [PUBLISHED["mean"], PUBLISHED["std"]]
    scale, shift = renormalised((mean, std), theirs, wanted, repeat=channels != wanted)
    teacher = network_of(loaded.model, network)
    fingerprint = hash_of(teacher.state_dict())
    lines = [*loaded.lines, f"frozen teacher of width {teacher.embed_dim}, fingerprint {fingerprint[:8]}"]
    if scale is None:
        lines.append("it sees inputs normalised as the data is")
    else:
        lines.append(f"it sees inputs normalised by mean {theirs[0]} and std {theirs[1]}, the data by {mean} and {std}")
    if sees != size:
        lines.append(f"it sees pictures of {by(sees)} pixels" + (f", resampled from {by(size)}" if size else ""))
    for line in lines:
        log.info("%s: %s", printable(checkpoint), printable(line))
    return TeacherTarget(
        encoder=encoder,
        teacher=teacher,
        out_dim=out_dim,
        scale=scale,
        shift=shift,
        image_size=sees if sees != size else None,
        source=checkpoint,
        fingerprint=fingerprint,
        average_layers=average_layers,
        concat_layers=concat_layers,
    )


def frozen_encoder(
    *,
    checkpoint: str,
    network: Literal["target", "context"] = "target",
    image_size: int | Sequence[int] | None = None,
    channels: int | None = None,
    mean: Values = None,
    std: Values = None,
    settings: Mapping[str, Any] | None = None,
    trust: bool = False,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the configuration that builds the encoder of a checkpoint, and its weights.

    image_size, channels, mean, std: of the data; checkpoint, network, settings, trust: as of `teacher_target`. Raises
    CheckpointError for a checkpoint that cannot be read, UserError for one whose encoder is not jepa's own.
    """
    loaded = _open("model.encoder", checkpoint, settings or {}, to_pair(image_size), channels, trust)
    if loaded.encoder is None:
        raise UserError(
            f"model.encoder.checkpoint={checkpoint}: its encoder is not one of jepa's own, which a run keeps with its "
            "weights: give a run or export of jepa, or a file of a ViT with computed positions"
        )
    theirs = [_statistics(loaded, name) for name in ("mean", "std")]
    unlike = renormalised((mean, std), theirs, channels)[0] is not None
    said = f"; warning: the data is normalised by {mean} and {std}, in its training {theirs}" if unlike else ""
    log.info("%s: frozen encoder of width %d%s", printable(checkpoint), loaded.model.encoder.embed_dim, said)
    return dict(loaded.encoder), network_of(loaded.model, network).state_dict()


def with_frozen_encoder(config: DictConfig) -> tuple[DictConfig, dict[str, Tensor]]:
    """Return the configuration of a world model with the encoder that `model.encoder.checkpoint` has, and its weights.

    A run keeps both, so that it needs that checkpoint no more.
    """
    if not str(config.model._target_).endswith(".WorldModel"):
        raise UserError(
            "model/encoder=frozen goes with model=world; model/target=teacher learns from a checkpoint, init_from= "
            "starts from one"
        )
    settings = OmegaConf.to_container(config.model.encoder, resolve=True)
    encoder, weights = frozen_encoder(**{name: value for name, value in settings.items() if name != "_target_"})
    config = copy.deepcopy(config)
    OmegaConf.update(config, "model.encoder", encoder, merge=False, force_add=True)
    OmegaConf.update(config, "model.freeze_encoder", True, force_add=True)
    return config, weights


def _open(
    key: str, checkpoint: str, settings: Mapping[str, Any], size: Any, channels: int | None, trust: bool
) -> Loaded:
    """Load a checkpoint of one encoder, for pictures of a size. key: "model.target", whose keys its errors name."""
    try:
        source = find(checkpoint, key=f"{key}.checkpoint", trusted=None if trust else ())
        if source.adapter.format == "random":
            raise CheckpointError(f"{key}.checkpoint={checkpoint}: a frozen network has to be trained")
        named = source.adapter.format in ("timm", "hf")
        source_channels = (3 if channels == 1 else channels) if named else None
        overrides = {f"encoder.{name}": value for name, value in settings.items() if value is not None}
        with torch.random.fork_rng(devices=()):  # so that the model has the same weights with any teacher
            loaded = load(source, overrides=overrides, image_size=size, channels=source_channels)
    except UserError as error:
        message = re.sub(r"model\.encoder\.(?!checkpoint)", f"{key}.settings.", str(error))
        if key == "model.target":
            message = message.replace("data.image_size", f"{key}.image_size")
        raise type(error)(message) from error
    if not hasattr(loaded.model, "encoder") or hasattr(loaded.model, "modalities"):
        raise UserError(f"{key}.checkpoint={checkpoint} is of several modalities, expected one encoder")
    return loaded


def _statistics(loaded: Loaded, name: str) -> Values:
    """Return the mean or std by which the inputs of a checkpoint were normalised; None where it does not say."""
    data = loaded.data or {}
    nested = data.get("image") if isinstance(data.get("image"), Mapping) else {}  # of packed files and data sets
    return getattr(loaded, name) or data.get(name, nested.get(name))


def renormalised(
    own: Sequence[Values], theirs: Sequence[Values], channels: int | None, *, repeat: bool = False
) -> tuple[list[float], list[float]] | tuple[None, None]:
    """Return scale and shift, by channel, that take inputs normalised by our (mean, std) to those by theirs.

    None twice where nothing changes, or one of them is not known. repeat: not where one channel becomes several.
    """
    if None in (*own, *theirs):
        return ([1.0] * channels, [0.0] * channels) if repeat else (None, None)

    def wide(values: Any) -> list[float]:
        values = [values] if isinstance(values, (int, float)) else list(values)
        return values * (channels or 1) if len(values) == 1 else values

    (mean, std), (their_mean, their_std) = ([wide(v) for v in pair] for pair in (own, theirs))
    if len({len(mean), len(std), len(their_mean), len(their_std)}) > 1:
        raise UserError(
            f"model.target: mean and std of the data, {own}, and of the teacher, {theirs}, differ in length"
        )
    scale = [a / b for a, b in zip(std, their_std)]
    shift = [(a - b) / c for a, b, c in zip(mean, their_mean, their_std)]
    same = all(abs(a - 1) < 1e-6 for a in scale) and all(abs(b) < 1e-6 for b in shift)
    return (None, None) if same and not repeat else (scale, shift)


def with_out_dims(config: DictConfig, model: nn.Module) -> DictConfig:
    """Return the configuration of a built model with `out_dim` of its teachers, by which it loads without them."""
    widths = {m.source: m.out_dim for m in model.modules() if isinstance(m, TeacherTarget)}
    if not widths:
        return config
    config = copy.deepcopy(config)

    def fill(node: Any) -> None:
        if not OmegaConf.is_dict(node):
            return
        if node.get("_target_") == TEACHER:
            OmegaConf.update(node, "out_dim", widths[node.checkpoint], force_add=True)
        for name in node:
            fill(node._get_node(name))

    fill(config.model)
    return config


def without_teachers(config: DictConfig) -> DictConfig:
    """Return a configuration of a model whose teachers are absent, for networks that are only looked at."""
    config = copy.deepcopy(config)
    model = absent_teachers(OmegaConf.to_container(config.model, resolve=True))
    OmegaConf.update(config, "model", model, merge=False, force_add=True)
    return config
