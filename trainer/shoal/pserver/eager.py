"""PyTorch without its compiler, for a process that never compiles.

The first optimizer of a process imports ``torch._dynamo``, which takes as long as torch itself, and all that it is asked for
there are two names that mean something to code that is being compiled. A parameter server runs a fixed list of optimizers
and nobody's code, and as long as it is not there every trainer waits. A version of PyTorch that asks for more gets the compiler.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any, Final

import torch

__all__ = ["without_compiler"]

_NAME: Final = "torch._dynamo"


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
