"""Export encoders as safetensors, for timm, as TorchScript and as ONNX, with a card; read back and compared."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from jepa.interop.adapter import Loaded
from jepa.interop.frozen_networks import network_of
from jepa.interop.loading import load
from jepa.interop.sizes import side_or_pair
from jepa.interop.timm_models import quiet
from jepa.interop.weights_file import CARD
from jepa.utils.errors import CheckpointError, UserError, first_line
from jepa.utils.files import write_atomic, write_text
from jepa.utils.lazy_import import lazy_import, require

timm = lazy_import("timm")

TOLERANCE = 1e-5  # largest difference of features, per unit of the largest one where that is above 1
SUFFIXES = {
    "safetensors": (".safetensors",),
    "timm": (".safetensors", ".pth", ".pt", ".bin"),
    "torchscript": (".ts", ".pt"),
    "onnx": (".onnx",),
}
"""What a file of each format may be called; the first is the default."""
TIMM_SIZES = {
    (192, 12, 3, 4.0): "vit_tiny_patch16_224",
    (384, 12, 6, 4.0): "vit_small_patch16_224",
    (768, 12, 12, 4.0): "vit_base_patch16_224",
    (1024, 24, 16, 4.0): "vit_large_patch16_224",
    (1280, 32, 16, 4.0): "vit_huge_patch14_224",
    (1408, 40, 16, 48 / 11): "vit_giant_patch14_224",
}
"""Width, depth, heads and MLP ratio of timm's Vision Transformers; a slip would show when the export is read back."""
CODE = {
    "safetensors": 'from jepa.interop import load\n\nmodel = load("{file}").model\n'
    "features = model.encoder(x)  # {shape}",
    "timm": "import timm\n\nmodel = timm.create_model({arguments}\n)\nfeatures = model.eval()(x)  # (B, D)",
    "torchscript": 'import torch\n\nfeatures = torch.jit.load("{file}")(x)  # {shape}',
    "onnx": 'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{file}")\n'
    '(features,) = session.run(["features"], {{"x": x}})  # x: numpy, float32; {shape}',
}
"""Format -> Python that loads an export and computes the features of pictures x (B, C, H, W)."""
Network = Callable[[Tensor], Tensor]
"""From pictures (B, C, H, W) to features: tokens (B, N, D), or pooled by their mean (B, D)."""


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

    features: what TorchScript and ONNX give. image_size: (H, W), None as in training. results: scores, None as stored.

    Raises UserError for what the format cannot hold or cannot be written, CheckpointError when features differ.
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
    example = torch.randn(3, loaded.channels, *image_size, generator=torch.Generator().manual_seed(0))
    encoder = copy.deepcopy(network_of(loaded.model, network)).cpu().float().eval()
    if format == "timm":
        call = facts["create_model"] = timm_call(encoder, loaded.encoder, image_size)
    elif format == "safetensors" and loaded.encoder is None:
        raise UserError(f"format=safetensors: how {type(encoder).__name__} is built is not known; use onnx")
    elif format != "safetensors":
        facts["features"] = features
    exported = Pooled(encoder).eval() if format == "timm" or facts.get("features") == "pooled" else encoder
    write: Callable[[Path], Network] = {
        "safetensors": lambda path: write_safetensors(encoder, card, path),
        "timm": lambda path: write_timm(encoder, call, image_size, path),
        "torchscript": lambda path: write_torchscript(exported, example, path),
        "onnx": lambda path: write_onnx(exported, example, path),
    }[format]

    @torch.no_grad()
    def write_and_compare(temporary: Path) -> None:
        written = write(temporary)
        facts["difference"] = max(compare(format, exported(x), written(x)) for x in (example, example[:1]))

    write_atomic(path, write_and_compare)
    card |= {"fingerprint": loaded.fingerprint, "model": loaded.description, "export": facts}
    card["results"] = results_of(loaded.metrics) if results is None else dict(results)
    beside = [path.with_name(path.name + suffix) for suffix in (".json", ".md")]
    for file, text in zip(beside, (json.dumps(card, indent=2) + "\n", to_markdown(card, path.name))):
        write_text(file, text)
    return card, [path, *beside]


class Pooled(nn.Module):
    """An encoder whose tokens are averaged: (B, C, H, W) to (B, D)."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x).mean(dim=1)


def write_safetensors(encoder: nn.Module, header: Mapping[str, Any], path: Path) -> Network:
    """Write our encoder's weights, with how it is built in the header; return what `load` makes of the file."""
    save_file(encoder.state_dict(), path, metadata={"format": "pt", CARD: json.dumps(header)})
    return load(path).model.encoder


def write_timm(encoder: nn.Module, call: Mapping[str, Any], image_size: tuple[int, int], path: Path) -> Network:
    """Write weights that `timm.create_model(**call, checkpoint_path=path)` loads, positions included; return that."""
    grid = tuple(side // patch for side, patch in zip(image_size, encoder.patch_size))
    weights = encoder.vit.state_dict() | {"pos_embed": encoder.positions(grid, torch.device("cpu"))[None].clone()}
    if path.suffix == ".safetensors":
        save_file(weights, path, metadata={"format": "pt"})
    else:
        torch.save(weights, path)
    try:
        with quiet("timm"):
            return timm.create_model(**call, checkpoint_path=str(path)).eval()
    except (RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"timm does not load the export as {dict(call)}: {first_line(error)}") from error


def write_torchscript(encoder: nn.Module, example: Tensor, path: Path) -> Network:
    """Write a trace for pictures of one size, in batches of any size; return it."""
    with quiet():  # of shapes that become constants, as they should, and of its old age
        torch.jit.trace(encoder, example, check_trace=False).save(str(path))
        return torch.jit.load(str(path), map_location="cpu")


def write_onnx(encoder: nn.Module, example: Tensor, path: Path) -> Network:
    """Write ONNX: `x`, of one size in batches of any, to `features`; weights beyond 2 GB go to `<file>.data`."""
    onnxruntime = require("onnxruntime", extra="export", purpose="format=onnx")
    require("onnxscript", extra="export", purpose="format=onnx")  # torch.onnx imports it
    names = {"input_names": ["x"], "output_names": ["features"]}
    any_batch = {"x": {0: torch.export.Dim("batch")}}
    with quiet("torch.onnx", "onnx_ir", "onnxscript"):
        program = torch.onnx.export(encoder, (example,), dynamo=True, **names, dynamic_shapes=any_batch, verbose=False)
    size = sum(tensor.nbytes for tensor in encoder.state_dict().values())
    program.save(str(path), external_data=size > 1.9 * 2**30)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(["features"], {"x": x.numpy()})[0])


def compare(name: str, wanted: Tensor, got: Tensor) -> float:
    """Return the largest difference of features. Raises CheckpointError when it is more than rounding."""
    if wanted.shape != got.shape:
        shapes = f"{tuple(got.shape)} where the encoder gives {tuple(wanted.shape)}"
        raise CheckpointError(f"the {name} export gives {shapes}")
    difference = (wanted - got).abs().max().item()
    if not difference <= TOLERANCE * max(1.0, wanted.abs().max().item()):
        raise CheckpointError(
            f"the {name} export gives other features than the encoder: they differ by up to {difference:.2g}"
        )
    return difference


def timm_call(encoder: nn.Module, config: Mapping[str, Any] | None, image_size: tuple[int, int]) -> dict[str, Any]:
    """Return the arguments of `timm.create_model` that build an encoder of ours, but for the file.

    Sizes take timm's name for them, if any. Raises UserError for an encoder that is no ViT of ours.
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
    sizes = {name: getattr(encoder, name) for name in ("embed_dim", "depth", "num_heads")}
    sizes["mlp_ratio"] = block.mlp.fc1.out_features / encoder.embed_dim
    name = TIMM_SIZES.get(tuple(sizes.values()))
    qkv = {} if block.attn.qkv.bias is not None else {"qkv_bias": False}
    return {"model_name": name or "vit_base_patch16_224", **call, **({} if name else sizes), **qkv}


def results_of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return rows as in results.json from a checkpoint's metrics: {"trained": {"knn": ...}, ..., "val/loss": ...}."""
    rows: dict[str, Any] = {name: value for name, value in metrics.items() if name == "val/loss"}
    for name in (name for name in metrics if name.startswith("eval/")):
        _, row, probe = name.split("/", 2)
        rows.setdefault(row, {})[probe] = metrics[name]
    return rows


def to_markdown(card: Mapping[str, Any], file: str) -> str:
    """Return the model card of an exported file as Markdown."""
    export, data = card["export"], card.get("data") or {}
    step = f" at step {card['step']}" if card.get("step") is not None else ""
    call = {**export.get("create_model", {}), "checkpoint_path": file}
    arguments = [f'"{call.pop("model_name", "")}"']
    arguments += [f"{key}={json.dumps(value) if isinstance(value, str) else value}" for key, value in call.items()]
    shape = "(B, D)" if export.get("features") == "pooled" else "(B, N, D)"
    code = CODE[export["format"]].format(file=file, arguments="".join(f"\n    {a}," for a in arguments), shape=shape)
    pixels = f", pixels in [0, 1] normalised by mean {data['mean']} and std {data['std']}" if "mean" in data else ""
    (height, width), channels = export["image_size"], export["channels"]
    text = (
        f"# {file}\n\nThe {card['network']} network of `{card['source']}`{step}, in the format {export['format']}.\n"
        f"Its features equal the original's to {export['difference']:.1e}.\n\n"
        f"Input: float32 (B, {channels}, {height}, {width}){pixels}.\n\n```python\n{code}\n```\n"
    )
    for key in ("data", "model", "results"):
        if card.get(key):
            text += f"\n## {key.title()}\n\n```json\n{json.dumps(card[key], indent=2)}\n```\n"
    return text
