"""What a trainer changes in the process of the script, and that children have none of it.

A trainer must hear SIGTERM, see the error that ends the script, and say farewell. It stands in front of what the script
installed, which still runs; a child that is forked gets back what was there before, as it would under plain Python.
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
    """Refuse a thread.

    Raises:
        Refused: This is not the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        raise Refused(
            "trainer.join() is called in a thread: signals reach the main thread alone, so a trainer there could not leave "
            "in good order; train in the main thread"
        )


def take_place(uid: str, index: int) -> socket.socket:
    """Be this trainer of the job, for as long as this process lives.

    Args:
        uid: The job's.
        index: The trainer's.

    Returns:
        A bound socket, which holds the place: the kernel frees its name when the process ends, however it ends.

    Raises:
        Refused: Another process in this container or machine is that trainer.
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
    """Signals and the end of a trainer's process.

    Args:
        drain: Called at SIGTERM, before the script's own handler.
        failed: Called with the error that ends the script.
        leave: Called when the process ends by itself.
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
        """Keep a socket open while the process lives; children do not."""
        self._place = place

    def renew(self) -> None:
        """Stand in front of a handler that the script installed since."""
        now = signal.getsignal(signal.SIGTERM)
        if now is not self._handler and threading.current_thread() is threading.main_thread():
            # A new one each time: the script's handler may call the one that it found, which is ours of before.
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
