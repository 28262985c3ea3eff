"""Child processes that the kernel kills when this process ends, however it ends."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from typing import Final

__all__ = ["killed_with_parent"]

_PR_SET_PDEATHSIG: Final = 1
# Loaded before any fork: between fork and exec only calls that take no lock are safe.
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def killed_with_parent() -> Callable[[], None]:
    """Return a ``preexec_fn``: the child gets SIGKILL when the thread that starts it ends. It makes two system calls."""
    parent = os.getpid()

    def set_signal() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # If the parent ended before the call, the kernel sends no signal.
        if os.getppid() != parent:
            os._exit(1)

    return set_signal
