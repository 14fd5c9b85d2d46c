"""Overrides and helpers of whole runs."""

from __future__ import annotations

import subprocess

import pytest


@pytest.fixture
def quick(tiny: list[str]) -> list[str]:
    """The tiny run without TensorBoard, which takes a second to start, and without evaluation."""
    return [*tiny, "~logger.tensorboard", "evaluation=none"]


@pytest.fixture
def refused():
    """Asserts that a run ended by a user's mistake: code 1, one message on stderr, no traceback; gives it."""

    def check(process: subprocess.CompletedProcess) -> str:
        assert process.returncode == 1, process.stderr
        assert "Traceback" not in process.stderr + process.stdout, process.stderr
        assert process.stderr.count("error: ") == 1, process.stderr
        assert process.stderr.startswith("error: "), process.stderr
        assert "Error executing job" not in process.stderr
        assert len(process.stderr) < 3000
        return process.stderr

    return check
