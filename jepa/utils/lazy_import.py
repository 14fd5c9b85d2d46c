"""Imports that wait until they are needed: of packages that are slow to import, or that only an extra installs."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from jepa.utils.errors import UserError


class MissingPackageError(UserError):
    """A package of an extra is not installed; the message names the command that installs it."""


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import a module of an optional package.

    extra: the one in pyproject.toml that lists the package. purpose: what needs it, the start of the error's sentence.

    Raises MissingPackageError when the package is not installed.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise  # the package is there, and something of its own is missing
        raise MissingPackageError(f"{purpose} needs the package {package}: pip install 'jepa[{extra}]'") from error


def lazy_import(module: str) -> Any:
    """Return a stand-in for a module that imports it when an attribute is first used."""
    return _LazyModule(module)


def postpone_dynamo() -> None:
    """Let optimizers be built without importing torch._dynamo, which takes a second; their first step imports it.

    torch imports it to keep `add_param_group` out of compiled graphs, and nothing of ours calls that from one. A torch
    that looks for another attribute ignores this one.
    """
    from torch.optim import Optimizer

    method = getattr(Optimizer.add_param_group, "__wrapped__", Optimizer.add_param_group)
    method.__dynamo_disable = method


class _LazyModule:
    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._module), name)
