"""The table of docs/results.md: features of every data set beside random weights, raw input and supervised training.

Settings are chosen by `--validate`, which scores samples kept aside from training and writes outputs/table.json.
Without it every row that scripts/results/table.json lacks is scored on the test split, once for each seed.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scipy import stats

from jepa.utils.metric_direction import direction_of
from jepa.utils.read_data import read_json

ROWS = ("trained", "random_init", "raw_input", "supervised")


@dataclass(frozen=True)
class Recipe:
    """A row for each metric of one method on one data set.

    places: keys of the data, where they lie below --root. metrics: as in results.json, of the row `trained`.
    supervised_epochs: passes of the network trained on the labels from scratch, for as much computing; None: no labels.
    published: what others have reported, with its source and cost.
    """

    data: str
    method: str
    overrides: tuple[str, ...]
    places: dict[str, str] = field(default_factory=dict)
    metrics: tuple[str, ...] = ("linear", "knn")
    supervised_epochs: float | None = None
    published: str | None = None


UCR = {"data.root": "ucr"}
TABLE = [
    Recipe("digits", "masked + SIGReg", ("experiment=digits",), supervised_epochs=36),
    Recipe("digits", "VICReg", ("experiment=vicreg_digits",), supervised_epochs=100),
    Recipe(
        "Fashion-MNIST",
        "VICReg",
        ("experiment=vicreg_fashion_mnist",),
        {"data.root": "fashion_mnist"},
        supervised_epochs=8,
    ),
    Recipe(
        "ECG5000",
        "VICReg",
        ("experiment=series_ucr", "data.name=ECG5000", "data.hints.patch_size=7"),
        UCR,
        supervised_epochs=150,
    ),
    Recipe("NATOPS", "VICReg", ("experiment=series_ucr", "data.name=NATOPS"), UCR, supervised_epochs=400),
    Recipe("RacketSports", "VICReg", ("experiment=series_ucr", "data.name=RacketSports"), UCR, supervised_epochs=400),
    Recipe(
        "ETTh1",
        "VICReg",
        ("experiment=series_etth1",),
        {"data.root": "ett/ETTh1.csv"},
        tuple(f"forecast/{hours}/mse" for hours in (96, 192, 336)),
    ),
    Recipe(
        "Beijing PM2.5",
        "VICReg",
        ("experiment=series_pm25",),
        {"data.root": "beijing/PRSA_data_2010-2014.csv.gz"},
        ("forecast/24/rmse", "forecast/24/rmse_last_step"),
    ),
    Recipe(
        "spoken digits",
        "masked + SIGReg",
        ("experiment=audio_fsdd",),
        {"data.root": "fsdd.tar.xz"},
        supervised_epochs=12,
    ),
    Recipe(
        "banking77", "masked + InfoNCE", ("experiment=text_banking77",), {"data.root": "banking77"}, supervised_epochs=6
    ),
    Recipe(
        "written and spoken digits",
        "cross-modal",
        ("experiment=crossmodal_digits",),
        {"data.mnist_root": "mnist", "data.fsdd_root": "fsdd.tar.xz"},
        ("retrieval/written_to_spoken/recall_at_1", "retrieval/spoken_to_written/recall_at_1"),
    ),
]


def rows_of_all(options: argparse.Namespace, path: Path) -> list[dict[str, Any]]:
    """Run what the file at `path` lacks, write it after each run, and return its rows."""
    from reproduce import ROOT, located, print_table, run, stored, write

    if not options.root:
        raise SystemExit("table needs --root, the folder that holds the data")
    if unknown := set(options.only or ()) - (known := {each.data for each in TABLE}):
        raise SystemExit(f"--only {' '.join(unknown)}: expected some of {', '.join(sorted(known))}")
    split = "validation" if options.validate else "test"
    path = ROOT / "outputs" / "table.json" if options.validate else path
    rows = stored(path) or []
    root = Path(options.root).resolve()
    with tempfile.TemporaryDirectory() as unpacked:
        chosen = [each for each in TABLE if not options.only or each.data in options.only]
        for recipe, seed in itertools.product(chosen, options.seeds or (0, 1, 2)):
            if seed in seeds_of(rows, recipe):
                continue
            where = [f"{key}={located(root / place, Path(unpacked))}" for key, place in recipe.places.items()]
            overrides = [*recipe.overrides, *where, f"data.score_on={split}"]
            result = run(overrides, seed)
            if recipe.supervised_epochs is not None:
                result["supervised"] = supervised(overrides, seed, recipe.supervised_epochs)
            rows = with_run(rows, recipe, seed, result, split)
            write(path, rows)
    titles = ("data", "method", "measure", *ROWS, "core minutes")
    print_table(titles, ([row["data"], row["method"], row["metric"], *shown(row), row["core_minutes"]] for row in rows))
    return rows


def seeds_of(rows: list[dict[str, Any]], recipe: Recipe) -> set[int]:
    """The seeds that a recipe has been run with; of a recipe that has changed none."""
    key = recipe.data, recipe.method, list(recipe.overrides)
    mine = [row for row in rows if (row["data"], row["method"], row["overrides"]) == key]
    return {one["seed"] for row in mine for one in row["runs"]}


def supervised(overrides: Sequence[str], seed: int, epochs: float) -> dict[str, float]:
    """The accuracy of the same encoder trained on the labels from scratch."""
    from reproduce import ROOT

    probes = ("linear", "knn", "lidar", "retrieval", "forecast")
    probe = f"{{_target_: jepa.evaluation.FineTuning, epochs: {epochs}}}"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "results.json"
        options = ["checkpoint=random", *overrides, f"trainer.seed={seed}", f"output={output}", "cache_dir=null"]
        options += [*(f"evaluation.probes.{name}=null" for name in probes), f"+evaluation.probes.fine_tuning={probe}"]
        subprocess.run([sys.executable, str(ROOT / "scripts" / "evaluate.py"), *options], check=True, cwd=ROOT)
        return {"linear": read_json(output)["random_init"]["fine_tuning"]}


def with_run(
    rows: list[dict[str, Any]], recipe: Recipe, seed: int, result: dict[str, Any], split: str
) -> list[dict[str, Any]]:
    """The rows with one run more, in the order of TABLE."""
    kept = []
    old: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if (row["data"], row["method"]) != (recipe.data, recipe.method):
            kept.append(row)
        elif row["overrides"] == list(recipe.overrides):
            old[row["metric"]] = row["runs"]
    for metric in recipe.metrics:
        one = {"seed": seed, "core_minutes": round(result["cpu_seconds"] / 60, 2)}
        one |= {name: result.get(name, {}).get(metric) for name in ROWS}
        kept.append(summarised(recipe, metric, [*old.get(metric, []), one], split))
    order = {(each.data, each.method): place for place, each in enumerate(TABLE)}
    return sorted(kept, key=lambda row: order.get((row["data"], row["method"]), len(order)))


def summarised(recipe: Recipe, metric: str, runs: list[dict[str, Any]], split: str) -> dict[str, Any]:
    """A row of the table."""
    row: dict[str, Any] = {
        "data": recipe.data,
        "method": recipe.method,
        "metric": metric,
        "higher_is_better": direction_of(metric) == "maximize",
        "overrides": list(recipe.overrides),
    }
    for name in ROWS:
        values = [run[name] for run in runs if run[name] is not None]
        row[name] = interval(values) if values else None
    row |= {"scored_on": split, "chosen_on": "validation", "published": recipe.published}
    row["core_minutes"] = round(statistics.mean(run["core_minutes"] for run in runs), 2)
    return row | {"runs": runs}


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean and 95 % interval of the mean by Student's t; low and high are None for one value."""
    mean, count = statistics.mean(values), len(values)
    half = stats.t.ppf(0.975, count - 1) * statistics.stdev(values) / math.sqrt(count) if count > 1 else None
    low, high = (None, None) if half is None else (round(float(mean - half), 4), round(float(mean + half), 4))
    return {"mean": round(mean, 4), "low": low, "high": high, "seeds": count}


def shown(row: dict[str, Any]) -> Iterator[str]:
    """The cells of a row: mean and half of the interval."""
    for name in ROWS:
        found = row[name]
        if found is None:
            yield "-"
        elif found["low"] is None:
            yield f"{found['mean']:.3f}"
        else:
            yield f"{found['mean']:.3f} ± {(found['high'] - found['low']) / 2:.3f}"
