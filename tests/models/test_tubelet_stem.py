"""The stem of clips and pictures, positions of clips, and what V-JEPA 2.1 adds to predictor, target and loss."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import nn

from jepa.losses.context_prediction import ContextPrediction
from jepa.losses.objective import Objective
from jepa.losses.regression import L1
from jepa.masks.tubes import BlockGroup, TubeMask
from jepa.models import EMATarget, MaskedJEPA, Predictor, TransformerEncoder
from jepa.models.encoders.tubelet_stem import TubeletStem
from jepa.models.masked_jepa import distance_weights
from jepa.models.positions import RotaryPositions, sincos_positions
from jepa.optim import Constant, Ramp
from jepa.types import Mask, RunLength

X = torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))


def encoder(images=False, **changes):
    stem = functools.partial(TubeletStem, patch_size=4, tubelet_size=2, images=images)
    settings = {"stem": stem, "embed_dim": 24, "depth": 3, "num_heads": 2, "sincos_layout": "half_time"}
    return TransformerEncoder(**{**settings, **changes})


def test_the_stem_is_a_convolution():
    stem = TubeletStem(embed_dim=10, channels=3, patch_size=[4, 8], tubelet_size=2)
    convolution = nn.Conv3d(3, 10, (2, 4, 8), stride=(2, 4, 8))
    with torch.no_grad():
        convolution.weight.copy_(stem.proj.weight.view_as(convolution.weight))
        convolution.bias.copy_(stem.proj.bias)
    assert stem.grid(X) == (2, 4, 2)
    assert torch.allclose(stem(X), convolution(X).flatten(2).transpose(1, 2), atol=1e-5)
    assert torch.equal(stem.token_inputs(X)[0, 0], X[0, :, :2, :4, :8].flatten())


def test_pictures_beside_clips():
    model = encoder(images=True)
    picture = X[:, :, 0]
    assert model.grid(picture) == model.grid(picture[:, :, None]) == (1, 4, 4)
    assert torch.equal(model(picture), model(picture[:, :, None]))
    assert model(X).shape == (2, 32, 24)
    assert model.token_inputs(picture).shape == (2, 16, model.token_values)
    with torch.no_grad():
        before = model(picture), model(X)
        model.stem.modality[1] += 1
        assert not torch.allclose(model(picture), before[0])
        assert torch.equal(model(X), before[1])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X[:, :, 0], r"pictures go with model=vit, model=lejepa, or model.encoder.stem.images=true"),
        (X[:, :, :3], "clips of 3 frames are not whole tubelets of 2: change data.num_frames"),
        (X[..., :15], "15 columns of pixels are not whole patches of 4"),
        (X[:, :2], r"expected clips \(B, 3, T, H, W\)"),
    ],
)
def test_inputs_that_do_not_fit(x, message):
    with pytest.raises(ValueError, match=message):
        encoder()(x)


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_hidden_tokens_leave_no_trace(positions):
    model = encoder(positions=positions)
    x = X.clone().requires_grad_()
    keep = torch.tensor([[0, 5, 9], [1, 30, 31]])
    model(x, keep=keep).square().sum().backward()
    touched = model.token_inputs(x.grad).abs().sum(dim=-1) > 0
    assert torch.equal(touched, torch.zeros(2, 32, dtype=torch.bool).scatter_(1, keep, True))


def test_positions_of_clips_by_hand():
    code = sincos_positions(16, (2, 3, 3), "half_time")[1 * 9 + 2 * 3 + 1]  # time 1, row 2, column 1
    time = [1 * 10000 ** (-k / 4) for k in range(4)]
    expected = [math.sin(a) for a in time] + [math.cos(a) for a in time]
    for place in (2, 1):
        angles = [place, place / 100]
        expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    assert torch.allclose(code, torch.tensor(expected), atol=1e-6)
    code = sincos_positions(8, (2, 3, 3), "uniform_power")[1 * 9 + 2 * 3 + 1]  # 4 channels each, the last ones cut
    expected = [f(place * scale) for place in (1, 2) for f in (math.sin, math.cos) for scale in (1, 0.01)]
    assert torch.allclose(code, torch.tensor(expected), atol=1e-6)
    with pytest.raises(ValueError, match="is for clips, on three axes"):
        sincos_positions(16, (3, 3), "half_time")
    with pytest.raises(ValueError, match="sincos_layout: got 'other'"):
        encoder(sincos_layout="other")


def test_stretched_rotary_positions():
    plain, stretched = RotaryPositions(12), RotaryPositions(12, reference_side=7)
    x, device = torch.randn(1, 1, 2 * 4 * 4, 12), torch.device("cpu")
    every_second = torch.arange(2 * 7 * 7).view(2, 7, 7)[:, ::2, ::2].flatten()[None]
    assert torch.allclose(stretched.rotation((2, 4, 4), device)(x), plain.rotation((2, 7, 7), device, every_second)(x))


def test_levels_have_norms_of_their_own():
    model = encoder(level_layers=[0, 2])
    first, last = model(X, layers=[0, 2])
    assert torch.equal(last, model(X))
    with torch.no_grad():
        model.level_norms[0].bias += 1
        assert torch.allclose(model(X, layers=[0])[0], first + 1, atol=1e-6)
        assert torch.equal(model(X), last)
    with pytest.raises(ValueError, match="end with 2, the last block"):
        encoder(level_layers=[0, 1])


def dense_model(weighted=True, **changes):
    torch.manual_seed(0)
    settings = {
        "embed_dim": 16,
        "depth": 1,
        "sincos_layout": "half_time",
        "context_layers": [0, 2],
        "predict_context": True,
    }
    return MaskedJEPA(
        encoder=encoder(images=True, level_layers=[0, 2]),
        predictor=functools.partial(Predictor, **{**settings, "mask_tokens": 2, "modality_vectors": True, **changes}),
        target=functools.partial(EMATarget, momentum=Constant(value=0.9), concat_layers=[0, 2]),
        mask=TubeMask(groups={"one": BlockGroup(num_blocks=2, spatial_scale=(0.2, 0.3))}),
        loss=lambda **sizes: Objective(
            terms={
                "prediction": {"weight": 1.0, "term": L1()},
                "context": {"weight": 0.5, "term": ContextPrediction(distance=L1(), weighted=weighted)},
            },
            **sizes,
        ),
    )


def test_dense_prediction_trains_every_part():
    model = dense_model()
    masks = model.mask_sampler.masker(2, (2, 4, 4), generator=torch.Generator().manual_seed(0))
    latents = model.latents(X, masks)
    keep, size = masks[0].context.shape[1], masks[0].targets.shape[2]
    assert latents.predictions[0].shape == (2, 1, size, 48)
    assert latents.context.predictions[0].shape == latents.context.targets[0].shape == (2, 1, keep, 48)
    losses = model.loss(latents)
    assert losses["loss"].item() == pytest.approx((losses["loss/prediction"] + 0.5 * losses["loss/context"]).item())
    error = (latents.context.predictions[0] - latents.context.targets[0]).abs().mean(-1)
    assert losses["loss/context"].item() == pytest.approx((error * distance_weights(masks[0], (2, 4, 4))).mean().item())
    flat = dense_model(weighted=False)
    assert flat.loss(flat.latents(X, masks))["loss/context"].item() == pytest.approx(error.mean().item())
    losses["loss"].backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == ["encoder.stem.picture_proj.weight", "encoder.stem.picture_proj.bias"]


def test_dense_targets_are_each_layer_normed():
    model = dense_model()
    targets = model.target.targets(model.encoder, X)
    assert torch.allclose(targets[..., :24].mean(-1), torch.zeros(2, 32), atol=1e-5)
    assert torch.allclose(targets[..., 24:].var(-1, unbiased=False), torch.ones(2, 32), atol=1e-3)


def test_distance_weights():
    mask = Mask(torch.tensor([[0, 1, 7]]), torch.tensor([[[3, 12]]]))  # on 2 x 2 x 4
    wanted = [min(3, math.sqrt(2)), min(2, math.sqrt(1 + 1 + 1)), min(1.0, 9)]  # 12 lies at (1, 1, 0)
    assert torch.allclose(distance_weights(mask, (2, 2, 4)), torch.tensor([[wanted]]).rsqrt())


def test_dense_options_that_do_not_fit():
    with pytest.raises(ValueError, match=r"loss.terms.context reads context"):
        dense_model(predict_context=False)
    with pytest.raises(ValueError, match=r"context_layers=\[0, 1\]: expected rising block numbers .* end with 2"):
        dense_model(context_layers=[0, 1])
    with pytest.raises(ValueError, match="no term of the loss reads them"):
        MaskedJEPA(
            encoder=encoder(),
            predictor=functools.partial(
                Predictor, embed_dim=16, depth=1, sincos_layout="half_time", predict_context=True
            ),
            target=functools.partial(EMATarget, momentum=Constant(value=0.9)),
            mask=None,
            loss=lambda **sizes: Objective(terms={"prediction": {"weight": 1.0, "term": L1()}}, **sizes),
        )


def test_ramp():
    ramp, run_length = Ramp(start=0.0, final=0.5, begin_step=10, end_step=20), RunLength(max_steps=5, steps_per_epoch=1)
    assert [ramp(step, run_length) for step in (0, 10, 15, 20, 99)] == [0.0, 0.0, 0.25, 0.5, 0.5]
    with pytest.raises(ValueError, match="expected 0 <= begin < end"):
        Ramp(start=0.0, final=1.0, begin_step=3, end_step=3)
