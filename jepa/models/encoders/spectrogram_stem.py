"""The stem of sound: patches of a log-mel spectrogram, over frequency and time."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from jepa.types import Grid
from jepa.utils.log_mel import LogMel


class SpectrogramStem(nn.Module):
    """Waveforms (B, 1, T), padded with NaN, to tokens on a grid of (frequency, time).

    embed_dim: width of the tokens. spectrogram: the front end, which runs on the device of the waveforms.
    patch_size: [mel bins, frames] of a token. A last patch that is not full goes on with the mean, 0.

    A token sees the sound within its frames, and of its neighbours' what a frame (n_fft samples) is longer than
    hop_length. Raises ValueError for a patch that does not divide the mel bins.
    """

    def __init__(self, *, embed_dim: int, spectrogram: LogMel, patch_size: Sequence[int]) -> None:
        super().__init__()
        bins, frames = check_patch(patch_size, spectrogram.mel_bins)
        self.spectrogram = spectrogram
        self.patch_size = (bins, frames)
        self.token_values: int = bins * frames
        self.project = nn.Linear(self.token_values, embed_dim)

    def grid(self, x: Tensor) -> Grid:
        """(rows, columns): patches along frequency and time. Raises ValueError for what is no waveform."""
        if x.ndim != 3 or x.shape[1] != 1 or not x.is_floating_point() or not x.shape[2]:
            raise ValueError(
                f"model.encoder takes waveforms (B, 1, samples), got {str(x.dtype).removeprefix('torch.')} of shape "
                f"{tuple(x.shape)}: use model=audio with data that is sound (data=audio_folder, data=fsdd)"
            )
        bins, frames = self.patch_size
        return self.spectrogram.mel_bins // bins, -(-self.spectrogram.frames(x.shape[2]) // frames)

    def token_valid(self, x: Tensor) -> Tensor:
        """Which tokens (B, N) bool hold a frame that is not padding."""
        rows, columns = self.grid(x)
        valid = self.spectrogram.valid(x)  # (B, frames)
        valid = F.pad(valid, (0, columns * self.patch_size[1] - valid.shape[1]))
        valid = valid.unflatten(1, (columns, -1)).any(dim=2)  # (B, columns)
        return valid.repeat(1, rows)

    def token_inputs(self, x: Tensor) -> Tensor:
        """Normalised log-mel values (B, N, bins * frames) of every patch, fp32."""
        rows, columns = self.grid(x)
        bins, frames = self.patch_size
        mel = self.picture(x)
        patches = mel.view(len(mel), rows, bins, columns, frames).transpose(2, 3)  # (B, rows, columns, bins, frames)
        return patches.reshape(len(mel), rows * columns, bins * frames)

    def picture(self, x: Tensor) -> Tensor:
        """Log-mel values (B, 1, mel bins, frames) of whole patches, low frequencies first, fp32."""
        _, columns = self.grid(x)
        mel = self.spectrogram(x)  # (B, mel_bins, frames)
        return F.pad(mel, (0, columns * self.patch_size[1] - mel.shape[2])).unsqueeze(1)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, embed_dim), without positions."""
        return self.project(self.token_inputs(x))


def check_patch(patch_size: Sequence[int], mel_bins: int) -> tuple[int, int]:
    """(bins, frames). Raises ValueError for anything else than two sizes, of which the first divides the mel bins."""
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
