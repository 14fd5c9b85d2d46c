"""Run the recipes that the README quotes, over seeds, and store what came out as JSON.

    python scripts/reproduce.py digits                    three seeds of the default run
    python scripts/reproduce.py fashion_mnist --root DIR  with the data in DIR

Results go to scripts/results/<recipe>.json: per seed the results.json of the run, its wall time and the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

RECIPES = {
    "digits": (["data=digits"], (0, 1, 2)),
    "ijepa_digits": (["experiment=ijepa_digits"], (0,)),
    "fashion_mnist": (["data=fashion_mnist"], (0,)),
}
"""Name -> the overrides, and the seeds."""


def run(overrides: list[str], seed: int) -> dict:
    """One run of train.py in a temporary folder: its results and the wall time of the whole process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            str(ROOT / "train.py"),
            *overrides,
            f"trainer.seed={seed}",
            f"hydra.run.dir={folder}",
        ]
        begun = time.monotonic()
        subprocess.run(command, check=True, cwd=ROOT)
        seconds = time.monotonic() - begun
        return {"seed": seed, "seconds": round(seconds), **json.loads((Path(folder) / "results.json").read_text())}


def main() -> None:
    """Run a recipe and write its file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("--root", help="data.root, for data that is not bundled")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds other than the recipe's")
    arguments = parser.parse_args()
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
    content = {
        "command": " ".join(["python train.py", *overrides]),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "trained": best,
        "runs": runs,
    }
    path = ROOT / "scripts" / "results" / f"{arguments.recipe}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"wrote {path.relative_to(ROOT)}: {json.dumps(best)}")


if __name__ == "__main__":
    main()
