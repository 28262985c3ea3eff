"""Detects the use of parameters after their optimizer's step, in the same batch, with several optimizers.

The steps of one batch are sent to the servers together, after the last optimizer's step. A module that runs between two steps
(a GAN's discriminator for the generator's loss) would run with the old parameters, where plain PyTorch already has the new
ones. Therefore the steps made so far are sent immediately, and a further step for the batch is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.optim import Optimizer

__all__ = ["Reuse"]

_between = False
"""Whether any job of this process has a step that is not committed yet.

A global, because the hooks of a compiled module are compiled, too, and torch's guards re-check only globals before the
compiled code runs again.
"""
_pending: WeakSet[Reuse] = WeakSet()
"""The jobs of this process with a step that is not committed yet."""


def _set_pending(reuse: Reuse, *, pending: bool) -> None:
    global _between  # noqa: PLW0603 - see its docstring
    (_pending.add if pending else _pending.discard)(reuse)
    _between = len(_pending) > 0


class Reuse:
    """Checks each module before it runs.

    Args:
        model: The model.
        optimizers: Its optimizers; with a single one nothing is checked.
        used: Called with a description before a module runs whose optimizer has a step that is not committed,
            once per batch.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer], *, used: Callable[[str], None]) -> None:
        self._used = used
        self._stepped: set[int] = set()
        self._enabled = len(optimizers) > 1
        _pending.clear()
        _set_pending(self, pending=False)
        if not self._enabled:
            return
        if "torch._dynamo" in sys.modules:
            # Code compiled before has no hooks in it, and torch does not check for hooks added later.
            torch.compiler.reset()
        of = {id(p): id(o) for o in optimizers for group in o.param_groups for p in group["params"]}
        for name, module in model.named_modules():
            own = {of[id(p)] for p in module.parameters(recurse=False) if id(p) in of}
            if own:
                module.register_forward_pre_hook(self._hook(name, own))

    def stepped(self, optimizer: Optimizer) -> None:
        """Note that an optimizer has stepped; the step is not committed yet."""
        self._stepped.add(id(optimizer))
        if self._enabled:
            _set_pending(self, pending=True)

    def committed(self) -> None:
        """Note that all steps are committed and the parameters are the newest."""
        self._stepped.clear()
        _set_pending(self, pending=False)

    def _hook(self, name: str, own: set[int]) -> Callable[[nn.Module, Any], None]:
        def check() -> None:
            if own & self._stepped:
                self._used(f"a forward pass of module {name}" if name else "a forward pass of the model")

        disabled: Any = torch.compiler.disable
        uncompiled = disabled(check)

        def before(_: nn.Module, __: Any) -> None:
            if _between:
                uncompiled()

        return before
