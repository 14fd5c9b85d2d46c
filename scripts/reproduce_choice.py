"""Does a number that needs no labels pick good runs? Its rank correlation with the probe over finished runs.

`reproduce.py choice --runs FOLDER` reads run folders, <data>/<run>, that were trained on data with labels and scored on
validation. From a run's results.json come the probes and RankMe, LiDAR and the validation loss; from its last
checkpoint's features alpha-ReQ and SIGReg's statistic. The loss is compared among runs of one objective only.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr

from jepa.evaluation.features import Features
from jepa.losses import SIGReg
from jepa.utils.errors import UserError
from jepa.utils.read_data import read_json, read_yaml

FEWEST = 5
"""Runs of one data set below which no correlation is told."""


class AlphaReQ:
    """Distance from 1 of the decay of the features' spectrum: the k-th eigenvalue of the covariance is about k^-alpha.

    Agrawal et al. 2022 (alpha-ReQ, NeurIPS): features with alpha near 1 generalise best. The slope of the logarithms by
    least squares over the first half of the eigenvalues, as the last ones are noise.
    """

    uses_seed = False

    def __call__(self, train: Features, test: Features, *, classes: int, seed: int) -> float:
        """Return |alpha - 1| of the test features."""
        x = test.x.double()
        values = torch.linalg.svdvals(x - x.mean(dim=0)).square()
        values = values[values > 1e-10 * values[0]][: max(2, min(x.shape) // 2)].log()
        rank = torch.arange(1, len(values) + 1, dtype=torch.float64).log()
        rank, values = rank - rank.mean(), values - values.mean()
        return float((-(rank @ values) / rank.square().sum().clamp(min=1e-12) - 1).abs())


class Gaussianity:
    """SIGReg's statistic of the test features, each z-scored: how far they are from a Gaussian."""

    uses_seed = False

    def __call__(self, train: Features, test: Features, *, classes: int, seed: int) -> float:
        """Return the statistic of 512 samples, 1.06 of Gaussian ones."""
        x = test.x[:512]
        z_scored = (x - x.mean(dim=0)) / x.std(dim=0).clamp(min=1e-6)
        directions = torch.randn(x.shape[1], 512, generator=torch.Generator().manual_seed(0))
        return float(SIGReg().statistic(z_scored @ (directions / directions.norm(dim=0))).mean())


SCORES = {"linear": True, "forecast/96/mse": False, "retrieval/written_to_spoken/recall_at_1": True}
"""What runs are ranked by, the first that they have -> whether more is better."""

NUMBERS: Mapping[str, bool] = {"rankme": True, "lidar": True, "alpha_req": False, "sigreg": False, "val/loss": False}
"""Name -> whether more is meant to be better."""


def correlations_of_runs(folder: str, keep: Callable[[dict], None], content: dict[str, Any]) -> dict[str, Any]:
    """Measure the runs that `content` lacks, and return all with their rank correlations by data set.

    Raises UserError for a folder without runs.
    """
    runs = content.get("runs", [])
    known = {(run["data"], run["name"]) for run in runs}
    if not (paths := sorted(Path(folder).glob("*/*/results.json"))):
        raise UserError(
            f"--runs {folder} holds no <data>/<run>/results.json: expected a folder of finished runs for each data"
        )
    for path in paths:
        if (path.parts[-3], path.parts[-2]) in known:
            continue
        if (found := measured(path.parent)) is None:
            print(f"left out: {path.parent}, which has no probe or was not scored on validation")
            continue
        runs.append(found)
        keep({"runs": runs})
    by_data = defaultdict(list)
    for run in runs:
        by_data[run["data"]].append(run)
    rows = {data: correlations(mine) for data, mine in by_data.items() if len(mine) >= FEWEST}
    for data, row in rows.items():
        print(data, len(by_data[data]), row)
    if rows:
        draw(rows, Path(__file__).resolve().parents[1] / "docs" / "pictures" / "label_free.png")
    return {"correlations": rows, "runs": runs}


def draw(rows: Mapping[str, Mapping[str, float | None]], path: Path) -> None:
    """Draw the correlations of each number, a point for each data set and a bar at their mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    for place, name in enumerate(NUMBERS):
        found = {data: row[name] for data, row in rows.items() if row[name] is not None}
        if found:
            mean = sum(found.values()) / len(found)
            axes.plot([place - 0.3, place + 0.3], [mean, mean], color="black", linewidth=2)
        for data, value in found.items():
            color = f"C{list(rows).index(data)}"
            axes.plot(place + (list(rows).index(data) - len(rows) / 2) * 0.05, value, "o", color=color)
    handles = [axes.plot([], [], "o", color=f"C{n}", label=data)[0] for n, data in enumerate(rows)]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_xticks(range(len(NUMBERS)), NUMBERS)
    axes.set_ylim(-1.05, 1.05)
    axes.set_ylabel("rank correlation with the probe")
    figure.savefig(path, dpi=110)


def measured(folder: Path) -> dict[str, Any] | None:
    """The numbers of a run; None for one without a probe, or that was not scored on validation."""
    results = read_json(folder / "results.json")
    trained = results.get("trained", {})
    metric = next((name for name in SCORES if name in trained), None)
    if metric is None or results.get("scored_on") != "validation":
        return None
    label_free = features_of(folder) if metric == "linear" else {}
    numbers = {name: trained.get(name, label_free.get(name, results.get(name))) for name in NUMBERS}
    terms = read_yaml(folder / "config.yaml")["loss"].get("terms", {})
    overrides = read_json(folder / "status.json")["overrides"]
    hidden = ("root", "score_on", "visualise")  # places of this machine, and what all runs have
    return {
        "data": folder.parent.name,
        "name": folder.name,
        "overrides": [each for each in overrides if not each.partition("=")[0].endswith(hidden)],
        "objective": [f"{name} {term['weight']}" for name, term in terms.items() if term],
        "metric": metric,
        "score": trained[metric],
        **numbers,
    }


def features_of(folder: Path) -> dict[str, float]:
    """What a run's features say without labels."""
    from reproduce import ROOT, processor_seconds

    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / "results.json"
        probes = dict.fromkeys(("linear", "knn", "lidar", "retrieval", "forecast"), "null")
        probes |= {"alpha_req": "{_target_: reproduce_choice.AlphaReQ}"}
        probes |= {"sigreg": "{_target_: reproduce_choice.Gaussianity}"}
        options = [f"checkpoint={folder}", f"output={output}", "cache_dir=null", "evaluation.max_train_samples=10"]
        options += [f"++evaluation.probes.{name}={probe}" for name, probe in probes.items()]
        processor_seconds([sys.executable, str(ROOT / "scripts" / "evaluate.py"), *options], None)
        return read_json(output)["trained"]


def correlations(runs: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Spearman's rank correlation of each number with the score; above 0 where the number picks good runs."""
    found, more_score_is_better = {}, SCORES[runs[0]["metric"]]
    for name, more_is_better in NUMBERS.items():
        have = [run for run in runs if run[name] is not None]
        if name == "val/loss":
            groups = defaultdict(list)
            for run in have:
                groups[tuple(run["objective"])].append(run)
            have = max(groups.values(), key=len, default=[])
        if len(have) < FEWEST or min(len({run[key] for run in have}) for key in (name, "score")) == 1:
            found[name] = None  # nor is there a rank correlation with a constant
            continue
        rho = spearmanr([run[name] for run in have], [run["score"] for run in have]).statistic
        found[name] = round(float(rho if more_is_better == more_score_is_better else -rho), 2)
    return found
