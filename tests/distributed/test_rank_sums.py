"""Sums over ranks, SIGReg and batch norm across ranks (rank_checks.py runs in both)."""

from __future__ import annotations

import pytest
from rank_checks import CHECKS

SCRIPT = "rank_checks.py"


@pytest.mark.parametrize("name", CHECKS)
def test_across_ranks(results, name):
    for result in results:
        assert result[name] is None, result[name]
