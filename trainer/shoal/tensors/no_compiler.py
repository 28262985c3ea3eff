"""PyTorch without its compiler, as long as nobody compiles.

The first optimizer of a process imports ``torch._dynamo``, which takes nearly as long as torch itself, to mark some functions as
not to be compiled. As long as a process that begins is not there others wait for it or do its work.

A parameter server runs a fixed list of optimizers and nobody's code: it goes `without_compiler`. A version of PyTorch that
asks for more gets the compiler. A trainer runs its user's code, which may compile: there it is the `compiler_later`, and from
the moment when anybody imports it all is as PyTorch would have it.
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
_MARK: Final = "__dynamo_disable"
"""Where PyTorch keeps what the compiler made of a function that it is not to compile."""


def _as_it_is(function: Callable[..., Any], *_: object, **__: object) -> Callable[..., Any]:
    return function


def _nothing(*_: object, **__: object) -> None:
    pass


def _the_compiler(name: str) -> Any:
    """What else is asked for."""
    if name.startswith("__"):
        raise AttributeError(name)
    # While it is being imported it finds itself by both ways.
    sys.modules.pop(_NAME, None)
    vars(torch).pop("_dynamo", None)
    return getattr(importlib.import_module(_NAME), name)


def without_compiler() -> None:
    """From now on this process has no compiler: call it before the first optimizer; later it changes nothing."""
    if _NAME in sys.modules:
        return
    absent = types.ModuleType(_NAME)
    absent.__dict__.update(disable=_as_it_is, graph_break=_nothing, __getattr__=_the_compiler)
    sys.modules[_NAME] = absent
    vars(torch)["_dynamo"] = absent


class _WhenImported(MetaPathFinder):
    """Finds nothing; takes the marks away when the compiler is imported, which makes its own."""

    def __init__(self, marked: list[types.FunctionType]) -> None:
        self._marked = marked

    def find_spec(self, fullname: str, _path: Sequence[str] | None, _target: object = None, /) -> ModuleSpec | None:
        if fullname == _NAME:
            sys.meta_path.remove(self)
            for function in self._marked:
                vars(function).pop(_MARK, None)
        return None


def compiler_later() -> None:
    """Optimizers can be made, read and loaded without the compiler; whoever steps or compiles gets it."""
    if _NAME in sys.modules or any(isinstance(each, _WhenImported) for each in sys.meta_path):
        return
    marked = list(_not_compiled(Optimizer))
    for function in marked:
        vars(function)[_MARK] = function
    sys.meta_path.insert(0, _WhenImported(marked))


def _not_compiled(owner: type) -> Iterator[types.FunctionType]:
    """The functions of a class that the compiler would be imported for when they are called first."""
    wrapping = vars(importlib.import_module("torch._compile"))
    for found in vars(owner).values():
        if isinstance(found, types.FunctionType) and found.__globals__ is wrapping:
            yield vars(found)["__wrapped__"]
