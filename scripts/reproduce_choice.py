"""Does a number that needs no labels pick good runs? Its rank correlation with the probe, over runs of each data set.

The runs are `VARIANTS` of the recipe of some data in TABLE, 200 steps each, scored on samples kept aside from training.
RankMe, LiDAR and the validation loss are what every run has; alpha-ReQ and SIGReg's statistic are measured beside them.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr

from jepa.evaluation.features import Features
from jepa.losses import SIGReg
from jepa.utils.metric_direction import direction_of

FEWEST = 5
"""Runs below which no correlation is told."""
DATA = ("digits", "NATOPS", "RacketSports", "ECG5000", "spoken digits", "ETTh1")
LENGTH = (
    *("trainer.max_steps=200", "scheduler.warmup_epochs=null", "scheduler.warmup_steps=30", "data.batch_size=128"),
    *("trainer.validate_every_epochs=null", "trainer.validate_every_steps=100"),
)
VARIANTS = {
    "as it is": (),
    "rate 1e-4": ("optimizer.lr=1e-4",),
    "rate 5e-3": ("optimizer.lr=5e-3",),
    "rate 1e-2": ("optimizer.lr=1e-2",),
    "a tenth of the tokens": ("model.mask.context_share=0.1",),
    "nine tenths": ("model.mask.context_share=0.9",),
    "batches of 32": ("data.batch_size=32",),
    "projections of 64": ("loss.projector.out_dim=64",),
    "variance 1": ("loss.terms.variance.weight=1",),
    "covariance 20": ("loss.terms.covariance.weight=20",),
}
"""Name -> what differs from the recipe. Losses are compared among those without a weight of their own."""
PROBES = ("AlphaReQ", "Gaussianity")
MEASURED = tuple(f"+evaluation.probes.{name.lower()}={{_target_: scripts.reproduce_choice.{name}}}" for name in PROBES)


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


NUMBERS = {"rankme": True, "lidar": True, "alphareq": False, "gaussianity": False, "val/loss": False}
"""Name -> whether more is meant to be better."""
TITLES = ("RankMe", "LiDAR", "alpha-ReQ", "SIGReg's\nstatistic", "validation\nloss")


def correlations_of_runs(
    options: argparse.Namespace, keep: Callable[[dict], None], content: dict[str, Any]
) -> dict[str, Any]:
    """Make the runs that `content` lacks, and return all with their rank correlations by data set."""
    from reproduce import side_by_side
    from reproduce_table import TABLE, check_places, placed

    recipes = {each.data: each for each in TABLE if each.method == "VICReg" and each.data in DATA}
    check_places(options.root, list(recipes.values()))
    runs = content.get("runs", [])
    known = {(run["data"], run["variant"]) for run in runs}
    with tempfile.TemporaryDirectory() as unpacked:
        jobs = []
        for data, variant in itertools.product(DATA, VARIANTS):
            if (data, variant) not in known:
                where = placed(recipes[data], options.root, unpacked)
                jobs.append((data, f"{data}, {variant}", functools.partial(measured, recipes[data], variant, where)))
        for _, found in side_by_side(jobs, options.jobs):
            runs.append(found)
            runs.sort(key=lambda run: (DATA.index(run["data"]), list(VARIANTS).index(run["variant"])))
            keep({"runs": runs})
    by_data = {data: [run for run in runs if run["data"] == data] for data in DATA}
    rows = {data: correlations(mine) for data, mine in by_data.items()}
    alike = {data: correlations(of_one_objective(mine)) for data, mine in by_data.items()}
    for data in DATA:
        print(data, rows[data], "of one objective:", alike[data])
    draw(rows, Path(__file__).resolve().parents[1] / "docs" / "pictures" / "label_free.png")
    return {"correlations": rows, "of_one_objective": alike, "runs": runs}


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
    axes.set_xticks(range(len(NUMBERS)), TITLES)
    axes.set_ylim(-1.05, 1.05)
    axes.set_ylabel("rank correlation with the probe")
    figure.savefig(path, dpi=110)


def measured(recipe: Any, variant: str, where: Sequence[str], threads: int) -> dict[str, Any]:
    """Train one variant of a recipe of TABLE; its numbers and its score."""
    from reproduce import run

    overrides = [*recipe.overrides, *LENGTH, *VARIANTS[variant]]
    result = run([*overrides, *MEASURED, *where, "data.score_on=validation"], 0, threads)
    trained = result["trained"]
    return {
        "data": recipe.data,
        "variant": variant,
        "overrides": overrides,
        "metric": recipe.metrics[0],
        "score": trained[recipe.metrics[0]],
        **{name: trained.get(name, result.get(name)) for name in NUMBERS},
    }


def of_one_objective(runs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The runs whose loss is that of the recipe."""
    return [run for run in runs if not any("loss." in each for each in VARIANTS[run["variant"]])]


def correlations(runs: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Spearman's rank correlation of each number with the score; above 0 where the number picks good runs.

    Losses of one objective alone are compared.
    """
    more_score_is_better = direction_of(runs[0]["metric"]) == "maximize"
    found = {}
    for name, more_is_better in NUMBERS.items():
        have = [run for run in runs if run[name] is not None]
        if name == "val/loss":
            have = of_one_objective(have)
        if len(have) < FEWEST or min(len({run[key] for run in have}) for key in (name, "score")) == 1:
            found[name] = None  # nor is there a rank correlation with a constant
            continue
        rho = spearmanr([run[name] for run in have], [run["score"] for run in have]).statistic
        found[name] = round(float(rho if more_is_better == more_score_is_better else -rho), 2)
    return found
