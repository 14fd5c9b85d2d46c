"""Run the recipes that the README quotes, over seeds, and store what came out as JSON.

    python scripts/reproduce.py digits                    three seeds of the default run
    python scripts/reproduce.py fashion_mnist --root DIR  with the data in DIR
    python scripts/reproduce.py kills                     a tiny run, killed at random moments and resumed
    python scripts/reproduce.py collapse                  runs made to collapse, and healthy ones, under the monitor

Results go to scripts/results/<recipe>.json: per seed the results.json of the run, its wall time and the machine. That
of kills holds how often a run was killed, how often in the middle of a write, and whether it ended like one that
was not. That of collapse holds of each run whether and when the monitor raised an alarm, and with what evidence.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

RECIPES = {
    "digits": (["data=digits"], (0, 1, 2)),
    "ijepa_digits": (["experiment=ijepa_digits"], (0,)),
    "fashion_mnist": (["data=fashion_mnist"], (0,)),
}
"""Name -> the overrides, and the seeds."""

KILLS = 20
"""Per way of saving."""

SECONDS_TO_KILL = 2.0
"""A run is killed at a moment between its start and this."""

TINY = (
    "data.batch_size=32",
    "model.encoder={dim: 32, depth: 1}",
    "model.predictor={dim: 32, depth: 1}",
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

IJEPA = "experiment=ijepa_digits"
UNREGULARISED = ("loss.terms.sigreg=null", "model.allow_collapse=true")
CONSTANT = "data.source._target_=scripts.reproduce.constant_digits"

COLLAPSING = {
    "no stop-gradient": (IJEPA, "model.target._target_=scripts.reproduce.shared_target", "model.allow_collapse=true"),
    "stop-gradient, nothing against collapse": ("model/target=stop_gradient", *UNREGULARISED),
    "moving average, invariance alone": UNREGULARISED[:1],
    "momentum 0": (IJEPA, "model.target.momentum.start=0", "model.target.momentum.final=0"),
    "learning rate x 100": ("optimizer.lr=0.1",),
    "learning rate x 100, ijepa": (IJEPA, "optimizer.lr=0.1"),
    "constant data": (CONSTANT,),
    "constant data, ijepa": (IJEPA, CONSTANT),
}
HEALTHY = {
    **{f"default, seed {seed}": (f"trainer.seed={seed}",) for seed in range(3)},
    **{f"ijepa, seed {seed}": (IJEPA, f"trainer.seed={seed}") for seed in range(3)},
    "ijepa, whole run": (IJEPA, "trainer.max_steps=1200"),
    "random masks": ("model/mask=random",),
    "mse": ("loss=mse",),
    "l1": ("loss=l1",),
    "a third of the learning rate": ("optimizer.lr=3e-4",),
    "twice the learning rate": ("optimizer.lr=2e-3",),
    "stop-gradient with SIGReg": ("model/target=stop_gradient",),
}
"""Name -> the overrides on top of WATCHED."""


def constant_digits() -> Any:
    """The digits, all of them the first one; augmentation is all that varies."""
    from dataclasses import replace

    from jepa.data.sources.base import TensorImages
    from jepa.data.sources.grey import digits

    splits = digits()
    same = {
        name: TensorImages(split.images[:1].expand_as(split.images).clone(), split.labels)
        for name, split in (("train", splits.train), ("test", splits.test))
    }
    return replace(splits, **same)


def shared_target(*, encoder: Any, momentum: Any = None, reference_batch_size: int | None = None) -> Any:
    """The encoder itself with gradient, whatever the recipe says of a momentum."""
    from jepa.models import SharedTarget

    return SharedTarget(encoder=encoder)


def collapse() -> dict:
    """What the monitor says of each run: name -> verdict, evidence, and the step at which it was stopped."""

    def watch(overrides: tuple[str, ...]) -> dict:
        result = run([*WATCHED, *overrides], None)
        alarm = result["step"] if "stopped" in result else None
        return {"overrides": list(overrides), "alarm_at_step": alarm, **result["collapse"]}

    found = {
        kind: {name: watch(overrides) for name, overrides in runs.items()}
        for kind, runs in (("collapsing", COLLAPSING), ("healthy", HEALTHY))
    }
    return {
        "command": " ".join(["python train.py", *WATCHED]),
        "missed": [name for name, seen in found["collapsing"].items() if seen["alarm_at_step"] is None],
        "false_alarms": [name for name, seen in found["healthy"].items() if seen["alarm_at_step"] is not None],
        **found,
    }


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
        begun = time.monotonic()
        subprocess.run(command, check=True, cwd=ROOT)
        seconds = time.monotonic() - begun
        return {"seed": seed, "seconds": round(seconds), **json.loads((Path(folder) / "results.json").read_text())}


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


OTHERS = {"kills": kills, "collapse": collapse}
"""What is no recipe over seeds."""


def main() -> None:
    """Run a recipe and write its file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=sorted([*RECIPES, *OTHERS]))
    parser.add_argument("--root", help="data.root, for data that is not bundled")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds other than the recipe's")
    arguments = parser.parse_args()
    content = OTHERS[arguments.recipe]() if arguments.recipe in OTHERS else probed(arguments)
    path = ROOT / "scripts" / "results" / f"{arguments.recipe}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"wrote {path.relative_to(ROOT)}")


def probed(arguments: argparse.Namespace) -> dict:
    """A recipe over its seeds."""
    overrides, seeds = RECIPES[arguments.recipe]
    location = [f"data.root={arguments.root}"] if arguments.root else []
    runs = [run([*overrides, *location], seed) for seed in arguments.seeds or seeds]
    best = {
        probe: {
            "mean": round(statistics.mean(values), 4),
            "min": round(min(values), 4),
            "max": round(max(values), 4),
        }
        for probe in ("linear", "knn")
        for values in [[r["trained"][probe] for r in runs]]
    }
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
