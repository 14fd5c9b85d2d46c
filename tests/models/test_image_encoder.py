from __future__ import annotations

import pytest
import torch

from jepa.models import timm_vision_transformer, vision_transformer
from jepa.utils.tensors import gather_tokens


def small(**changes):
    sizes = {"image_size": 16, "channels": 3, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    torch.manual_seed(0)
    return vision_transformer(**{**sizes, **changes}).eval()


@pytest.mark.parametrize(
    ("changes", "shape", "tokens"),
    [
        ({}, (3, 16, 16), 16),
        ({"image_size": [8, 20]}, (3, 8, 20), 10),
        ({"patch_size": [2, 8]}, (3, 16, 16), 16),
        ({"channels": 1, "patch_size": 8}, (1, 16, 16), 4),
    ],
)
def test_any_image_and_patch_size(changes, shape, tokens):
    assert small(**changes)(torch.randn(2, *shape)).shape == (2, tokens, 32)


def test_another_resolution_than_built_for():
    assert small()(torch.randn(1, 3, 24, 32)).shape == (1, 48, 32)


def test_context_features_do_not_see_hidden_pixels():
    encoder, x = small(), torch.randn(2, 3, 16, 16, requires_grad=True)
    keep = torch.tensor([[0, 5, 6], [1, 2, 15]])
    encoder(x, keep=keep).square().sum().backward()
    seen = x.grad.abs().sum(1).unfold(1, 4, 4).unfold(2, 4, 4).sum((-1, -2)).flatten(1) > 0
    expected = torch.zeros(2, 16, dtype=torch.bool).scatter(1, keep, True)
    assert torch.equal(seen, expected)


def test_keeping_all_tokens_in_any_order_is_keeping_none_out():
    encoder, x = small(), torch.randn(2, 3, 16, 16)
    order = torch.stack([torch.randperm(16), torch.randperm(16)])
    assert torch.allclose(encoder(x, keep=order), gather_tokens(encoder(x), order), atol=1e-5)


def test_padding_never_changes_a_result():
    encoder, x = small(), torch.randn(1, 3, 16, 16)
    keep = torch.tensor([[3, 7, 9, 0, 0]])
    valid = torch.tensor([[True, True, True, False, False]])
    padded = encoder(x, keep=keep, valid=valid)[:, :3]
    assert torch.allclose(padded, encoder(x, keep=keep[:, :3]), atol=1e-5)


def test_layers():
    encoder, x = small(depth=3), torch.randn(1, 3, 16, 16)
    first, last = encoder(x, layers=[0, 2])
    assert torch.equal(last, encoder(x))
    assert not torch.allclose(first, last)
    with pytest.raises(ValueError, match=r"layers \[3\] do not exist"):
        encoder(x, layers=[3])


def test_dropouts_are_where_they_are_asked_for():
    x = torch.randn(2, 3, 16, 16)
    for option in ("dropout", "attention_dropout", "drop_path"):
        encoder = small(**{option: 0.5}).train()
        assert not torch.equal(encoder(x), encoder(x)), option
    encoder = small().train()
    assert torch.equal(encoder(x), encoder(x))


def test_init_scales_residual_branches_with_depth():
    encoder = small(embed_dim=256, depth=4, num_heads=4)
    deviations = [block.mlp.fc2.weight.std().item() for block in encoder.vit.blocks]
    expected = [(3 * 1024) ** -0.5 / (2 * layer) ** 0.5 for layer in (1, 2, 3, 4)]  # fan_in 4 x 256
    assert deviations == pytest.approx(expected, rel=0.05)


def test_any_timm_vit_by_name():
    encoder = timm_vision_transformer(name="vit_tiny_patch16_224", image_size=32, channels=1, patch_size=8)
    assert encoder(torch.randn(1, 1, 32, 32)).shape == (1, 16, 192)
    # registers and class token of the named model are left out
    encoder = timm_vision_transformer(name="vit_medium_patch16_reg4_gap_256", image_size=32, channels=3)
    assert encoder(torch.randn(1, 3, 32, 32)).shape == (1, 4, 512)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small(patch_size=5), "does not divide data.image_size=16: use an image size of 15 or 20, or a patch"),
        (lambda: small(patch_size=32), "does not divide"),
        (lambda: small(num_heads=3), "model.encoder.num_heads=3 does not divide the width 32"),
        (lambda: small(image_size=[1, 2, 3]), "positive side or"),
        (lambda: small()(torch.randn(1, 1, 16, 16)), r"expected pictures \(B, 3, H, W\)"),
        (lambda: small()(torch.randn(1, 3, 15, 16)), "does not divide"),
        (
            lambda: timm_vision_transformer(name="vit_tinny_patch16_224", image_size=32, channels=3),
            "timm has no model 'vit_tinny_patch16_224'; it has",
        ),
        (
            lambda: timm_vision_transformer(name="resnet18", image_size=32, channels=3),
            "not one of timm's plain Vision Transformers",
        ),
    ],
)
def test_bad_values(call, message):
    with pytest.raises(ValueError, match=message):
        call()
