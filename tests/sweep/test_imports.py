"""A single run imports nothing of sweeps but the names of their plugins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("module", "imported"),
    [("train", ["jepa.sweep", "jepa.sweep.plugins"]), ("jepa.config.build", []), ("jepa.trainer", [])],
)
def test_what_is_imported(module, imported):
    code = f"import sys, {module}; print(sorted(m for m in sys.modules if m.startswith(('jepa.sweep', 'jepa.report'))))"
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert result.stdout.strip() == str(imported)
