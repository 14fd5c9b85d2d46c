"""Export encoders as safetensors, for timm, as TorchScript and as ONNX. What is written is read back and compared."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from jepa.checkpoint.load import first_line
from jepa.interop.adapter import Loaded
from jepa.interop.frozen_networks import network_of
from jepa.interop.loading import load
from jepa.interop.model_card import results_of, write_card
from jepa.interop.quiet import quiet
from jepa.interop.sizes import side_or_pair
from jepa.interop.weights_file import CARD
from jepa.utils.errors import CheckpointError, UserError
from jepa.utils.files import write_atomic
from jepa.utils.lazy_import import require

TOLERANCE = 1e-5
"""Largest difference of features, per unit of the largest one where that is above 1."""

SUFFIXES = {
    "safetensors": (".safetensors",),
    "timm": (".safetensors", ".pth", ".pt", ".bin"),
    "torchscript": (".ts", ".pt"),
    "onnx": (".onnx",),
}
"""What a file of each format may be called; the first is the default."""

TIMM_SIZES = {
    "vit_tiny_patch16_224": (192, 12, 3, 4.0),
    "vit_small_patch16_224": (384, 12, 6, 4.0),
    "vit_base_patch16_224": (768, 12, 12, 4.0),
    "vit_large_patch16_224": (1024, 24, 16, 4.0),
    "vit_huge_patch14_224": (1280, 32, 16, 4.0),
    "vit_giant_patch14_224": (1408, 40, 16, 48 / 11),
}
"""Width, depth, heads and MLP ratio of timm's Vision Transformers; a slip would show when the export is read back."""


def export(
    loaded: Loaded,
    path: Path,
    *,
    format: Literal["safetensors", "timm", "torchscript", "onnx"] = "safetensors",
    network: Literal["target", "context"] = "target",
    features: Literal["tokens", "pooled"] = "tokens",
    image_size: tuple[int, int] | None = None,
    results: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[Path]]:
    """Write an encoder of a loaded checkpoint and a card beside it; return the card and the paths written.

    features: what TorchScript and ONNX give. image_size: (H, W) of the pictures; None takes those it was made for.
    results: rows of scores for the card; None takes those that the checkpoint holds.

    Raises UserError for an encoder that the format cannot hold or a file that cannot be written, CheckpointError when
    features differ.
    """
    image_size = image_size or loaded.image_size
    if image_size is None or loaded.channels is None:
        raise UserError(
            f"{loaded.source} does not say what pictures it takes: of an encoder of pictures give data.image_size= and "
            "data.channels=, those of other inputs are not exported"
        )
    for side, patch in zip(image_size, getattr(loaded.model.encoder, "patch_size", (1, 1))):
        if side % patch:
            raise UserError(f"data.image_size={side} is not a multiple of the patches of {patch} pixels")
    card = {name: getattr(loaded, name) for name in ("source", "step", "encoder", "data")} | {"network": network}
    facts: dict[str, Any] = {"format": format, "image_size": list(image_size), "channels": loaded.channels}
    encoder = copy.deepcopy(network_of(loaded.model, network)).cpu().float().eval()
    if format == "safetensors":
        if loaded.encoder is None:
            raise UserError(f"format=safetensors: how {type(encoder).__name__} is built is not known; use onnx")
        write = functools.partial(write_safetensors, encoder, dict(card))
    elif format == "timm":
        facts["create_model"] = timm_call(encoder, loaded.encoder, image_size)
        write = functools.partial(write_timm, encoder, facts["create_model"], image_size)
    else:
        facts["features"] = features
        traced = Features(encoder, image_size, features).eval()
        write = functools.partial(write_torchscript if format == "torchscript" else write_onnx, traced)
    example = torch.randn(3, loaded.channels, *image_size, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def write_and_compare(temporary: Path) -> None:
        facts["difference"] = write(temporary, example)

    write_atomic(path, write_and_compare)
    card |= {"fingerprint": loaded.fingerprint, "model": loaded.description, "export": facts}
    card["results"] = results_of(loaded.metrics) if results is None else dict(results)
    return card, [path, *write_card(card, path)]


class Features(nn.Module):
    """An encoder of pictures of one size: (B, C, H, W) to tokens (B, N, D), or pooled by their mean (B, D)."""

    def __init__(self, encoder: nn.Module, image_size: tuple[int, int], features: Literal["tokens", "pooled"]) -> None:
        super().__init__()
        self.is_vit = getattr(encoder, "vit", None) is not None
        self.encoder = with_stored_positions(encoder, image_size) if self.is_vit else encoder
        self.pooled = features == "pooled"

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of pictures."""
        tokens = self.encoder.forward_features(x) if self.is_vit else self.encoder(x)
        return tokens.mean(dim=1) if self.pooled else tokens


def with_stored_positions(encoder: nn.Module, image_size: tuple[int, int]) -> VisionTransformer:
    """Return the encoder's timm module with positions for one size of pictures as a weight `pos_embed` (1, N, D)."""
    vit = copy.deepcopy(encoder.vit)
    if not isinstance(vit, VisionTransformer):  # ours has timm's weights and not its forward
        vit = timm.create_model(**timm_call(encoder, None, image_size) | {"pos_embed": "none"})
        vit.load_state_dict(encoder.vit.state_dict())
    grid = tuple(side // patch for side, patch in zip(image_size, encoder.patch_size))
    vit.pos_embed = nn.Parameter(encoder.positions(grid, torch.device("cpu"))[None].clone())
    return vit.eval()


def write_safetensors(encoder: nn.Module, header: Mapping[str, Any], path: Path, example: Tensor) -> float:
    """Write our encoder's weights, with how it is built in the header; return the largest difference read back."""
    save_file(_contiguous(encoder), path, metadata={"format": "pt", CARD: json.dumps(header)})
    return compare("safetensors", encoder(example), load(path).model.encoder(example))


def write_timm(
    encoder: nn.Module, call: Mapping[str, Any], image_size: tuple[int, int], path: Path, example: Tensor
) -> float:
    """Write weights that `timm.create_model(**call, checkpoint_path=path)` loads; return the largest difference."""
    weights = _contiguous(with_stored_positions(encoder, image_size))
    if path.suffix == ".safetensors":
        save_file(weights, path, metadata={"format": "pt"})
    else:
        torch.save(weights, path)
    try:
        with quiet("timm"):
            model = timm.create_model(**call, checkpoint_path=str(path)).eval()
    except (RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"timm does not load the export as {dict(call)}: {first_line(error)}") from error
    return compare("timm", encoder(example).mean(dim=1), model(example))


def write_torchscript(features: Features, path: Path, example: Tensor) -> float:
    """Write a trace for pictures of one size, in batches of any size; return the largest difference."""
    with quiet():  # of shapes that become constants, as they should, and of its old age
        torch.jit.trace(features, example, check_trace=False).save(str(path))
        again = torch.jit.load(str(path), map_location="cpu")
    return max(compare("torchscript", features(x), again(x)) for x in (example, example[:1]))


def write_onnx(features: Features, path: Path, example: Tensor) -> float:
    """Write ONNX for pictures of one size, in batches of any size: input `x`, output `features`.

    Weights beyond ONNX's 2 GB go to `<file>.data` beside it. Returns the largest difference of ONNX Runtime's features.
    """
    purpose = "format=onnx"
    onnxruntime = require("onnxruntime", extra="export", purpose=purpose)
    require("onnxscript", extra="export", purpose=purpose)  # torch.onnx imports it
    with quiet("torch.onnx", "onnx_ir", "onnxscript"):
        program = torch.onnx.export(
            features,
            (example,),
            dynamo=True,
            input_names=["x"],
            output_names=["features"],
            dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    size = sum(tensor.numel() * tensor.element_size() for tensor in features.state_dict().values())
    program.save(str(path), external_data=size > 1.9 * 2**30)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return max(
        compare("onnx", features(x), torch.from_numpy(session.run(["features"], {"x": x.numpy()})[0]))
        for x in (example, example[:1])
    )


def _contiguous(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def compare(name: str, wanted: Tensor, got: Tensor) -> float:
    """Return the largest difference of features. Raises CheckpointError when it is more than rounding."""
    if wanted.shape != got.shape:
        raise CheckpointError(
            f"the {name} export gives {tuple(got.shape)} where the encoder gives {tuple(wanted.shape)}"
        )
    difference = (wanted - got).abs().max().item()
    if not difference <= TOLERANCE * max(1.0, wanted.abs().max().item()):
        raise CheckpointError(
            f"the {name} export gives other features than the encoder: they differ by up to {difference:.2g}"
        )
    return difference


def timm_call(encoder: nn.Module, config: Mapping[str, Any] | None, image_size: tuple[int, int]) -> dict[str, Any]:
    """Return the arguments of `timm.create_model` that build an encoder of ours, but for the file.

    Sizes that are those of one of timm's ViTs take its name; any others are given beside `vit_base_patch16_224`.

    Raises UserError for an encoder that is no ViT of ours.
    """
    if getattr(encoder, "vit", None) is None:
        raise UserError(
            f"format=timm: {type(encoder).__name__} is not one of our Vision Transformers; "
            "use format=torchscript or onnx"
        )
    call: dict[str, Any] = {
        "num_classes": 0,
        "global_pool": "avg",
        "fc_norm": False,
        "class_token": False,
        "img_size": side_or_pair(image_size),
        "patch_size": side_or_pair(encoder.patch_size),
        "in_chans": encoder.channels,
    }
    if config is not None and "name" in config:
        return {"model_name": config["name"], **call} | ({"reg_tokens": 0} if "reg" in config["name"] else {})
    block = encoder.vit.blocks[0]
    sizes = {
        "embed_dim": encoder.embed_dim,
        "depth": encoder.depth,
        "num_heads": encoder.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / encoder.embed_dim,
    }
    qkv = {} if block.attn.qkv.bias is not None else {"qkv_bias": False}
    if name := next((n for n, known in TIMM_SIZES.items() if known == tuple(sizes.values())), None):
        return {"model_name": name, **call, **qkv}
    return {"model_name": "vit_base_patch16_224", **call, **sizes, **qkv}
