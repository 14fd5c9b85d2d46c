"""Span masks and packing: exact shares, uniform coverage, padding."""

from __future__ import annotations

import pytest
import torch

from jepa.masks.hidden_tokens import fixed_size_indices
from jepa.masks.span import SpanMask


def draw(masker, batch, tokens, valid=None, seed=0):
    return masker(batch, (tokens,), valid=valid, generator=torch.Generator().manual_seed(seed))[0]


@pytest.mark.parametrize(("ratio", "length"), [(0.6, 1), (0.5, 4), (0.75, 7), (0.02, 3), (0.99, 1)])
def test_every_token_is_hidden_equally_often(ratio, length):
    mask = draw(SpanMask(mask_ratio=ratio, mask_length=length), 8000, 30)
    assert mask.context_valid is None
    assert mask.target_valid is None
    both = torch.cat([mask.context, mask.targets[:, 0]], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(30).expand(8000, -1))  # in bounds, disjoint, and nothing is left out
    size = mask.targets.shape[2]
    assert abs(size - ratio * 30) <= max(length / 2, 1)
    share = torch.bincount(mask.targets.flatten(), minlength=30) / 8000
    assert (share - size / 30).abs().max() < 0.03


def test_what_is_hidden_are_spans():
    mask = draw(SpanMask(mask_ratio=0.4, mask_length=4), 500, 40)
    hidden = torch.zeros(500, 40, dtype=torch.int64).scatter_(1, mask.targets[:, 0], 1)
    starts = ((hidden - hidden.roll(1, dims=1)) == 1).sum(dim=1)  # on the ring
    assert hidden.sum(dim=1).unique().tolist() == [16]
    assert starts.max() <= 4
    assert starts.float().mean() > 2.5  # spans may touch, but are not one block


@pytest.mark.parametrize(("ratio", "length"), [(0.5, 1), (0.5, 3), (0.95, 5)])
def test_padding_is_neither_seen_nor_predicted(ratio, length):
    """Samples of 0 to 20 tokens, with gaps; those of two and more have both a context and a target."""
    valid = torch.rand(400, 20, generator=torch.Generator().manual_seed(1)) < torch.linspace(0, 1, 400)[:, None]
    mask = draw(SpanMask(mask_ratio=ratio, mask_length=length), 400, 20, valid)
    for number in range(400):
        seen = mask.context[number][mask.context_valid[number]].tolist()
        wanted = mask.targets[number, 0][mask.target_valid[number, 0]].tolist()
        assert sorted(seen + wanted) == valid[number].nonzero().flatten().tolist()
        if valid[number].sum() > 1:
            assert seen
            assert wanted


def test_padding_of_others_changes_nothing():
    """What a rank does not know of the others' samples must not matter to its own."""
    valid = torch.arange(12) < torch.tensor([12, 5, 9, 3])[:, None]
    masker = SpanMask(mask_ratio=0.5, mask_length=2)
    whole = draw(masker, 4, 12, valid)
    alone = valid.clone()
    alone[2:] = True
    part = draw(masker, 4, 12, alone)
    assert torch.equal(whole[:2].context, part[:2].context)
    assert torch.equal(whole[:2].targets, part[:2].targets)
    assert torch.equal(whole[:2].target_valid, part[:2].target_valid)


def test_pack_drops_surplus_evenly():
    members = torch.tensor([[True, False, True, True, True]]).expand(6000, -1)
    index, real = fixed_size_indices(members, 2, torch.Generator().manual_seed(0))
    assert real.all()
    assert (
        torch.bincount(index.flatten(), minlength=5) / 6000 - torch.tensor([0.5, 0, 0.5, 0.5, 0.5])
    ).abs().max() < 0.02
    index, real = fixed_size_indices(members[:1], 6)
    assert index[real].tolist() == [0, 2, 3, 4]
    index, real = fixed_size_indices(torch.zeros(1, 3, dtype=torch.bool), 2)
    assert not real.any()
    assert index.max() < 3


@pytest.mark.parametrize("change", [{"mask_ratio": 0.0}, {"mask_ratio": 1.0}, {"mask_length": 0}, {"num_masks": 0}])
def test_values_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=f"model.mask.{next(iter(change))}"):
        SpanMask(**change)
    with pytest.raises(ValueError, match="at least 2 tokens"):
        SpanMask()(3, (1,))
