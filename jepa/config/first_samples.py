"""What the first lines of a run say of its samples: inputs that are mostly padding, sounds of another rate."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch

from jepa.data import AudioData, SeriesData, TextData
from jepa.data.stream import blamed

SOME = 48
"""Training samples that are looked at."""
NEARLY_ALL = 0.95


def padding_notes(data: Any, key: str = "data") -> list[str]:
    """Return what to type where nearly all samples fill less than half of an input, or sounds have another rate.

    data: also mixed, a line for each part. key: of its options.
    """
    if hasattr(data, "parts"):
        return [line for name, part in data.parts.items() for line in padding_notes(part, f"{key}.parts.{name}")]
    if not isinstance(data, (AudioData, SeriesData, TextData)):
        return []
    samples, lengths, rates = data.splits["train"], [], Counter()
    for index in range(0, len(samples), math.ceil(len(samples) / SOME)):
        try:
            value = samples[index][0]
            if isinstance(data, AudioData):
                rate = value[1] if isinstance(value, tuple) else value.rate
                rates[rate] += 1
                lengths.append((len(value[0]) if isinstance(value, tuple) else value.frames) / rate)
            elif isinstance(data, TextData):
                lengths.append(int(data.to_ids(value).count_nonzero()))  # padding is 0
            else:
                seen = (~value.isnan()).any(dim=0)
                lengths.append(int((seen * torch.arange(1, len(seen) + 1)).max()))
        except Exception as error:
            blamed(error, "")
    if not lengths:
        return []
    if isinstance(data, AudioData):
        name, full, unit = "seconds", data.seconds, "s"
    else:
        text = isinstance(data, TextData)
        name, unit = ("max_length", "tokens") if text else ("window_size", "steps")
        full = data.spec.input_shape[-1]
    usual = sorted(lengths)[math.ceil(NEARLY_ALL * len(lengths)) - 1]
    said, options = [], []
    if usual <= full / 2:
        padding = 1 - sum(min(length, full) for length in lengths) / (full * len(lengths))
        said = [f"they have {min(lengths):.3g} to {max(lengths):.3g} {unit}, so {padding:.0%} of an input is padding"]
        step = 8 if unit != "s" else 10 ** math.floor(math.log10(usual)) / 2
        longest = max(lengths) if max(lengths) <= full / 2 else usual
        options = [f"{key}.{name}={math.ceil(longest / step) * step:.3g}"]
    if rates and data.sample_rate not in rates:
        rate = rates.most_common(1)[0][0]
        said += [f"they are stored at {rate:,} Hz, not {data.sample_rate:,}"]
        options += [f"{key}.sample_rate={rate}"]
    return [f"by {len(lengths)} of the samples {', and '.join(said)}: {' '.join(options)}"] if said else []
