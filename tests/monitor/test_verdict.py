"""Verdicts on histories made up, and on recorded ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jepa.monitor import Thresholds, judge
from scripts.reproduce_collapse import confusion, has_collapsed

ROOT = Path(__file__).resolve().parents[2]

EVERY = 20


def history(count=10, **courses):
    """Measurements every 20 steps; each course is a function of the share of the run, or one value."""
    healthy = {
        "train/loss": lambda t: 1 - 0.8 * t,
        "monitor/embedding_dimensions": lambda t: 15 + 15 * t,
        "monitor/embedding_rank": 5.0,
        "monitor/embedding_spread": lambda t: 0.17 + 0.1 * t,
        "monitor/target_spread": lambda t: 0.7 - 0.15 * t,
        "monitor/target_dimensions": lambda t: 15 + 10 * t,
        "monitor/target_places": 0.55,
        "monitor/input_likeness": 0.4,
        "monitor/target_drift": 0.03,
    }
    courses = {**healthy, **{name.replace("__", "/"): course for name, course in courses.items()}}
    made = []
    for number in range(count):
        share = number / max(1, count - 1)
        values = {name: course(share) if callable(course) else course for name, course in courses.items()}
        made.append({"step": float(max(1, number * EVERY)), **{n: v for n, v in values.items() if v is not None}})
    return made


def verdict(*arguments, **courses):
    return judge(history(*arguments, **courses), Thresholds())


def test_a_healthy_run():
    found = verdict()
    assert (found.name, found.is_bad, found.is_sound) == ("healthy", False, True)
    assert "effective rank of embeddings 5" in found.evidence


def test_too_few_measurements():
    assert judge([], Thresholds()).name == "unknown"
    assert verdict(2).name == "unknown"
    assert verdict(2).is_sound
    assert verdict(3).name == "healthy"


def test_an_untrained_network_has_not_collapsed():
    fresh = {"monitor__embedding_spread": 0.03, "monitor__target_spread": 0.25, "monitor__embedding_dimensions": 3.0}
    assert verdict(**fresh).name == "healthy"


def test_complete_collapse_and_what_to_do():
    found = verdict(monitor__target_spread=lambda t: 0.7 * (1 - t) ** 2)
    assert found.name == "complete collapse"
    assert found.evidence.startswith(
        "the spread of targets fell from 0.7 to 0 in 179 steps, by step 180, while the loss"
    )
    assert "raise the EMA momentum (model.target.momentum.start), or add loss.terms.sigreg" in found.evidence
    without = verdict(monitor__embedding_spread=lambda t: 0.17 * (1 - t) ** 2, monitor__target_drift=None, count=40)
    assert without.name == "complete collapse"
    assert "model/target=ema" in without.evidence
    at_once = verdict(monitor__target_spread=lambda t: 0.7 * (1 - t) ** 2, monitor__target_drift=0.0)
    assert "the target follows the encoder at once" in at_once.evidence
    fast = verdict(monitor__target_spread=lambda t: 0.7 * (1 - t) ** 2, update_ratio=0.05)
    assert "lower optimizer.lr (update_ratio is 5.0e-02" in fast.evidence


def test_what_collapses_in_a_world_model():
    """Spread, rank and dimensions at the first look and at step 1,600 of experiment=two_rooms, and of its ablations."""
    for spread, rank, dimensions, in_time, says, term in (
        (0.96, 45, 45, 0.09, "healthy", None),
        (0.26, 4.7, 11, 0.013, "complete collapse", "variance"),
        (0.98, 12.7, 12.3, 0.013, "dimensional collapse", "covariance"),
        (0.96, 45, 45, 0.001, "temporal collapse", "inverse_dynamics"),  # not recorded
    ):
        ends = {"embedding_spread": (0.58, spread), "target_spread": (0.58, spread), "embedding_rank": (106, rank)}
        ends |= {"embedding_dimensions": (135, dimensions), "view_variance": (0.32, in_time)}
        ends |= {"step_change": (0.08, 0.01), "motion_predicted": (-1.7, 0.8)}
        courses = {f"monitor__{name}": lambda t, a=a, b=b: a if t < 0.5 else b for name, (a, b) in ends.items()}
        found = verdict(**courses)
        assert found.name == says
        evidence = f"raise loss.terms.{term}.weight" if term else "of the motion of states predicted 80%"
        assert evidence in found.evidence


@pytest.mark.parametrize(
    ("spread", "expected"),
    [
        (lambda t: 0.7 if t == 0 else 0.02, "complete collapse"),  # by the second look
        (lambda t: max(0.28, 0.69 - t), "healthy"),  # a learning rate of 3e-3, linear probe 0.98
        (lambda t: 0.69 if t < 0.5 else 0.25, "healthy"),  # I-JEPA on digits at steps 300 to 400
        (lambda t: 0.69 if t < 0.5 else 0.14, "complete collapse"),
        (0.1, "healthy"),  # as it was at the start: nothing has fallen
        (0.004, "complete collapse"),  # before the start
    ],
)
def test_floors_are_absolute(spread, expected):
    assert verdict(monitor__target_spread=spread).name == expected


def test_projections_collapse_before_embeddings_do():
    views = {"monitor__target_spread": None, "monitor__target_drift": None, "monitor__target_places": None}
    found = verdict(20, **views, monitor__projection_spread=lambda t: 0.9 - 0.7 * t)
    assert found.name == "complete collapse"
    assert found.evidence.startswith("the spread of projections fell from 0.9 to 0.2 in 379 steps")
    assert "loss=vicreg" in found.evidence


def test_the_online_probe_has_a_say():
    """It is rarer than looks, and step 0 has it alone."""

    def probed(last, **courses):
        rare = [{**m, "online/knn": last} if number % 4 == 0 else m for number, m in enumerate(history(**courses))]
        return judge([{"step": 0.0, "online/knn": 0.4}, *rare], Thresholds())

    small = {"monitor__target_spread": lambda t: 0.7 * (1 - t)}
    assert probed(0.5, **small).name == "complete collapse"
    assert probed(0.9, **small).name == "healthy"
    assert "online k-NN 0.900" in probed(0.9, **small).evidence
    assert probed(0.35).name == "healthy"
    lost = probed(0.2)
    assert (lost.name, lost.is_curable) == ("probe collapse", True)
    assert "the accuracy of the online k-NN fell from 0.4 to 0.2 in 180 steps" in lost.evidence


def test_recorded_runs_are_judged_by_what_their_features_are_worth():
    content = json.loads((ROOT / "scripts/results/collapse.json").read_text())
    runs = content["runs"]
    assert len(runs) == 40
    assert [has_collapsed(run) for run in runs] == [run["collapsed"] for run in runs]
    held_out = confusion(runs[1::2])
    assert held_out == content["held_out"]  # what docs/collapse.md says
    assert (held_out["collapsed"], held_out["missed"]) == (10, [])
    assert len(held_out["false_alarms"]) <= 1
    unprobed = [{**run, "looks": {n: v for n, v in run["looks"].items() if n != "online/knn"}} for run in runs]
    found = confusion(unprobed[1::2])
    assert len(found["missed"]) <= 1
    assert found["false_alarms"] == []


def test_dimensional_collapse_names_where_it_fell_from():
    found = verdict(monitor__embedding_dimensions=lambda t: 41 if t < 0.5 else 3)
    assert found.name == "dimensional collapse"
    assert "the effective rank of embeddings fell from 41 to 3 in" in found.evidence
    assert "while the loss fell" in found.evidence


def test_one_outlier_is_no_level_to_fall_from():
    assert verdict(monitor__embedding_dimensions=lambda t: 60 if 0.3 < t < 0.4 else 20).name == "healthy"


def test_positional_collapse():
    found = verdict(monitor__target_places=lambda t: 0.5 + 0.49 * t)
    assert found.name == "positional collapse"
    assert "99% of the variance of the targets" in found.evidence


@pytest.mark.parametrize(
    "signs",
    [
        {"monitor__input_likeness": 1.0},
        {"monitor__input_likeness": 0.92, "monitor__input_views": 1.1},
        {"monitor__input_likeness": 0.92, "monitor__target_places": 0.93},
    ],
)
def test_constant_data(signs):
    found = verdict(**signs)
    assert (found.name, found.is_curable) == ("constant data", False)
    assert "trainer.dry_run=true" in found.evidence


def test_data_that_is_alike_but_not_constant():
    assert verdict(monitor__input_likeness=0.9, monitor__input_views=0.2).name == "healthy"


def test_divergence():
    found = verdict(train__loss=lambda t: 1 + 9 * t)
    assert found.name == "diverged"
    assert "lower optimizer.lr" in found.evidence
    assert verdict(train__loss=lambda t: 0.1 + t).name == "diverged"
    assert verdict(train__loss=lambda t: 1 + t).name == "healthy"


def test_a_sign_must_last():
    measurements = history()
    for lasting, name in ((1, "healthy"), (2, "healthy"), (3, "complete collapse")):
        bad = [{**m, "monitor/target_spread": 0.01} for m in measurements[-lasting:]]
        found = judge(measurements[:-lasting] + bad, Thresholds())
        assert (found.name, found.is_sound) == (name, False)
        assert found.suspected == (None if lasting == 3 else "complete collapse")
    recovered = [*measurements[:-4], {**measurements[-4], "monitor/target_spread": 0.01}, *measurements[-3:]]
    assert judge(recovered, Thresholds()).is_sound


def test_nothing_known_but_the_loss():
    found = judge([{"step": 20.0 * n, "train/loss": 1.0} for n in range(5)], Thresholds())
    assert (found.name, found.is_sound) == ("unknown", True)
    assert "no two finite targets" in found.evidence
    assert judge([{"step": 20.0 * n, "train/loss": 1.0 + n * n} for n in range(9)], Thresholds()).name == "diverged"
