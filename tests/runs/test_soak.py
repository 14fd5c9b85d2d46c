"""A run that lasts takes no more and more of the machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
GROWTH = {"rss": 24 * 2**20, "handles": 2, "threads": 1, "children": 0, "files": 1, "disk": 2**16}
"""What may be added between the first third and the last; files: a temporary name of a file that is being written."""


@pytest.mark.slow
@pytest.mark.faults
def test_a_long_run_takes_no_more_and_more(train, quick, tmp_path):
    process = train(
        *quick,
        "hydra.run.dir=run",
        "trainer.max_steps=360",
        "trainer.save_every_steps=9",
        "trainer.validate_every_steps=15",
        "trainer.async_save=true",
        "data.num_workers=2",
        "data.in_memory=false",
        "+callbacks.usage._target_=usage.Usage",
        "+callbacks.usage.every=5",
        PYTHONPATH=str(TESTS),
    )
    assert process.returncode == 0, process.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "usage.jsonl").read_text().splitlines()]
    third = len(lines) // 3
    assert third == 24
    first, last = lines[third // 2 : third], lines[-third:]
    for name, room in GROWTH.items():
        before, after = (max(line[name] for line in part) for part in (first, last))
        assert after <= before + room, f"{name} grew from {before} to {after}"
    assert max(line["children"] for line in lines) >= 2, "workers were watched"
