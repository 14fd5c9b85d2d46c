"""Terms over the batch span the ranks: two with B samples are one with 2 B (rank_loss_checks.py runs in both)."""

from __future__ import annotations

import pytest
import torch
from rank_loss_checks import CHECKS


@pytest.fixture(scope="module")
def results(begin_ranks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("losses")
    processes = begin_ranks("result", folder=folder, script="tests/distributed/rank_loss_checks.py").wait(90)
    assert [p.returncode for p in processes] == [0, 0], processes[0].stderr + processes[1].stderr
    return [torch.load(folder / f"result{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", CHECKS)
def test_across_ranks(results, name):
    for result in results:
        assert result[name] is None, result[name]
