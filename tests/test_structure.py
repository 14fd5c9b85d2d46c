"""The packages form a star, files form no circles, and files and functions stay short enough to read."""

from __future__ import annotations

import ast
import re
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


def imports_when_loaded(path: Path) -> set[str]:
    """The modules of jepa that a file imports at its top level."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jepa":
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & set(MODULES)) or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & set(MODULES)
    return found


MODULES = {
    ".".join(path.relative_to(JEPA.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in JEPA.rglob("*.py")
}
"""Dotted name -> file."""


def test_files_form_no_circles():
    remaining = {name: imports_when_loaded(path) & set(MODULES) - {name} for name, path in MODULES.items()}
    while free := [name for name, imports in remaining.items() if not imports & set(remaining)]:
        for name in free:
            del remaining[name]
    assert not remaining, f"these files import each other: {sorted(remaining)}"


def test_files_and_functions_are_short():
    for name, path in MODULES.items():
        text = path.read_text()
        assert text.count("\n") <= 350, f"{name} has more than 350 lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.name != "__init__":
                assert node.end_lineno - node.lineno < 60, f"{name}.{node.name} has more than 60 lines"


def test_a_file_name_stands_in_one_package():
    names = [path.name for path in MODULES.values() if path.name != "__init__.py"]
    assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)


READERS = {
    "jepa/utils/read_data.py": "the one place",
    "jepa/config/compose.py": "conf/, which is code",
    "jepa/config/notes.py": "conf/, which is code",
    "jepa/data/sources/coco.py": "lists of data, of any size",
    "jepa/data/sources/text_tables.py": "lists of data, of any size",
    "jepa/tools/feature_file.py": "rows that it has written itself, of any size",
    "scripts/benchmark_peer_step.py": "what benchmark_peers.py gives it, in an environment without this package",
    "jepa/data/byte_pair_encoding.py": "what the library says of a tokenizer in memory",
}
"""Files that may parse a file by themselves, and why."""


def test_files_are_read_in_one_place():
    """Bounded and checked, by `jepa.utils.read_data`."""
    parsers = re.compile(r"\bjson\.loads?\b|\byaml\.\w*load\b|OmegaConf\.load\b")
    root = JEPA.parent
    paths = [*JEPA.rglob("*.py"), *(root / "scripts").glob("*.py"), root / "train.py"]
    found = {path.relative_to(root).as_posix() for path in paths if parsers.search(path.read_text(encoding="utf-8"))}
    assert found == set(READERS)


def test_the_packages_are_found():
    assert {"models", "masks", "losses", "optim", "trainer", "evaluation", "data", "interop", "utils"} <= set(PACKAGES)
