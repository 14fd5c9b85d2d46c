"""An environment that has the core's packages alone: those that only extras install cannot be found in it."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

HIDE = """
from importlib.machinery import PathFinder

HIDDEN = {names!r}
find_spec = PathFinder.find_spec


def find_unless_hidden(name, path=None, target=None):
    return None if name.partition(".")[0] in HIDDEN else find_spec(name, path, target)


PathFinder.find_spec = find_unless_hidden
"""


def names_of_extras() -> set[str]:
    """Import names of the packages that the extras for users bring and the core does not, theirs included."""
    extras = [line for name, lines in PROJECT["optional-dependencies"].items() if name != "dev" for line in lines]
    only_extras = installed_with(extras) - installed_with(PROJECT["dependencies"])
    found = packages_distributions().items()
    return {name for name, packages in found if only_extras.issuperset(map(canonicalize_name, packages))}


def installed_with(lines: list[str]) -> set[str]:
    """Names of the installed packages that requirements lead to."""
    names, left = set(), [Requirement(line) for line in lines]
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        marker = requirement.marker
        if name in names or name == PROJECT["name"] or not (marker is None or marker.evaluate({"extra": ""})):
            continue
        try:
            left += map(Requirement, requires(name) or [])
        except PackageNotFoundError:
            continue
        names.add(name)
    return names


def core_only(folder: Path) -> dict[str, str]:
    """Variables of an environment without the extras; what hides them is written to the folder."""
    (folder / "sitecustomize.py").write_text(HIDE.format(names=names_of_extras()))
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
