"""The trunk behind stems: timm's arithmetic, rotations, no leak, padding, and targets of several layers."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from timm.models.vision_transformer import Block as TimmBlock
from torch import nn

from jepa.losses import L1, Invariance, Objective
from jepa.masks.span import SpanMask
from jepa.models import EMATarget, LeJEPA, MaskedJEPA, Predictor, StopGradientTarget, TransformerEncoder
from jepa.models.positions import RotaryPositions, SinCosPositions, sincos_positions
from jepa.models.transformer import Block
from jepa.optim import Constant
from jepa.trainer.precision import Precision
from jepa.types import StepRandomness
from jepa.utils.tensors import layer_norm, masked_mean


class Patches(nn.Module):
    """Patches of 2 steps of series (B, C, T); NaN is padding."""

    def __init__(self, *, embed_dim: int, channels: int = 1) -> None:
        super().__init__()
        self.project = nn.Linear(2 * channels, embed_dim)
        self.token_values = 2 * channels

    def grid(self, x):
        return (x.shape[-1] // 2,)

    def token_inputs(self, x):
        return x.unflatten(2, (-1, 2)).transpose(1, 2).flatten(2)

    def token_valid(self, x):
        return ~self.token_inputs(x).isnan().all(dim=-1)

    def forward(self, x):
        return self.project(self.token_inputs(x).nan_to_num())


def encoder(**settings):
    torch.manual_seed(0)
    sizes = {"embed_dim": 24, "depth": 3, "num_heads": 2, **settings}
    return TransformerEncoder(stem=Patches, **sizes).eval()


def test_a_block_computes_what_timms_does():
    torch.manual_seed(0)
    theirs = TimmBlock(dim=24, num_heads=3, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))
    ours = Block(embed_dim=24, num_heads=3)
    ours.load_state_dict(theirs.state_dict())
    x, valid = torch.randn(2, 7, 24), torch.rand(2, 1, 1, 7) > 0.3
    assert torch.allclose(ours(x, valid), theirs(x, attn_mask=valid), atol=1e-6)


def test_explicit_attention_is_the_fused_one_and_is_chosen_in_bf16_on_cpus():
    predictor = Predictor(encoder=encoder(), embed_dim=24, depth=2, num_heads=2, positions="rotary")
    valid = torch.arange(8) < torch.tensor([8, 5])[:, None]
    mask = SpanMask(mask_ratio=0.5)(2, (8,), valid=valid)[0]
    context = torch.randn(2, mask.context.shape[1], 24)
    fused = predictor(context, mask, (8,))
    Precision("bf16", torch.device("cpu")).choose_attention(predictor)
    assert not any(block.attn.fused_attn for block in predictor.blocks)
    assert torch.allclose(predictor(context, mask, (8,)), fused, atol=1e-5)


def test_sincos_positions_by_hand_on_two_axes():
    positions = sincos_positions(8, (3, 5))
    assert positions.shape == (15, 8)
    row, column = 2, 4
    code = positions[row * 5 + column]
    expected = []
    for place in (column, row):  # the last axis first
        angles = [place, place / 100]  # 10000^0 and 10000^(-1/2)
        expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    assert torch.allclose(code, torch.tensor(expected), atol=1e-6)


@pytest.mark.parametrize("grid", [(7,), (4, 6), (2, 3, 4)])
def test_every_cell_has_sincos_positions_of_its_own(grid):
    positions = sincos_positions(48, grid)
    assert torch.unique(positions, dim=0).shape[0] == math.prod(grid)


def test_sincos_positions_have_no_state_and_follows_the_grid():
    module = SinCosPositions(8)
    assert not module.state_dict()
    assert module((2, 2), torch.device("cpu")).shape == (4, 8)
    assert module((3, 2), torch.device("cpu")).shape == (6, 8)
    with pytest.raises(ValueError, match="divisible by 4, got 6"):
        sincos_positions(6, (2, 2))


@pytest.mark.parametrize("grid", [(12,), (3, 4), (2, 3, 2)])
def test_rotated_scores_depend_on_differences_alone(grid):
    rotary = RotaryPositions(14)
    rotate = rotary.rotation(grid, torch.device("cpu"))
    query, key = torch.randn(2, 14)
    turned = [rotate(v.expand(1, 1, 12, 14))[0, 0].view(*grid, 14) for v in (query, key)]
    assert torch.allclose(turned[0].norm(dim=-1), query.norm().expand(grid), atol=1e-5)
    one = tuple(slice(None, -1) for _ in grid)
    other = tuple(slice(1, None) for _ in grid)
    first = tuple(0 for _ in grid)
    scores = (turned[0][one] * turned[1][other]).sum(dim=-1)
    assert torch.allclose(scores, scores[first].expand_as(scores), atol=1e-5)
    kept = torch.tensor([[7, 2, 11]])
    few = rotary.rotation(grid, torch.device("cpu"), kept)(query.expand(1, 1, 3, 14))
    assert torch.equal(few[0, 0], turned[0].reshape(12, 14)[kept[0]])


def test_the_tiled_convention_repeats_angles_by_halves():
    """Of adjacent channels the published code turns the first by one angle and the second by another."""
    x = torch.zeros(1, 1, 3, 8)
    x[..., 0] = 1
    turned = RotaryPositions(8, convention="tiled").rotation((3,), torch.device("cpu"))(x)[0, 0]
    angles = torch.arange(3) * torch.tensor([1.0, 0.1, 0.01, 0.001]).unsqueeze(1)
    assert torch.allclose(turned[:, 0], angles[0].cos())
    assert torch.allclose(turned[:, 1], angles[1].sin(), atol=1e-6)
    with pytest.raises(ValueError, match="rotary_convention"):
        RotaryPositions(8, convention="both")
    with pytest.raises(ValueError, match="at least 6 channels"):
        RotaryPositions(4).rotation((2, 2, 2), torch.device("cpu"))


@pytest.mark.parametrize("positions", ["sincos", "learned", "rotary"])
def test_hidden_tokens_never_reach_the_context(positions):
    network = encoder(positions=positions, max_length=10)
    x = torch.randn(2, 1, 20, requires_grad=True)
    keep = torch.tensor([[0, 3, 4], [1, 8, 9]])
    network(x, keep=keep).square().sum().backward()
    touched = (x.grad != 0).view(2, 10, 2).any(dim=2)
    assert torch.equal(touched.nonzero()[:, 1].view(2, 3), keep)


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_padding_changes_no_features(positions):
    network = encoder(positions=positions)
    x = torch.randn(1, 1, 12)
    padded = torch.cat([x, torch.full((1, 1, 8), torch.nan)], dim=2)
    assert torch.allclose(network(padded)[:, :6], network(x), atol=1e-5)
    pooled = masked_mean(network(padded), network.token_valid(padded))
    assert torch.allclose(pooled, network(x).mean(dim=1), atol=1e-5)
    keep = torch.tensor([[1, 4, 9]])  # the last one is padding
    assert torch.allclose(network(padded, keep=keep)[:, :2], network(x, keep=keep[:, :2]), atol=1e-5)
    nothing = torch.full((1, 1, 12), torch.nan)
    assert network(nothing).isfinite().all()


def masked(**settings):
    torch.manual_seed(0)
    target = settings.pop("target", partial(EMATarget, momentum=Constant(value=0.9)))
    return MaskedJEPA(
        encoder=encoder(),
        predictor=partial(Predictor, embed_dim=24, depth=2, num_heads=2, **settings),
        target=target,
        mask=SpanMask(mask_ratio=0.5, mask_length=2),
        loss=partial(Objective, terms={"prediction": {"weight": 1.0, "term": L1()}}),
    ).eval()


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_padding_changes_no_loss_and_every_sample_counts_alike(positions):
    """The loss of a padded batch is the mean over its samples, whichever slice of the batch is computed."""
    model = masked(positions=positions)
    x = torch.randn(4, 1, 20)
    for number, length in enumerate((20, 8, 14, 6)):
        x[number, :, length:] = torch.nan

    def loss(start: int, stop: int) -> torch.Tensor:
        rng = StepRandomness(seed=0, step=3, total=4, start=start, count=stop - start)
        return model.loss(model(model.prepare({"x": x[start:stop]}, rng)))["loss"]

    whole = loss(0, 4)
    assert whole.isfinite()
    assert torch.allclose(whole, torch.stack([loss(n, n + 1) for n in range(4)]).mean(), atol=1e-6)
    assert torch.allclose(whole, (loss(0, 2) + loss(2, 4)) / 2, atol=1e-6)
    x[1, :, 8:] = 5.0  # now it is input
    assert not torch.allclose(whole, loss(0, 4))


def test_views_are_pooled_without_padding():
    """LeJEPA embeds a padded view as the view alone, with masks and without."""
    padded = torch.randn(2, 1, 20)
    padded[:, :, 12:] = torch.nan
    for mask in (None, SpanMask(mask_ratio=0.5)):
        torch.manual_seed(0)
        model = LeJEPA(
            encoder=encoder(),
            loss=partial(Objective, terms={"invariance": {"weight": 1.0, "term": Invariance()}}),
            mask=mask,
            allow_collapse=True,
        ).eval()
        batches = ({"views": x[None]} for x in (padded, padded[..., :12]))
        rng = StepRandomness(seed=0, step=0, total=1, start=0, count=1)
        one, other = (model(model.prepare(batch, rng)).embeddings for batch in batches)
        assert one.isfinite().all()
        if mask is None:
            assert torch.allclose(one, other, atol=1e-5)


def test_targets_of_several_layers():
    network, x = encoder(), torch.randn(2, 1, 12)
    outputs = network(x, layers=[0, 1, 2])
    average = StopGradientTarget(encoder=network, average_layers=2)
    wanted = layer_norm((layer_norm(outputs[1]) + layer_norm(outputs[2])) / 2)
    assert torch.allclose(average.targets(network, x), wanted, atol=1e-6)
    assert torch.equal(average.encode(network, x), outputs[2])  # what evaluation reads stays the last layer
    side = StopGradientTarget(encoder=network, concat_layers=[0, 2])
    assert side.out_dim == 48
    assert torch.allclose(side.targets(network, x)[..., :24], layer_norm(outputs[0]), atol=1e-6)
    model = masked(target=partial(EMATarget, momentum=Constant(value=0.9), concat_layers=[0, 2]))
    rng = StepRandomness(seed=0, step=0, total=2, start=0, count=2)
    latents = model(model.prepare({"x": x}, rng))
    assert latents.predictions[0].shape == latents.targets[0].shape
    assert latents.predictions[0].shape[-1] == 48


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"average_layers": 4}, "average_layers=4: expected 1 to 3"),
        ({"concat_layers": [3]}, "blocks from 0 to 2"),
        ({"concat_layers": []}, "blocks from 0 to 2"),
        ({"average_layers": 1, "concat_layers": [0]}, "not both"),
    ],
)
def test_layers_that_are_not_there(change, message):
    with pytest.raises(ValueError, match=message):
        StopGradientTarget(encoder=encoder(), **change)


def test_each_mask_group_has_its_token():
    torch.manual_seed(0)
    predictor = Predictor(encoder=encoder(), embed_dim=24, depth=1, num_heads=2, mask_tokens=2)
    context, mask = torch.randn(1, 3, 24), SpanMask(mask_ratio=0.5)(1, (6,))[0]
    first, second, third = (predictor(context, mask, (6,), group=group) for group in range(3))
    assert not torch.allclose(first, second)
    assert torch.equal(first, third)
    with pytest.raises(ValueError, match="mask_tokens"):
        Predictor(encoder=encoder(), embed_dim=24, num_heads=2, mask_tokens=0)
