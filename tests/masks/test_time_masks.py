"""Masks along time: the future, and spans within channels."""

from __future__ import annotations

import pytest
import torch

from jepa.masks.future import FutureMask
from jepa.masks.time_span import TimeSpanMask


def draw(masker, batch, grid, valid=None, seed=0):
    return masker(batch, grid, valid=valid, generator=torch.Generator().manual_seed(seed))


def members(mask, tokens):
    """Context and targets as sets (B, N) bool, of valid entries alone."""
    found = []
    for index, valid in ((mask.context, mask.context_valid), (mask.targets[:, 0], mask.target_valid)):
        valid = torch.ones_like(index, dtype=torch.bool) if valid is None else valid.view_as(index)
        assert index.min() >= 0
        assert index.max() < tokens
        found.append(torch.zeros(len(index), tokens).scatter_add_(1, index, valid.float()))
    assert all(f.max() <= 1 for f in found)
    context, targets = (f.bool() for f in found)
    assert not (context & targets).any()
    assert context.any(dim=1).all()
    assert targets.any(dim=1).all()
    return context, targets


def test_the_future_is_hidden():
    (mask,) = draw(FutureMask(target_share=0.3), 4, (10,))
    context, targets = members(mask, 10)
    assert context[:, :7].all()
    assert targets[:, 7:].all()
    assert mask.context_valid is None
    assert mask.target_valid is None


def test_the_future_is_hidden_in_every_channel():
    context, targets = members(draw(FutureMask(target_share=0.25), 2, (3, 8))[0], 24)
    assert context.view(2, 3, 8)[..., :6].all()
    assert targets.view(2, 3, 8)[..., 6:].all()


def test_padding_does_not_count():
    valid = torch.arange(10) < torch.tensor([10, 6, 2])[:, None]
    (mask,) = draw(FutureMask(target_share=0.5), 3, (10,), valid)
    context, targets = members(mask, 10)
    assert context.sum(dim=1).tolist() == [5, 3, 1]
    assert targets.sum(dim=1).tolist() == [5, 3, 1]
    assert torch.equal(context | targets, valid)
    both = valid[:, None].expand(-1, 2, -1).flatten(1).clone()
    both[0, 10:] = False  # a channel without values
    context, targets = members(draw(FutureMask(target_share=0.5), 3, (2, 10), both)[0], 20)
    assert torch.equal(context | targets, both)


def test_shares_are_drawn_between_bounds():
    masker = FutureMask(target_share=[0.2, 0.6], num_masks=2)
    masks = draw(masker, 200, (10,))
    counts = [members(mask, 10)[1].sum(dim=1) for mask in masks]
    assert set(counts[0].tolist()) == {2, 3, 4, 5, 6}
    assert not torch.equal(*counts)
    for mask in masks:
        context, targets = members(mask, 10)
        assert (context | targets).all()
        assert (mask.context.shape[1], mask.targets.shape[2]) == (8, 6)
    with_padding = draw(masker, 200, (10,), torch.ones(200, 10, dtype=torch.bool))
    assert torch.equal(members(with_padding[1], 10)[1], members(masks[1], 10)[1])  # the same numbers are drawn


@pytest.mark.parametrize("shared", [False, True])
def test_spans_stay_in_their_channel(shared):
    masker = TimeSpanMask(mask_ratio=0.5, mask_length=4, share_channels=shared)
    (mask,) = draw(masker, 50, (3, 16))
    context, targets = members(mask, 48)
    assert (context | targets).all()
    hidden = targets.view(50, 3, 16)
    assert hidden.sum(dim=2).eq(8).all()
    starts = (hidden & ~hidden.roll(1, dims=2)).sum(dim=2)  # on a ring
    assert starts.max() == 2
    assert starts.min() >= 1
    assert torch.equal(hidden[:, 0], hidden[:, 1]) == shared


def test_spans_leave_padding_out():
    valid = (torch.arange(16) < torch.tensor([16, 9, 2])[:, None])[:, None].expand(-1, 2, -1).flatten(1)
    for shared in (False, True):
        (mask,) = draw(TimeSpanMask(mask_ratio=0.5, mask_length=2, share_channels=shared), 3, (2, 16), valid)
        context, targets = members(mask, 32)
        assert torch.equal(context | targets, valid)
        assert targets.view(3, 2, 16).sum(dim=2).tolist() == [[8, 8], [4, 4], [1, 1]]


def test_on_one_axis_it_is_the_span_mask():
    masker = TimeSpanMask(mask_ratio=0.5, mask_length=2)
    assert members(draw(masker, 3, (12,))[0], 12)[1].sum(dim=1).tolist() == [6, 6, 6]


def test_mistakes():
    with pytest.raises(ValueError, match=r"target_share=1.0"):
        FutureMask(target_share=1.0)
    with pytest.raises(ValueError, match=r"target_share=\[0.5, 0.2\]"):
        FutureMask(target_share=[0.5, 0.2])
    with pytest.raises(ValueError, match="num_masks must be at least 1"):
        FutureMask(num_masks=0)
    for masker in (FutureMask(), TimeSpanMask()):
        with pytest.raises(ValueError, match="at least 2 tokens along time"):
            masker(2, (3, 1))
