"""Whether what the watches bring is what there is: from what was written and never came back, and from what fails. Pure.

A stream may stay open and bring nothing: an API server that a network cut off, a definition that was deleted and applied
again. The operator's own writes show it. Each status that it writes comes back as an event of that job; one that does not
within `ECHO_SECONDS` tells that the watch of jobs is blind, and it is begun anew.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

__all__ = ["ECHO_SECONDS", "FAILING_SECONDS", "WatchHealth"]

ECHO_SECONDS: Final = 15.0
"""After so long without its event a write is missed."""
FAILING_SECONDS: Final = 15.0
"""A stream that fails for so long makes the operator unready; a restart of the API server takes less."""
_PAUSE_SECONDS: Final = 30.0
"""Between two restarts of the watch: each lists all jobs."""


class WatchHealth:
    """Of all watches of one operator. Times are in seconds, by a clock that only goes forward."""

    def __init__(self) -> None:
        self._missed: dict[str, tuple[int, float]] = {}
        self._failing: dict[Hashable, tuple[float, str]] = {}
        self._restarted = float("-inf")

    def written(self, uid: str, revision: int, now: float) -> None:
        """A job was written, and has this resource version since."""
        before = self._missed.get(uid)
        self._missed[uid] = revision, before[1] if before is not None else now

    def came(self, uid: str, revision: int) -> None:
        """An event of a job came."""
        missed = self._missed.get(uid)
        if missed is not None and revision >= missed[0]:
            del self._missed[uid]

    def gone(self, uid: str) -> None:
        """A job is gone; nothing of it comes any more."""
        self._missed.pop(uid, None)

    def failing(self, stream: Hashable, words: str, now: float) -> None:
        """Why nothing comes by a stream; empty: it goes on."""
        if not words:
            self._failing.pop(stream, None)
            return
        self._failing[stream] = self._failing.get(stream, (now, ""))[0], words

    def restart_due(self, now: float) -> bool:
        """Whether the watch of jobs is to be begun anew now; asked, it is taken for done."""
        if not self._blind(now) or now - self._restarted < _PAUSE_SECONDS:
            return False
        self._restarted = now
        return True

    def problem(self, now: float) -> str:
        """Why the operator may not know what there is; empty: it does."""
        for since, words in self._failing.values():
            if now - since >= FAILING_SECONDS:
                return words
        if self._blind(now):
            return "the watch of TrainingJobs brings no events"
        return ""

    def _blind(self, now: float) -> bool:
        return any(now - since >= ECHO_SECONDS for _, since in self._missed.values())
