"""Make the figures that docs/results.md, speed.md, worlds.md and collapse.md quote, as JSON in scripts/results.

    python scripts/reproduce.py table --root DIR          every data set, three seeds each, on the test split
    python scripts/reproduce.py table --validate --only digits    the same on samples kept aside from training
    python scripts/reproduce.py world                     world models: planning by both rules, probes, the monitor
    python scripts/reproduce.py world --only fixed_wall --seeds 0    one row, one seed
    python scripts/reproduce.py choice --root DIR         60 runs: whether a number without labels picks good ones
    python scripts/reproduce.py predictor --root DIR      what I-JEPA's accuracy loses by a smaller predictor
    python scripts/reproduce.py collapse --root DIR       40 runs, collapsed and healthy, and what the monitor says
    python scripts/reproduce.py recovery                  which regulariser brings collapsed weights back

The files of table, world, choice, predictor and collapse grow with every run, and a second start goes on with them.
Rows whose overrides in the tables of these scripts have changed are made again; where a file in
conf has changed, remove its rows first. The data lie in DIR as TABLE names them; archives are unpacked for the time of
the run. reproduce_engine.py has what is measured of the engine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from jepa.utils.errors import UserError
from jepa.utils.read_data import read_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "scripts" / "results"
MACHINE = {"cores": os.cpu_count(), "machine": platform.machine()}


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


def run(overrides: Sequence[str], seed: int, threads: int | None = None) -> dict:
    """One run of train.py in a temporary folder: its results, wall time and processor time.

    Processor time, unlike wall time, is the same on a busy machine. threads: None for as many as there are cores.
    """
    with tempfile.TemporaryDirectory() as folder:
        return run_in(Path(folder), overrides, seed, threads)


def run_in(folder: Path, overrides: Sequence[str], seed: int, threads: int | None = None) -> dict:
    """The same in a folder that stays."""
    begun = time.monotonic()
    used = processor_seconds(command([*overrides, f"trainer.seed={seed}", f"hydra.run.dir={folder}"]), threads)
    seconds = time.monotonic() - begun
    result = read_json(folder / "results.json")
    return {"seed": seed, "seconds": round(seconds), "cpu_seconds": round(used), **result}


def processor_seconds(words: Sequence[str], threads: int | None) -> float:
    """Run a command; what it and its children used. Raises UserError where it fails, having said why."""
    environment = os.environ if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}
    child = subprocess.Popen(words, cwd=ROOT, env=environment)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise UserError(f"a run has failed, for the reason above: {shlex.join(words)}")
    return usage.ru_utime + usage.ru_stime


def side_by_side(jobs: Sequence[tuple[Any, str, Callable[..., Any]]], count: int) -> Iterator[tuple[Any, Any]]:
    """Yield what each job is of, with its result, as they are done: so many at a time, which share the cores.

    jobs: (what, its name, function of `threads=`). Raises UserError for those that have raised one, after all others.
    """
    threads, failed = max(1, (os.cpu_count() or 1) // count), []
    with ThreadPoolExecutor(count) as pool:
        begun = {pool.submit(function, threads=threads): (what, name) for what, name, function in jobs}
        try:
            for job in as_completed(begun):
                what, name = begun[job]
                if isinstance(error := job.exception(), UserError):
                    failed.append(name)
                    print(f"error: {error}", file=sys.stderr)
                else:
                    yield what, job.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # on Ctrl-C, what has not begun
    if failed:
        raise UserError(f"these runs have failed, the others are in the file: {'; '.join(failed)}")


def chosen(recipes: Sequence[Any], only: Sequence[str], key: str) -> list[Any]:
    """The recipes whose `key` is among `only`, all without it. Raises UserError for a name that there is not."""
    if unknown := sorted(set(only) - (known := {getattr(each, key) for each in recipes})):
        raise UserError(f"--only: got {', '.join(unknown)}, expected some of {', '.join(sorted(known))}")
    return [each for each in recipes if not only or getattr(each, key) in only]


def known_rows(path: Path, wanted: Sequence[str]) -> list[dict[str, Any]]:
    """The rows that a file of results holds already. Raises UserError for one whose rows lack what is wanted."""
    rows = read_json(path) if path.exists() else []
    if not isinstance(rows, list) or not all(isinstance(row, dict) and set(wanted) <= row.keys() for row in rows):
        raise UserError(
            f"{path}: expected a list of rows with {', '.join(wanted)}: take it from git again, or remove it"
        )
    return rows


def command(options: Sequence[str]) -> list[str]:
    """train.py with these options."""
    return [sys.executable, str(ROOT / "train.py"), *options]


def shown_command(options: Sequence[str]) -> str:
    """What a reader types."""
    return " ".join(["python train.py", *options])


def write(path: Path, content: Any) -> None:
    """Replace a file of results in one go, so that none is ever half written."""
    path.parent.mkdir(exist_ok=True)
    draft = path.with_name(f".{path.name}.writing")
    draft.write_text(json.dumps(content, indent=2) + "\n")
    draft.replace(path)


def stored(path: Path) -> dict:
    """What a file of results holds already. Raises UserError for a damaged one."""
    found = read_json(path) if path.exists() else {}
    if not isinstance(found, dict):
        raise UserError(f"{path}: got a list, expected names and values: take it from git again, or remove it")
    return found


def table_lines(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return the lines of a table in Markdown; None is a cell without a value."""
    cells = [titles, ["---"] * len(titles), *rows]
    return ["| " + " | ".join("-" if cell is None else str(cell) for cell in line) + " |" for line in cells]


def collapse(options: argparse.Namespace, path: Path) -> dict:
    """What the monitor makes of 40 recorded runs."""
    from reproduce_collapse import judged_runs  # trains in this process

    return judged_runs(options.root, stored(path).get("runs", []), lambda found: write(path, found))


def recovery(options: argparse.Namespace, path: Path) -> dict:
    """What becomes of collapsed weights under each regulariser."""
    from reproduce_recovery import over_regularisers  # trains in this process

    return over_regularisers(options.seeds, lambda found: write(path, found))


def table(options: argparse.Namespace, path: Path) -> list[dict[str, Any]]:
    """The rows of docs/results.md."""
    from reproduce_table import rows_of_all  # beside this file, which others import as a module

    return rows_of_all(options, path)


def world(options: argparse.Namespace, path: Path) -> list[dict[str, Any]]:
    """The rows of docs/worlds.md."""
    from reproduce_world import rows_of_worlds

    return rows_of_worlds(options, path)


def predictor(options: argparse.Namespace, path: Path) -> list[dict[str, Any]]:
    """What I-JEPA's accuracy loses by a smaller predictor."""
    from reproduce_predictor import WANTED, rows_of_predictors

    return rows_of_predictors(options, known_rows(path, WANTED), lambda rows: write(path, rows))


def choice(options: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Rank correlations of numbers without labels with the probes."""
    from reproduce_choice import correlations_of_runs

    return correlations_of_runs(options, lambda found: write(path, found), stored(path))


RECIPES = {each.__name__: each for each in (table, world, choice, predictor, collapse, recovery)}


def whole(least: int) -> Callable[[str], int]:
    """The type of an option: a whole number from `least` on."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"got {text}, expected whole numbers from {least} on")
        return int(text)

    return number


def main() -> None:
    """Run a recipe and write its file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    recipes = parser.add_subparsers(dest="recipe", required=True)
    of = {name: recipes.add_parser(name, help=recipe.__doc__) for name, recipe in RECIPES.items()}
    of["table"].add_argument("--root", help="the folder that holds the data")
    for name in ("table", "world"):
        of[name].add_argument("--only", nargs="+", default=[], help="some of the data or rows, by name")
        of[name].add_argument("--validate", action="store_true", help="score what is kept aside, into outputs")
    for name in ("table", "world", "choice", "predictor"):
        of[name].add_argument("--jobs", type=whole(1), default=1, help="runs at a time, which share the cores")
    for name, seeds in (("table", [0, 1, 2]), ("predictor", [0, 1]), ("recovery", [0, 1, 2])):
        of[name].add_argument("--seeds", type=whole(0), nargs="+", default=seeds)
    of["world"].add_argument("--seeds", type=whole(0), nargs="+", help="in place of those of each row")
    for name in ("choice", "predictor", "collapse"):
        of[name].add_argument("--root", required=True, help="the folder that holds the data")
    options = parser.parse_args()
    path = (ROOT / "outputs" if getattr(options, "validate", False) else RESULTS) / f"{options.recipe}.json"
    try:
        write(path, RECIPES[options.recipe](options, path))
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
