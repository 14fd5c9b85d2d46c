"""Encoders of pictures in files: Vision Transformers, of timm, DINO, DINOv2, DINOv3, MAE, Hugging Face and others.

Those with sine-cosine positions and no class token become ours; the others are built by timm, which computes the same.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import LayerNorm, SwiGLUPacked
from torch import nn

from jepa.checkpoint.load import load_state
from jepa.interop.adapter import Adapter, Loaded, Source
from jepa.interop.frozen_networks import frozen, load_our_encoders
from jepa.interop.ijepa import PREDICTOR_NAMES, check_of_pictures
from jepa.interop.ijepa import our_weights as our_weights_of
from jepa.interop.network_names import State, renamed
from jepa.interop.sizes import (
    by,
    check_overrides,
    num_heads,
    position_grid,
    sincos_grid,
    to_pair,
    vit_sizes,
)
from jepa.interop.timm_models import TimmEncoder, check_timm_name, quiet
from jepa.utils.errors import CheckpointError, UserError, first_line

PREFIX = ("cls_token", "reg_token", "register_tokens")
GIVEN = ("encoder.name", "encoder.image_size", "encoder.num_heads")
"""What the command line may say of a file."""


def load_file(source: Source) -> Loaded:
    """Load the encoders of a file.

    overrides: `encoder.num_heads`; `encoder.image_size` of the pictures it was made for; or `encoder.name` of a timm
    model. Learned positions are resampled to image_size.

    Raises CheckpointError with the missing, unexpected and mis-shaped keys, UserError for what no file says.
    """
    if source.overrides.get("encoder.name") is not None:
        return load_named(source)
    if is_dinov3(source.file.encoder):
        return load_dinov3(source)
    weights, sizes = source.file.encoder, vit_sizes(source)
    if "pos_embed" not in weights:
        raise CheckpointError(
            f"{source.path} holds no positions (pos_embed), and no header that says how they are computed: "
            + NAME_IT.format(source.name)
        )
    patch, prefix = to_pair(sizes["patch_size"]), prefix_tokens(weights)
    computed = None if prefix else sincos_grid(weights["pos_embed"][0])
    sizes["num_heads"] = heads_of(source, sizes["embed_dim"])
    grid, extra = (computed, 0) if computed else position_grid(source, weights["pos_embed"], patch, prefix)
    stored = (grid[0] * patch[0], grid[1] * patch[1])
    lines = [
        f"ViT of width {sizes['embed_dim']}, depth {sizes['depth']}, {sizes['num_heads']} heads, {sizes['channels']} "
        f"channels, positions of {by(grid)} patches of {sizes['patch_size']} pixels (pictures of {by(stored)})"
    ]
    if computed:
        config = {"_target_": "jepa.models.vision_transformer", "image_size": list(stored), **sizes}
        check_overrides(source, {"encoder": config}, GIVEN)
        lines.append("its positions are sine-cosine, computed for the grid that comes")
        return load_our_encoders(source, config, lines, our_weights)
    config = {"img_size": list(stored), **timm_arguments(weights, sizes), "no_embed_class": extra == 0}
    config["norm_eps"] = source.file.facts.get("encoder.norm_eps", 1e-6)
    check_overrides(source, {"encoder": {**config, **sizes}}, GIVEN)
    lines += prefix_line(prefix)
    if source.image_size not in (None, stored):
        lines.append(
            f"learned positions resampled from pictures of {stored} to {source.image_size}; if they were made for "
            "others, give model.encoder.image_size=[height,width]"
        )

    def make(state: State | None) -> nn.Module:
        settings = dict(config)
        if settings.pop("swiglu"):
            settings |= {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
        settings["norm_layer"] = partial(LayerNorm, eps=settings.pop("norm_eps"))
        vit = build_timm("vit_base_patch16_224", settings, state and timm_weights(state), source)
        if source.image_size not in (None, stored):
            vit.set_input_size(img_size=source.image_size)
        return TimmEncoder(vit).eval()

    return frozen(
        make,
        source.file.encoders,
        lines=[*source.file.lines, *lines],
        description={"encoder": config},
        image_size=stored,
        channels=sizes["channels"],
    )


NAME_IT = (
    "if it is one of timm's models, name it, model.encoder.name=<name in timm>; if of Hugging Face, give the folder "
    "with its config.json, checkpoint=hf:<folder>"
)


def prefix_tokens(weights: Mapping[str, torch.Tensor]) -> int:
    """Return the number of class and register tokens."""
    return sum(weights[token].shape[1] for token in PREFIX if token in weights)


def prefix_line(count: int) -> list[str]:
    """Return a line on class and register tokens, none where there are none."""
    return [f"{count} class or register tokens, which are no features"] if count else []


def heads_of(source: Source, width: int) -> int:
    """Return the number of heads, which norms of queries tell. Raises as `num_heads` does."""
    norm = source.file.encoder.get("blocks.0.attn.q_norm.weight")
    if norm is not None and len(norm) != width and width % len(norm) == 0:
        source.file.facts.setdefault("encoder.num_heads", width // len(norm))
    return num_heads(source, width)


def our_weights(state: State) -> State:
    """Return the tensors of a ViT with sine-cosine positions by our names."""
    return {f"vit.{name}": tensor for name, tensor in folded(state).items() if name != "pos_embed"}


def folded(state: State) -> State:
    """Return the tensors of a ViT without layer scale, by which the layers before it are multiplied instead."""
    state = dict(state)
    for name in [name for name in state if name.endswith((".ls1.gamma", ".ls2.gamma"))]:
        block, _, layer = name.removesuffix(".gamma").rpartition(".")
        before, gamma = f"{block}.{'attn.proj' if layer == 'ls1' else 'mlp.fc2'}", state.pop(name).flatten()
        if f"{before}.weight" in state:
            state[f"{before}.weight"] = state[f"{before}.weight"] * gamma[:, None]
        if f"{before}.bias" in state:
            state[f"{before}.bias"] = state[f"{before}.bias"] * gamma
    return state


def timm_arguments(weights: Mapping[str, torch.Tensor], sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of a timm ViT into which weights should fit."""
    with_class, hidden = "cls_token" in weights, weights["blocks.0.mlp.fc1.weight"].shape[0]
    inner = weights["blocks.0.mlp.fc2.weight"].shape[1] if "blocks.0.mlp.fc2.weight" in weights else hidden
    gated = "blocks.0.mlp.gate_proj.weight" in weights
    return {
        "patch_size": sizes["patch_size"],
        "in_chans": sizes["channels"],
        "num_classes": 0,
        "fc_norm": False,
        "final_norm": "norm.weight" in weights,
        "class_token": with_class,
        "global_pool": "token" if with_class else "avg",
        **{key: sizes[key] for key in ("embed_dim", "depth", "num_heads", "qkv_bias")},
        "mlp_ratio": sizes["mlp_ratio"] * (2 if gated else 1),
        "qk_norm": "blocks.0.attn.q_norm.weight" in weights,
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in weights else None,
        "reg_tokens": weights["reg_token"].shape[1] if "reg_token" in weights else 0,
        "swiglu": gated or hidden == 2 * inner,
    }


def timm_weights(state: State) -> State:
    """Return tensors with each gate and what it opens in one, and without a norm of pooled features."""
    state = dict(state)
    for name in [name for name in state if ".mlp.gate_proj." in name]:
        other = name.replace("gate_proj", "fc1")
        state[other] = torch.cat([state.pop(name), state[other]])
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc_norm.")}


def build_timm(name: str, settings: Mapping[str, Any], state: State | None, source: Source) -> nn.Module:
    """Build a model of timm and load a state dict, None for none. Raises UserError if it cannot be built so."""
    try:
        with quiet("timm"):
            model = timm.create_model(name, **settings)
    except (TypeError, ValueError, AssertionError, RuntimeError, AttributeError) as error:
        raise UserError(f"{source.path}: timm cannot build {name} for it: {first_line(error)}") from error
    if state is not None:
        try:
            load_state(model, state, source.path)
        except CheckpointError as error:
            hint = "" if source.overrides.get("encoder.name") else f"\nIt is no plain ViT: {NAME_IT}"
            raise CheckpointError(f"{error}{hint}") from None
    return model


def load_named(source: Source) -> Loaded:
    """Load the encoders of a file into a model that timm builds by name, as timm reads its own files."""
    name, weights = source.overrides["encoder.name"], source.file.encoder
    check_timm_name(name, "model.encoder.name")
    kernel = weights.get("patch_embed.proj.weight")
    settings: dict[str, Any] = {"num_classes": 0, **({} if kernel is None else {"in_chans": kernel.shape[1]})}
    size = source.image_size if source.overrides.get("encoder.image_size") is None else None
    size = size or to_pair(source.overrides.get("encoder.image_size"))
    if size is not None:
        settings["img_size"] = size
    check_overrides(source, {"encoder": {}}, GIVEN)

    def make(state: State | None) -> nn.Module:
        model = build_timm(name, settings, None, source)
        if state is not None:
            convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
            with quiet("timm"):
                state = convert(dict(state), model) if convert else state
            own = model.state_dict()
            state = {key: t for key, t in state.items() if key in own or not key.startswith(("head.", "fc_norm."))}
            load_state(model, state, source.path)
        return TimmEncoder(model).eval()

    loaded = frozen(
        make,
        source.file.encoders,
        lines=[*source.file.lines, f"{name} of timm, as named"],
        description={"encoder": {"name": name, **settings}},
        image_size=size,
        channels=settings.get("in_chans"),
    )
    loaded.lines += prefix_line(loaded.model.encoder.prefix_tokens)
    return loaded


def is_dinov3(weights: Mapping[str, torch.Tensor]) -> bool:
    """Return whether an encoder has register tokens, and rotary positions, which no file holds, for learned ones."""
    registers = "register_tokens" in weights or "reg_token" in weights
    return "rope_embed.periods" in weights or (registers and "pos_embed" not in weights)


def load_dinov3(source: Source) -> Loaded:
    """Load encoders with the rotary positions of DINOv3 (arXiv 2508.10104)."""
    weights, sizes = source.file.encoder, vit_sizes(source)
    width, periods = sizes["embed_dim"], weights.get("rope_embed.periods")
    temperature = 100.0
    if periods is not None and width % (4 * len(periods)) == 0:
        source.file.facts.setdefault("encoder.num_heads", width // (4 * len(periods)))
        if len(periods) > 1 and not math.isclose(base := periods[1].item() ** len(periods), temperature, rel_tol=0.1):
            temperature = base
    sizes["num_heads"] = num_heads(source, width)
    registers = next((weights[name].shape[1] for name in ("register_tokens", "reg_token") if name in weights), 0)
    stored = to_pair(source.overrides.get("encoder.image_size")) or source.image_size
    hidden = weights["blocks.0.mlp.fc1.weight"].shape[0]
    config = {
        "img_size": list(stored or [14 * side for side in to_pair(sizes["patch_size"])]),  # for any size
        "patch_size": sizes["patch_size"],
        "in_chans": sizes["channels"],
        "num_classes": 0,
        **{key: sizes[key] for key in ("embed_dim", "depth", "num_heads")},
        "mlp_ratio": (hidden + 0.25) / width,
        "qkv_bias": sizes["qkv_bias"] or "blocks.0.attn.q_bias" in weights,
        "swiglu_mlp": "blocks.0.mlp.gate_proj.weight" in weights or "blocks.0.mlp.fc1_g.weight" in weights,
        "swiglu_align_to": 1,
        "num_reg_tokens": registers,
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in weights else None,
        "rope_temperature": temperature,
    }
    check_overrides(source, {"encoder": {**config, **sizes}}, GIVEN)

    def make(state: State | None) -> nn.Module:
        settings = {**config, "norm_layer": partial(LayerNorm, eps=1e-5)}
        model = build_timm("vit_small_patch16_dinov3", settings, state and eva_weights(state), source)
        return TimmEncoder(model).eval()

    return frozen(
        make,
        source.file.encoders,
        lines=[
            *source.file.lines,
            f"DINOv3 ViT of width {width}, depth {sizes['depth']}, {sizes['num_heads']} heads, {sizes['channels']} "
            f"channels, patches of {sizes['patch_size']} pixels, rotary positions for any size",
            *prefix_line(1 + registers),
        ],
        description={"encoder": config},
        image_size=source.image_size,
        channels=sizes["channels"],
    )


def eva_weights(state: State) -> State:
    """Return the tensors of DINOv3 by the names of timm's `Eva`. The bias of keys, which is masked, is left out."""
    names = {
        r"^register_tokens$": "reg_token",
        r"\.ls([12])\.gamma$": r".gamma_\1",
        r"\.mlp\.fc1\.": ".mlp.fc1_x." if any(".mlp.gate_proj." in name for name in state) else ".mlp.fc1.",
        r"\.mlp\.gate_proj\.": ".mlp.fc1_g.",
    }
    state = {name: tensor for name, tensor in renamed(state, names).items() if not name.startswith("rope_embed.")}
    for name in [name for name in state if name.endswith(".attn.qkv.bias")]:
        query, _, value = state.pop(name).chunk(3)
        block = name.removesuffix("qkv.bias")
        state |= {f"{block}q_bias": query, f"{block}v_bias": value}
    return state


def weights_for(model: nn.Module, source: Source) -> State:
    """Return the weights by the names of a model with a ViT, without class and register tokens and learned positions.

    The model computes sine-cosine positions, to which training has to adapt.

    Raises CheckpointError for rotary positions, and for a model not of pictures.
    """
    check_of_pictures(model, source)
    file, own = source.file, model.encoder.vit.state_dict()
    if is_dinov3(file.encoder):
        raise CheckpointError(
            f"init_from={source.name}: DINOv3 has rotary positions in every block, and the model's encoder has none: "
            f"start from DINOv2, or use its features, checkpoint={source.name} of scripts/evaluate.py and extract.py"
        )
    if "patch_embed.proj.weight" not in file.encoder:
        vit_sizes(source)  # which says what is missing
    left = [name for name in (*PREFIX, "pos_embed") if name in file.encoder]
    if "pos_embed" in left and len(left) == 1 and sincos_grid(file.encoder["pos_embed"][0]):
        left = []
    if left:
        source.file = file = dataclasses.replace(
            file,
            lines=(
                *file.lines,
                f"left alone: {', '.join(left)}; the model computes sine-cosine positions, and has to adapt",
            ),
        )

    def by_our_names(weights: State) -> State:
        weights = timm_weights(weights if any(".ls1." in name for name in own) else folded(weights))
        left_out = (*PREFIX, "pos_embed", "predictor_pos_embed")
        return renamed({name: t for name, t in weights.items() if name not in left_out}, PREDICTOR_NAMES)

    return our_weights_of(file, "vit.", by_our_names)


FILE = Adapter("encoder", lambda source: True, load_file, weights_for=weights_for)
