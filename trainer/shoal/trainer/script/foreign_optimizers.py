"""Steps of optimizers that the job does not know, in the loop of its script.

What such an optimizer trains (a learned temperature beside the model, a second model) would be trained in each trainer by
itself, and be gone with it. torch calls a hook before every step of a process; a parameter server's own steps in the same
process are made by other threads than the script's.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol
from weakref import ref

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from shoal.trainer.optim.optimizer import is_shared

__all__ = ["Guarded", "guard"]


class Guarded(Protocol):
    """What is told of such steps."""

    def foreign_step(self, optimizer: Optimizer) -> None:
        """An optimizer that the job does not know is about to step.

        Raises:
            Refused: It is in the job's loop.
        """
        ...


class _Guard:
    """The hook; of the present job of this process."""

    def __init__(self) -> None:
        self._job: ref[Any] | None = None
        self._thread = 0
        self._registered = False

    def watch(self, job: Guarded | None) -> None:
        self._job = ref(job) if job is not None else None
        self._thread = threading.get_ident()
        if not self._registered:
            self._registered = True
            register_optimizer_step_pre_hook(self._before)

    def _before(self, optimizer: Optimizer, args: Any, named: Any) -> None:
        del args, named
        job = self._job() if self._job is not None else None
        if job is not None and threading.get_ident() == self._thread and not is_shared(optimizer):
            job.foreign_step(optimizer)


_guard = _Guard()


def guard(job: Guarded | None) -> None:
    """Tell a job from now on of steps on this thread by optimizers that it does not know; None: nobody."""
    _guard.watch(job)
