"""Masks along time: spans of sequences and of channels, the future, and moments and bands of spectrograms."""

from __future__ import annotations

import pytest
import torch
from hydra.utils import instantiate

from jepa.checkpoint.moved import upgrade
from jepa.masks.future import FutureMask
from jepa.masks.hidden_tokens import fixed_size_indices
from jepa.masks.span import SpanMask
from jepa.masks.time_frequency import SpectrogramMask
from jepa.masks.time_span import TimeSpanMask


def draw(masker, batch, grid, valid=None, seed=0):
    return masker(batch, grid, valid=valid, generator=torch.Generator().manual_seed(seed))


def members(mask, tokens, all_predict=True):
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
    assert targets.any(dim=1).all() or not all_predict
    return context, targets


@pytest.mark.parametrize(("ratio", "length"), [(0.6, 1), (0.5, 4), (0.75, 7), (0.02, 3), (0.99, 1)])
def test_every_token_is_hidden_equally_often(ratio, length):
    mask = draw(SpanMask(mask_ratio=ratio, mask_length=length, wrap=length > 1), 8000, (30,))[0]
    assert mask.context_valid is None
    assert mask.target_valid is None
    both = torch.cat([mask.context, mask.targets[:, 0]], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(30).expand(8000, -1))  # in bounds, disjoint, and nothing is left out
    size = mask.targets.shape[2]
    assert abs(size - ratio * 30) <= max(length / 2, 1)
    share = torch.bincount(mask.targets.flatten(), minlength=30) / 8000
    assert (share - size / 30).abs().max() < 0.03


@pytest.mark.parametrize("wrap", [True, False])
def test_what_is_hidden_are_spans(wrap):
    mask = draw(SpanMask(mask_ratio=0.4, mask_length=4, wrap=wrap), 4000, (40,))[0]
    hidden = torch.zeros(4000, 40, dtype=torch.int64).scatter_(1, mask.targets[:, 0], 1)
    before = hidden.roll(1, dims=1) if wrap else torch.nn.functional.pad(hidden, (1, 0))[:, :-1]
    starts = ((hidden - before) == 1).sum(dim=1)
    assert hidden.sum(dim=1).unique().tolist() == [16]
    assert starts.max() <= 4
    assert starts.float().mean() > 2.5  # spans may touch, but are not one block
    if not wrap:
        runs = [len(run) for row in hidden.tolist() for run in "".join(map(str, row)).split("0") if run]
        assert not any(run % 4 for run in runs)
        share = hidden.float().mean(dim=0)
        torch.testing.assert_close(share, share.flip(0), atol=0.03, rtol=0)
        assert abs(share[0] - 4 / (4 + 24)) < 0.02  # as the docstring says


@pytest.mark.parametrize(
    ("length", "patch", "steps", "warned"), [(20, 4, 20, False), (4, 4, 4, False), (10, 4, 8, True), (1, 4, 4, True)]
)
def test_lengths_are_time_steps_of_whole_tokens(length, patch, steps, warned, caplog):
    """Windows of 100 steps; today's 20 steps of mask_length are not 20 tokens of 4 steps each."""
    masker = SpanMask(mask_ratio=0.2, mask_length=length, steps_per_token=patch)
    hidden = members(draw(masker, 500, (100 // patch,))[0], 100 // patch)[1].repeat_interleave(patch, dim=1)
    runs = [len(run) for row in hidden.int().tolist() for run in "".join(map(str, row)).split("0") if run]
    assert min(runs) == steps
    assert not any(run % steps for run in runs)
    assert abs(hidden.sum(dim=1).float().mean() - 20) <= steps / 2
    assert (f"mask_length={length} is no whole number of tokens of {patch} time steps" in caplog.text) == warned


def test_masks_of_stored_runs_are_drawn_as_they_were():
    stored = {
        "jepa.masks.SpanMask": ({"mask_ratio": 0.5, "mask_length": 3}, (12,), [0, 6, 7, 8, 10, 11]),
        "jepa.masks.time_span.TimeSpanMask": (
            {"mask_ratio": 0.5, "mask_length": 2},
            (2, 6),
            [0, 3, 4, 5, 8, 9, 10, 11],
        ),
        "jepa.masks.spectrogram.SpectrogramMask": (
            {"time_length": 2},
            (3, 6),
            [0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 16, 17],
        ),
    }
    for target, (settings, grid, expected) in stored.items():
        config = upgrade({"_target_": target, **settings})
        assert config["wrap"] is True
        assert upgrade(config | {"wrap": False})["wrap"] is False
        masker = instantiate(config)
        assert draw(masker, 2 if len(grid) == 1 else 1, grid, seed=5)[0].targets[0, 0].tolist() == expected


@pytest.mark.parametrize(("ratio", "length"), [(0.5, 1), (0.5, 3), (0.95, 5)])
def test_padding_is_neither_seen_nor_predicted(ratio, length):
    """Samples of 0 to 20 tokens, with gaps; those of two and more have both a context and a target."""
    valid = torch.rand(400, 20, generator=torch.Generator().manual_seed(1)) < torch.linspace(0, 1, 400)[:, None]
    for wrap in (True, False):
        check_padding(draw(SpanMask(mask_ratio=ratio, mask_length=length, wrap=wrap), 400, (20,), valid)[0], valid)


def check_padding(mask, valid):
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
    whole = draw(masker, 4, (12,), valid)[0]
    alone = valid.clone()
    alone[2:] = True
    part = draw(masker, 4, (12,), alone)[0]
    assert torch.equal(whole[:2].context, part[:2].context)
    assert torch.equal(whole[:2].targets, part[:2].targets)
    assert torch.equal(whole[:2].target_valid, part[:2].target_valid)


def test_pack_drops_surplus_evenly():
    members = torch.tensor([[True, False, True, True, True]]).expand(6000, -1)
    index, real = fixed_size_indices(members, 2, torch.Generator().manual_seed(0))
    assert real.all()
    share = torch.bincount(index.flatten(), minlength=5) / 6000
    assert torch.allclose(share, torch.tensor([0.5, 0, 0.5, 0.5, 0.5]), atol=0.02)
    index, real = fixed_size_indices(members[:1], 6)
    assert index[real].tolist() == [0, 2, 3, 4]
    index, real = fixed_size_indices(torch.zeros(1, 3, dtype=torch.bool), 2)
    assert not real.any()
    assert index.max() < 3


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
    starts = (hidden & ~torch.nn.functional.pad(hidden, (1, 0))[..., :-1]).sum(dim=2)
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


@pytest.mark.parametrize("grid", [(5, 16), (1, 16), (4, 7), (8, 2)])
@pytest.mark.parametrize("pad", [False, True])
def test_spectrogram_masks_hide_whole_moments_and_bands_and_never_padding(grid, pad):
    rows, columns = grid
    masker = SpectrogramMask(time_share=0.4, time_length=2, frequency_share=0.25, num_masks=2)
    valid = None
    if pad:
        lengths = torch.arange(64) % columns + 1
        valid = (torch.arange(columns) < lengths[:, None]).repeat(1, rows)
    masks = draw(masker, 64, grid, valid)
    assert len(masks) == 2
    for mask in masks:
        seen, asked = members(mask, rows * columns, all_predict=False)
        assert torch.equal(seen | asked, torch.ones_like(seen) if valid is None else valid)
        grids = seen.unflatten(1, grid)
        outer = grids.any(dim=2, keepdim=True) & grids.any(dim=1, keepdim=True)
        assert torch.equal(grids, outer)  # what is seen is rows times columns


def test_spectrogram_masks_draw_the_same_numbers_whatever_the_padding():
    masker, short = SpectrogramMask(), torch.ones(4, 80, dtype=torch.bool)
    short[1:] = (torch.arange(16) < 3).repeat(5)
    states = []
    for valid in (torch.ones(4, 80, dtype=torch.bool), short):
        generator = torch.Generator().manual_seed(0)
        [mask] = masker(4, (5, 16), valid=valid, generator=generator)
        states.append((mask.context[0], mask.targets.shape, generator.get_state()))
    assert torch.equal(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]
    assert torch.equal(states[0][2], states[1][2])


def test_spectrogram_masks_cover_the_grid_evenly():
    [mask] = draw(SpectrogramMask(time_share=0.5, time_length=2, frequency_share=0.25, wrap=True), 4000, (4, 8))
    share = members(mask, 32)[0].float().mean(dim=0)
    assert torch.allclose(share, torch.full((32,), 0.375), atol=0.03)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SpanMask(mask_ratio=0.0), "model.mask.mask_ratio"),
        (lambda: SpanMask(mask_ratio=1.0), "model.mask.mask_ratio"),
        (lambda: SpanMask(mask_length=0), "model.mask.mask_length"),
        (lambda: SpanMask(steps_per_token=0), "model.mask.steps_per_token"),
        (lambda: SpanMask(num_masks=0), "model.mask.num_masks"),
        (lambda: SpanMask()(3, (1,)), "at least 2 tokens"),
        (lambda: TimeSpanMask()(2, (3, 1)), "at least 2 tokens along time"),
        (lambda: FutureMask()(2, (3, 1)), "at least 2 tokens along time"),
        (lambda: FutureMask(target_share=1.0), r"target_share=1.0"),
        (lambda: FutureMask(target_share=[0.5, 0.2]), r"target_share=\[0.5, 0.2\]"),
        (lambda: FutureMask(num_masks=0), "num_masks must be at least 1"),
        (lambda: SpectrogramMask(time_share=0.0, frequency_share=0.5)(2, (1, 16)), "hide nothing"),
        (lambda: SpectrogramMask()(2, (16,)), "got 1 axes"),
        (lambda: SpectrogramMask(time_share=0.0, frequency_share=0.0), "both 0"),
        (lambda: SpectrogramMask(time_share=1.0), "time_share"),
        (lambda: SpectrogramMask(num_masks=0), "num_masks"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
