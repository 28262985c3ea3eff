"""The use of parameters after their optimizer's step, in the same batch, where there are several optimizers.

The steps of one batch go to the servers together, when the last optimizer has made its own. A model that is run between
two of them (a GAN's discriminator for the generator's loss) would be run with the old parameters, where plain PyTorch has
the new ones already. So the steps that were made go to the servers at once, and a step that follows is refused.
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
"""Whether a step is made that its job does not have yet.

A hook of a compiled module is compiled, too, and of all that it reads torch looks only at globals before it runs the
compiled code again.
"""
_waiting: WeakSet[Reuse] = WeakSet()
"""The jobs of this process of which that is true."""


def _now(reuse: Reuse, *, waits: bool) -> None:
    global _between  # noqa: PLW0603 - see above
    (_waiting.add if waits else _waiting.discard)(reuse)
    _between = len(_waiting) > 0


class Reuse:
    """Looks at each module that is about to run.

    Args:
        model: The model.
        optimizers: Its optimizers; with one there is nothing to look at.
        used: Called before a module runs whose optimizer has made its step, with words for that, once for a batch.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer], *, used: Callable[[str], None]) -> None:
        self._used = used
        self._stepped: set[int] = set()
        self._looks = len(optimizers) > 1
        _waiting.clear()
        _now(self, waits=False)
        if not self._looks:
            return
        if "torch._dynamo" in sys.modules:
            # What was compiled before has no hooks in it, and torch does not look whether there are some by now.
            torch.compiler.reset()
        of = {id(p): id(o) for o in optimizers for group in o.param_groups for p in group["params"]}
        for name, module in model.named_modules():
            own = {of[id(p)] for p in module.parameters(recurse=False) if id(p) in of}
            if own:
                module.register_forward_pre_hook(self._hook(name, own))

    def stepped(self, optimizer: Optimizer) -> None:
        """An optimizer made its step; the job does not have it yet."""
        self._stepped.add(id(optimizer))
        if self._looks:
            _now(self, waits=True)

    def committed(self) -> None:
        """The steps are part of the job, and the parameters are the newest."""
        self._stepped.clear()
        _now(self, waits=False)

    def _hook(self, name: str, own: set[int]) -> Callable[[nn.Module, Any], None]:
        def look() -> None:
            if own & self._stepped:
                self._used(f"a forward pass of module {name}" if name else "a forward pass of the model")

        disabled: Any = torch.compiler.disable
        uncompiled = disabled(look)

        def before(_: nn.Module, __: Any) -> None:
            if _between:
                uncompiled()

        return before
