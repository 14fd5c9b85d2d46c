"""The stem of audio: patches of a log-mel spectrogram, over frequency and time."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from jepa.models.encoders.image_encoder import patchify
from jepa.models.encoders.stem_encoder import Stem
from jepa.types import Grid
from jepa.utils.log_mel import LogMel


class SpectrogramStem(Stem):
    """Waveforms (B, 1, T), padded with NaN, to tokens on a grid of (frequency, time).

    patch_size: [mel bins, frames] of a token, or one number for both. The last patch is padded with 0, the mean.

    Frames overlap by n_fft - hop_length samples, so that a token depends on as many samples of its neighbours.
    """

    time_axis = -1

    def __init__(self, *, embed_dim: int, spectrogram: LogMel, patch_size: int | Sequence[int]) -> None:
        super().__init__()
        patch_size = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
        bins, frames = check_patch(patch_size, spectrogram.mel_bins)
        self.spectrogram = spectrogram
        self.patch_size = (bins, frames)
        self.token_values: int = bins * frames
        self.project = nn.Linear(self.token_values, embed_dim)

    def grid(self, x: Tensor) -> Grid:
        if x.ndim != 3 or x.shape[1] != 1 or not x.is_floating_point() or not x.shape[2]:
            raise ValueError(
                f"model.encoder takes waveforms (B, 1, samples), got {str(x.dtype).removeprefix('torch.')} of shape "
                f"{tuple(x.shape)}: use model=audio with data that is sound (data=audio_folder, data=fsdd)"
            )
        bins, frames = self.patch_size
        return self.spectrogram.mel_bins // bins, -(-self.spectrogram.frames(x.shape[2]) // frames)

    def token_valid(self, x: Tensor) -> Tensor:
        """Return which tokens (B, N) bool have a frame that is not padding."""
        rows, columns = self.grid(x)
        valid = self.spectrogram.valid(x)  # (B, frames)
        valid = F.pad(valid, (0, columns * self.patch_size[1] - valid.shape[1]))
        valid = valid.unflatten(1, (columns, -1)).any(dim=2)  # (B, columns)
        return valid.repeat(1, rows)

    def token_inputs(self, x: Tensor) -> Tensor:
        """Return the normalised log-mel values (B, N, bins * frames) of every patch, fp32."""
        return patchify(self.log_mel_image(x), self.grid(x))

    def log_mel_image(self, x: Tensor) -> Tensor:
        """Return log-mel values (B, 1, mel bins, frames), padded to full patches, low frequencies first, fp32."""
        _, columns = self.grid(x)
        mel = self.spectrogram(x)  # (B, mel_bins, frames)
        return F.pad(mel, (0, columns * self.patch_size[1] - mel.shape[2])).unsqueeze(1)


def check_patch(patch_size: Sequence[int], mel_bins: int) -> tuple[int, int]:
    """Return (bins, frames). Raise ValueError unless these are two sizes, the first of which divides the mel bins."""
    if len(patch_size) != 2 or min(patch_size) < 1:
        raise ValueError(f"model.encoder.stem.patch_size={list(patch_size)}: expected [mel bins, frames], at least 1")
    bins, frames = patch_size
    if mel_bins % bins:
        fits = [size for size in range(1, mel_bins + 1) if mel_bins % size == 0]
        raise ValueError(
            f"model.encoder.stem.patch_size={list(patch_size)}: {bins} does not divide "
            f"data.spectrogram.mel_bins={mel_bins}: use one of {fits}"
        )
    return bins, frames
