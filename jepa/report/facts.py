"""What is known of a run before it runs: its masks, schedules, sizes and files."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa.report.figures import members
from jepa.types import Grid, Mask, RunLength, Schedule


@dataclass(frozen=True)
class MaskFacts:
    """Counts of one mask group over a batch, in tokens per sample, and how evenly it covers the grid.

    seen, predicted: distinct tokens, on average. neither: those in no part. both: those in context and targets.
    least_seen .. most_predicted: share of samples in which the token that is so the least and most often is.
    """

    tokens: int
    context: int
    blocks: int
    block_tokens: int
    seen: float
    predicted: float
    neither: float
    both: float
    least_seen: float
    most_seen: float
    least_predicted: float
    most_predicted: float


def mask_facts(mask: Mask, grid: Grid) -> MaskFacts:
    """The facts of one mask group."""
    tokens = math.prod(grid)
    seen, predicted = (inside(mask, part, tokens) for part in ("context", "targets"))
    often_seen, often_predicted = seen.float().mean(dim=0), predicted.float().mean(dim=0)

    def per_sample(where: Tensor) -> float:
        return where.float().sum(dim=1).mean().item()

    return MaskFacts(
        tokens=tokens,
        context=mask.context.shape[1],
        blocks=mask.targets.shape[1],
        block_tokens=mask.targets.shape[2],
        seen=per_sample(seen),
        predicted=per_sample(predicted),
        neither=per_sample(~seen & ~predicted),
        both=per_sample(seen & predicted),
        least_seen=often_seen.min().item(),
        most_seen=often_seen.max().item(),
        least_predicted=often_predicted.min().item(),
        most_predicted=often_predicted.max().item(),
    )


def inside(mask: Mask, part: str, tokens: int) -> Tensor:
    """(B, N) bool: whether a token is in the context, or in at least one target, of a sample."""
    result = torch.zeros(mask.context.shape[0], tokens, dtype=torch.bool)
    for number in range(len(result)):
        result[number, members(mask, part, number)] = True
    return result


def schedule_table(
    schedules: Mapping[str, Schedule], momentum: Schedule | None, run_length: RunLength
) -> tuple[list[str], list[tuple[str, int, list[float]]]]:
    """Names of the schedules, and rows (what, number of the step, values): start, end of warm-up, quarters, end."""
    names = [*schedules, *(["momentum"] if momentum else [])]
    last = run_length.max_steps
    points = {"start": 1, "25 %": round(0.25 * last), "50 %": round(0.5 * last), "75 %": round(0.75 * last)}
    warmup = longest_warmup(schedules, run_length)
    if warmup > 0:
        points["end of warm-up" if warmup <= last else "(warm-up does not end)"] = round(min(warmup, last))
    rows = sorted(((name, max(1, step)) for name, step in [*points.items(), ("end", last)]), key=lambda row: row[1])
    called = [*schedules.values(), *([momentum] if momentum else [])]
    return names, [(name, step, [s(step - 1, run_length) for s in called]) for name, step in rows]


def longest_warmup(schedules: Mapping[str, Schedule], run_length: RunLength) -> float:
    """Steps of the longest warm-up of any schedule; 0 without."""
    durations = (getattr(schedule, "warmup_duration", None) for schedule in schedules.values())
    return max((duration.whole(run_length) for duration in durations if duration is not None), default=0)


def pixel_statistics(data: Any) -> tuple[Tensor, Tensor] | None:
    """(mean, std) that inputs were normalised by, each (C or 1, 1, 1); None where the data names none."""
    for owner in (data, getattr(data, "transform", None)):
        mean, std = getattr(owner, "mean", None), getattr(owner, "std", None)
        if mean is not None and std is not None:
            return torch.as_tensor(mean).view(-1, 1, 1), torch.as_tensor(std).view(-1, 1, 1)
    return None


def to_pixels(x: Tensor, statistics: tuple[Tensor, Tensor] | None) -> Tensor:
    """Inputs (..., C, H, W) as values in [0, 1]: with normalisation undone, or else stretched to the range."""
    x = x.float().cpu()
    if statistics is None:
        low, high = x.amin(), x.amax()
        return (x - low) / (high - low).clamp(min=1e-12)
    return (x * statistics[1] + statistics[0]).clamp(0, 1)


def kind_of(views: Any) -> str | None:
    """What inputs (B, V, ...) are: "ids" (L), "series" (C, T), "pictures" (C, H, W) or "video" (C, T, H, W).

    Pictures and video of channels other than 1 and 3 cannot be shown and are None, as is anything else.
    """
    if not isinstance(views, Tensor):
        return None
    if not views.is_floating_point():
        return "ids" if views.dim() == 3 else None
    kind = {4: "series", 5: "pictures", 6: "video"}.get(views.dim())
    return None if kind in ("pictures", "video") and views.shape[2] not in (1, 3) else kind


def kept_checkpoints(trainer: Any) -> int:
    """Checkpoints that lie on disk at most: the last, the best, snapshots, and one being written."""
    every = getattr(getattr(trainer, "every", None), "snapshot", None)
    snapshots = 0 if every is None else math.floor(trainer.run_length.max_steps / every)
    best = trainer.checkpoints.best.k if hasattr(trainer, "checkpoints") else 0
    return 1 + best + snapshots + 1


def free_disk(folder: Path) -> int:
    """Bytes free where a folder is or will be."""
    folder = folder.absolute()
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.is_dir())).free
