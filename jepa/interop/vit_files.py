"""Encoders of pictures in files: Vision Transformers, of timm, DINO, DINOv2, DINOv3, MAE, Hugging Face and others.

Those with sine-cosine positions and no class token become ours; the others are built by timm, which computes the same.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from jepa.checkpoint.load import load_state
from jepa.interop.adapter import Adapter, Loaded, Source
from jepa.interop.frozen_networks import frozen, load_our_encoders
from jepa.interop.ijepa import PREDICTOR_NAMES, check_of_pictures, our_weights
from jepa.interop.network_names import State, renamed
from jepa.interop.sizes import by, check_overrides, described, num_heads, position_grid, sincos_grid, to_pair, vit_sizes
from jepa.interop.timm_models import TimmEncoder, check_timm_name, quiet
from jepa.utils.errors import CheckpointError, UserError, first_line
from jepa.utils.lazy_import import lazy_import

timm, layers = map(lazy_import, ("timm", "timm.layers"))

PREFIX = ("cls_token", "reg_token", "register_tokens")
GIVEN = ("encoder.name", "encoder.image_size", "encoder.num_heads")  # what the command line may say of a file
NAME_IT = (
    "if it is one of timm's models, name it, model.encoder.name=<name in timm>; if of Hugging Face, give the folder "
    "with its config.json, checkpoint=hf:<folder>"
)


def load_file(source: Source) -> Loaded:
    """Load the encoders of a file. Raises CheckpointError for keys that do not fit, UserError for what it lacks."""
    if source.overrides.get("encoder.name") is not None:
        return load_named(source)
    weights, sizes = source.file.encoder, vit_sizes(source)
    if is_dinov3(weights):
        return load_dinov3(source, sizes)
    if "pos_embed" not in weights:
        raise CheckpointError(
            f"{source.path} holds no positions (pos_embed), and no header that says how they are computed: "
            + NAME_IT.format(source.name)
        )
    width, norm = sizes["embed_dim"], weights.get("blocks.0.attn.q_norm.weight")
    if norm is not None and len(norm) != width and width % len(norm) == 0:  # a norm of each head's queries
        source.file.facts.setdefault("encoder.num_heads", width // len(norm))
    sizes["num_heads"] = num_heads(source, width)
    patch, prefix = to_pair(sizes["patch_size"]), sum(weights[name].shape[1] for name in PREFIX if name in weights)
    computed = None if prefix else sincos_grid(weights["pos_embed"][0])
    grid, extra = (computed, 0) if computed else position_grid(source, weights["pos_embed"], patch, prefix)
    stored = (grid[0] * patch[0], grid[1] * patch[1])
    lines = [
        f"ViT {described(sizes)}, {sizes['channels']} channels, positions of {by(grid)} patches of "
        f"{sizes['patch_size']} pixels (pictures of {by(stored)})"
    ]
    if computed:
        config = {"_target_": "jepa.models.vision_transformer", "image_size": list(stored), **sizes}
        check_overrides(source, {"encoder": config}, GIVEN)
        lines.append("its positions are sine-cosine, computed for the grid that comes")
        return load_our_encoders(
            source, config, lines, lambda state: {f"vit.{n}": t for n, t in folded(state).items() if n != "pos_embed"}
        )
    config = {"img_size": list(stored), **plain_vit(weights, sizes), "no_embed_class": extra == 0}
    config["norm_layer"] = partial(layers.LayerNorm, eps=source.file.facts.get("encoder.norm_eps", 1e-6))
    check_overrides(source, {"encoder": {**config, **sizes}}, GIVEN)
    if source.image_size not in (None, stored):
        lines.append(
            f"learned positions resampled from pictures of {stored} to {source.image_size}; if they were made for "
            "others, give model.encoder.image_size=[height,width]"
        )
    return load_by_timm_class(source, "vit_base_patch16_224", config, stored, timm_weights, lines)


def load_by_timm_class(
    source: Source,
    name: str,
    config: dict[str, Any],
    image_size: tuple[int, int] | None,
    by_timm_names: Callable[[State], State] | None,
    lines: list[str],
) -> Loaded:
    """Load the encoders of a file into those that `timm.create_model(name, **config)` builds, for source.image_size.

    image_size: that of training. by_timm_names: converts a state dict; None does it as timm reads its own files.
    Raises UserError if timm cannot build it, CheckpointError with the keys that do not fit.
    """

    def make_encoder(state: State | None) -> nn.Module:
        try:
            with quiet("timm"):
                model = timm.create_model(name, **config)
                if state is not None:
                    state = by_timm_names(state) if by_timm_names else as_timm_reads(state, model)
        except (TypeError, ValueError, AssertionError, RuntimeError, AttributeError) as error:
            raise UserError(f"{source.path}: timm cannot build {name} for it: {first_line(error)}") from error
        try:
            if state is not None:
                load_state(model, state, source.path)
        except CheckpointError as error:
            hint = "" if source.overrides.get("encoder.name") else f"\nIt is no plain ViT: {NAME_IT}"
            raise CheckpointError(f"{error}{hint}") from None
        if source.image_size not in (None, image_size) and hasattr(model, "set_input_size"):
            model.set_input_size(img_size=source.image_size)
        return TimmEncoder(model).eval()

    facts = {"image_size": image_size, "channels": config.get("in_chans"), "description": {"encoder": [name, config]}}
    loaded = frozen(make_encoder, source.file.encoders, lines=[*source.file.lines, *lines], **facts)
    if count := loaded.model.encoder.prefix_tokens:
        loaded.lines.append(f"{count} class or register tokens, which are no features")
    return loaded


def folded(state: State) -> State:
    """Return the tensors of a ViT without layer scale, by which the layers before it are multiplied instead."""
    state = dict(state)
    for name in [name for name in state if name.endswith((".ls1.gamma", ".ls2.gamma"))]:
        block, gamma = name.rpartition(".ls")[0], state.pop(name).flatten()
        before = f"{block}.attn.proj" if ".ls1." in name else f"{block}.mlp.fc2"
        for key, factor in ((f"{before}.weight", gamma[:, None]), (f"{before}.bias", gamma)):
            if key in state:
                state[key] = state[key] * factor
    return state


def timm_arguments(weights: Mapping[str, Tensor], sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that timm's VisionTransformer and Eva share."""
    return {
        "patch_size": sizes["patch_size"],
        "in_chans": sizes["channels"],
        "num_classes": 0,
        **{key: sizes[key] for key in ("embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias")},
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in weights else None,
    }


def plain_vit(weights: Mapping[str, Tensor], sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of timm's VisionTransformer, with gated MLPs, a class token, registers, ..."""
    with_class, hidden = "cls_token" in weights, weights["blocks.0.mlp.fc1.weight"].shape[0]
    inner = weights["blocks.0.mlp.fc2.weight"].shape[1] if "blocks.0.mlp.fc2.weight" in weights else hidden
    gated = "blocks.0.mlp.gate_proj.weight" in weights
    swiglu = {"mlp_layer": layers.SwiGLUPacked, "act_layer": nn.SiLU} if gated or hidden == 2 * inner else {}
    return {
        **timm_arguments(weights, sizes),
        "mlp_ratio": sizes["mlp_ratio"] * (2 if gated else 1),
        "fc_norm": False,
        "final_norm": "norm.weight" in weights,
        "class_token": with_class,
        "global_pool": "token" if with_class else "avg",
        "qk_norm": "blocks.0.attn.q_norm.weight" in weights,
        "reg_tokens": weights["reg_token"].shape[1] if "reg_token" in weights else 0,
        **swiglu,
    }


def timm_weights(state: State) -> State:
    """Return tensors with each gate and what it opens in one, and without a norm of pooled features."""
    state = dict(state)
    for name in [name for name in state if ".mlp.gate_proj." in name]:
        other = name.replace("gate_proj", "fc1")
        state[other] = torch.cat([state.pop(name), state[other]])
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc_norm.")}


def load_named(source: Source) -> Loaded:
    """Load the encoders of a file into a model that timm builds by name, as timm reads its own files."""
    name = source.overrides["encoder.name"]
    check_timm_name(name, "model.encoder.name")
    kernel = source.file.encoder.get("patch_embed.proj.weight")
    config: dict[str, Any] = {"num_classes": 0, **({} if kernel is None else {"in_chans": kernel.shape[1]})}
    size = to_pair(source.overrides.get("encoder.image_size")) or source.image_size
    if size is not None:
        config["img_size"] = size
    check_overrides(source, {"encoder": {}}, GIVEN)
    return load_by_timm_class(source, name, config, size, None, [f"{name} of timm, as named"])


def as_timm_reads(state: State, model: nn.Module) -> State:
    """Return tensors by the names of a model of timm, without the head that it lacks."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    state, own = convert(dict(state), model) if convert else state, model.state_dict()
    return {key: t for key, t in state.items() if key in own or not key.startswith(("head.", "fc_norm."))}


def is_dinov3(weights: Mapping[str, Tensor]) -> bool:
    """Return whether an encoder has register tokens, and rotary positions, which no file holds, for learned ones."""
    registers = "register_tokens" in weights or "reg_token" in weights
    return "rope_embed.periods" in weights or (registers and "pos_embed" not in weights)


def load_dinov3(source: Source, sizes: dict[str, Any]) -> Loaded:
    """Load encoders with the rotary positions of DINOv3 (arXiv 2508.10104)."""
    weights, width = source.file.encoder, sizes["embed_dim"]
    periods, temperature = weights.get("rope_embed.periods"), 100.0
    if periods is not None and width % (4 * len(periods)) == 0:
        source.file.facts.setdefault("encoder.num_heads", width // (4 * len(periods)))
        if len(periods) > 1 and not math.isclose(base := periods[1].item() ** len(periods), temperature, rel_tol=0.1):
            temperature = base
    sizes["num_heads"] = num_heads(source, width)
    stored = to_pair(source.overrides.get("encoder.image_size")) or source.image_size
    config = {
        "img_size": list(stored or [14 * side for side in to_pair(sizes["patch_size"])]),  # for any size
        **timm_arguments(weights, sizes),
        "mlp_ratio": (weights["blocks.0.mlp.fc1.weight"].shape[0] + 0.25) / width,
        "qkv_bias": sizes["qkv_bias"] or "blocks.0.attn.q_bias" in weights,
        "swiglu_mlp": "blocks.0.mlp.gate_proj.weight" in weights or "blocks.0.mlp.fc1_g.weight" in weights,
        "swiglu_align_to": 1,
        "num_reg_tokens": sum(weights[name].shape[1] for name in PREFIX[1:] if name in weights),
        "rope_temperature": temperature,
        "norm_layer": partial(layers.LayerNorm, eps=1e-5),
    }
    check_overrides(source, {"encoder": {**config, **sizes}}, GIVEN)
    found = f"DINOv3 {described(sizes)}, patches of {sizes['patch_size']} pixels, rotary positions for any size"
    return load_by_timm_class(source, "vit_small_patch16_dinov3", config, source.image_size, eva_weights, [found])


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
    """Return the weights by the names of a model with a ViT, which computes the sine-cosine positions of its patches.

    Raises CheckpointError for rotary positions, and for a model not of pictures.
    """
    check_of_pictures(model, source)
    file, own = source.file, model.encoder.vit.state_dict()
    if is_dinov3(file.encoder):
        raise CheckpointError(
            f"init_from={source.name}: DINOv3 has rotary positions in every block, and the model's encoder has none: "
            f"start from DINOv2, or use its features, checkpoint={source.name} of scripts/evaluate.py and extract.py"
        )
    vit_sizes(source)  # which says what is missing
    left = [name for name in (*PREFIX, "pos_embed") if name in file.encoder]
    if left and (left != ["pos_embed"] or not sincos_grid(file.encoder["pos_embed"][0])):
        said = f"left alone: {', '.join(left)}; the model computes sine-cosine positions, and has to adapt"
        source.file = file = dataclasses.replace(file, lines=(*file.lines, said))

    def by_our_names(weights: State) -> State:
        weights = timm_weights(weights if any(".ls1." in name for name in own) else folded(weights))
        left_out = (*PREFIX, "pos_embed", "predictor_pos_embed")
        return renamed({name: t for name, t in weights.items() if name not in left_out}, PREDICTOR_NAMES)

    return our_weights(file, "vit.", by_our_names)


FILE = Adapter("encoder", lambda source: True, load_file, weights_for=weights_for)
