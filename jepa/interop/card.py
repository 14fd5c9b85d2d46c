"""The card of an exported encoder: what it is, what it was trained on, what it scored and how it is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def results_of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of a results.json out of a checkpoint's metrics: {"trained": {"knn": ...}, ..., "val/loss": ...}."""
    rows: dict[str, Any] = {}
    for name, value in metrics.items():
        if name.startswith("eval/"):
            _, row, probe = name.split("/", 2)
            rows.setdefault(row, {})[probe] = value
        elif name == "val/loss":
            rows[name] = value
    return rows


def loading_code(card: Mapping[str, Any], file: str) -> str:
    """Python that loads an export and gives the features of pictures x (B, C, H, W)."""
    export = card["export"]
    if export["format"] == "timm":
        call = dict(export["create_model"])
        name = call.pop("model_name")
        arguments = "".join(f"\n    {key}={value!r}," for key, value in call.items())
        return (
            f'import timm\n\nmodel = timm.create_model(\n    "{name}",{arguments}\n    checkpoint_path="{file}",\n)'
            "\nfeatures = model.eval()(x)  # (B, D)"
        )
    if export["format"] == "safetensors":
        return (
            f'from jepa.interop import find_source\n\nmodel = find_source("{file}").open().model\n'
            "features = model.encoder(x)  # (B, N, D)"
        )
    shape = "(B, D)" if export["features"] == "pooled" else "(B, N, D)"
    if export["format"] == "torchscript":
        return f'import torch\n\nfeatures = torch.jit.load("{file}")(x)  # {shape}'
    return (
        f'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{file}")\n'
        f'(features,) = session.run(["features"], {{"x": x}})  # x: numpy, float32; {shape}'
    )


def write_card(card: Mapping[str, Any], file: Path, write_text: Any) -> list[Path]:
    """Write `<file>.json`, the card, and `<file>.md`, the same for people; gives their paths."""
    paths = [file.with_name(f"{file.name}.json"), file.with_name(f"{file.name}.md")]
    write_text(paths[0], json.dumps(card, indent=2) + "\n")
    write_text(paths[1], described(card, file.name))
    return paths


def described(card: Mapping[str, Any], file: str) -> str:
    """The card in Markdown."""
    export, data = card["export"], card.get("data") or {}
    step = f" at step {card['step']}" if card.get("step") is not None else ""
    lines = [
        f"# {file}",
        "",
        f"The {card['network']} network of `{card['source']}`{step}, in the format {export['format']}.",
        f"Its features equal the original's to {export['difference']:.1e}.",
        "",
        f"Input: float32 (B, {export['channels']}, {export['image_size'][0]}, {export['image_size'][1]})"
        + (f", pixels in [0, 1] normalised by mean {data['mean']} and std {data['std']}." if "mean" in data else "."),
        "",
        "```python",
        loading_code(card, file),
        "```",
        "",
    ]
    for title, key in (("Data", "data"), ("Model", "model"), ("Results", "results")):
        if card.get(key):
            lines += [f"## {title}", "", "```json", json.dumps(card[key], indent=2), "```", ""]
    return "\n".join(lines)
