"""Parity with the published I-JEPA implementation (shared/fixtures)."""

from __future__ import annotations

import pytest
import torch

from jepa.interop import load_published
from jepa.optim import Cosine, Linear, WarmupCosine, parameter_groups
from jepa.types import Mask, RunLength
from jepa.utils.errors import CheckpointError


def load(path):
    return load_published(path, image_size=32, patch_size=4, num_heads=4)


def close(got, wanted, tolerance=1e-5):
    return (got - wanted).abs().max().item() < tolerance


def on(device, arrays):
    return {name: array.to(device) for name, array in arrays.items()}


@torch.no_grad()
def test_features_predictions_and_loss(published, expected, device, precision):
    model, expected = load(published).to(device), on(device, expected)
    x, mask = expected["image"], Mask(expected["context_index"][:, 0], expected["target_index"])
    latents = model.latents(x, [mask])
    for got, wanted in (
        (model.encoder(x), expected["encoder_full"]),
        (model.encoder(x, keep=mask.context), expected["encoder_context"][:, 0]),
        (model.encode_target(x), expected["target_encoder_full"]),
        (latents.predictions[0], expected["prediction"][:, 0]),
        (latents.targets[0], expected["target"]),
    ):
        assert close(got, wanted, 1e-5 * precision)
    assert model.loss(latents)["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-6 * precision)


def test_six_step_trajectory(published, expected, device):
    model, expected = load(published).to(device).train(), on(device, expected)
    steps_per_epoch, epochs, warmup, stretch = expected["meta"][-4:].tolist()
    run_length = RunLength(max_steps=int(epochs * steps_per_epoch), steps_per_epoch=steps_per_epoch)
    lr = WarmupCosine(start=2e-4, peak=1e-3, final=1e-6, warmup_epochs=warmup, stretch=stretch)
    decay = Cosine(start=0.04, final=0.4, stretch=stretch)
    model.target.momentum = Linear(start=0.996, final=1.0, stretch=stretch)
    optimizer = torch.optim.AdamW(parameter_groups(model), fused=True)
    for step in range(6):
        values = {"lr": lr(step + 1, run_length), "weight_decay": decay(step + 1, run_length)}
        assert values["lr"] == pytest.approx(expected["trajectory_lr"][step].item(), rel=1e-6)
        assert values["weight_decay"] == pytest.approx(expected["trajectory_wd"][step].item(), rel=1e-6)
        for group in optimizer.param_groups:
            group["lr"] = values["lr"]
            group["weight_decay"] = values["weight_decay"] if group["decays"] else 0.0
        mask = Mask(expected[f"step{step}_context_index"][:, 0], expected[f"step{step}_target_index"])
        loss = model.loss(model.latents(expected[f"step{step}_image"], [mask]))["loss"]
        assert loss.item() == pytest.approx(expected["trajectory_loss"][step].item(), rel=1e-4)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        momentum = model.update_target(step, run_length)["momentum"]
        assert momentum == pytest.approx(expected["trajectory_momentum"][step].item(), rel=1e-6)
    with torch.no_grad():
        model.eval()
        assert close(model.encoder(expected["image"]), expected["final_encoder_full"], 1e-4)
        assert close(model.encode_target(expected["image"]), expected["final_target_encoder_full"], 1e-4)


@pytest.mark.faults
def test_other_files_are_refused(published, tmp_path):
    with pytest.raises(CheckpointError, match="patches of 4 x 4 pixels, got patch_size=8"):
        load_published(published, image_size=32, patch_size=8, num_heads=4)
    content = torch.load(published, weights_only=True)
    torch.save({"encoder": content["encoder"]}, tmp_path / "encoder.pth.tar")
    with pytest.raises(CheckpointError, match="is not a published I-JEPA checkpoint"):
        load(tmp_path / "encoder.pth.tar")
    short = tmp_path / "short.pth.tar"
    short.write_bytes(published.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"cannot read the checkpoint .* \(5,000 bytes\)"):
        load(short)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load(tmp_path / "absent.pth.tar")
