"""The verdict on a run by its measurements, with evidence and what to do. Pure functions.

A new network looks collapsed: its features hardly differ between samples. So a figure must lie below an absolute floor
and well below what the network had before its first step, in each of the last few looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Measurement = Mapping[str, float]
"""`step`, `train/loss` and the metrics of `jepa.monitor.statistics` by name, without those that were not measured."""

HEALTHY, UNKNOWN = "healthy", "unknown"
KNN = "online/knn"
SPREADS = ("monitor/target_spread", "monitor/embedding_spread")  # at least one is needed for a verdict


@dataclass(frozen=True)
class Verdict:
    """The verdict on a run.

    name: healthy, unknown, or what is wrong: constant data, complete collapse, positional collapse, dimensional
        collapse, temporal collapse, probe collapse, diverged. evidence: a sentence with figures and steps, and what to
        do. suspected: the verdict that the last measurement alone would give.
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
    """Thresholds of the checks; see `jepa.monitor.statistics` for the metrics and docs/collapse.md for their origin.

    in_a_row: consecutive measurements that must fail the same check.
    embedding_floor, target_floor, projection_floor: spread below which all are alike. Embeddings are means of tokens,
        so they spread less than targets; projections start with unit variance.
    rank_floor: effective rank of centred embeddings, below which dimensions are lost.
    state_floor: spread of a world model's states below which they have collapsed, if their effective rank, not centred,
        is below `rank_floor`, too. state_rank_floor: effective rank below which they have lost dimensions.
    time_floor: share of the variance of a world model's states that lies in time, below which they stand still.
    kept: fraction of its value at the start below which a spread, or a rank, must have fallen as well.
    probe_kept: fraction of the online k-NN accuracy at the start, below which the features have been lost whatever
        their spread. probe_gain: accuracy above the start from which they are good whatever their spread and rank.
    places: share of the variance of targets that their position explains, above which they do not depend on the sample.
    likeness: share of the variance that all inputs share, above which the data may be constant.
    loss_ratio: to the initial loss, above which the run has diverged.
    """

    in_a_row: int = 3
    embedding_floor: float = 0.08
    target_floor: float = 0.2
    projection_floor: float = 0.5
    rank_floor: float = 10.0
    state_floor: float = 0.5
    state_rank_floor: float = 20.0
    time_floor: float = 0.005
    kept: float = 0.5
    probe_kept: float = 0.75
    probe_gain: float = 0.2
    places: float = 0.85
    likeness: float = 0.85
    loss_ratio: float = 3.0


FIGURES = {
    "monitor/embedding_rank": "effective rank of embeddings {:.3g}",
    "monitor/target_spread": "spread of targets {:.2g}",
    "monitor/embedding_spread": "of embeddings {:.2g}",
    "monitor/motion_predicted": "of the motion of states predicted {:.0%}",
    KNN: "online k-NN {:.3f}",
}
"""What is said of a healthy run."""


def judge(history: Sequence[Measurement], thresholds: Thresholds) -> Verdict:
    """Return the verdict on a run of these measurements, in the order of their steps.

    Those of an online probe alone, as at step 0, are levels to compare with and no looks at training.
    """
    start: dict[str, float] = {}
    for measurement in reversed(history):
        start |= measurement
    looks = [m for m in history if any(name.startswith(("monitor/", "train/")) for name in m)]
    last = [with_probe(history, look) for look in looks[-thresholds.in_a_row :]]
    suspected = None
    for name, check in CHECKS.items():
        if not last or check(start, last[-1], thresholds) is None:
            continue
        evidence = [check(start, measurement, thresholds) for measurement in last]
        if len(evidence) == thresholds.in_a_row and all(evidence):
            return Verdict(name, f"{evidence[-1]}: {name}; {remedy(name, last[-1])}")
        suspected = suspected or name
    if len(last) < thresholds.in_a_row:
        return Verdict(UNKNOWN, f"{len(last)} of {thresholds.in_a_row} measurements", suspected)
    if not any(name in measurement for measurement in last for name in SPREADS):
        return Verdict(UNKNOWN, "the latents hold no two finite targets, nor embeddings of two samples", suspected)
    known = ", ".join(text.format(last[-1][name]) for name, text in FIGURES.items() if name in last[-1])
    return Verdict(HEALTHY, f"at step {last[-1]['step']:.0f}{': ' if known else ''}{known}", suspected)


def with_probe(history: Sequence[Measurement], now: Measurement) -> Measurement:
    """Return a measurement with the last online probe up to its step, as probes are rarer."""
    before = (m[KNN] for m in reversed(history) if KNN in m and m["step"] <= now["step"])
    probe = next(before, None)
    return now if probe is None else {**now, KNN: probe}


# Checks: each returns the evidence for a problem in a measurement, or None. start: the first value of each metric.


def constant_data(start: Measurement, now: Measurement, thresholds: Thresholds) -> str | None:
    """Inputs that are equal, or similar while their views or targets do not depend on the sample."""
    likeness = now.get("monitor/input_likeness", 0.0)
    views, places = now.get("monitor/input_views", 0.0), now.get("monitor/target_places", 0.0)
    alike = views > 0.9 or places > thresholds.places
    if likeness > 0.98 or (likeness > thresholds.likeness and alike):
        return f"{likeness:.0%} of the variance of the inputs is the same in every sample at step {now['step']:.0f}"
    return None


def complete_collapse(start: Measurement, now: Measurement, thresholds: Thresholds) -> str | None:
    """Targets, embeddings or projections that are nearly constant.

    Projections collapse first where the loss compares only views: the projector protects the encoder.
    """
    spread, rank = now.get("monitor/embedding_spread", 1.0), now.get("monitor/embedding_rank", 0.0)
    if is_of_world_model(now) and spread < thresholds.state_floor and rank < thresholds.rank_floor:
        return f"the spread of states is {spread:.2g} and their effective rank {rank:.3g} at step {now['step']:.0f}"
    for kind in ("target", "embedding", "projection"):
        name, floor = f"monitor/{kind}_spread", getattr(thresholds, f"{kind}_floor")
        if name not in now or probe_rose(start, now, thresholds):
            continue
        if now[name] < min(floor, thresholds.kept * start[name]):
            return f"the spread of {kind}s fell {describe_change(start, now, name)}"
        if now[name] < floor / 10:  # as of weights that had collapsed before; new ones of any kind have more
            return f"the spread of {kind}s is {now[name]:.2g} at step {now['step']:.0f}"
    return None


def positional_collapse(start: Measurement, now: Measurement, thresholds: Thresholds) -> str | None:
    """Targets that depend on their position and not on the sample."""
    places = now.get("monitor/target_places", 0.0)
    if places > thresholds.places:
        return f"their place explains {places:.0%} of the variance of the targets at step {now['step']:.0f}"
    return None


def dimensional_collapse(start: Measurement, now: Measurement, thresholds: Thresholds) -> str | None:
    """Embeddings that have lost most dimensions."""
    name = "monitor/embedding_dimensions"
    if name not in now or probe_rose(start, now, thresholds):
        return None
    floor = thresholds.state_rank_floor if is_of_world_model(now) else thresholds.rank_floor
    if now[name] < min(floor, thresholds.kept * start[name]):
        return f"the effective rank of embeddings fell {describe_change(start, now, name)}"
    return None


def temporal_collapse(start: Measurement, now: Measurement, thresholds: Thresholds) -> str | None:
    """States of a world model that hardly differ between the time steps of a trajectory."""
    name = "monitor/view_variance"
    if is_of_world_model(now) and now[name] < min(thresholds.time_floor, thresholds.kept * start[name]):
        return f"the share of the variance of states that lies in time fell {describe_change(start, now, name)}"
    return None


def probe_collapse(start: Measurement, now: Measurement, thresholds: Thresholds) -> str | None:
    """Features that tell less of the sample than those of the untrained network."""
    if KNN in now and now[KNN] < thresholds.probe_kept * start[KNN]:
        return f"the accuracy of the online k-NN fell {describe_change(start, now, KNN)}"
    return None


def divergence(start: Measurement, now: Measurement, thresholds: Thresholds) -> str | None:
    """A loss well above the initial one."""
    first, value = start.get("train/loss", 0.0), now.get("train/loss", 0.0)
    if first > 0 and value > thresholds.loss_ratio * first:
        return f"the loss rose from {first:.3g} to {value:.3g} at step {now['step']:.0f}"
    return None


CHECKS = {
    "constant data": constant_data,
    "complete collapse": complete_collapse,
    "positional collapse": positional_collapse,
    "dimensional collapse": dimensional_collapse,
    "temporal collapse": temporal_collapse,
    "probe collapse": probe_collapse,
    "diverged": divergence,
}
"""Verdict -> its check, in order of precedence."""


OF_WORLD_MODELS = {
    "complete collapse": "raise loss.terms.variance.weight, or that of sigreg",
    "dimensional collapse": "raise loss.terms.covariance.weight, or that of sigreg",
    "temporal collapse": "raise loss.terms.inverse_dynamics.weight, or lower that of smoothness",
}
"""Verdict on a world model -> what to do about it."""


def is_of_world_model(now: Measurement) -> bool:
    """Return whether a measurement is of states in time."""
    return "monitor/step_change" in now


def probe_rose(start: Measurement, now: Measurement, thresholds: Thresholds) -> bool:
    """Return whether the online probe says that the features are good."""
    return KNN in now and now[KNN] > start[KNN] + thresholds.probe_gain


def remedy(name: str, now: Measurement) -> str:
    """Return what to do about a problem."""
    if name == "constant data":
        return "look at the data (trainer.dry_run=true draws preview/samples.png)"
    if is_of_world_model(now) and name in OF_WORLD_MODELS:
        return OF_WORLD_MODELS[name]
    drift, ratio = now.get("monitor/target_drift"), now.get("update_ratio", 0.0)
    rate = "lower optimizer.lr" if ratio < 1e-2 else f"lower optimizer.lr (update_ratio is {ratio:.1e}, 1e-3 is usual)"
    if name == "diverged" or ratio >= 1e-2:
        return f"{rate}, or set trainer.grad_clip_norm=1"
    if "monitor/target_spread" not in now:
        return "add a term that holds views of different samples apart (loss=sigreg, loss=vicreg, loss=infonce)"
    if drift is None:
        return "add loss.terms.sigreg, or take the targets from a moving average (model/target=ema)"
    follows = "" if drift > 1e-3 else " (the target follows the encoder at once)"
    return f"raise the EMA momentum (model.target.momentum.start){follows}, or add loss.terms.sigreg, or {rate}"


def describe_change(start: Measurement, now: Measurement, name: str) -> str:
    """Return such as "from 41 to 3 in 400 steps, by step 900, while the loss fell"."""
    loss = start.get("train/loss", 0.0)
    fell = ", while the loss fell" * (now.get("train/loss", loss) < 0.9 * loss)
    steps = now["step"] - start["step"]
    return f"from {start[name]:.3g} to {now[name]:.3g} in {steps:.0f} steps, by step {now['step']:.0f}{fell}"
