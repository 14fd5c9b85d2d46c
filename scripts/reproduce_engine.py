"""Measure what docs/results.md says of the engine, and store what came out as JSON in scripts/results.

    python scripts/reproduce_engine.py kills    a tiny run, killed at random moments and resumed
    python scripts/reproduce_engine.py optuna   20 short trials of the default run, and the best over seeds
    python scripts/reproduce_engine.py slurm    12 default runs by SLURM, whose launcher is killed on the way

optuna and slurm leave their sweeps in outputs/reproduce and go on with them, optuna also with its file of results.
slurm needs a SLURM: where there is none, `python tests/cluster/slurm_cluster.py` starts one.
"""

from __future__ import annotations

import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from reproduce import MACHINE, RESULTS, ROOT, command, run, shown_command, stored, write

from jepa.utils.read_data import parse_json, read_json, read_lines

SWEEPS = ROOT / "outputs" / "reproduce"

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

SHORT = ("trainer.max_epochs=9",)
"""A quarter of the default run."""

TRIALS, FRESH_SEEDS = 20, (1, 2, 3)
"""Trials have seed 0."""

SLURM = (
    "sweep=grid",
    "hydra/launcher=slurm",
    "hydra.launcher.poll_seconds=2",
    "hydra.launcher.array_parallelism=2",
    "trainer.device=cpu",
    "hydra.launcher.cpus_per_task=1",
)
KILLED_AFTER = 4
"""Runs of 12 that are done when the launcher is killed."""


def kills(path: Path) -> dict:
    """Runs that are killed and resumed until they end, beside one that is let be; one pair per way of saving."""
    ways = {"synchronous": "false", "asynchronous": "true"}
    killed = {name: kill([*TINY, f"trainer.async_save={value}", "resume=auto"]) for name, value in ways.items()}
    return {"command": shown_command(map(shlex.quote, TINY)), **MACHINE, **killed}


def kill(overrides: list[str]) -> dict:
    """One run that is killed KILLS times at random moments, against one that is not: what was met, and whether equal.

    A kill has landed in a write where a temporary file is left.
    """
    moments, steps, in_write = random.Random(0), [], 0
    with tempfile.TemporaryDirectory() as base:
        whole, broken = Path(base, "whole"), Path(base, "broken")
        commands = {folder: command([*overrides, f"hydra.run.dir={folder}"]) for folder in (whole, broken)}
        subprocess.run(commands[whole], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        for _ in range(KILLS):
            with subprocess.Popen(commands[broken], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
                said = next(process.stdout, "")
                wanted = f"at step {steps[-1]} of " if steps and steps[-1] else "training from scratch"
                if wanted not in said:
                    raise SystemExit(f"expected {wanted!r}, the run said {said!r}")
                time.sleep(moments.uniform(0, SECONDS_TO_KILL))
                if process.poll() is not None:
                    raise SystemExit(f"the run ended after {len(steps)} kills: make trainer.max_steps larger")
                process.kill()
            last = broken / "checkpoints/last.pt"
            steps.append(torch.load(last)["step"] if last.exists() else 0)
            in_write += any(broken.glob("checkpoints/.*.writing"))
            print(f"killed at step {steps[-1]}; in a write so far: {in_write} of {len(steps)}", flush=True)
        subprocess.run(commands[broken], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        one, other = (torch.load(folder / "checkpoints/last.pt") for folder in (whole, broken))
        return {
            "kills": KILLS,
            "in_a_write": in_write,
            "steps_at_kills": steps,
            "steps": other["step"],
            "same_weights": same(one["model"], other["model"]),
            "same_optimizer_state": same(one["optimizer"], other["optimizer"]),
            "same_losses": losses(whole) == losses(broken),
        }


def same(one: Any, other: Any) -> bool:
    """Whether two nested states are equal, bit for bit."""
    try:
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    except AssertionError:
        return False
    return True


def losses(folder: Path) -> list[tuple]:
    """Step and losses of every line of a run's metrics.jsonl."""
    path = folder / "metrics.jsonl"
    lines = [parse_json(line, path) for line in read_lines(path)]
    return [(line["step"], line.get("train/loss"), line.get("val/loss")) for line in lines]


def optuna(path: Path) -> dict:
    """A study of short runs, and its best setting beside the default's over other seeds."""
    settings = ["sweep=optuna", f"sweep.trials={TRIALS}", *SHORT]
    subprocess.run(sweep_command(settings, SWEEPS / "optuna"), check=True, cwd=ROOT)
    trials = [
        {"overrides": each["overrides"], **each["objective"]} for each in runs_of(SWEEPS / "optuna", "optimizer.")
    ]
    metric = next(key for key in trials[0] if key != "overrides")
    best = max(trials, key=lambda trial: trial[metric])
    content = {"command": shown_command(["-m", *settings]), "trials": trials, "best": best, "seeds": {}}
    found = stored(path)
    if found.get("best") == best:
        content["seeds"] = found["seeds"]
    for length, own in (("short", SHORT), ("whole", ())):
        for name, setting in (("default", []), ("best", best["overrides"])):
            entry = content["seeds"].setdefault(f"{length}, {name}", {})
            for seed in FRESH_SEEDS:
                if str(seed) not in entry:
                    entry[str(seed)] = run([*own, *setting], seed)["trained"]
                    write(path, content)
    content["means"] = {
        name: {probe: statistics.fmean(scores[probe] for scores in runs.values()) for probe in ("linear", "knn")}
        for name, runs in content["seeds"].items()
    }
    return content


def slurm(path: Path) -> dict:
    """The grid of 12 default runs by SLURM, two at a time, whose launcher is killed and started again."""
    folder, begun = SWEEPS / "slurm", time.monotonic()
    with subprocess.Popen(sweep_command(SLURM, folder), cwd=ROOT) as launcher:
        while sum(each["state"] == "done" for each in runs_of(folder)) < KILLED_AFTER:
            if launcher.poll() is not None:
                raise SystemExit(f"the launcher ended before {KILLED_AFTER} runs were done")
            time.sleep(1)
        launcher.kill()
    before = [each["state"] for each in runs_of(folder)]
    subprocess.run(sweep_command(SLURM, folder), check=True, cwd=ROOT)
    return {
        "command": shown_command(["-m", *SLURM]),
        "cores": MACHINE["cores"],
        "seconds": round(time.monotonic() - begun),
        "states_when_the_launcher_was_killed": before,
        "runs": runs_of(folder, "optimizer.", "trainer.seed"),
    }


def sweep_command(options: Sequence[str], folder: Path) -> list[str]:
    """A sweep in a folder that goes on with what is there."""
    return command(["-m", *options, "resume=auto", f"hydra.sweep.dir={folder}"])


def runs_of(folder: Path, *shown: str) -> list[dict]:
    """What the runs of a sweep say of themselves, with those of their options that begin so."""
    runs = []
    for path in sorted(folder.glob("*/status.json"), key=lambda path: int(path.parent.name)):
        status = read_json(path)
        overrides = [option for option in status["overrides"] if option.startswith(shown)]
        kept = ("state", "starts", "job", "verdict", "objective", "train_seconds")
        runs.append({"overrides": overrides, **{key: status[key] for key in kept}})
    return runs


MEASUREMENTS = {each.__name__: each for each in (kills, optuna, slurm)}


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in MEASUREMENTS:
        raise SystemExit(__doc__)
    results = RESULTS / f"{sys.argv[1]}.json"
    write(results, MEASUREMENTS[sys.argv[1]](results))
    print(f"wrote {results.relative_to(ROOT)}")
