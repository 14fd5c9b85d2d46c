"""scripts/reproduce.py table: what it has measured stays, whatever becomes of the other runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from jepa.utils.errors import UserError
from scripts import reproduce_table
from scripts.reproduce_table import TABLE, rows_of_all

ROOT = Path(__file__).resolve().parents[2]


def test_a_run_that_fails_costs_itself_alone(tmp_path, monkeypatch):
    def measured(recipe, overrides, seed, threads):
        if seed == 1:
            raise UserError("no memory")
        return {"seed": seed, "cpu_seconds": 60, "trained": {"linear": 0.9, "knn": 0.8}}

    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setattr(reproduce_table, "measured", measured)
    monkeypatch.setattr(reproduce_table, "teraflop_of", lambda overrides: 1.0)
    path = tmp_path / "table.json"
    options = argparse.Namespace(only=["Fashion-MNIST"], root=str(tmp_path), validate=False, jobs=1, seeds=[1, 2])
    with pytest.raises(UserError, match=r"--root .* lacks fashion_mnist: "):
        rows_of_all(options, path)
    (tmp_path / "fashion_mnist").mkdir()
    with pytest.raises(UserError, match=r"these runs have failed, .*: Fashion-MNIST, VICReg, seed 1$"):
        rows_of_all(options, path)
    assert [(row["metric"], row["trained"]["mean"]) for row in json.loads(path.read_text())] == [
        ("linear", 0.9),
        ("knn", 0.8),
    ]
    path.write_text('[{"data": "digits"}]')
    with pytest.raises(UserError, match=r"table.json: expected a list of rows with "):
        rows_of_all(options, path)


def test_every_figure_of_the_table_is_of_a_recipe():
    rows = json.loads((ROOT / "scripts/results/table.json").read_text())
    known = [[each.data, each.method, list(each.overrides)] for each in TABLE]
    assert all([row["data"], row["method"], row["overrides"]] in known for row in rows)
