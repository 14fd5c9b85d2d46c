"""Names of tensors: those of Hugging Face, DINOv2, DINOv3 and wrappers, as the names of timm that the readers know."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from jepa.utils.errors import CheckpointError

State = dict[str, Tensor]
PATCHES = re.compile(
    r"(?P<owner>(?:.*\.)?)(?:patch_embed\.proj|embeddings\.patch_embeddings(?:\.proj(?:ection)?)?)\.weight"
)
"""The tensor that every encoder of patches has, after the names of the modules that own the encoder."""
PREDICTOR = re.compile(r"(?P<owner>(?:.*\.)?)(?:predictor_blocks\.0|(?<=predictor\.)layer\.0)\.norm1\.weight")
"""The same of the predictors of I-JEPA and V-JEPA, as published and by Hugging Face."""
HEADS = re.compile(
    r"(head|head_dist|heads|fc|classifier|pooler|projectors?|projection_head|dino_head|ibot_head|lm_head|decoder"
    r"|local_cls_norm|predictor)\.|(decoder_|predictor_).*|mask_token$|.*\.bias_mask$"
)
"""What stands behind the features inside of an encoder, or serves its training alone."""
INNER_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Put before the names of any module by torch.compile, FSDP and activation checkpointing."""
HUGGING_FACE = {
    r"^embeddings\.patch_embeddings\.(proj(ection)?\.)?": "patch_embed.proj.",
    r"^embeddings\.position_embeddings$": "pos_embed",
    r"^embeddings\.distillation_token$": "dist_token",
    r"^embeddings\.": "",
    r"^((encoder|model)\.)?layers?\.(\d+)\.": r"blocks.\3.",
    r"\.attention\.(attention\.)?([qkv])(uery|ey|alue|_proj)\.": r".attn.\2.",
    r"\.attention\.(output\.dense|o_proj|proj)\.": ".attn.proj.",
    r"\.(intermediate\.dense|mlp\.up_proj)\.": ".mlp.fc1.",
    r"\.(output\.dense|mlp\.down_proj)\.": ".mlp.fc2.",
    r"\.layernorm_before\.": ".norm1.",
    r"\.layernorm_after\.": ".norm2.",
    r"\.layer_scale([12])\.lambda1$": r".ls\1.gamma",
    r"\.mlp\.weights_in\.": ".mlp.w12.",
    r"\.mlp\.weights_out\.": ".mlp.w3.",
    r"^layernorm\.": "norm.",
}
"""Name of transformers, as stored or in memory -> of timm, as regular expressions, applied in this order."""
OTHERS = {
    r"^blocks\.\d+\.(\d+)\.": r"blocks.\1.",  # DINOv2 trains in chunks of blocks, numbered throughout
    r"\.mlp\.w12\.": ".mlp.fc1.",
    r"\.mlp\.w3\.": ".mlp.fc2.",
    r"\.mlp\.w1\.": ".mlp.gate_proj.",
    r"\.mlp\.w2\.": ".mlp.fc1.",
    r"\.gamma_([12])$": r".ls\1.gamma",
    r"^storage_tokens$": "register_tokens",
}
"""Name of DINOv2, DINOv3 and DeiT III -> of timm."""
PREDICTOR_OF_HUGGING_FACE = {
    r"^embeddings\.predictor_embeddings\.": "predictor_embed.",
    r"^layer\.": "predictor_blocks.",
    r"^layernorm\.": "predictor_norm.",
    r"^proj\.": "predictor_proj.",
    r"\.attention\.([qkv])(uery|ey|alue)\.": r".attn.\1.",
    r"\.attention\.proj\.": ".attn.proj.",
}
"""Name of the same of a predictor -> of facebookresearch/jepa."""


def renamed(weights: Mapping[str, Tensor], names: Mapping[str, str]) -> State:
    """Return tensors under other names. names: regular expression -> replacement, applied in their order."""

    def new_name(name: str) -> str:
        for pattern, replacement in names.items():
            name = re.sub(pattern, replacement, name)
        return name

    return {new_name(name): tensor for name, tensor in weights.items()}


def encoder_by_timm_names(weights: Mapping[str, Tensor], source: object) -> tuple[State, list[str]]:
    """Return the tensors of an encoder by timm's names, and the names of those that are left alone.

    All prefix tokens have rows in `pos_embed`, or none. `mlp.gate_proj` is a gate that is stored apart from `mlp.fc1`.
    Raise CheckpointError, which names the source, when blocks or parts of them are missing.
    """
    weights = {INNER_WRAPPERS.sub("", name): tensor for name, tensor in weights.items()}
    if any(name.startswith("embeddings.") for name in weights):
        weights = joined_qkv(renamed(weights, HUGGING_FACE), source)
    weights = renamed(weights, OTHERS)
    left = [name for name in weights if HEADS.match(name)]
    weights = {name: tensor for name, tensor in weights.items() if name not in left}
    # A number alone says nothing of how many blocks there are.
    numbers = {int(m[1]) for name in weights if (m := re.match(r"blocks\.(\d{1,9})\.", name))}
    if numbers and (absent := set(range(min(len(numbers) + 1, max(numbers) + 1))) - numbers):
        raise CheckpointError(f"{source}: block {min(absent)} of its encoder is missing, of {max(numbers) + 1}")
    if {"register_tokens", "pos_embed"} <= weights.keys():  # DINOv2 gives its registers no positions
        registers, table = weights.pop("register_tokens"), weights["pos_embed"]
        table = torch.cat([table[:, :1], torch.zeros_like(registers), table[:, 1:]], dim=1)
        weights |= {"reg_token": registers, "pos_embed": table}
    if "dist_token" in weights:  # of DeiT: a second class token
        weights["reg_token"] = weights.pop("dist_token")
    return weights, left


def joined_qkv(weights: State, source: object) -> State:
    """Return tensors with queries, keys and values in one. A bias that one of them lacks is zero."""
    parts = {name for name in weights if re.search(r"\.attn\.[qkv]\.(weight|bias)$", name)}
    joined = {name: tensor for name, tensor in weights.items() if name not in parts}
    for place in sorted({re.sub(r"[qkv]\.(weight|bias)$", r"{}.\1", name) for name in parts}):
        three = [weights.get(place.format(letter)) for letter in "qkv"]
        like = next(tensor for tensor in three if tensor is not None)
        if place.endswith("weight") and any(tensor is None for tensor in three):
            raise CheckpointError(f"{source}: {place.format('q, k or v')} is missing")
        joined[place.format("qkv")] = torch.cat([torch.zeros_like(like) if t is None else t for t in three])
    return joined


def predictor_by_published_names(weights: Mapping[str, Tensor], source: object) -> tuple[State, list[str]]:
    """Return the tensors of a predictor by the names of facebookresearch/ijepa and jepa; none are left alone."""
    weights = {INNER_WRAPPERS.sub("", name): tensor for name, tensor in weights.items()}
    if "embeddings.mask_tokens" not in weights:
        return weights, []
    tokens = {f"mask_tokens.{n}": token for n, token in enumerate(weights.pop("embeddings.mask_tokens"))}
    return joined_qkv(renamed(weights, PREDICTOR_OF_HUGGING_FACE), source) | tokens, []
