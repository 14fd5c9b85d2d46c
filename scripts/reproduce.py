"""Run the recipes that docs/results.md quotes, over seeds, and store what came out as JSON.

    python scripts/reproduce.py digits                    three seeds of the default run
    python scripts/reproduce.py fashion_mnist --root DIR  with the data in DIR
    python scripts/reproduce.py objectives                I-JEPA, masked + SIGReg, LeJEPA and VICReg on digits
    python scripts/reproduce.py modalities --root DIR     video, text, series, sound and pairs, three seeds each
    python scripts/reproduce.py table --root DIR          docs/results.md: every data set, three seeds each
    python scripts/reproduce.py collapse --root DIR       40 runs, collapsed and healthy, and what the monitor says
    python scripts/reproduce.py recovery                  which regulariser brings collapsed weights back

Results go to scripts/results/<recipe>.json (objectives_digits.json): of each run its results.json, wall time and
machine. The files of objectives, modalities and collapse grow with every run, and a second start goes on with them:
delete one when its recipe has changed. The data of modalities lie in DIR as MODALITIES names them; archives are
unpacked for the time of the run. reproduce_engine.py has what is measured of the engine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from jepa.utils.read_data import read_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "scripts" / "results"
MACHINE = {"cores": os.cpu_count(), "machine": platform.machine()}

RECIPES = {
    "digits": (["experiment=digits"], (0, 1, 2)),
    "ijepa_digits": (["experiment=ijepa_digits"], (0,)),
    "fashion_mnist": (["experiment=fashion_mnist"], (0,)),
}
"""Name -> the overrides, and the seeds."""

LEJEPA = ["loss=sigreg_views", "loss.terms.sigreg.term.num_slices=64", "loss.projector.out_dim=16"]
SHARED = ["model/target=shared", "loss.terms.prediction.term._target_=jepa.losses.MSE", "trainer.max_epochs=80"]
OBJECTIVES = {
    "VICReg": ["experiment=vicreg_digits"],
    "LeJEPA": ["experiment=vicreg_digits", *LEJEPA],
    "masked + SIGReg": ["experiment=digits", *SHARED],
    "I-JEPA (EMA)": ["experiment=ijepa_digits"],
}
"""Name -> the overrides, in the order in which they run."""

MODALITIES = {
    "fight_frames": ("vjepa_fight_frames", {"data.root": "fight_frames.tar.gz"}, ("linear", "knn")),
    "banking77": ("text_banking77", {"data.root": "banking77"}, ("linear", "knn")),
    "sst2": ("text_sst2", {"data.root": "sst2"}, ("linear", "knn")),
    "ECG5000": ("series_ecg5000", {"data.root": "ucr"}, ("linear", "knn")),
    "ETTh1": ("series_etth1", {"data.root": "ett/ETTh1.csv"}, ("forecast/96/mse", "forecast/96/mae")),
    "fsdd digit": ("audio_fsdd", {"data.root": "fsdd.tar.xz"}, ("linear", "knn")),
    "fsdd speaker": ("audio_fsdd_speaker", {"data.root": "fsdd.tar.xz"}, ("linear", "knn")),
    "written and spoken": (
        "crossmodal_digits",
        {"data.mnist_root": "mnist", "data.fsdd_root": "fsdd.tar.xz"},
        ("retrieval/written_to_spoken/recall_at_1", "written/linear", "spoken/linear"),
    ),
}
"""Name -> the experiment, where its data lie below the given folder, and what the table shows."""

BASELINES = {"random_init": "random weights", "raw_input": "raw pixels"}
ROWS = ("trained", *BASELINES)

SEEDS = (0, 1, 2)
"""Of objectives and modalities."""


def constant_digits() -> Any:
    """The digits, all of them the first one; augmentation is all that varies."""
    from dataclasses import replace

    from jepa.data.sources import TensorImages, digits

    splits = digits()
    same = {
        name: TensorImages(split.images[:1].expand_as(split.images).clone(), split.labels)
        for name, split in (("train", splits.train), ("test", splits.test))
    }
    return replace(splits, **same)


def shared_target(
    *,
    encoder: Any,
    momentum: Any = None,
    reference_batch_size: int | None = None,
    average_layers: int | None = None,
    concat_layers: Sequence[int] | None = None,
) -> Any:
    """The encoder itself with gradient, whatever the recipe says of a momentum."""
    from jepa.models import SharedTarget

    return SharedTarget(encoder=encoder, average_layers=average_layers, concat_layers=concat_layers)


def run(overrides: Sequence[str], seed: int | None) -> dict:
    """One run of train.py in a temporary folder: its results, wall time and processor time.

    Processor time, unlike wall time, is the same on a busy machine.
    """
    with tempfile.TemporaryDirectory() as folder:
        own = [] if seed is None else [f"trainer.seed={seed}"]
        begun, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command([*overrides, *own, f"hydra.run.dir={folder}"]), check=True, cwd=ROOT)
        seconds, total = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_seconds = total.ru_utime + total.ru_stime - used.ru_utime - used.ru_stime
        result = read_json(Path(folder) / "results.json")
        return {"seed": seed, "seconds": round(seconds), "cpu_seconds": round(cpu_seconds), **result}


def command(options: Sequence[str]) -> list[str]:
    """train.py with these options."""
    return [sys.executable, str(ROOT / "train.py"), *options]


def shown_command(options: Sequence[str]) -> str:
    """What a reader types."""
    return " ".join(["python train.py", *options])


def write(path: Path, content: dict) -> None:
    """Replace a file of results in one go, so that none is ever half written."""
    path.parent.mkdir(exist_ok=True)
    draft = path.with_name(f".{path.name}.writing")
    draft.write_text(json.dumps(content, indent=2) + "\n")
    draft.replace(path)


def stored(path: Path) -> dict:
    """What a file of results holds already."""
    return read_json(path) if path.exists() else {}


def spreads(scores: list[dict], metrics: Sequence[str] = ("linear", "knn")) -> dict:
    """Mean and range over runs of each metric that they have."""
    found = {metric: [score[metric] for score in scores] for metric in metrics if metric in scores[0]}
    kinds = {"mean": statistics.mean, "min": min, "max": max}
    return {metric: {kind: round(of(values), 4) for kind, of in kinds.items()} for metric, values in found.items()}


def print_table(titles: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Print Markdown for docs/results.md; a cell is text, a number, a spread, or None for no value."""

    def text(cell: Any) -> str:
        if isinstance(cell, dict):
            return f"{cell['mean']:.3f} ({cell['min']:.3f} to {cell['max']:.3f})"
        return "-" if cell is None else str(cell)

    for line in (titles, ["---"] * len(titles), *rows):
        print("| " + " | ".join(map(text, line)) + " |")


def over_seeds(jobs: Iterable[tuple[dict, list[str], int]], path: Path, summary: Callable[[list], dict]) -> dict:
    """Do the runs that the file at `path` lacks, and write it after each.

    jobs: (what is noted of a run, its command among it; overrides; seed).
    """
    runs = stored(path).get("runs", [])
    done = {(entry["command"], entry["seed"]) for entry in runs}
    for entry, overrides, seed in jobs:
        if (entry["command"], seed) not in done:
            runs.append(entry | run(overrides, seed))
            write(path, summary(runs))
    return summary(runs)


def grouped(runs: list[dict], key: str) -> list[tuple[str, list[dict]]]:
    """Runs by an entry, in the order in which its values first come."""
    return [(name, [entry for entry in runs if entry[key] == name]) for name in dict.fromkeys(e[key] for e in runs)]


def recipe(options: argparse.Namespace, path: Path) -> dict:
    """One recipe over its seeds, or those given."""
    overrides, usual = RECIPES[options.recipe]
    runs = [run([*overrides, *location(options)], seed) for seed in options.seeds or usual]
    trained = spreads([entry["trained"] for entry in runs])
    print(json.dumps(trained))
    return {"command": shown_command(overrides), **MACHINE, "trained": trained, "runs": runs}


def location(options: argparse.Namespace) -> list[str]:
    """Where the data are, if it was said."""
    return [f"data.root={options.root}"] if options.root else []


def objectives(options: argparse.Namespace, path: Path) -> dict:
    """Several objectives as means and ranges over their seeds, best k-NN first, with the baselines below."""
    jobs = []
    for seed, name in itertools.product(options.seeds or SEEDS, options.only or OBJECTIVES):
        entry = {"objective": name, "command": shown_command(OBJECTIVES[name])}
        jobs.append((entry, OBJECTIVES[name], seed))
    content = over_seeds(jobs, path, compared)
    rows = [
        [name, row["linear"], row["knn"], len(row["seeds"]), row["steps"], row["cpu_seconds"]]
        for name, row in content["objectives"].items()
    ]
    rows += [[name, content[key]["linear"], content[key]["knn"], "", "", ""] for key, name in BASELINES.items()]
    print_table(["objective", "linear", "k-NN", "seeds", "steps", "seconds"], rows)
    return content


def compared(runs: list[dict]) -> dict:
    """Runs of several objectives by objective, and the baselines of all."""
    rows: dict[str, dict] = {}
    for name, mine in grouped(runs, "objective"):
        rows[name] = {
            "command": mine[0]["command"],
            "seeds": [entry["seed"] for entry in mine],
            "steps": mine[0]["step"],
            "seconds": round(statistics.mean(entry["seconds"] for entry in mine)),
            "cpu_seconds": round(statistics.mean(entry["cpu_seconds"] for entry in mine if "cpu_seconds" in entry)),
            **spreads([entry["trained"] for entry in mine]),
        }
    rows = dict(sorted(rows.items(), key=lambda row: -row[1]["knn"]["mean"]))
    baselines = {name: spreads([entry[name] for entry in runs]) for name in BASELINES}
    return {**MACHINE, "objectives": rows, **baselines, "runs": runs}


def modalities(options: argparse.Namespace, path: Path) -> dict:
    """The recipes of several modalities as means and ranges over seeds, by recipe, row and metric."""
    if not options.root:
        raise SystemExit("modalities needs --root, the folder that holds their data")
    jobs, root = [], Path(options.root).resolve()
    with tempfile.TemporaryDirectory() as unpacked:
        for name, seed in itertools.product(options.only or MODALITIES, options.seeds or SEEDS):
            experiment, places, _ = MODALITIES[name]
            entry = {"name": name, "command": shown_command([f"experiment={experiment}"])}
            found = [f"{key}={located(root / place, Path(unpacked))}" for key, place in places.items()]
            jobs.append((entry, [f"experiment={experiment}", *found], seed))
        content = over_seeds(jobs, path, by_modality)
    rows = [
        [name, metric, *(entry[row].get(metric) for row in ROWS), len(entry["seeds"]), entry["cpu_seconds"]]
        for name, entry in content["recipes"].items()
        for metric in entry["trained"]
    ]
    titles = ["recipe", "measure", "trained", "random weights", "raw input", "seeds", "core seconds"]
    print_table(titles, rows)
    return content


def by_modality(runs: list[dict]) -> dict:
    """Runs of several recipes by recipe."""
    recipes = {}
    for name, mine in grouped(runs, "name"):
        recipes[name] = {
            "command": mine[0]["command"],
            "seeds": [entry["seed"] for entry in mine],
            "cpu_seconds": round(statistics.mean(entry["cpu_seconds"] for entry in mine)),
            **{row: spreads([entry[row] for entry in mine], MODALITIES[name][2]) for row in ROWS},
        }
    return {**MACHINE, "recipes": recipes, "runs": runs}


def located(path: Path, unpacked: Path) -> Path:
    """The data at a path; of an archive the folder it holds, unpacked at the first call."""
    if not path.name.endswith((".tar", ".tar.gz", ".tar.xz")):
        return path
    folder = unpacked / path.name.split(".")[0]
    if not folder.exists():
        with tarfile.open(path) as archive:
            archive.extractall(unpacked, filter="data")
    return folder


def collapse(options: argparse.Namespace, path: Path) -> dict:
    """What the monitor makes of 40 recorded runs."""
    from reproduce_collapse import judged_runs  # trains in this process

    return judged_runs(options.root, stored(path).get("runs", []), lambda found: write(path, found))


def recovery(options: argparse.Namespace, path: Path) -> dict:
    """What becomes of collapsed weights under each regulariser."""
    from reproduce_recovery import over_regularisers  # trains in this process

    return over_regularisers(options.seeds or SEEDS, lambda found: write(path, found))


def table(options: argparse.Namespace, path: Path) -> list[dict[str, Any]]:
    """The rows of docs/results.md."""
    from reproduce_table import rows_of_all  # beside this file, which others import as a module

    return rows_of_all(options, path)


OTHERS = {each.__name__: each for each in (objectives, modalities, collapse, recovery, table)}
"""What is more than a recipe over seeds."""


def main() -> None:
    """Run a recipe and write its file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=sorted([*RECIPES, *OTHERS]))
    parser.add_argument("--only", nargs="+", help="some of the objectives, modalities or data of table, by name")
    parser.add_argument("--validate", action="store_true", help="of table: score samples kept aside from training")
    parser.add_argument("--root", help="data.root, for data that is not bundled; of modalities the folder of all")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds other than the recipe's")
    options = parser.parse_args()
    if options.recipe != "table" and (unknown := set(options.only or ()) - {*OBJECTIVES, *MODALITIES}):
        parser.error(f"--only {' '.join(unknown)}: expected some of {', '.join([*OBJECTIVES, *MODALITIES])}")
    name = "objectives_digits" if options.recipe == "objectives" else options.recipe
    path = RESULTS / f"{name}.json"
    content = OTHERS.get(options.recipe, recipe)(options, path)
    if not options.validate:
        write(path, content)
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
