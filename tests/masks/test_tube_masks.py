"""V-JEPA's tube masks: shapes fixed by the grid, disjoint, whole tubes, every place reached."""

from __future__ import annotations

import pytest
import torch

from jepa.masks.tubes import BlockGroup, TubeMask

GRIDS = [(8, 14, 14), (4, 4, 4), (2, 7, 5), (1, 14, 14), (14, 14)]


def masker(**changes):
    groups = {
        "short": BlockGroup(num_blocks=8, spatial_scale=(0.15, 0.15)),
        "long": BlockGroup(num_blocks=2, spatial_scale=(0.7, 0.7)),
    }
    images = BlockGroup(num_blocks=10, spatial_scale=(0.15, 0.15))
    return TubeMask(**{"groups": groups, "images": images, **changes})


def draw(mask, batch, grid, seed=0, **others):
    return mask(batch, grid, generator=torch.Generator().manual_seed(seed), **others)


@pytest.mark.parametrize("grid", GRIDS)
def test_bounds_shapes_and_disjoint(grid):
    tokens = torch.Size(grid).numel()
    sizes = []
    for batch in (3, 17):
        masks = draw(masker(), batch, grid)
        assert len(masks) == (2 if len(grid) == 3 and grid[0] > 1 else 1)
        sizes.append([(m.context.shape[1:], m.targets.shape[1:]) for m in masks])
        for mask in masks:
            for context, targets in zip(mask.context.tolist(), mask.targets.tolist()):
                assert len(targets) == 1
                assert len(set(context)) == len(context) >= 1
                assert len(set(targets[0])) == len(targets[0]) >= 1
                assert not set(context) & set(targets[0])
                assert 0 <= min(context + targets[0]) <= max(context + targets[0]) < tokens
    assert sizes[0] == sizes[1]


def test_shares_are_about_those_published_and_fewer_tokens_are_lost():
    """Published, at a batch of 24: short sees 23.4 % and predicts 48.1 %, long 7.2 % and 70.1 % (measured there)."""
    short, long = draw(masker(), 64, (8, 14, 14))
    assert short.context.shape[1] / 1568 == pytest.approx(0.24, abs=0.08)
    assert short.targets.shape[2] / 1568 == pytest.approx(0.58, abs=0.12)
    assert long.context.shape[1] / 1568 == pytest.approx(0.06, abs=0.05)
    assert long.targets.shape[2] / 1568 == pytest.approx(0.78, abs=0.1)
    assert short.context.shape[1] + short.targets.shape[2] > 0.75 * 1568


def test_blocks_last_through_the_clip_and_reach_every_place():
    (mask,) = masker(groups={"one": BlockGroup(num_blocks=1, spatial_scale=(0.25, 0.25), aspect_ratio=(1, 1))})(
        400, (3, 4, 4), generator=torch.Generator().manual_seed(0)
    )
    hidden = torch.zeros(400, 48, dtype=torch.bool).scatter_(1, mask.targets[:, 0], True).view(400, 3, 4, 4)
    assert torch.equal(hidden.any(dim=1), hidden.all(dim=1))
    assert mask.targets.shape[2] == 12
    assert hidden[:, 0].float().mean(dim=0).min() > 0.08  # corners lie in one of nine blocks
    assert mask.context.shape[1] == 36


def test_surplus_is_not_dropped_from_the_late_frames():
    short, _ = draw(masker(), 300, (8, 6, 6))
    frames = (short.context // 36).flatten().bincount(minlength=8).float()
    assert frames.min() / frames.max() > 0.9


def test_temporal_scale_and_max_temporal_keep():
    group = BlockGroup(num_blocks=1, spatial_scale=(0.5, 0.5), temporal_scale=(0.5, 0.5))
    (mask,) = draw(TubeMask(groups={"half": group}, max_temporal_keep=0.25), 50, (8, 4, 4))
    assert (mask.context // 16).max() < 2
    assert (mask.targets // 16).amax(dim=-1).sub((mask.targets // 16).amin(dim=-1)).max() < 4


def test_padding_and_a_repeatable_draw():
    valid = torch.ones(6, 64, dtype=torch.bool)
    valid[:, 48:] = False
    with_padding, without = draw(masker(), 6, (4, 4, 4), valid=valid), draw(masker(), 6, (4, 4, 4))
    for padded, mask in zip(with_padding, without):
        assert torch.equal(padded.context, mask.context)
        assert torch.equal(padded.context_valid, mask.context < 48)
        assert torch.equal(padded.target_valid, mask.targets < 48)
    assert not torch.equal(draw(masker(), 6, (4, 4, 4), seed=1)[0].targets, without[0].targets)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"model.mask.groups.all: 1 blocks of 1 to 1 of a frame leave fewer than 1 of"):
        draw(
            TubeMask(groups={"all": BlockGroup(num_blocks=1, spatial_scale=(1, 1), aspect_ratio=(1, 1))}), 2, (4, 4, 4)
        )
    with pytest.raises(ValueError, match="on three axes, got a grid of"):
        draw(masker(), 2, (16,))
    with pytest.raises(ValueError, match="groups is empty"):
        TubeMask(groups={"short": None})
    with pytest.raises(ValueError, match=r"expected .low, high."):
        BlockGroup(num_blocks=1, spatial_scale=(0.0, 0.5))
