"""Encoders out: as safetensors, for timm, as TorchScript and as ONNX. What is written is read back and compared."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from jepa.checkpoint.load import first_line
from jepa.interop.bare import open_exported, pair
from jepa.interop.layouts import CARD, read_safetensors
from jepa.utils.errors import CheckpointError, UserError
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


class Features(nn.Module):
    """An encoder of pictures of one size: (B, C, H, W) to tokens (B, N, D), or pooled by their mean (B, D)."""

    def __init__(self, encoder: nn.Module, image_size: tuple[int, int], features: Literal["tokens", "pooled"]) -> None:
        super().__init__()
        self.baked = getattr(encoder, "vit", None) is not None
        self.encoder = baked(encoder, image_size) if self.baked else encoder
        self.pooled = features == "pooled"

    def forward(self, x: Tensor) -> Tensor:
        """Features of pictures."""
        tokens = self.encoder.forward_features(x) if self.baked else self.encoder(x)
        return tokens.mean(dim=1) if self.pooled else tokens


def baked(encoder: nn.Module, image_size: tuple[int, int]) -> VisionTransformer:
    """The encoder as timm's module with its positions as a weight `pos_embed` (1, N, D), for one size of pictures."""
    vit = copy.deepcopy(encoder.vit)
    if not isinstance(vit, VisionTransformer):  # ours has timm's weights and not its forward
        vit = timm.create_model(**timm_call(encoder, None, image_size) | {"pos_embed": "none"})
        vit.load_state_dict(encoder.vit.state_dict())
    grid = tuple(side // patch for side, patch in zip(image_size, encoder.patch_size))
    vit.pos_embed = nn.Parameter(encoder.positions(grid, torch.device("cpu"))[None].clone())
    return vit.eval()


def export_safetensors(encoder: nn.Module, path: Path, card: Mapping[str, Any], example: Tensor) -> float:
    """Write our encoder's weights, with how it is built in the header; gives the largest difference read back."""
    weights = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    save_file(weights, path, metadata={"format": "pt", CARD: json.dumps(card)})
    again, header = read_safetensors(path)
    return compare("safetensors", encoder(example), open_exported(again, header[CARD], path)[0](example))


def export_timm(
    encoder: nn.Module, path: Path, call: Mapping[str, Any], image_size: tuple[int, int], example: Tensor
) -> float:
    """Write weights that `timm.create_model(**call, checkpoint_path=path)` loads; gives the largest difference.

    call: as `timm_call`.
    """
    weights = {name: tensor.contiguous() for name, tensor in baked(encoder, image_size).state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(weights, path, metadata={"format": "pt"})
    else:
        torch.save(weights, path)
    try:
        model = timm.create_model(**call, checkpoint_path=str(path)).eval()
    except (RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"timm does not load the export as {dict(call)}: {first_line(error)}") from error
    return compare("timm", encoder(example).mean(dim=1), model(example))


def export_torchscript(features: Features, path: Path, example: Tensor) -> float:
    """Write a trace for pictures of one size, in batches of any size; gives the largest difference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of shapes that become constants, as they should, and of its old age
        torch.jit.trace(features, example, check_trace=False).save(str(path))
        again = torch.jit.load(str(path), map_location="cpu")
    return max(compare("torchscript", features(x), again(x)) for x in (example, example[:1]))


def export_onnx(features: Features, path: Path, example: Tensor) -> float:
    """Write ONNX for pictures of one size, in batches of any size: input `x`, output `features`.

    Weights beyond ONNX's 2 GB go to `<file>.data` beside it. Gives the largest difference of ONNX Runtime's features.
    """
    purpose = "format=onnx"
    onnxruntime = require("onnxruntime", extra="export", purpose=purpose)
    require("onnxscript", extra="export", purpose=purpose)  # torch.onnx imports it
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about its parts
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
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return max(
        compare("onnx", features(x), torch.from_numpy(session.run(["features"], {"x": x.numpy()})[0]))
        for x in (example, example[:1])
    )


def compare(name: str, wanted: Tensor, got: Tensor) -> float:
    """The largest difference of features. Raises CheckpointError when it is more than rounding."""
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
    """Arguments of `timm.create_model` that build an encoder of ours, but for the file.

    Sizes that are those of one of timm's ViTs take its name; any others are given beside `vit_base_patch16_224`.

    Raises UserError for an encoder that is no ViT of ours.
    """
    vit = getattr(encoder, "vit", None)
    if vit is None:
        raise UserError(
            f"format=timm: {type(encoder).__name__} is not one of our Vision Transformers; "
            "use format=torchscript or onnx"
        )
    call: dict[str, Any] = {"num_classes": 0, "global_pool": "avg", "fc_norm": False, "class_token": False}
    call |= {"img_size": simple(image_size), "patch_size": simple(encoder.patch_size), "in_chans": encoder.channels}
    if config is not None and "name" in config:
        return {"model_name": config["name"], **call} | ({"reg_tokens": 0} if "reg" in config["name"] else {})
    block = vit.blocks[0]
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


def simple(size: tuple[int, int]) -> int | list[int]:
    """A side where both are alike, as plain values."""
    return size[0] if size[0] == size[1] else list(size)


@torch.no_grad()
def export(
    encoder: nn.Module,
    path: Path,
    *,
    kind: str,
    config: Mapping[str, Any] | None,
    image_size: tuple[int, int],
    channels: int,
    features: Literal["tokens", "pooled"],
    card: Mapping[str, Any],
) -> dict[str, Any]:
    """Write an encoder in a format, read it back and compare; gives what the card says of it.

    kind: safetensors, timm, torchscript or onnx. config: how the encoder is built, needed for safetensors.
    features: what a traced model gives. card: for the header of safetensors.

    Raises UserError for an encoder that the format cannot hold, CheckpointError when features differ.
    """
    encoder = copy.deepcopy(encoder).cpu().float().eval()
    example = torch.randn(3, channels, *image_size, generator=torch.Generator().manual_seed(0))
    told: dict[str, Any] = {"format": kind, "image_size": list(pair(simple(image_size))), "channels": channels}
    if kind == "safetensors":
        if config is None:
            raise UserError(f"format=safetensors: how {type(encoder).__name__} is built is not known; use onnx")
        return told | {"difference": export_safetensors(encoder, path, card, example)}
    if kind == "timm":
        call = timm_call(encoder, config, image_size)
        return told | {"difference": export_timm(encoder, path, call, image_size, example), "create_model": call}
    traced = Features(encoder, image_size, features).eval()
    write: Callable[[Features, Path, Tensor], float] = export_torchscript if kind == "torchscript" else export_onnx
    return told | {"features": features, "difference": write(traced, path, example)}
