"""Whatever a checkpoint holds comes back, and a damaged one is a CheckpointError."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepa.checkpoint import plain, sharded
from jepa.checkpoint.saver import copied
from jepa.utils.errors import CheckpointError

pytestmark = pytest.mark.faults

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool)
DTYPES += (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
numbers = itertools.count()
"""Each example writes under a name of its own."""


@st.composite
def tensors(draw) -> torch.Tensor:
    """Of any dtype and shape: 0-d, empty, not contiguous, a part of a larger storage."""
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    values = torch.randint(-50, 50, [*shape, 2], generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    part = draw(st.sampled_from(["whole", "every other", "turned", "expanded"]))
    values = values.to(draw(st.sampled_from(DTYPES)))
    values = values[..., 1] if part == "every other" else values[..., 1].clone()
    if part == "expanded":
        return values.unsqueeze(0).expand(2, *values.shape)
    return torch.permute(values, tuple(reversed(range(values.dim())))) if part == "turned" else values


keys = st.text("ab/0.", min_size=1, max_size=4)
leaves = tensors() | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
trees = st.dictionaries(
    keys | st.integers(0, 3),
    st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | st.integers(0, 3), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


def state(tree) -> dict:
    """The state of a run in which a callback keeps the tree."""
    empty = {name: {} for name in ("metrics", "loggers", "config")}
    empty["best"] = {"metric": "val/loss", "mode": "min", "table": []}
    model = {"weight": torch.arange(12.0).view(3, 4)}
    own = {"step": 3, "pending": False, "ended": None, "optimizer": None, "scaler": None, "model": model}
    return {**own, **empty, "callbacks": {"keeps": tree}}


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("kind", [plain, sharded], ids=lambda kind: kind.__name__.rpartition(".")[2])
@given(tree=trees)
def test_what_is_written_is_read(tmp_path, kind, tree):
    path = tmp_path / f"{next(numbers)}"
    kind.write(path, plain.with_format(state(tree)))
    content = kind.read(path)
    assert same(tree, content["callbacks"]["keeps"])
    assert content["step"] == 3
    assert same(tree, copied(tree)), "what is written in the background"


def damage(path: Path, place: int) -> bytes:
    """Flip a bit of a file; return what it was."""
    before = path.read_bytes()
    after = bytearray(before)
    after[place] ^= 1 << place % 8
    path.write_bytes(after)
    return before


@pytest.mark.parametrize(("kind", "every"), [(plain, 2), (sharded, 7)], ids=["plain", "sharded"])
def test_a_flipped_bit_is_an_error_or_changes_nothing(tmp_path, kind, every):
    tree = {"encoder": {"weight": torch.randn(3, 4), "bias": torch.arange(5)}, "optimizer": [0.5, "adam", None]}
    path = tmp_path / "last"
    kind.write(path, plain.with_format(state(tree)))
    if kind is sharded:
        sharded.publish(tmp_path, path, ["last.sharded"])
    expected = kind.read(path)
    files = sorted(file for file in ([path] if path.is_file() else path.iterdir()) if file.is_file())
    refused = 0
    for file in files:
        for place in range(0, file.stat().st_size, every):
            before = damage(file, place)
            try:
                assert same(expected, kind.read(path)), f"bit {place % 8} of byte {place} of {file.name}"
            except CheckpointError:
                refused += 1
            file.write_bytes(before)
    assert refused > 50
