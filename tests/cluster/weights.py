"""Whether two runs have ended with the same weights."""

from __future__ import annotations

from pathlib import Path

import torch


def assert_same_weights(run: Path, other: Path) -> None:
    """Bit by bit, at the same step."""
    one, two = (torch.load(folder / "checkpoints" / "last.pt") for folder in (run, other))
    assert one["step"] == two["step"]
    assert one["model"].keys() == two["model"].keys()
    assert all(torch.equal(one["model"][name], tensor) for name, tensor in two["model"].items())
