"""What the README shows runs: each of its modules by the command in the module's first line."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text()
MODULES = re.findall(r"```python\n(# (mine\.py): PYTHONPATH=\. python train\.py ([^\n]+)\n.*?)```", TEXT, re.DOTALL)
PROMISES = {
    "MyTrainer": lambda folder, out: "loss/prediction" in (folder / "metrics.jsonl").read_text(),
    "StopAtLoss": lambda folder, out: "below 100" in json.loads((folder / "results.json").read_text())["stopped"],
    "Lion": lambda folder, out: "_target_: mine.Lion" in (folder / "config.yaml").read_text(),
}
"""Class -> whether a run has done what the README says of it."""

GROUPS = ("data", "model", "model/encoder", "model/mask", "model/target", "loss", "optimizer", "scheduler", "trainer")
GROUPS += ("logger", "callbacks", "evaluation", "sweep", "hydra/launcher")


def test_every_module_is_found():
    classes = {name for code, _, _ in MODULES for name in re.findall(r"^class (\w+)", code, re.MULTILINE)}
    assert classes == set(PROMISES)
    assert TEXT.count("# mine.py") == len(MODULES)


@pytest.mark.slow
@pytest.mark.parametrize(("code", "file", "options"), MODULES, ids=list(PROMISES))
def test_modules_run_by_their_command(train, quick, tmp_path, code, file, options):
    (tmp_path / file).write_text(code)
    # So high that a healthy run is below it.
    options = [option.replace("lowest=0.05", "lowest=100") for option in shlex.split(options)]
    process = train(*quick, *options, "hydra.run.dir=run", PYTHONPATH=str(tmp_path))
    assert process.returncode == 0, process.stderr
    (name,) = re.findall(r"^class (\w+)", code, re.MULTILINE)
    assert PROMISES[name](tmp_path / "run", process.stdout)


@pytest.mark.parametrize("group", GROUPS)
def test_the_table_names_every_option(group):
    rows = dict(re.findall(r"^\| `([\w/]+)` \| ([^|]+) \|", TEXT, re.MULTILINE))
    named = set(re.findall(r"`(\w+)`", rows[group]))
    assert {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")} <= named


@pytest.mark.parametrize("key", sorted(set(re.findall(r"\btrainer\.(\w+)(?!\w*\()", TEXT))))
def test_every_setting_of_the_trainer_exists(key):
    assert re.search(rf"^{key}: ", (ROOT / "conf" / "trainer" / "default.yaml").read_text(), re.MULTILINE)
