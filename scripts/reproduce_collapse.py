"""Forty short runs under the monitor, healthy and collapsed: what it measured, and the quality of the frozen features.

A run is labelled by its frozen features beside those of random weights, never by the monitor (`collapsed`). Runs of
even number set the thresholds of jepa.monitor; those of odd number are what docs/collapse.md reports.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jepa import build_trainer, load_config
from jepa.monitor.verdict import Thresholds, judge

if TYPE_CHECKING:
    from jepa.evaluation import Features

STEPS = 200
SHORT = (
    f"trainer.max_steps={STEPS}",
    "trainer.device=cpu",
    "trainer.precision=fp32",
    "trainer.log_every=20",
    "trainer.best_k=0",
    "trainer.validate_every_epochs=null",
    "trainer.validate_every_steps=null",
    "trainer.save_every_epochs=null",
    "trainer.save_every_steps=null",
    "scheduler.warmup_epochs=null",
    "scheduler.warmup_steps=20",
    "data.batch_size=64",
    "visualise=none",
    "logger=jsonl",
    "report=none",
    "evaluation.batch_size=128",
    "evaluation.max_train_samples=600",
    "evaluation.max_test_samples=500",
    "evaluation.online_train_samples=400",
    "evaluation.online_test_samples=200",
    "evaluation.online_every_steps=40",
    "evaluation.probes.lidar=null",
    "evaluation.probes.retrieval=null",
    "evaluation.probes.forecast=null",
)


IMAGES = ("model.encoder.embed_dim=64", "model.encoder.depth=3")
LEJEPA = ("loss=sigreg_views", "loss.terms.sigreg.term.num_slices=64", "loss.projector.out_dim=16")
TOKENS = ("model/encoder=vit_shallow", "model.encoder.patch_size=14", "model/mask=random_quarter")
CLOTHES = (*TOKENS, *IMAGES, "data.root={root}/fashion_mnist", "data.batch_size=64")
UNJITTERED = ("data.augment.crop_scale=[0.6,1.0]", "data.augment.color_jitter=0.0")
HIDDEN = (*CLOTHES, "model=vit", "loss=smooth_l1", "data.views=1", *UNJITTERED)
SERIES = ("data.root={root}/ucr",)
SOUND = (
    "data.root={root}/fsdd.tar.xz",
    "data.label=digit",
    "data.augment.crop=[0.8,1.0]",
    "data.augment.speed=[0.85,1.15]",
    "data.augment.tilt=0.5",
    "data.batch_size=32",
    "model.encoder.embed_dim=64",
    "model.encoder.depth=2",
)
TEXT = ("data.root={root}/banking77", "data.batch_size=32")
ALLOWED = "model.allow_collapse=true"
UNREGULARISED = ("loss.terms.sigreg=null", ALLOWED)
UNVARIED = ("loss.terms.variance=null", ALLOWED)
SHARED = ("model.target._target_=scripts.reproduce.shared_target", ALLOWED)
STOPPED = "model/target=stop_gradient"
FAST, FASTER, FASTEST = "optimizer.lr=3e-3", "optimizer.lr=1e-2", "optimizer.lr=0.1"


def momentum(value: float) -> tuple[str, str]:
    """A moving average of this momentum throughout."""
    return f"model.target.momentum.start={value}", f"model.target.momentum.final={value}"


RUNS: list[tuple[str, tuple[str, ...]]] = [
    ("digits", IMAGES),
    ("digits", (*IMAGES, FAST)),
    ("ijepa_digits", IMAGES),
    ("ijepa_digits", (*IMAGES, "trainer.seed=1")),
    ("vicreg_digits", (*LEJEPA, *IMAGES)),
    ("vicreg_digits", IMAGES),
    ("vicreg_digits", (*IMAGES, "loss=infonce_views")),
    ("vicreg_digits", (*IMAGES, FAST)),
    ("digits", (*IMAGES, STOPPED, *UNREGULARISED, FASTER)),
    ("digits", (*IMAGES, *UNREGULARISED, FASTER)),
    ("vicreg_digits", (*LEJEPA, *IMAGES, *UNREGULARISED, FASTER)),
    ("vicreg_digits", (*IMAGES, *UNVARIED, FASTER)),
    ("digits", (*IMAGES, FASTEST)),
    ("ijepa_digits", (*IMAGES, FASTEST, *momentum(0.9))),
    ("ijepa_digits", (*IMAGES, *SHARED)),
    ("ijepa_digits", (*IMAGES, FASTER, *momentum(0.5))),
    ("fashion_mnist", (*LEJEPA, *CLOTHES)),
    ("fashion_mnist", CLOTHES),
    ("fashion_mnist", (*LEJEPA, *CLOTHES, FAST)),
    ("fashion_mnist", (*CLOTHES, FAST)),
    ("fashion_mnist", (*LEJEPA, *CLOTHES, *UNREGULARISED)),
    ("fashion_mnist", (*CLOTHES, *UNVARIED)),
    ("fashion_mnist", (*HIDDEN, *SHARED, FAST)),
    ("fashion_mnist", (*HIDDEN, *SHARED)),
    ("fashion_mnist", HIDDEN),
    ("fashion_mnist", (*HIDDEN, "optimizer.lr=5e-4")),
    ("series_ecg5000", SERIES),
    ("series_ecg5000", (*SERIES, FAST)),
    ("series_ecg5000", (*SERIES, "loss=smooth_l1", "data.views=1", *momentum(0), FAST)),
    ("series_ecg5000", (*SERIES, STOPPED, *UNREGULARISED)),
    ("series_ecg5000", (*SERIES, FASTEST)),
    ("audio_fsdd_speaker", (*SOUND, FASTEST)),
    ("audio_fsdd_speaker", SOUND),
    ("audio_fsdd_speaker", (*SOUND, "optimizer.lr=5e-4", *momentum(0.99))),
    ("text_banking77", TEXT),
    ("text_banking77", (*TEXT, "optimizer.lr=5e-4")),
    ("audio_fsdd_speaker", (*SOUND, STOPPED, *UNREGULARISED, FASTER)),
    ("text_banking77", (*TEXT, "loss=smooth_l1", *SHARED, FASTER)),
    ("text_banking77", (*TEXT, "loss=smooth_l1", STOPPED, FASTER, ALLOWED)),
    ("text_banking77", (*TEXT, FASTEST)),
]
"""The experiment and its overrides. Even numbers fit thresholds, odd ones are held out, so like stands beside like."""


def rank(train: Features, test: Features, *, classes: int, seed: int) -> float:
    """The effective rank of the centred features of the test split, a probe of the evaluation."""
    from jepa.utils.tensors import rankme

    return rankme(test.x - test.x.mean(dim=0))


def record(experiment: str, overrides: Sequence[str], root: Path) -> dict[str, Any]:
    """One run: the scores of its frozen features beside those of random weights, and what the monitor measured."""
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        options = [option.format(root=root) for option in overrides]
        given = [f"experiment={experiment}", *SHORT, *options, f"run_dir={folder}/run"]
        trainer = build_trainer(load_config(given))
        trainer.evaluation.probes["rank"] = rank
        trainer.fit()
        found = {name: value for name, value in trainer.metrics.items() if name.startswith("eval/")}
    rows = {row: {} for row in ("trained", "random_init")}
    for name, value in found.items():
        _, row, probe = name.split("/", 2)
        if row in rows and probe in ("linear", "knn", "rank", "rankme"):
            rows[row][probe] = round(value, 4)
    return {
        "experiment": experiment,
        "overrides": list(overrides),
        "cpu_seconds": round(time.process_time() - begun, 1),
        **rows,
        "looks": columns(trainer.monitor.history),
    }


def has_collapsed(run: Mapping[str, Any]) -> bool:
    """Whether frozen features are worse than those of random weights, or no better and of less than half their rank.

    Worse is by 5 points of accuracy, better by 2, mean of the linear and the k-NN probe. The rank is the effective rank
    of features, centred or not, whichever has lost more: uncentred, it tells that all features are alike.
    """
    trained, random = run["trained"], run["random_init"]
    gain = statistics.mean(trained[probe] - random[probe] for probe in ("linear", "knn"))
    kept = min(trained[name] / random[name] for name in ("rank", "rankme"))
    return gain < -0.05 or (gain < 0.02 and kept < 0.5)


def columns(history: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Measurements by name, to three digits, one text each to keep the file short; - where a look lacks one."""
    names = dict.fromkeys(name for look in history for name in look)
    return {name: " ".join(f"{look[name]:.3g}" if name in look else "-" for look in history) for name in names}


def looks(run: Mapping[str, Any]) -> list[dict[str, float]]:
    """The history that `columns` was made of."""
    rows = zip(*(column.split() for column in run["looks"].values()))
    return [{name: float(text) for name, text in zip(run["looks"], row) if text != "-"} for row in rows]


def judged(run: Mapping[str, Any]) -> tuple[int | None, str]:
    """The step of the first alarm, if any, and the verdict at the end, as the monitor gives them."""
    history, thresholds, alarm = looks(run), Thresholds(), None
    for count, look in enumerate(history, start=1):
        verdict = judge(history[:count], thresholds)
        if verdict.is_bad and alarm is None:
            alarm = int(look["step"])
    return alarm, verdict.name


def confusion(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many collapsed runs there are and which end without a bad verdict; which healthy ones ever had one."""
    found: dict[str, Any] = {"collapsed": 0, "missed": [], "healthy": 0, "false_alarms": []}
    for run in runs:
        alarm, verdict = judged(run)
        found["collapsed" if run["collapsed"] else "healthy"] += 1
        if run["collapsed"] and verdict in ("healthy", "unknown"):
            found["missed"].append(name_of(run))
        if not run["collapsed"] and alarm is not None:
            found["false_alarms"].append(name_of(run))
    return found


def name_of(run: Mapping[str, Any]) -> str:
    """What a reader can run, in short."""
    return " ".join([run["experiment"], *run["overrides"]])


def judged_runs(root: str, known: Sequence[dict[str, Any]], keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The runs, of which those not known are recorded with the data below root, and what the monitor makes of them.

    keep: called with what there is after each run.
    """
    import torch

    torch.set_num_threads(1)
    sys.path.append(str(Path(__file__).resolve().parents[1]))  # for scripts.reproduce.shared_target
    found = {(run["experiment"], *run["overrides"]): run for run in known}
    runs: list[dict[str, Any]] = []
    for experiment, overrides in RUNS:
        run = found.get((experiment, *overrides)) or record(experiment, overrides, Path(root).resolve())
        runs.append(run | {"collapsed": has_collapsed(run)})
        keep({"runs": runs})
    halves = {"fitted": confusion(runs[::2]), "held_out": confusion(runs[1::2])}
    for half, found in halves.items():
        missed, alarms = len(found["missed"]), len(found["false_alarms"])
        print(f"{half}: {missed} of {found['collapsed']} missed, {alarms} of {found['healthy']} false alarms")
    return {"runs": runs, **halves}
