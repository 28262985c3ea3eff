"""Detects watches that fail, and a watch of jobs that delivers nothing. Pure.

A stream may stay open and deliver nothing: the API server was cut off from the network, or the CRD was deleted and applied
again. The operator's own writes show that. Each status that it writes comes back as an event of that job. If one does not within
`ECHO_SECONDS`, the watch of jobs is restarted.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

__all__ = ["ECHO_SECONDS", "FAILING_SECONDS", "WatchHealth"]

ECHO_SECONDS: Final = 15.0
"""A write whose event is not received within this time is missed."""
FAILING_SECONDS: Final = 15.0
"""A stream that fails for this long makes the operator unready; a restart of the API server takes less."""
_PAUSE_SECONDS: Final = 30.0
"""Shortest time between two restarts of the watch: each restart lists all jobs."""


class WatchHealth:
    """The health of all watches of one operator. Times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._missed: dict[str, tuple[int, float]] = {}
        self._failing: dict[Hashable, tuple[float, str]] = {}
        self._restarted = float("-inf")

    def written(self, uid: str, revision: int, now: float) -> None:
        """Record that a job was written, and its new resource version."""
        before = self._missed.get(uid)
        self._missed[uid] = revision, before[1] if before is not None else now

    def event_received(self, uid: str, revision: int) -> None:
        """Record that an event of a job was received."""
        missed = self._missed.get(uid)
        if missed is not None and revision >= missed[0]:
            del self._missed[uid]

    def job_deleted(self, uid: str) -> None:
        """Record that a job was deleted; no further event of it is expected."""
        self._missed.pop(uid, None)

    def failing(self, stream: Hashable, message: str, now: float) -> None:
        """Record why a stream fails; empty: it works."""
        if not message:
            self._failing.pop(stream, None)
            return
        self._failing[stream] = self._failing.get(stream, (now, ""))[0], message

    def restart_due(self, now: float) -> bool:
        """Return whether the watch of jobs is to be restarted now; True counts as a restart."""
        if not self._blind(now) or now - self._restarted < _PAUSE_SECONDS:
            return False
        self._restarted = now
        return True

    def problem(self, now: float) -> str:
        """Return why the cache may be out of date; empty: it is not."""
        for since, message in self._failing.values():
            if now - since >= FAILING_SECONDS:
                return message
        if self._blind(now):
            return "the watch of TrainingJobs delivers no events"
        return ""

    def _blind(self, now: float) -> bool:
        return any(now - since >= ECHO_SECONDS for _, since in self._missed.values())
