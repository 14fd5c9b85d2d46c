"""Encoders of series: tokens, missing values and padding, and that hidden tokens leave no trace."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.nn import functional as F

from jepa.masks import SpanMask
from jepa.models import Predictor
from jepa.models.encoders import TransformerEncoder
from jepa.models.encoders.series_stem import SeriesStem
from jepa.models.encoders.temporal_cnn import DilatedBlock, TemporalCNN
from jepa.utils.tensors import masked_mean

NAN = float("nan")


def make(kind, *, channels=2, patch_size=4, **options):
    stem = functools.partial(
        SeriesStem, channels=channels, patch_size=patch_size, **{k: options.pop(k) for k in STEM & options.keys()}
    )
    torch.manual_seed(0)
    if kind == "cnn":
        return TemporalCNN(stem=stem, embed_dim=16, depth=4, **options)
    return TransformerEncoder(stem=stem, embed_dim=16, depth=2, num_heads=2, **options)


STEM = {"channel_independent", "missing"}
KINDS = [(kind, independent) for kind in ("cnn", "transformer") for independent in (False, True)]
both = pytest.mark.parametrize(("kind", "independent"), KINDS)


@both
def test_grid_and_tokens(kind, independent):
    encoder = make(kind, channel_independent=independent)
    x = torch.randn(3, 2, 18)
    assert encoder.grid(x) == ((2, 5) if independent else (5,))
    tokens = 10 if independent else 5
    assert encoder(x).shape == (3, tokens, 16)
    inputs = encoder.token_inputs(x)
    assert inputs.shape == (3, tokens, encoder.token_values)
    first = x[0, :, :4].flatten() if not independent else x[0, 0, :4]
    assert torch.equal(inputs[0, 0], first)
    assert inputs[:, -1, -2:].eq(0).all()  # 18 is no multiple of 4
    assert len(encoder(x, layers=[0, 1])) == 2
    torch.testing.assert_close(encoder(x, layers=[encoder.depth - 1])[0], encoder(x))
    with pytest.raises(ValueError, match="do not exist"):
        encoder(x, layers=[99])


@both
def test_hidden_inputs_have_no_gradient_and_change_nothing(kind, independent):
    encoder = make(kind, channel_independent=independent)
    x = torch.randn(4, 2, 32, requires_grad=True)
    keep = torch.stack([torch.randperm(8)[:3].sort().values for _ in range(4)])
    if independent:
        keep = keep + 8 * torch.arange(2).repeat(2)[:, None]
    features = encoder(x, keep=keep)
    features.square().sum().backward()
    seen = torch.zeros(4, 16 if independent else 8, dtype=torch.bool).scatter_(1, keep, True)
    steps = seen.view(4, -1, 8).repeat_interleave(4, dim=2).expand(4, 2, 32)
    assert x.grad[~steps].eq(0).all()
    assert x.grad[steps].ne(0).any(dim=-1).all()
    for value in (1e6, NAN):
        changed = x.detach().masked_fill(~steps, value)
        assert torch.equal(encoder(changed, keep=keep, valid=torch.ones_like(keep, dtype=torch.bool)), features)


@both
def test_padding_never_changes_a_result(kind, independent):
    encoder = make(kind, channel_independent=independent).eval()
    short, long = torch.randn(1, 2, 12), torch.randn(1, 2, 28)
    batch = torch.cat([F.pad(short, (0, 16), value=NAN), long])
    alone, together = encoder(short), encoder(batch)
    valid = encoder.token_valid(batch)
    assert valid[0].view(-1, 7).sum(dim=1).eq(3).all()
    assert valid[1].all()
    torch.testing.assert_close(together[0][valid[0]], alone[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[1], encoder(long)[0], atol=1e-5, rtol=1e-5)
    pooled = masked_mean(together, valid)
    torch.testing.assert_close(pooled[0], masked_mean(alone)[0], atol=1e-5, rtol=1e-5)


@both
def test_padding_among_kept_tokens_never_changes_a_result(kind, independent):
    encoder = make(kind, channel_independent=independent).eval()
    x = torch.randn(2, 2, 32)
    x[0, :, 16:] = NAN
    grid, valid = encoder.grid(x), encoder.token_valid(x)
    (mask,) = SpanMask(mask_ratio=0.5, mask_length=2)(2, grid, valid=valid, generator=torch.Generator().manual_seed(0))
    features = encoder(x, keep=mask.context, valid=mask.context_valid)
    real = mask.context_valid[0]
    assert 0 < real.sum() < len(real)
    alone = encoder(x[:1], keep=mask.context[:1, real])
    torch.testing.assert_close(features[0][real], alone[0], atol=1e-5, rtol=1e-5)


@both
def test_missing_values_are_not_the_mean(kind, independent):
    x = torch.randn(2, 2, 16)
    gap, mean = x.clone(), x.clone()
    gap[0, 0, 5:7], mean[0, 0, 5:7] = NAN, 0.0
    marked = make(kind, channel_independent=independent)
    assert marked(gap).isfinite().all()
    assert not torch.allclose(marked(gap)[0], marked(mean)[0])
    assert torch.equal(marked(gap)[1], marked(mean)[1])
    plain = make(kind, channel_independent=independent, missing="zero")
    assert torch.equal(plain(gap), plain(mean))


def test_a_block_reads_nothing_where_it_is_hidden_and_leaves_zeros_there():
    block = DilatedBlock(embed_dim=6, kernel_size=3, dilation=2)
    x, visible = torch.randn(2, 9, 6), torch.ones(2, 9, 1, dtype=torch.bool)
    assert block.convolve.dilation == (2,)
    visible[0, 4] = False
    result = block(x, visible)
    assert result[0, 4].eq(0).all()
    assert result[1].ne(0).all()
    assert torch.equal(block(x.masked_fill(~visible, 9.0), visible), result)
    whole = block(x, torch.ones_like(visible))
    same = torch.isclose(result[0], whole[0], atol=1e-6).all(dim=1)
    assert same.tolist() == [True, True, False, True, False, True, False, True, True]


def test_the_cnn_sees_as_far_as_its_dilations_reach():
    encoder = make("cnn", max_dilation=8)
    assert [block.convolve.dilation for block in encoder.blocks] == [(1,), (2,), (4,), (8,)]
    x = torch.randn(1, 2, 4 * 40, requires_grad=True)
    (encoder(x)[0, 20] * torch.randn(16)).sum().backward()  # a plain sum of what is layer-normed is constant
    seen = x.grad.abs().sum(dim=1).view(40, 4).sum(dim=1).nonzero().flatten()
    assert (seen.min().item(), seen.max().item()) == (5, 35)  # 1 + 2 + 4 + 8 either way


def test_mistakes():
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        make("cnn", kernel_size=4)
    with pytest.raises(ValueError, match="positions: got 'rotary'"):
        make("cnn", positions="rotary")
    with pytest.raises(ValueError, match="patch_size must be at least 1"):
        make("cnn", patch_size=0)
    with pytest.raises(ValueError, match="missing: got 'mean'"):
        make("cnn", missing="mean")
    with pytest.raises(ValueError, match=r"2 channels, time\) of floats, got float32 \(1, 3, 16\)"):
        make("transformer")(torch.zeros(1, 3, 16))
    with pytest.raises(ValueError, match=r"got float32 \(1, 2, 8, 8\)"):
        make("cnn").grid(torch.zeros(1, 2, 8, 8))
    with pytest.raises(ValueError, match=r"model\.predictor\.num_heads: TemporalCNN has none to take over"):
        Predictor(encoder=make("cnn"), embed_dim=16, depth=1)
