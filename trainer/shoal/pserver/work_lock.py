"""The watchdog of a parameter server: detects that its work has stopped.

All work of a server happens under one lock. A thread that never releases it (a deadlock, a call that does not return)
blocks all pushes and pulls, while the threads that answer the master and the kubelet still run. Those threads therefore
check the age of the lock before they report the server as live.
"""

from __future__ import annotations

import threading
import time

__all__ = ["HELD_SECONDS", "WorkLock"]

HELD_SECONDS = 60.0
"""How long the lock may be held. Seconds. The longest work under it is one optimizer step on all slots of the server, or
copying them for a snapshot: about 1 s per gigabyte."""


class WorkLock:
    """A lock that records since when it has been held. Not reentrant."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: float | None = None

    def __enter__(self) -> None:
        self._lock.acquire()
        self._since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._since = None
        self._lock.release()

    def held_seconds(self) -> float:
        """Return how long the lock has been held, in seconds; 0 if it is free. Does not block."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since
