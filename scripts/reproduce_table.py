"""The table of docs/results.md: features of every data set beside random weights, raw input and supervised training.

Settings are chosen by `--validate`, which scores samples kept aside from training and writes outputs/table.json.
Without it every row that scripts/results/table.json lacks is scored on the test split, once for each seed.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import lzma
import math
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from jepa.utils.errors import UserError, first_line
from jepa.utils.metric_direction import direction_of
from jepa.utils.read_data import read_json

ROWS = ("trained", "random_init", "raw_input", "supervised")
COLUMNS = (
    "data",
    "method",
    "measure",
    "own recipe",
    "one recipe",
    "random weights",
    "raw input",
    "supervised",
    "core minutes",
    "TFLOP",
)
WANTED = ("data", "method", "metric", "overrides", "runs", *ROWS, "higher_is_better", "is_universal", "core_minutes")
UNIVERSAL = "one recipe"
"""The method that is the same on all data."""


@dataclass(frozen=True)
class Recipe:
    """A row for each metric of one method on one data set.

    places: keys of the data, where they lie below --root. metrics: as in results.json, of the row `trained`.
    supervised_epochs: passes of the network trained on the labels from scratch, for as much computing; None: no labels.
    is_universal: it follows ONE_RECIPE; what does not has a row of that beside its own.
    chosen_on: the split that its settings were chosen by; "test" for those of before validation was kept aside.
    published: what others have reported, with its source and cost.
    """

    data: str
    method: str
    overrides: tuple[str, ...]
    places: dict[str, str] = field(default_factory=dict)
    metrics: tuple[str, ...] = ("linear", "knn")
    supervised_epochs: float | None = None
    is_universal: bool = False
    chosen_on: str = "validation"
    published: str | None = None


def text_places(labelled: str) -> dict[str, str]:
    """Texts with labels, and those that they are mixed with."""
    return {"data.parts.texts.root": labelled, "data.parts.wikitext2.root": "wikitext2"}


UCR = {"data.root": "ucr"}
ONE_RECIPE = ("data.batch_size=128", "optimizer.lr=1e-3", "model.mask.context_share=0.5")
"""Everywhere the same: two views of a sample, each in half of its tokens where it has several, agree under VICReg of
512-wide projections, by AdamW at 1e-3 in batches of 128. Views, encoder and length are those of the data's own recipe.
"""
TEXTS = (
    *("loss=vicreg_views", "loss.terms.contrastive=null", "~data.views"),
    *("loss.projector.hidden=[512,512]", "loss.projector.out_dim=512"),
)
SIDES = (*ONE_RECIPE[:2], "model.masks.written.context_share=0.5", "model.masks.spoken.time_share=0.5")
LEJEPA = ("loss=sigreg_views", "loss.projector.out_dim=16")
VISREG = ("loss=visreg_views", "loss.projector.out_dim=512")
TREC = "text_small/trec_sst_subj.csv.gz"
DIGIT_PAIRS = {"data.mnist_root": "mnist", "data.fsdd_root": "fsdd.tar.xz"}
MOTION = ("linear", "knn", "motion/direction_error", "motion/single_frame/direction_error", "motion/speed_rmse")
PAIRS = (
    *("retrieval/written_to_spoken/recall_at_1", "retrieval/spoken_to_written/recall_at_1"),
    *(f"{name}/{probe}" for name in ("written", "spoken") for probe in ("linear", "knn")),
)
TABLE = [
    Recipe("digits", "masked + SIGReg", ("experiment=digits",), supervised_epochs=36, chosen_on="test"),
    Recipe("digits", "VICReg", ("experiment=vicreg_digits",), supervised_epochs=100, chosen_on="test"),
    Recipe("digits", "LeJEPA", ("experiment=vicreg_digits", *LEJEPA), chosen_on="test"),
    Recipe("digits", "VISReg", ("experiment=vicreg_digits", *VISREG), chosen_on="test"),
    Recipe("digits", "I-JEPA", ("experiment=ijepa_digits",), chosen_on="test"),
    Recipe(
        "Fashion-MNIST",
        "VICReg",
        ("experiment=fashion_mnist",),
        {"data.root": "fashion_mnist"},
        supervised_epochs=5,
        is_universal=True,
    ),
    Recipe(
        "Imagenette, 64 px",
        "VICReg",
        ("experiment=imagenette_64",),
        {"data.root": "imagenette/imagenette_128.npz"},
        supervised_epochs=10,
        is_universal=True,
        published="linear 0.907, LeJEPA, ViT-S/8 at 128 px, 800 epochs, 200 minutes of one GPU (lejepa, MINIMAL.md)",
    ),
    Recipe(
        "ECG5000",
        "VICReg",
        ("experiment=series_ucr", "data.name=ECG5000", "data.hints.patch_size=7"),
        UCR,
        supervised_epochs=150,
        is_universal=True,
    ),
    Recipe(
        "NATOPS", "VICReg", ("experiment=series_ucr", "data.name=NATOPS"), UCR, supervised_epochs=400, is_universal=True
    ),
    Recipe(
        "RacketSports",
        "VICReg",
        ("experiment=series_ucr", "data.name=RacketSports"),
        UCR,
        supervised_epochs=400,
        is_universal=True,
    ),
    Recipe(
        "ETTh1",
        "VICReg",
        ("experiment=series_etth1",),
        {"data.root": "ett/ETTh1.csv"},
        tuple(f"forecast/{hours}/mse" for hours in (96, 192, 336)),
        is_universal=True,
    ),
    Recipe(
        "Beijing PM2.5",
        "VICReg",
        ("experiment=series_pm25",),
        {"data.root": "beijing/PRSA_data_2010-2014.csv.gz"},
        ("forecast/24/rmse", "forecast/24/rmse_last_step"),
        is_universal=True,
    ),
    Recipe("spoken digits", "VICReg", ("experiment=audio_fsdd",), {"data.root": "fsdd.tar.xz"}, supervised_epochs=20),
    Recipe("banking77", "InfoNCE", ("experiment=infonce_banking77",), text_places("banking77")),
    Recipe("TREC-6", "InfoNCE", ("experiment=infonce_trec6",), text_places(TREC)),
    Recipe("Moving MNIST", "VICReg", ("experiment=moving_mnist",), {"data.root": "mnist"}, MOTION),
    Recipe(
        "written and spoken digits", "VICReg across and within", ("experiment=crossmodal_digits",), DIGIT_PAIRS, PAIRS
    ),
    Recipe("digits", UNIVERSAL, ("experiment=vicreg_digits", *ONE_RECIPE), chosen_on="test"),
    Recipe("spoken digits", UNIVERSAL, ("experiment=audio_fsdd", *ONE_RECIPE), {"data.root": "fsdd.tar.xz"}),
    Recipe("banking77", UNIVERSAL, ("experiment=infonce_banking77", *TEXTS, *ONE_RECIPE), text_places("banking77")),
    Recipe("TREC-6", UNIVERSAL, ("experiment=infonce_trec6", *TEXTS, *ONE_RECIPE), text_places(TREC)),
    Recipe("Moving MNIST", UNIVERSAL, ("experiment=moving_mnist", *ONE_RECIPE), {"data.root": "mnist"}, MOTION),
    Recipe("written and spoken digits", UNIVERSAL, ("experiment=crossmodal_digits", *SIDES), DIGIT_PAIRS, PAIRS),
]


def rows_of_all(options: argparse.Namespace, path: Path) -> list[dict[str, Any]]:
    """Run what the file at `path` lacks, write it after each run, and return its rows.

    Raises UserError for unknown data, data or results that cannot be read, and, after all others, for runs that fail.
    """
    from reproduce import chosen, known_rows, side_by_side, table_lines, write

    recipes = chosen(TABLE, options.only, "data")
    rows, split = known_rows(path, WANTED), "validation" if options.validate else "test"
    lacking = [(each, seed) for each in recipes for seed in options.seeds if seed not in seeds_of(rows, each)]
    check_places(options.root, [recipe for recipe, _ in lacking])
    with tempfile.TemporaryDirectory() as unpacked:
        jobs = []
        for recipe, seed in lacking:
            overrides = [*recipe.overrides, *placed(recipe, options.root, unpacked), f"data.score_on={split}"]
            name = f"{recipe.data}, {recipe.method}, seed {seed}"
            jobs.append((recipe, name, functools.partial(measured, recipe, overrides, seed)))
        for recipe, result in side_by_side(jobs, options.jobs):
            rows = with_run(rows, recipe, result, split)
            write(path, rows)
        for recipe in recipes:
            mine = [row for row in rows if is_of(row, recipe)]
            if mine and any(row.get("teraflop") is None for row in mine):
                count = teraflop_of([*recipe.overrides, *placed(recipe, options.root, unpacked)])
                for row in mine:
                    row["teraflop"] = count
    print("\n".join(table_lines(COLUMNS, page(rows))))
    return rows


def check_places(root: str | None, recipes: Sequence[Recipe]) -> None:
    """Raise UserError unless the data of all recipes lie below root, which may be None where there are none."""
    wanted = sorted({place for each in recipes for place in each.places.values()})
    if wanted and root is None:
        raise UserError(f"table needs --root, the folder that holds {', '.join(wanted)}")
    if missing := [place for place in wanted if not Path(root, place).exists()]:
        raise UserError(f"--root {root} lacks {', '.join(missing)}: put the data there")


def placed(recipe: Recipe, root: str | None, unpacked: str) -> list[str]:
    """The overrides that say where the data of a recipe lie."""
    places = {key: Path(root or "", place).resolve() for key, place in recipe.places.items()}
    return [f"{key}={located(place, Path(unpacked))}" for key, place in places.items()]


def located(path: Path, unpacked: Path) -> Path:
    """The data at a path; of an archive the folder it holds, unpacked at the first call."""
    folder = unpacked / path.name.split(".")[0]
    if path.name == "imagenette_128.npz":
        return folder if folder.exists() else unpack_pictures(path, folder)
    if not path.name.endswith((".tar", ".tar.gz", ".tar.xz")):
        return path
    if not folder.exists():
        try:
            with tarfile.open(path) as archive:
                archive.extractall(unpacked, filter="data")
        except (tarfile.TarError, OSError, EOFError, lzma.LZMAError) as error:
            raise UserError(f"{path} is not a complete archive ({first_line(error)}): get it again") from error
    return folder


def unpack_pictures(path: Path, folder: Path) -> Path:
    """Write packed JPEGs into train/<class> and val/<class> of a folder, and return it."""
    with np.load(path) as packed:
        jpeg, offsets, split, label, wnid = (packed[key] for key in ("jpeg", "offsets", "split", "label", "wnid"))
    for number, (begin, end) in enumerate(itertools.pairwise(offsets)):
        place = folder / ("train", "val")[split[number]] / str(wnid[label[number]])
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:05}.jpg").write_bytes(jpeg[begin:end].tobytes())
    return folder


def measured(recipe: Recipe, overrides: Sequence[str], seed: int, threads: int) -> dict[str, Any]:
    """What comes of a recipe with a seed, and of the same encoder trained on the labels."""
    from reproduce import run

    result = run(overrides, seed, threads)
    if recipe.supervised_epochs is not None:
        result["supervised"] = supervised(overrides, seed, recipe.supervised_epochs, threads)
    return result


def seeds_of(rows: list[dict[str, Any]], recipe: Recipe) -> set[int]:
    """The seeds that a recipe has been run with; of a recipe that has changed none."""
    return {one["seed"] for row in rows if is_of(row, recipe) for one in row["runs"]}


def is_of(row: dict[str, Any], recipe: Recipe) -> bool:
    """Whether a row was made by a recipe as it is now."""
    key = recipe.data, recipe.method, list(recipe.overrides)
    return (row["data"], row["method"], row["overrides"]) == key


def teraflop_of(overrides: Sequence[str]) -> float:
    """The operations of a training run, in 1e12, a multiply-add as two, as `trainer.dry_run=true` tells them."""
    from reproduce import command

    with tempfile.TemporaryDirectory() as folder:
        words = command([*overrides, "trainer.dry_run=true", f"hydra.run.dir={folder}"])
        told = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
    number, unit = re.search(r"([\d.]+) ([kMGTP]?)FLOP the run", " ".join(told.split())).groups()
    return float(f"{float(number) * 1e3 ** ' kMGTP'.index(unit or ' ') / 1e12:.3g}")


def supervised(overrides: Sequence[str], seed: int, epochs: float, threads: int) -> dict[str, float]:
    """The accuracy of the same encoder trained on the labels from scratch."""
    from reproduce import ROOT, processor_seconds

    probes = ("linear", "knn", "lidar", "retrieval", "forecast")
    probe = f"{{_target_: jepa.evaluation.FineTuning, epochs: {epochs}}}"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "results.json"
        options = ["checkpoint=random", *overrides, f"trainer.seed={seed}", f"output={output}", "cache_dir=null"]
        options += [*(f"evaluation.probes.{name}=null" for name in probes), f"+evaluation.probes.fine_tuning={probe}"]
        processor_seconds([sys.executable, str(ROOT / "scripts" / "evaluate.py"), *options], threads)
        return {"linear": read_json(output)["random_init"]["fine_tuning"]}


def with_run(rows: list[dict[str, Any]], recipe: Recipe, result: dict[str, Any], split: str) -> list[dict[str, Any]]:
    """The rows with one run more, in the order of TABLE."""
    kept = []
    old: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if (row["data"], row["method"]) != (recipe.data, recipe.method):
            kept.append(row)
        elif row["overrides"] == list(recipe.overrides):
            old[row["metric"]] = row["runs"]
    for metric in recipe.metrics:
        one = {"seed": result["seed"], "core_minutes": round(result["cpu_seconds"] / 60, 2)}
        one |= {name: result.get(name, {}).get(metric) for name in ROWS}
        runs = sorted([*old.get(metric, []), one], key=lambda each: each["seed"])
        kept.append(summarised(recipe, metric, runs, split))
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
        "is_universal": recipe.is_universal or recipe.method == UNIVERSAL,
    }
    for name in ROWS:
        values = [run[name] for run in runs if run[name] is not None]
        row[name] = interval(values) if values else None
    row |= {"scored_on": split, "chosen_on": recipe.chosen_on, "published": recipe.published}
    row["core_minutes"] = round(statistics.mean(run["core_minutes"] for run in runs), 2)
    return row | {"runs": runs}


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean and 95 % interval of the mean by Student's t; low and high are None for one value."""
    mean, count = statistics.mean(values), len(values)
    half = stats.t.ppf(0.975, count - 1) * statistics.stdev(values) / math.sqrt(count) if count > 1 else None
    low, high = (None, None) if half is None else (round(float(mean - half), 4), round(float(mean + half), 4))
    return {"mean": round(mean, 4), "low": low, "high": high, "seeds": count}


def page(rows: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """Yield the lines of docs/results.md: a data set's own recipe, with what one recipe for all reaches beside it."""
    shown_with = {}  # data -> the method beside which what one recipe reaches stands: the first
    for row in rows:
        if row["method"] == UNIVERSAL:
            continue
        first_method = shown_with.setdefault(row["data"], row["method"])
        same = [each for each in rows if [each[key] for key in ("data", "metric")] == [row["data"], row["metric"]]]
        universal = next((each["trained"] for each in same if each["is_universal"]), None)
        universal = universal if row["method"] == first_method else None
        cells = [row["trained"], universal, *(row[name] for name in ROWS[1:])]
        lead = "**" if is_ahead(row) else ""
        first, *others = map(shown, cells)
        cost = f"{row['core_minutes']:.1f}", "-" if row.get("teraflop") is None else f"{row['teraflop']:.3g}"
        yield [row["data"], row["method"], row["metric"], lead + first + lead, *others, *cost]


def is_ahead(row: dict[str, Any]) -> bool:
    """Whether the trained features are better than random weights and raw input."""
    sign = 1 if row["higher_is_better"] else -1
    others = (row[name]["mean"] for name in ("random_init", "raw_input") if row[name] is not None)
    return all(sign * row["trained"]["mean"] > sign * other for other in others)


def shown(found: dict[str, Any] | None) -> str:
    """A cell: mean and half of the interval."""
    if found is None:
        return "-"
    return f"{found['mean']:.3f}" + ("" if found["low"] is None else f" ± {(found['high'] - found['low']) / 2:.3f}")
