"""The dry run and the scripts that find rates and sizes, as a user types them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture
def script(fork_server, tmp_path):
    """Run a script of scripts/ from an empty folder; gives the finished process."""

    def run(name, *arguments):
        return fork_server.start(list(arguments), tmp_path, {}, script=f"scripts/{name}").wait()

    return run


def test_a_real_process_shows_its_mistake(refused, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(ROOT / "scripts" / "find_lr.py"), "find_lr.step=3"]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "Did you mean find_lr.steps=3?" in refused(process)


def test_find_lr(script, quick, tmp_path):
    process = script("find_lr.py", *quick, "hydra.run.dir=run", "optimizer.lr=7", "find_lr.steps=40")
    assert process.returncode == 0, process.stderr
    content = json.loads((tmp_path / "run" / "find_lr.json").read_text())
    assert len(content["learning_rates"]) == len(content["losses"]) == len(content["smoothed"]) <= 40
    assert 1e-7 < content["suggestion"] < 1
    assert (tmp_path / "run" / "find_lr.png").stat().st_size > 10_000
    (command,) = [line.strip() for line in process.stdout.splitlines() if line.startswith("  python train.py")]
    words = shlex.split(command)
    assert words[-1] == f"optimizer.lr={content['suggestion']:.2g}"
    assert words[2:-1] == quick
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_find_batch_size(script, quick, tmp_path):
    process = script(
        "find_batch_size.py", *quick, "loss=invariance_sigreg", "hydra.run.dir=run", "find_batch_size.max_size=20"
    )
    assert process.returncode == 0, process.stderr
    content = json.loads((tmp_path / "run" / "find_batch_size.json").read_text())
    assert (content["largest"], content["suggestion"]) == (20, 16)
    assert "samples/s" in process.stdout
    assert "trainer.micro_batch_size=16 trainer.allow_microbatch_statistics=true" in process.stdout
    assert "data.batch_size=20 fits whole" in process.stdout
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("name", "mistake", "words"),
    [
        ("find_lr.py", "find_lr.steps=3", "find_lr.steps=3: expected at least 10"),
        ("find_batch_size.py", "find_batch_size.limit_gib=0.001", "no micro-batch fits: the process holds"),
        ("find_batch_size.py", "find_batch_size.max_size=many", "find_batch_size.max_size=many"),
    ],
)
def test_mistakes_in_the_scripts(script, quick, refused, name, mistake, words):
    assert words in refused(script(name, *quick, mistake))


def test_a_dry_run(train, quick, tmp_path):
    process = train(*quick, "trainer.dry_run=true", "hydra.run.dir=run")
    assert process.returncode == 0, process.stderr
    assert "Nothing was trained" in process.stdout
    files = {path.name for path in (tmp_path / "run" / "preview").iterdir()}
    assert files == {"samples.png", "masks.png", "report.txt"}
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert not (tmp_path / "run" / "config.yaml").exists()
