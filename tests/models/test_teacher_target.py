"""A frozen teacher: what it sees, what it makes of it, and what is kept of it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from test_masked_jepa import HORIZON, make, rng

from jepa.config.teacher import renormalised
from jepa.models import StopGradientTarget, TeacherTarget, vision_transformer
from jepa.models.targets import resample
from jepa.utils.errors import UserError


def vit(*, dim=32, patch=4, channels=1, **others):
    sizes = {"image_size": 16, "channels": channels, "patch_size": patch, "embed_dim": dim, "depth": 2, "num_heads": 2}
    return vision_transformer(**{**sizes, **others})


def test_the_encoder_as_its_own_teacher_is_a_stopped_gradient():
    """In loss and gradients; it stays in evaluation mode, has none itself, never moves, and is in no state dict."""
    teacher = vit(dropout=0.5)
    stopped = make(target=StopGradientTarget, allow_collapse=True)
    teacher.load_state_dict(stopped.encoder.state_dict())
    taught = make(target=partial(TeacherTarget, teacher=teacher))
    x = {"x": torch.randn(4, 1, 16, 16)}
    losses = [model.train().training_step(x, rng(4))["loss"] for model in (stopped, taught)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    for one, two in zip(stopped.parameters(), [p for p in taught.parameters() if p.requires_grad], strict=True):
        assert torch.equal(one.grad, two.grad)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    assert taught.update_target(0, HORIZON) == {}
    assert taught.momentum_schedule is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in taught.target.parameters())
    assert taught.state_dict().keys() == stopped.state_dict().keys()
    taught.encoder.vit.norm.weight.data.mul_(2)
    assert torch.equal(taught.eval().encode_target(x["x"]), taught.encoder(x["x"]))  # its own features are evaluated


def test_another_width_and_several_blocks():
    for layers, width in (({}, 48), ({"average_layers": 2}, 48), ({"concat_layers": [0, 1]}, 96)):
        model = make(target=partial(TeacherTarget, teacher=vit(dim=48), **layers))
        assert model.predictor.project.out_features == model.target.out_dim == width
        model.training_step({"x": torch.randn(2, 1, 16, 16)}, rng(2))["loss"].backward()
    absent = make(target=partial(TeacherTarget, out_dim=96))
    assert absent.state_dict().keys() == model.state_dict().keys()
    with pytest.raises(ValueError, match="loaded without its teacher"):
        absent.training_step({"x": torch.randn(2, 1, 16, 16)}, rng(2))
    with pytest.raises(ValueError, match="out_dim=7, but the teacher makes targets of width 48: is it another one"):
        make(target=partial(TeacherTarget, teacher=vit(dim=48), out_dim=7))


def test_features_of_another_grid():
    """Means over cells where that of the teacher is finer, else interpolated; refused where tokens may be padding."""
    ramp = torch.arange(16.0).view(1, 16, 1)
    assert torch.equal(resample(ramp, (4, 4), (2, 2)).flatten(), torch.tensor([2.5, 4.5, 10.5, 12.5]))
    assert torch.equal(resample(ramp, (16,), (4,)).flatten(), torch.tensor([1.5, 5.5, 9.5, 13.5]))
    assert torch.equal(resample(ramp[:, :2], (2,), (4,)).flatten(), torch.tensor([0.0, 0.25, 0.75, 1.0]))
    assert torch.equal(resample(torch.ones(2, 12, 3), (3, 2, 2), (2, 5, 4)), torch.ones(2, 40, 3))
    x, teacher = torch.randn(2, 1, 16, 16), vit(patch=2)
    taught = make(target=partial(TeacherTarget, teacher=teacher))
    seen = teacher(x).unflatten(1, (4, 2, 4, 2)).mean(dim=(2, 4)).flatten(1, 2)
    assert torch.allclose(taught.target.teach(taught.encoder, x), seen, atol=1e-6)
    larger = make(target=partial(TeacherTarget, teacher=vit(patch=8), image_size=[32, 32]))
    assert larger.target.teach(larger.encoder, x).shape == (2, 16, 32)
    taught.encoder.token_valid = lambda x: torch.ones(2, 16, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"has tokens on a grid of \(8, 8\), and the model on one of \(4, 4\): give"):
        taught.target.teach(taught.encoder, x)
    five = make(target=partial(TeacherTarget, teacher=vit(patch=5, image_size=20), source="mine.pt"))
    with pytest.raises(ValueError, match=r"mine.pt does not take inputs of shape .*model.target.image_size=<side>"):
        five.target.teach(five.encoder, x)
    with pytest.raises(ValueError, match="no texts, whose ids mean something else"):
        taught.target.teach(taught.encoder, torch.zeros(2, 16, dtype=torch.long))


def test_pixels_as_the_teacher_knows_them():
    raw = torch.rand(2, 3, 4, 16, 16)  # clips
    own, theirs = ([0.5], [0.25]), ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])

    def normalised(x, mean, std):
        mean, std = (torch.tensor(v).view(-1, 1, 1, 1) for v in (mean, std))
        return (x - mean) / std

    scale, shift = renormalised(own, theirs, 3)
    target = TeacherTarget(encoder=vit(), out_dim=1, scale=scale, shift=shift, image_size=[8, 12])
    seen = target.teacher_input(normalised(raw, *own))
    frames = [
        torch.nn.functional.interpolate(frame, (8, 12), mode="bilinear", antialias=True)
        for frame in normalised(raw, *theirs).unbind(2)
    ]
    assert torch.allclose(seen, torch.stack(frames, dim=2), atol=1e-5)
    grey = TeacherTarget(encoder=vit(), out_dim=1, scale=scale, shift=shift)
    repeated = normalised(raw[:, :1].expand(-1, 3, -1, -1, -1), *theirs)
    assert torch.allclose(grey.teacher_input(normalised(raw[:, :1], *own)), repeated, atol=1e-5)
    assert renormalised(own, ([0.5], [0.25]), 3) == renormalised((None, None), theirs, 3) == (None, None)
    assert renormalised((None, None), theirs, 3, repeat=True) == ([1.0] * 3, [0.0] * 3)
    with pytest.raises(UserError, match="differ in length"):
        renormalised(([0.1, 0.2], [1.0, 1.0]), theirs, 3)
