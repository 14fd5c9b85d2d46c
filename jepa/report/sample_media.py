"""Samples as HTML: pictures, clips that move, curves, spectrograms with a player, and words; all within the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from jepa.report.formatting import duration, number
from jepa.utils.lazy_import import lazy_import
from jepa.utils.pixels import input_kind, pixel_statistics, to_pixels

matplotlib, wavfile = lazy_import("matplotlib"), lazy_import("scipy.io.wavfile")

LINES = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#b279a2", "#9d755d")
"""Colours of the first channels of a series."""

AXES = {
    "video": " A clip is a strip of frames, from left to right in time.",
    "series": " Curves run over time, each channel in its colour, all of a picture on one scale.",
    "sound": " Spectrograms: time to the right, frequency (mel) upwards; brighter is louder; without padding.",
}
"""Kind of sample -> how to read its picture."""

SMALL, CLIP_FRAMES, MAX_SECONDS = 48, 8, 8.0
"""Pixels of a thumbnail, frames of a clip, and seconds of a sound that is played."""


class Medium:
    """How samples of a data module are shown; an array of their token grid becomes one of rows and columns.

    kind: "images", "video", "series", "sound" or "ids", or None for what cannot be shown, as trajectories.

    x: a batch (b, ...) of its inputs. encoder: of which a sound encoder's spectrogram is shown.
    """

    def __init__(self, data: Any, encoder: Any, x: Tensor) -> None:
        self.data, self.stem = data, getattr(encoder, "stem", None)
        kind = None if hasattr(data, "action_dim") else input_kind(x.unsqueeze(1))
        self.kind = "sound" if kind == "series" and hasattr(self.stem, "log_mel_image") else kind
        if kind == "ids" and not hasattr(data, "words"):
            self.kind = None
        self.statistics = None if kind == "series" else pixel_statistics(data)

    def layout(self, values: np.ndarray) -> np.ndarray:
        """Return values (*grid, c) of the tokens as (rows, columns, c), as they lie over the picture."""
        if values.ndim == 4:  # a clip is a strip of frames
            frames, rows, columns, channels = values.shape
            return values.transpose(1, 0, 2, 3).reshape(rows, frames * columns, channels)
        if values.ndim == 2:
            return values[None]
        return values[::-1] if self.kind == "sound" else values

    def thumbnail(self, x: Tensor) -> Markup:
        """Return a small picture of one input (C, *S), or the first words of ids (L,)."""
        if self.kind == "series":
            return self.curves(x, 60)
        if self.kind == "ids":
            words = " ".join(filter(None, self.data.words(x)))
            return Markup('<span class="text">{}</span>').format(words[:160] + ("…" if len(words) > 160 else ""))
        picture = image_tag(self.frames(x, moving=True, share=self.real_share(x)), SMALL)
        return Markup('<span class="sound">{}</span>').format(picture) if self.kind == "sound" else picture

    def figure(self, x: Tensor, caption: str, colours: Any = None, *, drawn: Any = None, data: str = "") -> Markup:
        """Return one input, or what is `drawn` in its place, under the colours (*grid, 3 or 4) of its tokens.

        data: attributes that the page's script reads; with what moves or sounds beside it.
        """
        share, original = self.real_share(x), drawn is None
        picture = self.picture(x if original else drawn, share)
        over = None if colours is None else self.layout(colours)
        beside = (self.scale(x) if original else "") + (self.player(x) if data else "")
        return figure(stack(self, picture, over, data, share), caption, beside=beside)

    def real_share(self, x: Tensor) -> float:
        """Return which share of a sound is no padding, in time; 1.0 of other inputs."""
        if self.kind != "sound" or x.ndim != 2:
            return 1.0
        return max(int(x[0].isfinite().sum()), 1) / x.shape[1]

    def picture(self, x: Tensor, share: float = 1.0) -> Markup:
        """Return one input (C, *S) at full size, a clip as a strip of frames; ids as words with a place for colours.

        share: of its time that is drawn, of a sound.
        """
        if self.kind == "series":
            return self.curves(x, 400)
        if self.kind == "ids":
            spans = [Markup("<span>{}</span>").format(word) for word in self.data.words(x)]
            return Markup(" ").join(spans)
        return image_tag(self.frames(x, moving=False, share=share), 384)

    def player(self, x: Tensor) -> Markup:
        """Return what a picture cannot show: a clip that moves, a sound to play."""
        if self.kind == "video":
            return image_tag(self.frames(x, moving=True), 128)
        return player(x[0], self.data.sample_rate) if self.kind == "sound" else Markup()

    def scale(self, x: Tensor) -> Markup:
        """Return the axes of a picture in words; of curves with the names and ranges of the channels."""
        if self.kind == "sound":
            seconds, rate = self.real_share(x) * x.shape[1] / self.data.sample_rate, self.data.sample_rate
            return Markup("<small>0 to {:.2f} s, 0 to {:,} Hz</small>").format(seconds, rate // 2)
        if self.kind != "series":
            return Markup()
        lines = getattr(self.data, "timelines", None) or [None]
        names = list(getattr(lines[0], "names", ()))
        if len(names) != len(x):  # each channel is a sample of its own, or they have no names
            names = ["one channel"] if len(x) == 1 else [f"channel {number}" for number in range(1, len(x) + 1)]
        values = x.float().cpu()
        unit = ", in deviations" if getattr(self.data, "z_score", False) else ""
        if unit and getattr(self.data, "normalise", "none") == "none" and len(self.data.level) in (1, len(x)):
            values, unit = values * self.data.scale + self.data.level, ""
        spans = []
        for name, line, colour in zip(names, values, LINES):
            real = line[line.isfinite()]
            ends = " to ".join(number(float(end), 3) for end in real.aminmax()) if len(real) else "missing"
            spans.append(Markup('<span style="color:{}">{}</span> {}').format(colour, name, ends))
        times = getattr(lines[0], "times", None)
        each = None if times is None or len(times) < 2 else duration(times.diff().median().total_seconds())
        steps = f"{x.shape[1]} steps" + (f" of {each.removesuffix(' 00 min')}" if each else "") + unit
        more = [f"{len(x) - len(spans)} more channels"] if len(x) > len(spans) else []
        return Markup("<small>{}</small>").format(Markup("\n").join([*spans, *more, steps]))

    def frames(self, x: Tensor, moving: bool, share: float = 1.0) -> np.ndarray:
        """Return pixels (frames, H, W, 3) uint8 of one input; one frame, or several of a clip that is `moving`."""
        if self.kind == "sound":
            if x.ndim == 2:  # a waveform rather than a spectrogram
                with torch.no_grad():
                    x = self.stem.log_mel_image(x[None].to(self.stem.spectrogram.filters.device))[0].cpu()
            return self.spectrogram(x[0, :, : max(2, round(share * x.shape[2]))])
        if self.kind == "video":
            count = min(x.shape[1], CLIP_FRAMES)
            x = x[:, torch.linspace(0, x.shape[1] - 1, count).round().long()].movedim(1, 0)  # (t, C, H, W)
        pixels = to_pixels(x if self.kind == "video" else x[None], self.statistics)
        return pixels if moving else np.concatenate(list(pixels), axis=1)[None]

    @staticmethod
    def spectrogram(mel: Tensor) -> np.ndarray:
        """Return log-mel values (bins, frames) as pixels (1, bins, frames, 3), low frequencies below."""
        values = mel.numpy()[::-1]
        low, high = np.percentile(values, (1, 99.5))
        colours = matplotlib.colormaps["magma"]((values - low) / max(high - low, 1e-6))
        return (colours[None, ..., :3] * 255).astype(np.uint8)

    def curves(self, x: Tensor, most: int) -> Markup:
        """Return a series (C, T) as SVG, each of its first channels in a colour, thinned to so many points."""
        values = x[: len(LINES)].float().cpu().numpy()
        real = values[np.isfinite(values)]
        low, high = (real.min(), real.max()) if len(real) else (0, 1)
        steps = np.unique(np.linspace(0, x.shape[1] - 1, min(most, x.shape[1])).round().astype(int))
        lines = []
        for line, colour in list(zip(values, LINES))[::-1]:
            y = 98 - 96 * (line[steps] - low) / max(high - low, 1e-9)
            real = np.isfinite(y)
            goes_on = real & np.append(False, real[:-1])  # from the point before
            points = zip(goes_on[real], steps[real] + 0.5, y[real])
            path = "".join(f"{'L' if on else 'M'}{step:g} {height:.1f}" for on, step, height in points)
            lines.append(f'<path d="{path}" stroke="{colour}"/>')
        box = f'viewBox="0 0 {x.shape[1]} 100" preserveAspectRatio="none"'
        return Markup(f'<svg class="curves" {box}>{"".join(lines)}</svg>')


def image_tag(frames: np.ndarray, largest: int) -> Markup:
    """Return pixels (frames, H, W, 3 or 4) uint8 as an image, reduced to `largest` pixels a side; several move."""
    height, width = frames.shape[1:3]
    scale = min(1.0, largest * (1 if len(frames) > 1 or width < 2 * height else 2.5) / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    images = [Image.fromarray(np.ascontiguousarray(frame)).resize(size, Image.Resampling.BOX) for frame in frames]
    file = io.BytesIO()
    if len(images) > 1:
        images[0].save(file, "WEBP", save_all=True, append_images=images[1:], duration=160, loop=0, quality=60)
    elif max(size) <= 32 or frames.shape[3] == 4:
        images[0].save(file, "PNG", optimize=True)
    else:
        images[0].save(file, "WEBP", quality=80)
    kind = "png" if file.getvalue()[1:4] == b"PNG" else "webp"
    look = "" if max(size) > 100 else ' class="pixels"'
    return Markup(f'<img{look} alt="" width="{size[0]}" height="{size[1]}" src="{uri(file, f"image/{kind}")}">')


def player(samples: Tensor, rate: int) -> Markup:
    """Return a player of a waveform (t,) in [-1, 1]; padding, which is NaN, is left out."""
    sound = samples[samples.isfinite()][: int(rate * MAX_SECONDS)].cpu().numpy()
    file = io.BytesIO()
    wavfile.write(file, rate, (sound.clip(-1, 1) * 32767).astype("<i2"))
    return Markup('<audio controls preload="none" src="{}"></audio>').format(uri(file, "audio/wav"))


def figure(content: Markup, caption: str, kind: str = "", title: str = "", beside: Markup | str = "") -> Markup:
    """Return a picture with its caption, what is `beside` it, and a title that is shown under the pointer."""
    text = Markup('<figure class="{}" title="{}">{}<figcaption>{}</figcaption>{}</figure>')
    return text.format(kind, title, content, caption, beside)


def uri(file: io.BytesIO, kind: str) -> str:
    """Return a file as a data URI of a MIME type."""
    return f"data:{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def stack(medium: Medium, picture: Markup, colours: np.ndarray | None, data: str, share: float) -> Markup:
    """Return a picture below the colours (rows, columns, 3 or 4) uint8 of its tokens; words on theirs.

    data: attributes that the page's script reads. share: of the width of the colours that the picture has.
    """
    if medium.kind == "ids":
        if colours is not None:
            words = picture.split("<span>")
            flat = colours.reshape(-1, colours.shape[-1]).tolist()
            styles = [f"rgba({r},{g},{b},{(*alpha, 110)[0] / 255:.2f})" for r, g, b, *alpha in flat]
            picture = words[0] + Markup("").join(
                Markup('<span style="background:{}">{}').format(style, Markup(word))
                for style, word in zip(styles, words[1:])
            )
        return Markup(f'<div class="words" {data}>{picture}</div>')
    over = Markup() if colours is None else image_tag(colours[None], 4096)  # stretched over the picture
    over = Markup(f'<div class="over" style="width:{1 / share:.2%}">{over}</div>')
    return Markup(f'<div class="stack {medium.kind}" {data}>{picture}{over}</div>')


def packed(tokens: Tensor, medium: Medium, grid: Sequence[int], kept: int = 48) -> str:
    """Return the attributes of a `stack` whose tokens (N, D) are compared with the one below the pointer.

    Cosine similarities of the first `kept` singular directions, in 8 bits; padding, NaN, is 0.
    """
    values = torch.nn.functional.normalize(tokens.float().nan_to_num(0.0), dim=1)
    directions = torch.linalg.svd(values, full_matrices=False).Vh[:kept].T
    values = values @ directions
    values = (values / values.abs().max().clamp(min=1e-9) * 127).round().to(torch.int8).unflatten(0, tuple(grid))
    laid = np.ascontiguousarray(medium.layout(values.cpu().numpy()))
    rows, columns, size = laid.shape
    text = base64.b64encode(laid.tobytes()).decode()
    return f'data-rows="{rows}" data-columns="{columns}" data-size="{size}" data-tokens="{text}"'
