"""Detects steps of optimizers that were not passed to ``prepare``, in the loop of the script.

The parameters of such an optimizer (a learned temperature, a second model) would be trained in each trainer separately, and be
lost with it. torch calls a global hook before every step in a process; the steps of a parameter server in the same process
are made by other threads than the script's.
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
    """Receives such steps."""

    def foreign_step(self, optimizer: Optimizer) -> None:
        """Check a step of an optimizer that was not passed to ``prepare``.

        Raises:
            Refused: The step is in the job's loop.
        """
        ...


class _Guard:
    """The hook for the current job of this process."""

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
    """Report steps of other optimizers on this thread to a job from now on; None disables it."""
    _guard.watch(job)
