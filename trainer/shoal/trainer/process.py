"""Signal handlers and hooks of a trainer in the script's process.

A trainer must handle SIGTERM, report the error that ends the script, and leave the job at exit. Its handlers run before those
of the script, which they then call. In a forked child the previous handlers are restored, as under plain Python.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from shoal.trainer.refusal import Refused

__all__ = ["ProcessWatch", "check_main_thread", "take_place"]


def check_main_thread() -> None:
    """Check that the caller is in the main thread, the only one that receives signals.

    Raises:
        Refused: It is in another thread.
    """
    if threading.current_thread() is not threading.main_thread():
        raise Refused(
            "trainer.join() is called in a thread: signals reach the main thread alone, so a trainer there could not leave "
            "in good order; train in the main thread"
        )


def take_place(uid: str, index: int) -> socket.socket:
    """Reserve the identity of a trainer for this process.

    Args:
        uid: UID of the job.
        index: Index of the trainer.

    Returns:
        A bound socket, which is the reservation: the kernel frees its name when the process ends for any reason.

    Raises:
        Refused: Another process in this container or on this host already runs the trainer.
    """
    held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        held.bind(f"\0shoal/{uid}/trainer/{index}")
    except OSError:
        held.close()
        raise Refused(
            f"trainer {index} of this job is a living process already: trainer.join() may be called in one process of a "
            "trainer. A launcher such as torchrun is not needed: set spec.trainer.minReplicas and maxReplicas instead"
        ) from None
    return held


class ProcessWatch:
    """Handles SIGTERM, the script's error and the exit of a trainer's process.

    Args:
        drain: Called on SIGTERM, before the script's own handler.
        failed: Called with the error that ends the script.
        leave: Called at the regular exit of the process.
    """

    def __init__(
        self, *, drain: Callable[[], None], failed: Callable[[BaseException], None], leave: Callable[[], None]
    ) -> None:
        self._drain, self._failed, self._leave = drain, failed, leave
        self._before: Any = signal.getsignal(signal.SIGTERM)
        self._hook_before = sys.excepthook
        self._hook = self._on_error
        self._handler = self._in_front_of(self._before)
        self._place: socket.socket | None = None
        signal.signal(signal.SIGTERM, self._handler)
        sys.excepthook = self._hook
        atexit.register(self._leave)
        os.register_at_fork(after_in_child=self._in_child)

    def hold(self, place: socket.socket) -> None:
        """Keep a socket open until the process exits; forked children close it."""
        self._place = place

    def renew(self) -> None:
        """Install the handler again if the script has installed its own since."""
        now = signal.getsignal(signal.SIGTERM)
        if now is not self._handler and threading.current_thread() is threading.main_thread():
            # A new function each time, as the script's handler may call our previous one.
            self._before, self._handler = now, self._in_front_of(now)
            signal.signal(signal.SIGTERM, self._handler)

    def _in_front_of(self, before: Any) -> Callable[[int, FrameType | None], None]:
        def on_terminate(number: int, frame: FrameType | None) -> None:
            self._drain()
            if callable(before):
                before(number, frame)

        return on_terminate

    def _on_error(self, kind: type[BaseException], error: BaseException, trace: Any) -> None:
        self._hook_before(kind, error, trace)
        if not issubclass(kind, KeyboardInterrupt):
            self._failed(error)

    def _in_child(self) -> None:
        if signal.getsignal(signal.SIGTERM) is self._handler:
            signal.signal(signal.SIGTERM, self._before if self._before is not None else signal.SIG_DFL)
        if sys.excepthook is self._hook:
            sys.excepthook = self._hook_before
        atexit.unregister(self._leave)
        if self._place is not None:
            self._place.close()
