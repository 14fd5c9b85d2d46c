"""Whatever the settings, grid and batch: masks are sound, or the settings are refused by a ValueError."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

from jepa.masks import RandomMask, SpanMask, multiblock_mask
from jepa.masks.future import FutureMask
from jepa.masks.time_frequency import SpectrogramMask
from jepa.masks.time_span import TimeSpanMask
from jepa.masks.tubes import BlockGroup, TubeMask

share = st.floats(0, 1) | st.sampled_from([0.15, 0.5, 0.9])
number = st.integers(1, 12) | st.integers(0, 400)
num_masks = st.integers(1, 3)
aspect_ratio = st.lists(st.floats(0.1, 8), min_size=2, max_size=2).map(sorted)
shares = st.lists(share, min_size=2, max_size=2).map(sorted)
small_shares = st.lists(st.floats(0.01, 0.4), min_size=2, max_size=2).map(sorted)
side = st.integers(1, 16)
grids = st.one_of(st.tuples(st.integers(1, 70)), st.tuples(side, side), st.tuples(st.integers(1, 6), side, side))

BLOCKS = {
    "num_targets": st.integers(1, 5),
    "context_scale": shares,
    "target_scale": small_shares | shares,
    "aspect_ratio": aspect_ratio,
    "min_context": st.integers(1, 12),
    "allow_overlap": st.booleans(),
}


@st.composite
def block_groups(draw):
    """A constructor call that may be refused, and so is made by the test."""
    names = {"spatial_scale": small_shares | shares, "temporal_scale": shares, "aspect_ratio": aspect_ratio}
    return {"num_blocks": draw(st.integers(1, 8)), **{name: draw(values) for name, values in names.items()}}


def tubes(*, groups, images, **others) -> TubeMask:
    groups = {str(place): BlockGroup(**group) for place, group in enumerate(groups)}
    return TubeMask(groups=groups, images=images and BlockGroup(**images), **others)


SPANS = {
    "mask_ratio": share,
    "mask_length": number,
    "num_masks": num_masks,
    "steps_per_token": st.integers(1, 4),
    "wrap": st.booleans(),
}
MASKERS = {
    "rectangles": (multiblock_mask, {**BLOCKS, "compat": st.just("rectangles")}),
    "fixed": (multiblock_mask, {**BLOCKS, "compat": st.just("fixed")}),
    "published": (multiblock_mask, {**BLOCKS, "compat": st.just("published")}),
    "random": (RandomMask, {"context_share": share, "target_share": st.none() | share, "num_masks": num_masks}),
    "span": (SpanMask, SPANS),
    "time_span": (TimeSpanMask, {**SPANS, "share_channels": st.booleans()}),
    "future": (FutureMask, {"target_share": share | shares, "num_masks": num_masks}),
    "spectrogram": (
        SpectrogramMask,
        {
            "time_share": share,
            "time_length": number,
            "frequency_share": share,
            "frequency_length": number,
            "num_masks": num_masks,
            "wrap": st.booleans(),
        },
    ),
    "tubes": (
        tubes,
        {
            "groups": st.lists(block_groups(), min_size=1, max_size=2),
            "images": st.none() | block_groups(),
            "min_context": st.integers(1, 6),
            "max_temporal_keep": share,
        },
    ),
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def counts(index, valid, tokens: int):
    """How often each token stands in (..., L) indices, (..., N); entries that are not valid do not count."""
    weight = torch.ones_like(index) if valid is None else valid.long()
    return torch.zeros(*index.shape[:-1], tokens, dtype=torch.long).scatter_add_(-1, index, weight)


def check(mask, batch_size: int, grid, valid, may_overlap: bool) -> None:
    tokens = math.prod(grid)
    for index, flags in ((mask.context, mask.context_valid), (mask.targets, mask.target_valid)):
        assert index.dtype == torch.int64
        assert index.shape[0] == batch_size
        assert index.shape[-1] > 0
        assert 0 <= index.min() <= index.max() < tokens
        assert flags is None or (flags.dtype == torch.bool and flags.shape == index.shape)
    context = counts(mask.context, mask.context_valid, tokens)  # (B, N)
    blocks = counts(mask.targets, mask.target_valid, tokens)  # (B, M, N)
    assert context.max() <= 1
    assert blocks.max() <= 1
    targets = blocks.sum(1) > 0
    if not may_overlap:
        assert not (targets & (context > 0)).any()
    if valid is not None:
        assert not ((targets | (context > 0)) & ~valid).any(), "padding is neither seen nor predicted"


def equal(a, b) -> bool:
    pairs = [(getattr(x, name), getattr(y, name)) for x, y in zip(a, b, strict=True) for name in vars(x)]
    return all((x is None) == (y is None) and (x is None or torch.equal(x, y)) for x, y in pairs)


def sizes(masks):
    return [(mask.context.shape[1], *mask.targets.shape[1:]) for mask in masks]


@pytest.mark.parametrize("name", MASKERS)
@given(data=st.data(), grid=grids, batches=st.tuples(st.integers(1, 9), st.integers(1, 9)), seed=st.integers(0, 2**31))
def test_masks_are_sound_or_the_settings_refused(name, data, grid, batches, seed):
    make, arguments = MASKERS[name]
    chosen = {key: data.draw(values, label=key) for key, values in arguments.items()}
    lengths = data.draw(st.none() | st.lists(st.integers(1, grid[-1]), min_size=9, max_size=9), label="lengths")
    valid = None if lengths is None else (torch.arange(grid[-1]) < torch.tensor(lengths)[:, None])
    if valid is not None:
        valid = valid.view(9, *[1] * (len(grid) - 1), grid[-1]).expand(9, *grid).flatten(1)

    def draw(masker, batch_size: int, seed: int):
        return masker(batch_size, grid, valid=None if valid is None else valid[:batch_size], generator=generator(seed))

    try:
        masker = make(**chosen)
        masks, others = draw(masker, batches[0], seed), draw(masker, batches[1], seed + 1)
    except ValueError:
        event("refused")
        return
    event("drawn")
    may_overlap = chosen.get("allow_overlap", False) or name == "published"  # which gives way where nothing fits
    for batch_size, drawn in zip(batches, (masks, others)):
        for mask in drawn:
            check(mask, batch_size, grid, None if valid is None else valid[:batch_size], may_overlap)
            if name in ("rectangles", "published"):
                cells = torch.stack(torch.unravel_index(mask.targets, grid), dim=-1)  # (B, M, P, axes)
                assert ((cells.amax(2) - cells.amin(2) + 1).prod(-1) == mask.targets.shape[2]).all()
    assert equal(masks, draw(make(**chosen), batches[0], seed)), "the same generator state gives the same masks"
    if name == "rectangles":  # K is fixed for each P
        assert sizes(masks)[0][0] == sizes(others)[0][0] or sizes(masks)[0][2] != sizes(others)[0][2]
    elif name != "published":
        assert sizes(masks) == sizes(others)


def like(value, good):
    """Values of the type of one, with whatever is out of range."""
    if value is None or isinstance(value, (bool, str, dict)):
        return good
    if isinstance(value, list):
        return st.lists(st.floats(), max_size=3) if all(isinstance(item, float) for item in value) else good
    return st.floats() if isinstance(value, float) else st.integers(-3, 3)


@pytest.mark.parametrize("name", MASKERS)
@settings(max_examples=25)
@given(data=st.data(), grid=grids)
def test_values_out_of_range_raise_value_errors(name, data, grid):
    make, arguments = MASKERS[name]
    chosen = {key: data.draw(values, label=key) for key, values in arguments.items()}
    key = data.draw(st.sampled_from(sorted(chosen)))
    chosen[key] = data.draw(like(chosen[key], arguments[key]), label=f"bad {key}")
    with contextlib.suppress(ValueError):
        make(**chosen)(2, grid, generator=generator(0))
