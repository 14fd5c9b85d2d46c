"""Run the recipes that docs/results.md quotes, over seeds, and store what came out as JSON.

    python scripts/reproduce.py digits                    three seeds of the default run
    python scripts/reproduce.py fashion_mnist --root DIR  with the data in DIR
    python scripts/reproduce.py objectives --data digits  I-JEPA, masked + SIGReg, LeJEPA and VICReg, three seeds each
    python scripts/reproduce.py modalities --root DIR     video, text, series, sound and pairs, three seeds each
    python scripts/reproduce.py kills                     a tiny run, killed at random moments and resumed
    python scripts/reproduce.py collapse                  runs made to collapse, and healthy ones, under the monitor
    python scripts/reproduce.py optuna                    20 short trials of the default run, and the best over seeds
    python scripts/reproduce.py slurm                     12 default runs by SLURM, whose launcher is killed on the way

Results go to scripts/results/<recipe>.json: per seed the results.json of the run, its wall time and the machine. Those
of objectives go to objectives_<data>.json after every run: started again, it goes on after the runs that the file
holds (delete it when a recipe has changed), and it ends with a Markdown table. So do those of modalities, whose data
lie in DIR as MODALITIES names them; archives are unpacked for the time of the run. That of kills holds how often a run
was killed, how often in the middle of a write, and whether it ended like one that was not. That of collapse holds of
each run whether and when the monitor raised an alarm, and with what evidence. That of optuna holds the trials, and the
best setting beside the default's over three other seeds, in short runs and in whole ones; that of slurm what became of
each run. Both leave their sweeps in outputs/reproduce and go on with what lies there. slurm needs a SLURM: where there
is none, `python tests/cluster/slurm_cluster.py` starts one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import resource
import shlex
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

RECIPES = {
    "digits": (["experiment=digits"], (0, 1, 2)),
    "ijepa_digits": (["experiment=ijepa_digits"], (0,)),
    "fashion_mnist": (["experiment=fashion_mnist"], (0,)),
}
"""Name -> the overrides, and the seeds."""

OBJECTIVES = {
    "VICReg": "vicreg",
    "LeJEPA": "lejepa",
    "masked + SIGReg": "sigreg",
    "I-JEPA (EMA)": "ijepa",
}
"""Name -> the experiment, less the data set behind it (lejepa_digits); in the order in which they run."""

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

KILLS = 20
"""Per way of saving."""

SECONDS_TO_KILL = 2.0
"""A run is killed at a moment between its start and this."""

TINY = (
    "data.batch_size=32",
    "model.encoder={embed_dim: 32, depth: 1}",
    "model.predictor={embed_dim: 32, depth: 1}",
    "loss=invariance_sigreg",
    "loss.projector={hidden: [32], out_dim: 16}",
    "trainer.precision=fp32",
    "trainer.max_steps=600",
    "trainer.log_every=1",
    "trainer.validate_every_epochs=1",
    "trainer.limit_val_batches=2",
    "trainer.save_every_steps=1",
    "evaluation=none",
    "logger=[console,jsonl]",
)
"""A run that saves after every step, so that a kill often meets a write."""


WATCHED = ("trainer.max_steps=240", "monitor.on_collapse=stop", "evaluation=none", "logger=[console,jsonl]")
"""An alarm ends the run, so none is overlooked."""

DIGITS, IJEPA = "experiment=digits", "experiment=ijepa_digits"
UNREGULARISED = ("loss.terms.sigreg=null", "model.allow_collapse=true")
CONSTANT = "data.source._target_=scripts.reproduce.constant_digits"

COLLAPSING = {
    "no stop-gradient": (IJEPA, "model.target._target_=scripts.reproduce.shared_target", "model.allow_collapse=true"),
    "stop-gradient, nothing against collapse": (DIGITS, "model/target=stop_gradient", *UNREGULARISED),
    "moving average, invariance alone": (DIGITS, UNREGULARISED[0]),
    "views, invariance alone": ("model=lejepa", *UNREGULARISED),
    "momentum 0": (IJEPA, "model.target.momentum.start=0", "model.target.momentum.final=0"),
    "learning rate x 100": (DIGITS, "optimizer.lr=0.1"),
    "learning rate x 100, ijepa": (IJEPA, "optimizer.lr=0.1"),
    "constant data": (DIGITS, CONSTANT),
    "constant data, ijepa": (IJEPA, CONSTANT),
}
HEALTHY = {
    **{f"default, seed {seed}": (DIGITS, f"trainer.seed={seed}") for seed in range(3)},
    **{f"ijepa, seed {seed}": (IJEPA, f"trainer.seed={seed}") for seed in range(3)},
    "random masks": (DIGITS, "model/mask=random"),
    "mse": (DIGITS, "loss.terms.prediction.term._target_=jepa.losses.MSE"),
    "l1": (DIGITS, "loss.terms.prediction.term._target_=jepa.losses.L1"),
    "a third of the learning rate": (DIGITS, "optimizer.lr=3e-4"),
    "twice the learning rate": (DIGITS, "optimizer.lr=2e-3"),
    "stop-gradient with SIGReg": (DIGITS, "model/target=stop_gradient"),
    "views": ("model=lejepa",),
    "views, VICReg": ("model=lejepa", "loss=vicreg_views"),
    "views, InfoNCE": ("model=lejepa", "loss=infonce_views"),
    "ijepa, 1,200 steps": (IJEPA, "trainer.max_steps=1200"),
}
"""Name -> the overrides on top of WATCHED."""


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


def collapse(path: Path) -> dict:
    """What the monitor says of each run: verdict, evidence, and the step at which it was stopped.

    The file at `path` grows with every run, and is gone on with.
    """
    found = json.loads(path.read_text()) if path.exists() else {}
    content = {"command": " ".join(["python train.py", *WATCHED])}
    for kind, runs in (("collapsing", COLLAPSING), ("healthy", HEALTHY)):
        content[kind] = {name: seen for name, seen in found.get(kind, {}).items() if name in runs}
        for name, overrides in runs.items():
            if content[kind].get(name, {}).get("overrides") != list(overrides):
                result = run([*WATCHED, *overrides], None)
                alarm = result["step"] if "stopped" in result else None
                content[kind][name] = {"overrides": list(overrides), "alarm_at_step": alarm, **result["collapse"]}
                write(path, {**found, **content})
    missed = [name for name, seen in content["collapsing"].items() if seen["alarm_at_step"] is None]
    false = [name for name, seen in content["healthy"].items() if seen["alarm_at_step"] is not None]
    return {**content, "missed": missed, "false_alarms": false}


def run(overrides: list[str], seed: int | None) -> dict:
    """One run of train.py in a temporary folder: its results and the wall time of the whole process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            str(ROOT / "train.py"),
            *overrides,
            *([] if seed is None else [f"trainer.seed={seed}"]),
            f"hydra.run.dir={folder}",
        ]
        begun, used = time.monotonic(), processor_seconds()
        subprocess.run(command, check=True, cwd=ROOT)
        took = {"seconds": round(time.monotonic() - begun), "cpu_seconds": round(processor_seconds() - used)}
        return {"seed": seed, **took, **json.loads((Path(folder) / "results.json").read_text())}


def processor_seconds() -> float:
    """Of all processes run so far: unlike wall time, the same on a busy machine."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def objectives(data: str, location: list[str], names: Sequence[str], seeds: Sequence[int], path: Path) -> dict:
    """The named objectives, seed by seed; the file at `path` grows with every run, and is gone on with."""
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    done = {(entry["command"], entry["seed"]) for entry in runs}
    for seed in seeds:
        for name in names:
            overrides = [f"experiment={OBJECTIVES[name]}_{data}"]
            entry = {"objective": name, "command": " ".join(["python train.py", *overrides])}
            if (entry["command"], seed) not in done:
                runs.append(entry | run([*overrides, *location], seed))
                write(path, compared(runs))
    content = compared(runs)
    print(markdown(content))
    return content


def compared(runs: list[dict]) -> dict:
    """Runs of several objectives as means and ranges over their seeds, best k-NN first, with the baselines below."""
    rows: dict[str, dict] = {}
    for name in dict.fromkeys(entry["objective"] for entry in runs):
        mine = [entry for entry in runs if entry["objective"] == name]
        rows[name] = {
            "command": mine[0]["command"],
            "seeds": [entry["seed"] for entry in mine],
            "steps": mine[0]["step"],
            **{
                unit: round(statistics.mean(entry[unit] for entry in mine if unit in entry))
                for unit in ("seconds", "cpu_seconds")
            },
            **spreads([entry["trained"] for entry in mine]),
        }
    rows = dict(sorted(rows.items(), key=lambda row: -row[1]["knn"]["mean"]))
    baselines = {name: spreads([entry[name] for entry in runs]) for name in BASELINES}
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "objectives": rows,
        **baselines,
        "runs": runs,
    }


def spreads(scores: list[dict]) -> dict:
    """Per probe, mean and range over runs."""
    return {probe: spread_of([score[probe] for score in scores]) for probe in ("linear", "knn")}


def spread_of(values: list[float]) -> dict[str, float]:
    """Mean and range."""
    return {
        "mean": round(statistics.mean(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


def markdown(content: dict) -> str:
    """The table for docs/results.md."""

    def cells(row: dict) -> list[str]:
        return [f"{row[p]['mean']:.3f} ({row[p]['min']:.3f} to {row[p]['max']:.3f})" for p in ("linear", "knn")]

    lines = [["objective", "linear", "k-NN", "seeds", "steps", "seconds"], ["---"] * 6]
    for name, row in content["objectives"].items():
        counts = (len(row["seeds"]), row["steps"], row["cpu_seconds"])
        lines.append([name, *cells(row), *map(str, counts)])
    lines += [[name, *cells(content[key]), "", "", ""] for key, name in BASELINES.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(path: Path, content: dict) -> None:
    """Replace a file of results in one go, so that none is ever half written."""
    path.parent.mkdir(exist_ok=True)
    draft = path.with_name(f".{path.name}.writing")
    draft.write_text(json.dumps(content, indent=2) + "\n")
    draft.replace(path)


def modalities(root: Path, names: Sequence[str], seeds: Sequence[int], path: Path) -> dict:
    """The recipes of the named modalities, seed by seed; the file at `path` grows with every run, and is gone on with.

    root: the folder that holds the data.
    """
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    done = {(entry["name"], entry["seed"]) for entry in runs}
    with tempfile.TemporaryDirectory() as unpacked:
        for name, seed in itertools.product(names, seeds):
            experiment, places, _ = MODALITIES[name]
            if (name, seed) not in done:
                overrides = [f"{key}={located(root / place, Path(unpacked))}" for key, place in places.items()]
                entry = {"name": name, "command": f"python train.py experiment={experiment}"}
                runs.append(entry | run([f"experiment={experiment}", *overrides], seed))
                write(path, of_modalities(runs))
    content = of_modalities(runs)
    print(modalities_table(content))
    return content


def located(path: Path, unpacked: Path) -> Path:
    """The data at a path; of an archive the folder it holds, unpacked at the first call."""
    if not path.name.endswith((".tar", ".tar.gz", ".tar.xz")):
        return path
    folder = unpacked / path.name.split(".")[0]
    if not folder.exists():
        with tarfile.open(path) as archive:
            archive.extractall(unpacked, filter="data")
    return folder


def of_modalities(runs: list[dict]) -> dict:
    """Runs as means and ranges over seeds, by recipe, row and metric."""
    recipes = {}
    for name in dict.fromkeys(entry["name"] for entry in runs):
        mine, (_, _, metrics) = [entry for entry in runs if entry["name"] == name], MODALITIES[name]
        recipes[name] = {
            "command": mine[0]["command"],
            "seeds": [entry["seed"] for entry in mine],
            "cpu_seconds": round(statistics.mean(entry["cpu_seconds"] for entry in mine)),
            **{
                row: {metric: spread_of([e[row][metric] for e in mine]) for metric in metrics if metric in mine[0][row]}
                for row in ("trained", *BASELINES)
            },
        }
    return {"cores": os.cpu_count(), "machine": platform.machine(), "recipes": recipes, "runs": runs}


def modalities_table(content: dict) -> str:
    """The table for docs/results.md."""
    lines = [["recipe", "measure", "trained", "random weights", "raw input", "seeds", "core seconds"], ["---"] * 7]
    for name, recipe in content["recipes"].items():
        for metric in recipe["trained"]:
            found = [recipe[row].get(metric) for row in ("trained", *BASELINES)]
            cells = ["-" if f is None else f"{f['mean']:.3f} ({f['min']:.3f} to {f['max']:.3f})" for f in found]
            lines.append([name, metric, *cells, str(len(recipe["seeds"])), str(recipe["cpu_seconds"])])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def kills() -> dict:
    """Runs that are killed and resumed until they end, beside one that is let be; one pair per way of saving."""
    return {
        "command": " ".join(["python train.py", *map(shlex.quote, TINY)]),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        **{
            name: killed([*TINY, f"trainer.async_save={asynchronous}"])
            for name, asynchronous in (("synchronous", "false"), ("asynchronous", "true"))
        },
    }


def killed(overrides: list[str]) -> dict:
    """One run that is killed KILLS times at random moments, against one that is not: what was met, and whether equal.

    A kill has landed in a write where a temporary file is left.
    """
    moments = random.Random(0)
    with tempfile.TemporaryDirectory() as base:
        whole, broken = Path(base, "whole"), Path(base, "broken")
        subprocess.run(command(overrides, whole), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        steps, in_write = [], 0
        for _ in range(KILLS):
            with subprocess.Popen(command(overrides, broken), cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
                check_start(next(process.stdout, ""), steps)
                time.sleep(moments.uniform(0, SECONDS_TO_KILL))
                if process.poll() is not None:
                    raise SystemExit(f"the run ended after {len(steps)} kills: make trainer.max_steps larger")
                process.kill()
            steps.append(read(broken)["step"] if (broken / "checkpoints/last.pt").exists() else 0)
            in_write += any(broken.glob("checkpoints/.*.writing"))
            print(f"killed at step {steps[-1]}; in a write so far: {in_write} of {len(steps)}", flush=True)
        subprocess.run(command(overrides, broken), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        one, other = read(whole), read(broken)
        return {
            "kills": KILLS,
            "in_a_write": in_write,
            "steps_at_kills": steps,
            "steps": other["step"],
            "same_weights": same(one["model"], other["model"]),
            "same_optimizer_state": same(one["optimizer"], other["optimizer"]),
            "same_losses": losses(whole) == losses(broken),
        }


def command(overrides: list[str], folder: Path) -> list[str]:
    """A run in a folder that goes on if there is something."""
    return [sys.executable, str(ROOT / "train.py"), *overrides, f"hydra.run.dir={folder}", "resume=auto"]


def check_start(line: str, steps: list[int]) -> None:
    """Exit unless a run's first line says that it goes on from the checkpoint that was found after the last kill."""
    wanted = f"at step {steps[-1]} of " if steps and steps[-1] else "training from scratch"
    if wanted not in line:
        raise SystemExit(f"expected {wanted!r}, the run said {line!r}")


def read(folder: Path) -> dict:
    """A run's last checkpoint."""
    import torch

    return torch.load(folder / "checkpoints/last.pt", weights_only=True)


def same(one: Any, other: Any) -> bool:
    """Whether two nested states are equal, bit for bit."""
    import torch

    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def losses(folder: Path) -> list[tuple]:
    """Step and losses of every line of a run's metrics.jsonl."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line.get("train/loss"), line.get("val/loss")) for line in lines]


SHORT = ("trainer.max_epochs=9",)
"""A quarter of the default run."""

TRIALS, FRESH_SEEDS = 20, (1, 2, 3)
"""Trials have seed 0."""


def optuna(path: Path) -> dict:
    """A study of short runs, and its best setting beside the default's over other seeds.

    The file at `path` grows with every run of these, and is gone on with.
    """
    options = ["sweep=optuna", f"sweep.trials={TRIALS}", *SHORT]
    folder = swept(options)
    trials = [{"overrides": run["overrides"], **run["objective"]} for run in runs_of(folder, ("optimizer.",))]
    metric = next(key for key in trials[0] if key != "overrides")
    best = max(trials, key=lambda trial: trial[metric])
    content = {"command": " ".join(["python train.py -m", *options]), "trials": trials, "best": best, "seeds": {}}
    found = json.loads(path.read_text()) if path.exists() else {}
    if found.get("best") == best:
        content["seeds"] = found["seeds"]
    for length, own in (("short", SHORT), ("whole", ())):
        for name, setting in (("default", []), ("best", best["overrides"])):
            entry = content["seeds"].setdefault(f"{length}, {name}", {})
            for seed in map(str, FRESH_SEEDS):
                if seed not in entry:
                    entry[seed] = run([*own, *setting], int(seed))["trained"]
                    write(path, content)
    content["means"] = {
        name: {probe: statistics.fmean(scores[probe] for scores in runs.values()) for probe in ("linear", "knn")}
        for name, runs in content["seeds"].items()
    }
    return content


SLURM = ("sweep=grid", "hydra/launcher=slurm", "hydra.launcher.poll_seconds=2", "hydra.launcher.array_parallelism=2")
KILLED_AFTER = 4
"""Runs of 12 that are done when the launcher is killed."""


def slurm(path: Path) -> dict:
    """The grid of 12 default runs by SLURM, two at a time, whose launcher is killed and started again."""
    options = [*SLURM, "trainer.device=cpu", "hydra.launcher.cpus_per_task=1"]
    folder, begun = ROOT / "outputs" / "reproduce" / "slurm", time.monotonic()
    with subprocess.Popen(sweep_command(options, folder), cwd=ROOT) as launcher:
        while sum(run["state"] == "done" for run in runs_of(folder)) < KILLED_AFTER:
            if launcher.poll() is not None:
                raise SystemExit(f"the launcher ended before {KILLED_AFTER} runs were done")
            time.sleep(1)
        launcher.kill()
    before = [run["state"] for run in runs_of(folder)]
    swept(options, "slurm")
    return {
        "command": " ".join(["python train.py -m", *options]),
        "cores": os.cpu_count(),
        "seconds": round(time.monotonic() - begun),
        "states_when_the_launcher_was_killed": before,
        "runs": runs_of(folder, ("optimizer.", "trainer.seed")),
    }


def swept(options: Sequence[str], name: str = "optuna") -> Path:
    """The folder of a sweep in outputs/reproduce that has been run, or gone on with."""
    folder = ROOT / "outputs" / "reproduce" / name
    subprocess.run(sweep_command(options, folder), check=True, cwd=ROOT)
    return folder


def sweep_command(options: Sequence[str], folder: Path) -> list[str]:
    """A sweep in a folder that goes on with what is there."""
    return [sys.executable, str(ROOT / "train.py"), "-m", *options, "resume=auto", f"hydra.sweep.dir={folder}"]


def runs_of(folder: Path, shown: tuple[str, ...] = ()) -> list[dict]:
    """What the runs of a sweep say of themselves, with those of their options that begin so."""
    runs = []
    for path in sorted(folder.glob("*/status.json"), key=lambda path: int(path.parent.name)):
        status = json.loads(path.read_text())
        kept = {key: status[key] for key in ("state", "starts", "job", "verdict", "objective")}
        overrides = [option for option in status["overrides"] if option.startswith(shown)] if shown else []
        runs.append({"overrides": overrides, **kept, "train_seconds": status["train_seconds"]})
    return runs


OTHERS = {"kills": lambda path: kills(), "collapse": collapse, "optuna": optuna, "slurm": slurm}
"""What is no recipe over seeds, called with the path of its results."""


def main() -> None:
    """Run a recipe and write its file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=sorted([*RECIPES, *OTHERS, "objectives", "modalities"]))
    parser.add_argument("--data", choices=["digits", "fashion_mnist"], default="digits", help="of objectives")
    parser.add_argument(
        "--only", choices=[*OBJECTIVES, *MODALITIES], nargs="+", help="some of the objectives or modalities"
    )
    parser.add_argument("--root", help="data.root, for data that is not bundled; of modalities the folder of all")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds other than the recipe's")
    arguments = parser.parse_args()
    location = [f"data.root={arguments.root}"] if arguments.root else []
    results = ROOT / "scripts" / "results"
    path = results / f"{arguments.recipe}.json"
    if arguments.recipe == "objectives":
        path = results / f"objectives_{arguments.data}.json"
        names = arguments.only or list(OBJECTIVES)
        content = objectives(arguments.data, location, names, arguments.seeds or (0, 1, 2), path)
    elif arguments.recipe == "modalities":
        if not arguments.root:
            parser.error("modalities needs --root, the folder that holds their data")
        names = arguments.only or list(MODALITIES)
        content = modalities(Path(arguments.root).resolve(), names, arguments.seeds or (0, 1, 2), path)
    else:
        other = OTHERS.get(arguments.recipe)
        content = other(path) if other else probed(arguments.recipe, location, arguments.seeds)
    write(path, content)
    print(f"wrote {path.relative_to(ROOT)}")


def probed(recipe: str, location: list[str], seeds: Sequence[int] | None) -> dict:
    """A recipe over its seeds, or those given."""
    overrides, usual = RECIPES[recipe]
    runs = [run([*overrides, *location], seed) for seed in seeds or usual]
    best = spreads([entry["trained"] for entry in runs])
    print(json.dumps(best))
    return {
        "command": " ".join(["python train.py", *overrides]),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "trained": best,
        "runs": runs,
    }


if __name__ == "__main__":
    main()
