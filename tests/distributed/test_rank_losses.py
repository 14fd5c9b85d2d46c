"""Terms over the batch span the ranks: two with B samples are one with 2 B (rank_loss_checks.py runs in both)."""

from __future__ import annotations

import pytest
from rank_loss_checks import CHECKS

SCRIPT = "rank_loss_checks.py"


@pytest.mark.parametrize("name", CHECKS)
def test_across_ranks(results, name):
    for result in results:
        assert result[name] is None, result[name]
