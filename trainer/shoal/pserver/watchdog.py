"""Whether the work of a parameter server advances.

Everything that counts in a server happens under one lock. A thread that holds it and does not come back (a deadlock, a call
that never returns) stops all pushes and pulls, while the threads that answer the master and the kubelet live on: so these
ask here before they say that the server lives.
"""

from __future__ import annotations

import threading
import time

__all__ = ["HELD_SECONDS", "WorkLock"]

HELD_SECONDS = 60.0
"""For which the lock may be held. The longest work under it is one optimizer step on all slots of the server, or the copying
of them for a snapshot: about a second for each gigabyte."""


class WorkLock:
    """A lock that knows since when it has been held; not to be taken twice by one thread."""

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
        """For how long it has been held by now; 0: it is free. Never waits."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since
