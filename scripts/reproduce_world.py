"""The tables of docs/worlds.md: how often plans of world models reach their goals, and what the models know.

Each row is trained by train.py with each of its seeds, and each run is planned with by scripts/plan.py, by both rules.
Settings are chosen by `--validate`, which takes the validation list of pairs and walks that are kept aside, and writes
outputs/world.json. Without it what scripts/results/world.json lacks is made on the test lists.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jepa.planning.comparison import BASELINES
from jepa.planning.rules import RULES
from jepa.utils.read_data import read_json

EPISODES = 100
ERRORS, LINEAR, SURPRISE = "world/error", "world/state_error/linear", "world/surprise"
COLUMNS = (
    "world model",
    *(f"{rules}, %" for rules in RULES),
    "reported elsewhere, %",
    "position, px",
    "8 steps ahead, px",
    "error, 8 steps",
    "nothing moves",
    "surprise, wall",
    "surprise, teleport",
    "monitor",
    "s / episode",
    "minutes",
    "core minutes",
)
MEASURES = (f"{LINEAR}/encoded", f"{LINEAR}/8", f"{ERRORS}/8", f"{ERRORS}/still/8")
MEASURES += (f"{SURPRISE}/wall/auc", f"{SURPRISE}/teleport/auc")
"""Those of results.json that have a column."""
PLANNED = ("success", "low", "high", "path_length", "seconds_per_episode", "seconds_per_plan", "pairs")
"""What is kept of the JSON of scripts/plan.py, beside baselines."""


@dataclass(frozen=True)
class WorldRow:
    """A way to train a world model.

    name: what --only takes. method: the same in words. overrides: of train.py. planning: of scripts/plan.py, where not
    its defaults. baselines: of seed 0; those that would be the same as another row's are left out.
    reported: success in per cent, of 100 episodes by the published rules, of eb_jepa at its full size.
    """

    name: str
    method: str
    overrides: tuple[str, ...]
    planning: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    baselines: tuple[str, ...] = tuple(BASELINES)
    reported: str | None = None


def ablation(term: str, reported: str) -> WorldRow:
    """The objective of eb_jepa without one of its terms."""
    overrides = ("experiment=two_rooms", f"loss.terms.{term}=null")
    method = f"fixed wall, without {term.replace('_', ' ')}"
    return WorldRow(f"without_{term}", method, overrides, seeds=(0,), baselines=(), reported=reported)


RANDOM_WALLS = (
    ("experiment=two_rooms_random_walls",),
    ("settings={random_walls:true}", "planner.max_norm=1.2", "planner.horizon=60"),
)
LEWM = ("experiment=lewm_two_rooms",)
LEWM_CHOSEN = (*LEWM, "loss.terms.sigreg.weight=0.001")
TABLE = [
    WorldRow("fixed_wall", "eb_jepa's objective, fixed wall", ("experiment=two_rooms",), reported="98"),
    WorldRow(
        "random_walls",
        "eb_jepa's objective, random walls",
        *RANDOM_WALLS,
        reported="97 ± 2",
    ),
    WorldRow("lewm", "LeWM's objective, fixed wall, SIGReg 0.09 as published", LEWM, seeds=(0,), baselines=()),
    WorldRow("lewm_chosen", "LeWM's objective, fixed wall, SIGReg 0.001", LEWM_CHOSEN, baselines=()),
    ablation("variance", "47"),
    ablation("covariance", "46"),
    ablation("smoothness", "61"),
    ablation("inverse_dynamics", "1"),
]


def rows_of_worlds(options: argparse.Namespace, path: Path) -> list[dict[str, Any]]:
    """Run what the file at `path` lacks, write it after each run, and return its rows."""
    from reproduce import chosen, known_rows, side_by_side, table_lines, write

    split = "validation" if options.validate else "test"
    rows = known_rows(path, ("name", "overrides", "planning", "runs"))
    jobs = [
        (row, f"{row.name}, seed {seed}", functools.partial(measured, row, seed, split))
        for row in chosen(TABLE, options.only, "name")
        for seed in options.seeds or row.seeds
        if seed not in seeds_of(rows, row)
    ]
    for row, run in side_by_side(jobs, options.jobs):
        rows = with_run(rows, row, run, split)
        write(path, rows)
    print("\n".join([*table_lines(COLUMNS, page(rows)), "", *table_lines(*baseline_page(rows))]))
    return rows


def measured(row: WorldRow, seed: int, split: str, threads: int) -> dict[str, Any]:
    """What comes of a row with a seed: the run's scores, the monitor's verdicts, and success by both rules."""
    from reproduce import run_in

    with tempfile.TemporaryDirectory() as folder:
        result = run_in(Path(folder), [*row.overrides, f"data.score_on={split}"], seed, threads)
        found = {
            "seed": seed,
            "minutes": round(result["seconds"] / 60, 2),
            "core_minutes": round(result["cpu_seconds"] / 60, 2),
            "collapse": result["collapse"],
            "verdicts": verdicts(Path(folder)),
            **{name: world_scores(result[name]) for name in ("trained", "random_init")},
        }
        baselines = f"baselines=[{','.join(row.baselines if seed == 0 else ())}]"
        for rules in RULES:
            given = [*row.planning, f"rules={rules}", f"pairs={split}", f"episodes={EPISODES}", "pictures=0", baselines]
            planned = output_of("plan", folder, given, threads)
            found[rules] = {name: planned[name] for name in PLANNED}
            found[rules] |= {"baselines": planned["baselines"]} if planned["baselines"] else {}
            found["planner"] = planned["planner"]
        return found


def output_of(script: str, folder: str, options: Sequence[str], threads: int) -> dict[str, Any]:
    """The JSON that a script writes of the run in a folder."""
    from reproduce import ROOT, processor_seconds

    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "output.json"
        given = [f"checkpoint={folder}", *options, f"output={output}", f"hydra.run.dir={scratch}"]
        processor_seconds([sys.executable, str(ROOT / "scripts" / f"{script}.py"), *given], threads)
        return read_json(output)


def world_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """The scores of `jepa.evaluation.world.WorldProbe`, rounded."""
    return {name: round(value, 4) for name, value in scores.items() if name.startswith("world/")}


def verdicts(folder: Path) -> list[dict[str, Any]]:
    """The steps at which the verdict of a run's monitor changed, with what it became."""
    from jepa.interop import find
    from jepa.monitor import Thresholds, judge

    history, found = find(str(folder)).file.run["monitor"]["history"], []
    for count, look in enumerate(history, start=1):
        name = judge(history[:count], Thresholds()).name
        if not found or found[-1]["verdict"] != name:
            found.append({"step": int(look["step"]), "verdict": name})
    return found


def key_of(row: WorldRow) -> dict[str, Any]:
    """What tells in the file that a row has not changed."""
    return {"name": row.name} | {key: list(getattr(row, key)) for key in ("overrides", "planning")}


def seeds_of(rows: Sequence[Mapping[str, Any]], row: WorldRow) -> set[int]:
    """The seeds that a row has been run with; of a row that has changed none."""
    return {run["seed"] for each in rows if key_of(row).items() <= each.items() for run in each["runs"]}


def with_run(rows: Sequence[dict[str, Any]], row: WorldRow, run: dict[str, Any], split: str) -> list[dict[str, Any]]:
    """The rows with one run more, in the order of TABLE."""
    old = [each for each in rows if key_of(row).items() <= each.items()]
    runs = sorted([*(one for each in old for one in each["runs"]), run], key=lambda one: one["seed"])
    kept = [each for each in rows if each["name"] != row.name]
    order = {each.name: place for place, each in enumerate(TABLE)}
    return sorted([*kept, summarised(row, runs, split)], key=lambda each: order.get(each["name"], len(order)))


def summarised(row: WorldRow, runs: Sequence[dict[str, Any]], split: str) -> dict[str, Any]:
    """A row of the file: means over seeds with their intervals, and the runs."""
    from reproduce_table import interval

    return {
        **key_of(row),
        "method": row.method,
        "scored_on": split,
        "episodes": EPISODES,
        "reported": row.reported,
        "success": {rules: interval([run[rules]["success"] for run in runs]) for rules in RULES},
        "scores": {name: interval([run["trained"][name] for run in runs]) for name in runs[0]["trained"]},
        "seconds_per_episode": mean(run[rules]["seconds_per_episode"] for run in runs for rules in RULES),
        **{name: mean(run[name] for run in runs if name in run) for name in ("minutes", "core_minutes")},
        "runs": list(runs),
    }


def mean(values: Iterator[float]) -> float:
    """The mean, rounded."""
    return round(statistics.mean(values), 2)


def page(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[Any]]:
    """Yield the lines of the first table of docs/worlds.md."""
    for row in rows:
        alone = row["runs"][0] if len(row["runs"]) == 1 else None
        success = [of_pairs(alone[rules]) if alone else plus_minus(row["success"][rules], 100, 1) for rules in RULES]
        scores = [plus_minus(row["scores"][name], 1, 2) for name in MEASURES]
        named = Counter(run["collapse"]["verdict"] for run in row["runs"])
        monitor = ", ".join(name if count == len(row["runs"]) else f"{count} {name}" for name, count in named.items())
        cost = [f"{row['seconds_per_episode']:.1f}", *(f"{row[name]:.0f}" for name in ("minutes", "core_minutes"))]
        yield [row["method"], *success, row["reported"], *scores, monitor, *cost]


def baseline_page(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str | None]]]:
    """The titles and lines of the second table of docs/worlds.md: baselines on the pairs of each row that has some."""
    runs = [(row["method"], run) for row in rows for run in row["runs"] if "baselines" in run["published"]]
    titles = ["on the same pairs, %", *(f"{method}: {rules}" for method, _ in runs for rules in RULES)]
    lines = []
    for name, words in BASELINES.items():
        found = [run[rules]["baselines"].get(name) for _, run in runs for rules in RULES]
        lines.append([words, *(None if each is None else of_pairs(each) for each in found)])
    return titles, lines


def of_pairs(planned: Mapping[str, Any]) -> str:
    """A cell: success of one run, and the interval that its number of episodes leaves."""
    return "{success:.0f} ({low:.0f} to {high:.0f})".format(
        **{name: 100 * planned[name] for name in ("success", "low", "high")}
    )


def plus_minus(found: Mapping[str, Any], times: float, digits: int) -> str:
    """A cell: mean over seeds, and half of its interval."""
    half = "" if found["low"] is None else f" ± {times * (found['high'] - found['low']) / 2:.{digits}f}"
    return f"{times * found['mean']:.{digits}f}{half}"
