"""From the measurements of a run to a word on its health, with the evidence and what to do about it. Pure functions.

A fresh network looks collapsed: its features hardly differ between samples. So a run is held against its own start,
and a sign counts only where the last few measurements all show it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Measurement = Mapping[str, float]
"""`step`, `train/loss` and what `jepa.monitor.statistics` gives, by name; what could not be measured is missing."""

HEALTHY, UNKNOWN = "healthy", "unknown"


@dataclass(frozen=True)
class Verdict:
    """A word on a run.

    name: healthy, unknown, or what is wrong: constant data, complete collapse, positional collapse, dimensional
        collapse, diverged. evidence: a sentence with figures and steps, and what to do. suspected: what the last
        measurement shows that is not yet a verdict.
    """

    name: str = UNKNOWN
    evidence: str = "too few measurements"
    suspected: str | None = None

    @property
    def is_bad(self) -> bool:
        """Whether something is wrong."""
        return self.name not in (HEALTHY, UNKNOWN)

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong, nor suspected: what a run may go back to."""
        return not self.is_bad and self.suspected is None

    @property
    def is_curable(self) -> bool:
        """Whether training differently from an earlier step may help; not where the data is at fault."""
        return self.is_bad and self.name != "constant data"


@dataclass(frozen=True)
class Thresholds:
    """Where a value becomes a sign; see `jepa.monitor.statistics` for what is measured.

    in_a_row: measurements that must show the same sign.
    spread: of targets, below which they are constant. embedding_spread: the same of embeddings, which start lower.
    fall: the share of either at the start below which it must have fallen as well.
    places: the share of the variance of targets that their place explains above which they tell nothing of the sample.
    lost_rank: the share of the highest effective rank of embeddings so far below which dimensions have been lost.
    falling_rank: the share that is enough where the rank of targets fell below `target_rank` of its own highest.
    likeness: of inputs, above which the data may be constant.
    loss_ratio: to the first loss, above which it has diverged.
    """

    in_a_row: int = 3
    spread: float = 0.3
    embedding_spread: float = 0.02
    fall: float = 0.6
    places: float = 0.85
    lost_rank: float = 0.3
    falling_rank: float = 0.6
    target_rank: float = 0.9
    likeness: float = 0.85
    loss_ratio: float = 3.0


def judge(history: Sequence[Measurement], thresholds: Thresholds) -> Verdict:
    """The verdict on a run of these measurements, in the order of their steps."""
    last = history[-thresholds.in_a_row :]
    suspected = None
    for name, sign in SIGNS.items():
        if not history or sign(history, history[-1], thresholds) is None:
            continue
        shown = [sign(history, measurement, thresholds) for measurement in last]
        if len(shown) == thresholds.in_a_row and all(shown):
            return Verdict(name, f"{shown[-1]}: {name}; {remedy(name, history)}")
        suspected = suspected or name
    if len(history) < thresholds.in_a_row:
        return Verdict(UNKNOWN, f"{len(history)} of {thresholds.in_a_row} measurements", suspected)
    return Verdict(HEALTHY, describe(history), suspected)


# Signs: what a measurement shows, in words, or None.


def constant_data(history: Sequence[Measurement], now: Measurement, thresholds: Thresholds) -> str | None:
    """Inputs that are alike: exactly, or as far as augmentation and the targets made of them tell."""
    likeness = now.get("monitor/input_likeness", 0.0)
    views, places = now.get("monitor/input_views", 0.0), now.get("monitor/target_places", 0.0)
    alike = views > 0.9 or places > thresholds.places
    if likeness > 0.98 or (likeness > thresholds.likeness and alike):
        return f"{likeness:.0%} of the variance of the inputs is the same in every sample at step {now['step']:.0f}"
    return None


def complete_collapse(history: Sequence[Measurement], now: Measurement, thresholds: Thresholds) -> str | None:
    """Targets or embeddings that hardly differ any more."""
    for kind, least in (("target", thresholds.spread), ("embedding", thresholds.embedding_spread)):
        name = f"monitor/{kind}_spread"
        first, value = start_of(history, name), now.get(name)
        if first is not None and value is not None and value < min(least, thresholds.fall * first):
            return f"the spread of {kind}s fell {course(history, now, name)}"
    return None


def positional_collapse(history: Sequence[Measurement], now: Measurement, thresholds: Thresholds) -> str | None:
    """Targets that tell where they are and nothing of the sample."""
    places = now.get("monitor/target_places", 0.0)
    if places > thresholds.places:
        return f"their place explains {places:.0%} of the variance of the targets at step {now['step']:.0f}"
    return None


def dimensional_collapse(history: Sequence[Measurement], now: Measurement, thresholds: Thresholds) -> str | None:
    """Embeddings that have lost dimensions they had."""
    name = "monitor/embedding_dimensions"
    kept, kept_by_targets = share_left(history, now, name), share_left(history, now, "monitor/target_dimensions")
    if kept < thresholds.lost_rank or (kept < thresholds.falling_rank and kept_by_targets < thresholds.target_rank):
        return f"the effective rank of embeddings fell {course(history, now, name, highest(history, now, name))}"
    return None


def divergence(history: Sequence[Measurement], now: Measurement, thresholds: Thresholds) -> str | None:
    """A loss well above the one at the start."""
    first, value = start_of(history, "train/loss"), now.get("train/loss")
    if first is not None and value is not None and first > 0 and value > thresholds.loss_ratio * first:
        return f"the loss rose from {first:.3g} to {value:.3g} at step {now['step']:.0f}"
    return None


SIGNS: dict[str, Callable[[Sequence[Measurement], Measurement, Thresholds], str | None]] = {
    "constant data": constant_data,
    "complete collapse": complete_collapse,
    "positional collapse": positional_collapse,
    "dimensional collapse": dimensional_collapse,
    "diverged": divergence,
}
"""Verdict -> its sign, the first that holds wins."""


def remedy(name: str, history: Sequence[Measurement]) -> str:
    """What to do about it, by what else was measured."""
    if name == "constant data":
        return "look at the data (trainer.dry_run=true draws preview/samples.png)"
    drift, ratio = history[-1].get("monitor/target_drift"), history[-1].get("update_ratio", 0.0)
    rate = "lower optimizer.lr" if ratio < 1e-2 else f"lower optimizer.lr (update_ratio is {ratio:.1e}, 1e-3 is usual)"
    if name == "diverged" or ratio >= 1e-2:
        return f"{rate}, or set trainer.grad_clip_norm=1"
    if drift is None:
        return "add loss.terms.sigreg, or take the targets from a moving average (model/target=ema)"
    follows = "" if drift > 1e-3 else " (the target follows the encoder at once)"
    return f"raise the EMA momentum (model.target.momentum.start){follows}, or add loss.terms.sigreg, or {rate}"


# Words and figures.


def start_of(history: Sequence[Measurement], name: str) -> float | None:
    """Median of the first three values."""
    values = [m[name] for m in history if name in m][:3]
    return statistics.median(values) if values else None


def highest(history: Sequence[Measurement], now: Measurement, name: str) -> tuple[float, float] | None:
    """(step, value) of the highest median of three values in a row before `now`; one outlier is no level."""
    known = [(m["step"], m[name]) for m in history if name in m and m["step"] < now["step"]]
    medians = [
        (known[i][0], statistics.median(value for _, value in known[max(0, i - 1) : i + 2])) for i in range(len(known))
    ]
    return max(medians, key=lambda entry: entry[1], default=None)


def share_left(history: Sequence[Measurement], now: Measurement, name: str) -> float:
    """A value now as a share of the highest before; 1 where that is not known."""
    best, value = highest(history, now, name), now.get(name)
    return 1.0 if best is None or value is None else value / best[1]


def course(
    history: Sequence[Measurement], now: Measurement, name: str, since: tuple[float, float] | None = None
) -> str:
    """from 41 to 3 in 400 steps while the loss fell."""
    if since is None:
        first = next(m for m in history if name in m)
        since = first["step"], first[name]
    step, value = since
    losses = [(m["step"], m["train/loss"]) for m in history if "train/loss" in m and m["step"] >= step]
    fell = losses and now.get("train/loss", losses[0][1]) < 0.9 * losses[0][1]
    return (
        f"from {value:.3g} to {now[name]:.3g} in {now['step'] - step:.0f} steps, by step {now['step']:.0f}"
        f"{', while the loss fell' if fell else ''}"
    )


def describe(history: Sequence[Measurement]) -> str:
    """The figures of a healthy run."""
    now = history[-1]
    words = {
        "monitor/embedding_rank": "effective rank of embeddings {:.3g}",
        "monitor/target_spread": "spread of targets {:.2g}",
        "monitor/embedding_spread": "of embeddings {:.2g}",
        "online/knn": "online k-NN {:.3f}",
    }
    known = [text.format(now[name]) for name, text in words.items() if name in now]
    return f"at step {now['step']:.0f}: {', '.join(known)}" if known else f"at step {now['step']:.0f}"
