"""The verdict on a run by its measurements, with evidence and what to do. Pure functions.

A new network looks collapsed: its features hardly differ between samples. So a run is compared with its own start, and
a problem counts only if each of the last few measurements shows it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Measurement = Mapping[str, float]
"""`step`, `train/loss` and the metrics of `jepa.monitor.statistics` by name, without those that were not measured."""

HEALTHY, UNKNOWN = "healthy", "unknown"
SPREADS = ("monitor/target_spread", "monitor/embedding_spread")  # at least one is needed for a verdict


@dataclass(frozen=True)
class Verdict:
    """The verdict on a run.

    name: healthy, unknown, or what is wrong: constant data, complete collapse, positional collapse, dimensional
        collapse, diverged. evidence: a sentence with figures and steps, and what to do. suspected: the verdict that the
        last measurement alone would give.
    """

    name: str
    evidence: str
    suspected: str | None = None

    @property
    def is_bad(self) -> bool:
        """Whether it says that something is wrong."""
        return self.name not in (HEALTHY, UNKNOWN)

    @property
    def gravity(self) -> tuple[bool, ...]:
        """How bad it is, to find the worst of several."""
        return self.is_bad, self.suspected is not None, self.name == UNKNOWN

    @property
    def is_sound(self) -> bool:
        """Whether there is no problem, nor a suspected one, so that a rollback may return to this step."""
        return not self.is_bad and self.suspected is None

    @property
    def is_curable(self) -> bool:
        """Whether a rollback may help, as it does not for constant data."""
        return self.is_bad and self.name != "constant data"


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of the checks; see `jepa.monitor.statistics` for the metrics.

    in_a_row: consecutive measurements that must fail the same check.
    spread: of targets, below which they are constant. embedding_spread: of embeddings, which start lower.
    fall: fraction of the initial spread below which either must have fallen as well.
    projection_fall: fraction of the initial deviation of projections below which they have collapsed, unless their
        spread rose, as it does where they only shrink to the scale of the loss.
    places: share of the variance of targets that their position explains, above which they do not depend on the sample.
    kept_rank: fraction of the highest effective rank of embeddings above which targets that a moving average makes, of
        at least half of `spread`, may follow embeddings of as much (see `targets_follow`).
    lost_rank: fraction of the highest effective rank of embeddings below which dimensions are lost.
    falling_rank: the same where the rank of targets fell below the fraction `target_rank` of its own highest.
    likeness: share of the variance that all inputs share, above which the data may be constant.
    loss_ratio: to the initial loss, above which the run has diverged.
    """

    in_a_row: int = 3
    spread: float = 0.3
    embedding_spread: float = 0.02
    fall: float = 0.6
    projection_fall: float = 0.4
    places: float = 0.85
    kept_rank: float = 0.8
    lost_rank: float = 0.3
    falling_rank: float = 0.6
    target_rank: float = 0.9
    likeness: float = 0.85
    loss_ratio: float = 3.0


FIGURES = {
    "monitor/embedding_rank": "effective rank of embeddings {:.3g}",
    "monitor/target_spread": "spread of targets {:.2g}",
    "monitor/embedding_spread": "of embeddings {:.2g}",
    "online/knn": "online k-NN {:.3f}",
}
"""What is said of a healthy run."""


def judge(history: Sequence[Measurement], thresholds: Thresholds) -> Verdict:
    """Return the verdict on a run of these measurements, in the order of their steps."""
    last = history[-thresholds.in_a_row :]
    suspected = None
    for name, check in CHECKS.items():
        if not history or check(history, history[-1], thresholds) is None:
            continue
        evidence = [check(history, measurement, thresholds) for measurement in last]
        if len(evidence) == thresholds.in_a_row and all(evidence):
            return Verdict(name, f"{evidence[-1]}: {name}; {remedy(name, history)}")
        suspected = suspected or name
    if len(history) < thresholds.in_a_row:
        return Verdict(UNKNOWN, f"{len(history)} of {thresholds.in_a_row} measurements", suspected)
    if not any(name in measurement for measurement in last for name in SPREADS):
        return Verdict(UNKNOWN, "the latents hold no two finite targets, nor embeddings of two samples", suspected)
    known = ", ".join(text.format(history[-1][name]) for name, text in FIGURES.items() if name in history[-1])
    return Verdict(HEALTHY, f"at step {history[-1]['step']:.0f}{': ' if known else ''}{known}", suspected)


# Checks: each returns the evidence for a problem in a measurement, or None.


def constant_data(history: Sequence[Measurement], now: Measurement, thresholds: Thresholds) -> str | None:
    """Inputs that are equal, or similar while their views or targets do not depend on the sample."""
    likeness = now.get("monitor/input_likeness", 0.0)
    views, places = now.get("monitor/input_views", 0.0), now.get("monitor/target_places", 0.0)
    alike = views > 0.9 or places > thresholds.places
    if likeness > 0.98 or (likeness > thresholds.likeness and alike):
        return f"{likeness:.0%} of the variance of the inputs is the same in every sample at step {now['step']:.0f}"
    return None


def complete_collapse(history: Sequence[Measurement], now: Measurement, thresholds: Thresholds) -> str | None:
    """Targets, embeddings or projections that are nearly constant.

    Projections collapse first where the loss compares only views: the norm of the projector protects the encoder.
    """
    for kind, least in (("target", thresholds.spread), ("embedding", thresholds.embedding_spread)):
        name = f"monitor/{kind}_spread"
        first, value = initial_value(history, name), now.get(name)
        if kind == "target" and targets_follow(history, now, thresholds):
            continue
        if first is not None and value is not None and value < min(least, thresholds.fall * first):
            return f"the spread of {kind}s fell {describe_change(history, now, name)}"
    deviation, spread = "train/projection_std", "monitor/projection_spread"
    if deviation in now:
        fell = now[deviation] < thresholds.projection_fall * initial_value(history, deviation)
        if fell and now[spread] < initial_value(history, spread):
            return f"the deviation of projections fell {describe_change(history, now, deviation)}"
    return None


def targets_follow(history: Sequence[Measurement], now: Measurement, thresholds: Thresholds) -> bool:
    """Return whether targets of a moving average still spread little while embeddings do so in all dimensions.

    Pooled embeddings spread less than the tokens they average, so these are further on, and the targets lag behind by
    hundreds of steps: I-JEPA without a recipe passes through this on digits, and its features get better meanwhile.
    """
    spread = min(now.get(name, 0.0) for name in SPREADS)
    kept = fraction_of_peak(history, now, "monitor/embedding_dimensions")
    return "monitor/target_drift" in now and spread > thresholds.spread / 2 and kept > thresholds.kept_rank


def positional_collapse(history: Sequence[Measurement], now: Measurement, thresholds: Thresholds) -> str | None:
    """Targets that depend on their position and not on the sample."""
    places = now.get("monitor/target_places", 0.0)
    if places > thresholds.places:
        return f"their place explains {places:.0%} of the variance of the targets at step {now['step']:.0f}"
    return None


def dimensional_collapse(history: Sequence[Measurement], now: Measurement, thresholds: Thresholds) -> str | None:
    """Embeddings whose effective rank fell."""
    name = "monitor/embedding_dimensions"
    kept = fraction_of_peak(history, now, name)
    kept_by_targets = fraction_of_peak(history, now, "monitor/target_dimensions")
    if kept < thresholds.lost_rank or (kept < thresholds.falling_rank and kept_by_targets < thresholds.target_rank):
        return f"the effective rank of embeddings fell {describe_change(history, now, name, peak(history, now, name))}"
    return None


def divergence(history: Sequence[Measurement], now: Measurement, thresholds: Thresholds) -> str | None:
    """A loss well above the initial one."""
    first, value = initial_value(history, "train/loss"), now.get("train/loss")
    if first is not None and value is not None and first > 0 and value > thresholds.loss_ratio * first:
        return f"the loss rose from {first:.3g} to {value:.3g} at step {now['step']:.0f}"
    return None


CHECKS = {
    "constant data": constant_data,
    "complete collapse": complete_collapse,
    "positional collapse": positional_collapse,
    "dimensional collapse": dimensional_collapse,
    "diverged": divergence,
}
"""Verdict -> its check, in order of precedence."""


def remedy(name: str, history: Sequence[Measurement]) -> str:
    """Return what to do about a problem, by the last measurement."""
    if name == "constant data":
        return "look at the data (trainer.dry_run=true draws preview/samples.png)"
    drift, ratio = history[-1].get("monitor/target_drift"), history[-1].get("update_ratio", 0.0)
    rate = "lower optimizer.lr" if ratio < 1e-2 else f"lower optimizer.lr (update_ratio is {ratio:.1e}, 1e-3 is usual)"
    if name == "diverged" or ratio >= 1e-2:
        return f"{rate}, or set trainer.grad_clip_norm=1"
    if "monitor/target_spread" not in history[-1]:
        return "add a term that holds views of different samples apart (loss=sigreg, loss=vicreg, loss=infonce)"
    if drift is None:
        return "add loss.terms.sigreg, or take the targets from a moving average (model/target=ema)"
    follows = "" if drift > 1e-3 else " (the target follows the encoder at once)"
    return f"raise the EMA momentum (model.target.momentum.start){follows}, or add loss.terms.sigreg, or {rate}"


# Values over the history.


def initial_value(history: Sequence[Measurement], name: str) -> float | None:
    """Return the median of the first three values."""
    values = [m[name] for m in history if name in m][:3]
    return statistics.median(values) if values else None


def peak(history: Sequence[Measurement], now: Measurement, name: str) -> tuple[float, float] | None:
    """Return (step, value) of the highest median of three consecutive values before `now`, which skips outliers."""
    known = [(m["step"], m[name]) for m in history if name in m and m["step"] < now["step"]]
    values = [value for _, value in known]
    # Not statistics.median, which is slow: every measurement goes through the complete history.
    medians = [max(min(a, b), min(max(a, b), c)) for a, b, c in zip(values, values[1:], values[2:])]
    ends = [statistics.median(values[:2]), *medians, statistics.median(values[-2:])] if values else []
    return max(zip((step for step, _ in known), ends), key=lambda entry: entry[1], default=None)


def fraction_of_peak(history: Sequence[Measurement], now: Measurement, name: str) -> float:
    """Return a value as a fraction of its peak; 1 where either is unknown."""
    best, value = peak(history, now, name), now.get(name)
    return 1.0 if best is None or value is None else value / best[1]


def describe_change(
    history: Sequence[Measurement], now: Measurement, name: str, since: tuple[float, float] | None = None
) -> str:
    """Return such as "from 41 to 3 in 400 steps, by step 900, while the loss fell"; since: (step, value)."""
    step, value = since or next((m["step"], m[name]) for m in history if name in m)
    loss = next((m["train/loss"] for m in history if "train/loss" in m and m["step"] >= step), 0.0)
    fell = ", while the loss fell" * (now.get("train/loss", loss) < 0.9 * loss)
    return f"from {value:.3g} to {now[name]:.3g} in {now['step'] - step:.0f} steps, by step {now['step']:.0f}{fell}"
