"""The card of an exported encoder: what it is, what it was trained on, its scores, and code that loads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jepa.utils.files import write_text

CODE = {
    "safetensors": 'from jepa.interop import load\n\nmodel = load("{file}").model\n'
    "features = model.encoder(x)  # {shape}",
    "timm": "import timm\n\nmodel = timm.create_model({arguments}\n)\nfeatures = model.eval()(x)  # (B, D)",
    "torchscript": 'import torch\n\nfeatures = torch.jit.load("{file}")(x)  # {shape}',
    "onnx": 'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{file}")\n'
    '(features,) = session.run(["features"], {{"x": x}})  # x: numpy, float32; {shape}',
}
"""Format -> Python that loads an export and computes the features of pictures x (B, C, H, W)."""


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


def write_card(card: Mapping[str, Any], file: Path) -> list[Path]:
    """Write the card beside a file, as `<file>.json` and as Markdown, `<file>.md`, and return their paths."""
    texts = {f"{file.name}.json": json.dumps(card, indent=2) + "\n", f"{file.name}.md": to_markdown(card, file.name)}
    for name, text in texts.items():
        write_text(file.with_name(name), text)
    return [file.with_name(name) for name in texts]


def to_markdown(card: Mapping[str, Any], file: str) -> str:
    """Return the card in Markdown."""
    export, data = card["export"], card.get("data") or {}
    step = f" at step {card['step']}" if card.get("step") is not None else ""
    call = {**export.get("create_model", {}), "checkpoint_path": file}
    name = call.pop("model_name", "")
    arguments = [
        f'"{name}"',
        *(f"{key}={json.dumps(value) if isinstance(value, str) else value}" for key, value in call.items()),
    ]
    shape = "(B, D)" if export.get("features") == "pooled" else "(B, N, D)"
    code = CODE[export["format"]].format(file=file, arguments="".join(f"\n    {a}," for a in arguments), shape=shape)
    lines = [
        f"# {file}",
        "",
        f"The {card['network']} network of `{card['source']}`{step}, in the format {export['format']}.",
        f"Its features equal the original's to {export['difference']:.1e}.",
        "",
        f"Input: float32 (B, {export['channels']}, {export['image_size'][0]}, {export['image_size'][1]})"
        + (f", pixels in [0, 1] normalised by mean {data['mean']} and std {data['std']}." if "mean" in data else "."),
        "",
        f"```python\n{code}\n```",
        "",
    ]
    for title, key in (("Data", "data"), ("Model", "model"), ("Results", "results")):
        if card.get(key):
            lines += [f"## {title}", "", "```json", json.dumps(card[key], indent=2), "```", ""]
    return "\n".join(lines)
