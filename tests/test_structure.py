"""The packages form a star: each imports what all share (SHARED) and itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

JEPA = Path(__file__).resolve().parents[1] / "jepa"
PACKAGES = sorted(path.name for path in JEPA.iterdir() if (path / "__init__.py").exists())


SHARED = {"types", "utils", "distributed", "checkpoint"}
"""What every package may import. `jepa.config` is the door: it may import all."""

COMPOSING = {"sweep"}
"""What also imports `jepa.config`, as it composes configurations itself."""


def imports_of(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            modules.add(node.module)
    return {module for module in modules if module.split(".")[0] == "jepa"}


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "config"])
def test_packages_import_no_other_package(package):
    allowed = {package, *SHARED, *({"config"} if package in COMPOSING else ())}
    for path in (JEPA / package).rglob("*.py"):
        across = {module for module in imports_of(path) if module.split(".")[1:2] not in [[a] for a in allowed]}
        assert not across, f"{path.relative_to(JEPA)} imports {across}"


def test_the_packages_are_found():
    assert {"models", "masks", "losses", "optim", "trainer", "evaluation", "data", "interop", "utils"} <= set(PACKAGES)
