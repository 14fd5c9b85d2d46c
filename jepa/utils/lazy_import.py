"""Imports that wait until they are needed: of packages that are slow to import, or that only an extra installs."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
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


def keep_dynamo_out() -> None:
    """Let optimizers of torch work without importing torch._dynamo, which takes over a second; may be called again.

    They import it to say where compiled code is to stop, and nothing of ours compiles an optimizer. What differs in
    another torch is left as it is there.
    """
    from torch.optim import Optimizer

    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        method = getattr(Optimizer, name)
        method = getattr(method, "__wrapped__", method)
        method.__dynamo_disable = method  # where torch looks before it imports
    for kind in Optimizer.__subclasses__():
        step = vars(kind).get("step")
        if getattr(getattr(step, "__code__", None), "co_name", None) == "_use_grad":
            kind.step = _with_gradients_as_set(step.__wrapped__)


def _with_gradients_as_set(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return the step of an optimizer as torch wraps it, without breaking a graph before and after."""
    from torch import set_grad_enabled

    @functools.wraps(step)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        with set_grad_enabled(self.defaults["differentiable"]):
            return step(self, *args, **kwargs)

    return wrapped


class _LazyModule:
    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._module), name)
