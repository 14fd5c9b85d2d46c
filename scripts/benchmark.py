"""Measure what the code costs: python scripts/benchmark.py [NAME ...] [--json=FILE]

step:   training steps: samples per second; the operations that torch counts, as a share of the rate of large matrix
        products measured beside them (utilisation); what each part takes; in turns with the step written the published
        way and with peers from the package index, which get an environment of their own in outputs/.
curves: seconds and memory against batch, tokens, depth, data set size and evaluated samples, each in its own process.
masks:  milliseconds to draw multi-block masks for 256 images on a 14 x 14 grid, one thread.
ddp:    samples per second of 2 processes that train the default run on digits together, as a share of that of
        2 which train apart; one thread and one core each, 64 samples each, data and logging included.
saving: how long a checkpoint of 239 M numbers holds the loop up, written at once or in the background, beside the
        time of one copy of them in memory; both formats.
monitor: what a look of the collapse monitor adds to the run, as a share of the steps between two looks; the default
        run on digits, the same steps with and without a look in turns, one thread.
online: what the probes of evaluation=online add to the steps of the default run on digits, with and without in turns,
        one thread.
sweep:  seconds of a sweep per run that are not its training steps: to compose, import, set up, save and tear down, and
        to show the leaderboard at the end; 6 tiny runs one after the other in one process, by hydra/launcher=local
        in a process each, and by hydra/launcher=slurm where there is a SLURM (tests/cluster/slurm_cluster.py).
startup: seconds from `python train.py` to the first line, to the first step and to the end of a run of one step
        without evaluation, and as multiples of a process that only imports torch, in turns.
input:  samples per second of CPU time from JPEG files (--folder), beside torchvision's ImageFolder with its transforms
        and beside the decoder alone; series and text; the share of a run's time in which it waits for data.
gpu:    what needs a GPU: its tests, then large models in bf16, within --minutes.
scaling: bytes and collectives of a step by DDP and FSDP, counted on 2 processes; on paper what large models need.
table:  python scripts/benchmark.py table FILE.json: the steps in it as the table of docs/speed.md.
compare: python scripts/benchmark.py compare OLD.json NEW.json: every ratio that fell by over 10 %.
Prints medians as JSON, or writes them. Timings on a shared machine vary: compare ratios, not runs; what a ratio
compares is measured in turns.
"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import benchmark_run
from benchmark_curves import curves
from benchmark_gpu import gpu
from benchmark_input import input_speed
from benchmark_scaling import scaling
from benchmark_step import CASES, step

from jepa.utils.errors import UserError
from jepa.utils.files import check_output, write_text
from jepa.utils.read_data import read_json

MEASUREMENTS = {"step": step, "curves": curves, "input": input_speed, "gpu": gpu, "scaling": scaling} | {
    name: getattr(benchmark_run, name) for name in ("masks", "ddp", "saving", "monitor", "online", "sweep", "startup")
}
HIGHER_IS_BETTER = ("ratio", "utilisation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["step", "masks"], metavar="NAME", help=", ".join(MEASUREMENTS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=(), help="of step")
    parser.add_argument("--rounds", type=int, help="turns of what is measured in turns")
    parser.add_argument("--folder", help="of input: JPEG files in class folders")
    parser.add_argument("--minutes", type=float, help="of gpu, after which it leaves out the rest")
    options = parser.parse_args()
    if options.names[0] in ("compare", "table"):
        show(parser, *options.names)
        return
    if unknown := set(options.names) - set(MEASUREMENTS):
        parser.error(f"{', '.join(sorted(unknown))}: expected {', '.join(MEASUREMENTS)}")
    given = {"rounds": options.rounds, "cases": options.cases, "minutes": options.minutes, "folder": options.folder}
    given = {key: each for key, each in given.items() if each not in (None, ())}
    takes = {name: inspect.signature(MEASUREMENTS[name]).parameters for name in options.names}
    for key, value in given.items():
        if not any(key in each for each in takes.values()):
            parser.error(f"--{key}: none of {', '.join(takes)} takes it")
        if isinstance(value, (int, float)) and not value > 0:
            parser.error(f"--{key}={value}: expected a number above 0")
        if key == "folder" and not Path(value).is_dir():
            parser.error(f"--folder={value} is not a folder")
    if options.json is not None:
        check_output(options.json, None, "--json")
        options.json.parent.mkdir(parents=True, exist_ok=True)
    results = {}
    for name, keys in takes.items():
        results[name] = MEASUREMENTS[name](**{key: each for key, each in given.items() if key in keys})
        text = json.dumps(results if len(takes) > 1 else results[name], indent=2) + "\n"
        if options.json is not None:
            write_text(options.json, text, "--json")  # now, as the next one may be interrupted
    if options.json is None:
        print(text, end="")


def show(parser: argparse.ArgumentParser, what: str, *files: str) -> None:
    """Print a table of one file of results, or compare two."""
    if len(files) != (1 if what == "table" else 2):
        parser.error("expected table FILE.json, or compare OLD.json NEW.json")
    try:
        found = [read_json(Path(name)) for name in files]
    except UserError as error:
        parser.error(str(error))
    if what == "compare":
        compare(*found)
        return
    rows = found[0].get("step") if isinstance(found[0], dict) else found[0]
    if not isinstance(rows, list):
        parser.error(f"{files[0]} holds no results of step")
    print(table(rows), end="")


def table(rows: list[dict[str, Any]]) -> str:
    """Return a table of training steps in Markdown."""
    columns = {"samples_per_second": ".3g", "ratio_to_published": ".2f", "ratio_to_lightly_ijepa": ".2f"}
    columns |= {"ratio_to_stable_ijepa": ".2f", "gflop_per_sample": ".3g", "utilisation": ".2f"}
    heads = ("samples/s", "x published", "x lightly", "x stable-pretraining", "GFLOP a sample", "utilisation")
    lines = ["| step | precision | " + " | ".join(heads) + " |", "|---" * (2 + len(heads)) + "|"]
    for row in rows:
        cells = ("" if row.get(key) is None else format(row[key], style) for key, style in columns.items())
        lines.append(f"| `{row['name']}` | {row['precision']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def compare(old: Any, new: Any) -> None:
    """Print every ratio of `old` that is lower by over 10 % in `new`."""
    # Results of one NAME alone are its rows; the committed ones are by name.
    old, new = ({"step": each} if isinstance(each, list) else each for each in (old, new))
    before, after = dict(ratios(old)), dict(ratios(new))
    fell = {name: (before[name], after[name]) for name in before if after.get(name, before[name]) < 0.9 * before[name]}
    for name, (was, now) in fell.items():
        print(f"{name}: {was:.3f} -> {now:.3f}")
    print(f"{len(fell)} of {len(before.keys() & after.keys())} ratios fell by over 10 %")


def ratios(results: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Yield the names and values of all numbers of which more is better, in results from JSON."""
    if isinstance(results, list):
        results = {f"{row['name']} {row.get('precision', '')}": row for row in results if isinstance(row, dict)}
    for name, value in results.items() if isinstance(results, dict) else ():
        if isinstance(value, (dict, list)):
            yield from ratios(value, f"{place}{name}.")
        elif value is not None and name.startswith(HIGHER_IS_BETTER):
            yield f"{place}{name}", value


if __name__ == "__main__":
    main()
