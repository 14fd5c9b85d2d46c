"""Sound to log-mel spectrograms on its own device: the front end of sound encoders, and what raw input means for sound.

Waveforms (B, 1, T) are padded with NaN. Frame i is centred at sample i * hop_length and counts where that sample is no
padding. Beyond the clip there is silence for every frame, at the clip's end as in the padding that follows it: a padded
clip has the frames of the unpadded one, and then some that do not count.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from jepa.utils.errors import check_at_least


class LogMel(nn.Module):
    """Normalised log-mel spectrogram: (log(mel power + floor) - mean) / std; nothing to train, nothing to save.

    sample_rate: of the waveforms, in Hz. n_fft: samples of a frame, under a Hann window; power is divided by the sum of
    the window's squares, so that white noise of variance v has power v. hop_length: samples between frames.
    mel_bins: triangular filters of Slaney's scale and area, from min_frequency to max_frequency (None: half of
    sample_rate), in Hz. floor: power of mel bins that is taken for silence.
    mean, std: of log mel power, fixed numbers, as statistics of a clip would depend on what is hidden of it.

    Raises ValueError for values outside these, and more filters than n_fft can tell apart.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        n_fft: int,
        hop_length: int,
        mel_bins: int,
        min_frequency: float = 0.0,
        max_frequency: float | None = None,
        floor: float = 1e-6,
        mean: float = 0.0,
        std: float = 1.0,
    ) -> None:
        super().__init__()
        highest = sample_rate / 2 if max_frequency is None else max_frequency
        check_at_least("spectrogram", 1, sample_rate=sample_rate, hop_length=hop_length, mel_bins=mel_bins)
        check_at_least("spectrogram", 2, n_fft=n_fft)
        if not 0 <= min_frequency < highest <= sample_rate / 2:
            raise ValueError(
                f"spectrogram: min_frequency={min_frequency:g} and max_frequency={highest:g} Hz do not lie in order "
                f"between 0 and half of sample_rate={sample_rate}"
            )
        if floor <= 0 or std <= 0:
            raise ValueError(f"spectrogram: got floor={floor:g} and std={std:g}, expected numbers above 0")
        self.sample_rate, self.n_fft, self.hop_length, self.mel_bins = sample_rate, n_fft, hop_length, mel_bins
        self.floor, self.mean, self.std = floor, mean, std
        window = torch.hann_window(n_fft)
        self.register_buffer("window", window / window.square().sum().sqrt(), persistent=False)
        filters = mel_filters(mel_bins, n_fft, min_frequency, highest, sample_rate)
        self.register_buffer("filters", filters, persistent=False)

    def frames(self, samples: int) -> int:
        """Frames of so many samples: those whose centre lies within."""
        return -(-samples // self.hop_length)

    def valid(self, x: Tensor) -> Tensor:
        """Which frames (B, F) bool are centred at a sample of (B, 1, T) and not at padding."""
        return ~x[:, 0, :: self.hop_length].isnan()

    def forward(self, x: Tensor) -> Tensor:
        """Waveforms (B, 1, T) to (B, mel_bins, F), fp32, low frequencies first; 0, the mean, where padding is."""
        # bf16 has three digits, the power of speech spans six.
        with torch.autocast(x.device.type, enabled=False):
            wave = x[:, 0].float().nan_to_num(nan=0.0)  # (B, T)
            frames = {"n_fft": self.n_fft, "hop_length": self.hop_length, "window": self.window}
            spectrum = torch.stft(wave, **frames, center=True, pad_mode="constant", return_complex=True)
            valid = self.valid(x)
            spectrum = spectrum[..., : valid.shape[1]]  # (B, n_fft / 2 + 1, F)
            power = spectrum.real.square() + spectrum.imag.square()
            mel = self.filters @ power
            return (((mel + self.floor).log() - self.mean) / self.std).masked_fill(~valid.unsqueeze(1), 0)

    def band_means(self, x: Tensor) -> Tensor:
        """Mean over time of every mel band, (B, mel_bins); padding does not count."""
        valid = self.valid(x).unsqueeze(1)
        return (self(x) * valid).sum(dim=-1) / valid.sum(dim=-1).clamp(min=1)


KNEE, STEPS = 1000.0, 27 / np.log(6.4)
"""Slaney's mel scale (Auditory Toolbox, 1998): linear up to 1000 Hz, 15 mels, then 27 mels for each factor of 6.4."""


def mels(frequency: np.ndarray) -> np.ndarray:
    """Hz to mels."""
    return np.where(frequency < KNEE, 15 * frequency / KNEE, 15 + STEPS * np.log(np.maximum(frequency, KNEE) / KNEE))


def hertz(mel: np.ndarray) -> np.ndarray:
    """Mels to Hz."""
    return np.where(mel < 15, KNEE * mel / 15, KNEE * np.exp((mel - 15) / STEPS))


def mel_filters(mel_bins: int, n_fft: int, low: float, high: float, sample_rate: int) -> Tensor:
    """Triangular filters (mel_bins, n_fft // 2 + 1) on power spectra, each of unit sum: a weighted mean of its bins.

    Raises ValueError where a filter would lie between two frequencies of the spectrum and see nothing.
    """
    corners = hertz(np.linspace(*mels(np.array([low, high])), mel_bins + 2))
    away = corners[:, None] - np.linspace(0, sample_rate // 2, n_fft // 2 + 1)  # of each frequency from each corner
    width = np.diff(corners)[:, None]
    bank = np.maximum(0, np.minimum(-away[:-2] / width[:-1], away[2:] / width[1:]))
    filters = torch.from_numpy(bank).float()
    empty = int((filters.sum(dim=1) == 0).sum())
    if empty:
        raise ValueError(
            f"spectrogram: {empty} of mel_bins={mel_bins} filters fall between the {n_fft // 2 + 1} frequencies of "
            f"n_fft={n_fft} at {sample_rate} Hz: use fewer mel_bins or a larger n_fft"
        )
    return filters / filters.sum(dim=1, keepdim=True)
