"""What spans the ranks: sums, SIGReg and batch norm; terms over the batch, where two ranks of B are one of 2 B."""

from __future__ import annotations

import functools

import pytest
import rank_checks
import rank_loss_checks
import torch

MODULES = (rank_checks, rank_loss_checks)


@pytest.fixture(scope="module")
def results(begin_ranks, tmp_path_factory):
    """From a script, what each of its checks has found on each of two ranks: name -> None, or what went wrong."""

    @functools.cache
    def run(script: str) -> list[dict]:
        folder = tmp_path_factory.mktemp(script)
        begin_ranks("result", folder=folder, script=f"tests/distributed/{script}.py").succeed()
        return [torch.load(folder / f"result{rank}.pt") for rank in (0, 1)]

    return run


@pytest.mark.parametrize(("script", "name"), [(module.__name__, name) for module in MODULES for name in module.CHECKS])
def test_across_ranks(results, script, name):
    for result in results(script):
        assert result[name] is None, result[name]
