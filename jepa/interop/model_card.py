"""The card of an exported encoder: what it is, what it was trained on, its scores, and code that loads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jepa.utils.files import write_text


def results_of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return rows as in results.json from a checkpoint's metrics: {"trained": {"knn": ...}, ..., "val/loss": ...}."""
    rows: dict[str, Any] = {}
    for name, value in metrics.items():
        if name.startswith("eval/"):
            _, row, probe = name.split("/", 2)
            rows.setdefault(row, {})[probe] = value
        elif name == "val/loss":
            rows[name] = value
    return rows


def loading_code(card: Mapping[str, Any], file: str) -> str:
    """Return Python that loads an export and computes the features of pictures x (B, C, H, W)."""
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
            f'from jepa.interop import load\n\nmodel = load("{file}").model\nfeatures = model.encoder(x)  # (B, N, D)'
        )
    shape = "(B, D)" if export["features"] == "pooled" else "(B, N, D)"
    if export["format"] == "torchscript":
        return f'import torch\n\nfeatures = torch.jit.load("{file}")(x)  # {shape}'
    return (
        f'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{file}")\n'
        f'(features,) = session.run(["features"], {{"x": x}})  # x: numpy, float32; {shape}'
    )


def write_card(card: Mapping[str, Any], file: Path) -> list[Path]:
    """Write the card beside a file, as `<file>.json` and as Markdown, `<file>.md`, and return their paths."""
    paths = [file.with_name(f"{file.name}.json"), file.with_name(f"{file.name}.md")]
    write_text(paths[0], json.dumps(card, indent=2) + "\n")
    write_text(paths[1], to_markdown(card, file.name))
    return paths


def to_markdown(card: Mapping[str, Any], file: str) -> str:
    """Return the card in Markdown."""
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
