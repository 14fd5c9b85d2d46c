"""scripts/reproduce.py world: rows of runs, and how they are shown."""

from __future__ import annotations

from pathlib import Path

from scripts.reproduce_world import MEASURES, WorldRow, page, seeds_of, with_run

ROOT = Path(__file__).resolve().parents[2]


def test_rows_of_worlds_grow_with_their_runs_and_start_anew_when_they_change(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    row, rows, lines = WorldRow("a", "a method", ("x=1",), reported="98"), [], []
    for seed, success in ((1, 0.8), (0, 1.0)):
        planned = {"success": success, "low": 0.5, "high": 1.0, "seconds_per_episode": 2.0, "baselines": {}}
        run = {"seed": seed, "minutes": 9.0, "core_minutes": 18.0, "collapse": {"verdict": "healthy"}}
        run |= {"trained": dict.fromkeys(MEASURES, 0.5), "published": planned, "strict": {**planned, "success": 0.5}}
        rows = with_run(rows, row, run, "test")
        lines += page(rows)
    cost = ["healthy", "2.0", "9", "18"]
    assert lines == [
        ["a method", "80 (50 to 100)", "50 (50 to 100)", "98", *["0.50"] * 6, *cost],
        ["a method", "90.0 ± 127.1", "50.0 ± 0.0", "98", *["0.50 ± 0.00"] * 6, *cost],
    ]
    assert seeds_of(rows, row) == {0, 1}
    changed = WorldRow("a", "a method", ("x=2",))
    assert seeds_of(rows, changed) == set()
    (only,) = with_run(rows, changed, run, "test")
    assert len(only["runs"]) == 1
