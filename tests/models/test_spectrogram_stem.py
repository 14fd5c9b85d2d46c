"""Log-mel spectrograms, their patches: what padding and hidden tokens must not do."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from jepa.models import TransformerEncoder
from jepa.models.encoders.spectrogram_stem import SpectrogramStem
from jepa.utils.log_mel import LogMel
from jepa.utils.tensors import gather_tokens, masked_mean

FRONT = {"sample_rate": 8000, "n_fft": 256, "hop_length": 100, "mel_bins": 20, "mean": -3.0, "std": 2.0}


def encoder(patch_size=(10, 4), **changes) -> TransformerEncoder:
    torch.manual_seed(0)
    stem = partial(SpectrogramStem, spectrogram=LogMel(**FRONT), patch_size=patch_size)
    return TransformerEncoder(**{"stem": stem, "embed_dim": 32, "depth": 2, "num_heads": 2, **changes}).eval()


def padded(wave: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(wave, (0, length - wave.shape[-1]), value=float("nan"))


def test_log_mel_is_that_of_the_library():
    from transformers.audio_utils import mel_filter_bank, spectrogram

    wave = torch.randn(1, 1, 3000)
    window = np.hanning(257)[:-1]
    bank = mel_filter_bank(129, 20, 0.0, 4000.0, 8000, norm=None, mel_scale="slaney")
    power = spectrogram(
        wave[0, 0].numpy().astype(np.float64),
        window,
        256,
        100,
        power=2.0,
        center=True,
        pad_mode="constant",
        mel_filters=bank / bank.sum(axis=0),
        mel_floor=0.0,
    )
    expected = (np.log(power / np.square(window).sum() + 1e-6) + 3.0) / 2.0
    assert np.allclose(LogMel(**FRONT)(wave)[0], expected[:, :30], atol=1e-4)


def test_a_tone_lights_its_band_and_noise_has_its_variance():
    front = LogMel(**{**FRONT, "mean": 0.0, "std": 1.0})
    time = torch.arange(4000) / 8000
    low, high = (front(torch.sin(2 * torch.pi * f * time)[None, None])[0, :, 20].argmax() for f in (300, 3000))
    assert low < high
    noise = 0.1 * torch.randn(8, 1, 40000, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(front(noise).exp().mean(dim=(0, 2))[2:-2], torch.full((16,), 0.01), rtol=0.1)


@pytest.mark.parametrize("samples", [1, 99, 100, 101, 1234, 2399, 2400])
def test_the_spectrogram_of_a_padded_clip_begins_with_that_of_the_clip(samples):
    front, wave = LogMel(**FRONT), torch.randn(2, 1, samples)
    alone, longer = front(wave), front(padded(wave, 2400))
    frames = front.frames(samples)
    assert alone.shape[2] == frames
    assert torch.allclose(longer[..., :frames], alone, atol=1e-5)
    assert longer[..., frames:].eq(0).all()
    assert front.valid(padded(wave, 2400)).sum(dim=1).tolist() == [frames, frames]


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
@pytest.mark.parametrize("samples", [150, 1234, 2000])
def test_padding_never_changes_a_feature(samples, positions):
    network, wave = encoder(positions=positions), torch.randn(3, 1, samples)
    x = padded(wave, 2400)
    columns = network.grid(wave)[1]
    valid = network.token_valid(x)
    assert valid.unflatten(1, network.grid(x))[:, :, :columns].all()
    assert not valid.unflatten(1, network.grid(x))[:, :, columns:].any()
    kept = network(x).unflatten(1, network.grid(x))[:, :, :columns].flatten(1, 2)
    assert torch.allclose(kept, network(wave), atol=1e-5)
    assert torch.allclose(masked_mean(network(x), valid), masked_mean(network(wave)), atol=1e-5)


def test_hidden_tokens_never_reach_context_features():
    network = encoder().double()
    x = torch.randn(2, 1, 2400, dtype=torch.double, requires_grad=True)
    keep = torch.tensor([[0, 1, 6, 7], [0, 1, 6, 7]])  # the first two columns: frames 0 .. 7, samples 0 .. 827
    network(x, keep=keep).square().sum().backward()
    assert x.grad[..., :828].abs().sum() > 0
    assert x.grad[..., 828:].eq(0).all()
    inputs = network.token_inputs(x.detach()).requires_grad_()
    network.stem.token_inputs = lambda _: inputs
    network(x.detach(), keep=keep).square().sum().backward()
    shown = torch.zeros(2, 12, dtype=torch.bool).scatter(1, keep, True)
    assert inputs.grad[~shown].eq(0).all()
    assert (gather_tokens(inputs.grad, keep).abs().sum(dim=2) > 0).all()


def test_the_front_end_stays_exact_under_autocast_and_adds_nothing_to_checkpoints():
    network, x = encoder(), torch.randn(2, 1, 2400)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inputs = network.token_inputs(x)
    assert torch.equal(inputs, network.token_inputs(x))
    assert not [name for name in network.state_dict() if "spectrogram" in name]


def test_one_number_is_the_patch_on_both_axes():
    x = torch.randn(1, 1, 2400)
    assert encoder(patch_size=4).grid(x) == encoder(patch_size=(4, 4)).grid(x)


def test_what_does_not_fit_is_explained():
    with pytest.raises(ValueError, match="does not divide"):
        encoder(patch_size=(16, 4))
    with pytest.raises(ValueError, match="model=audio"):
        encoder().grid(torch.randn(2, 3, 8, 8))
    with pytest.raises(ValueError, match="waveforms"):
        encoder().grid(torch.zeros(2, 10, dtype=torch.int64))
