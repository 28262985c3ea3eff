"""PyTorch without its compiler until the compiler is used.

The first optimizer of a process imports ``torch._dynamo``, which takes nearly as long as torch itself, only to mark some
functions as not to be compiled. Other processes of the job wait for a starting process, or do its work.

A parameter server runs a fixed list of optimizers and no user code; it uses `without_compiler`. If a version of PyTorch
needs another function of the compiler, the compiler is imported. A trainer runs the user's code, which may compile; it uses
`compiler_later`, and from the first import of the compiler on PyTorch is unchanged.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any, Final

import torch
from torch.optim import Optimizer

__all__ = ["compiler_later", "without_compiler"]

_NAME: Final = "torch._dynamo"
_ATTRIBUTE: Final = "__dynamo_disable"
"""The attribute in which PyTorch caches the compiler's wrapper of a function that must not be compiled."""


def _identity(function: Callable[..., Any], *_: object, **__: object) -> Callable[..., Any]:
    return function


def _no_op(*_: object, **__: object) -> None:
    pass


def _compiler_attribute(name: str) -> Any:
    """Import the compiler and return its attribute ``name``."""
    if name.startswith("__"):
        raise AttributeError(name)
    # The module must be found in both places while it is being imported.
    sys.modules.pop(_NAME, None)
    vars(torch).pop("_dynamo", None)
    return getattr(importlib.import_module(_NAME), name)


def without_compiler() -> None:
    """Replace the compiler in this process by a stub. Has an effect only before the first optimizer is created."""
    if _NAME in sys.modules:
        return
    absent = types.ModuleType(_NAME)
    absent.__dict__.update(disable=_identity, graph_break=_no_op, __getattr__=_compiler_attribute)
    sys.modules[_NAME] = absent
    vars(torch)["_dynamo"] = absent


class _WhenImported(MetaPathFinder):
    """A finder that finds no module; it removes the marks when the compiler, which sets its own, is imported."""

    def __init__(self, patched: list[types.FunctionType]) -> None:
        self._patched = patched

    def find_spec(self, fullname: str, _path: Sequence[str] | None, _target: object = None, /) -> ModuleSpec | None:
        if fullname == _NAME:
            sys.meta_path.remove(self)
            for function in self._patched:
                vars(function).pop(_ATTRIBUTE, None)
        return None


def compiler_later() -> None:
    """Let optimizers be created, read and loaded without the compiler; it is imported by a step or a compilation."""
    if _NAME in sys.modules or any(isinstance(each, _WhenImported) for each in sys.meta_path):
        return
    patched = list(_not_compiled(Optimizer))
    for function in patched:
        vars(function)[_ATTRIBUTE] = function
    sys.meta_path.insert(0, _WhenImported(patched))


def _not_compiled(owner: type) -> Iterator[types.FunctionType]:
    """Yield the functions of a class whose first call would import the compiler."""
    wrapping = vars(importlib.import_module("torch._compile"))
    for found in vars(owner).values():
        if isinstance(found, types.FunctionType) and found.__globals__ is wrapping:
            yield vars(found)["__wrapped__"]
