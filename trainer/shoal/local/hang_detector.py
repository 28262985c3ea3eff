"""Finds hung processes of a job: stopped, in a deadlock, or in an endless wait for a disk. Pure.

The supervisor restarts a process after its exit, but a hung process does not exit. Its sign is silence: a parameter
server or trainer that is not in the master's list of members any more, a master that reports no progress, an etcd that
answers no request. A process is not considered hung while another process that it depends on is silent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from shoal.local.supervisor import ETCD, MASTER, SERVER, TRAINER, Place

__all__ = ["HangDetector"]

SILENT_SECONDS: Final = 30.0
"""Seconds of silence after which etcd, the master or a parameter server is killed. For a trainer it is the step timeout
if that is longer: its script may hold Python's global interpreter lock for as long."""
START_SECONDS: Final = 60.0
"""Additional seconds for the start of a process that has not reported yet, for its imports."""
_GAP_SECONDS: Final = 5.0
"""Seconds between two checks above which the machine was suspended or this process was stopped: silence before that does
not count. A report within this time after the start of a process may be about its predecessor."""


class HangDetector:
    """Records the last report about each process; times are seconds of one monotonic clock.

    Args:
        now: Present time.
        step_seconds: Longest silence of a trainer. Seconds.
    """

    def __init__(self, now: float, *, step_seconds: float) -> None:
        self._step_seconds = max(SILENT_SECONDS, step_seconds)
        self._reported: dict[Place, float] = {}
        self._since: dict[Place, float] = {}
        """Time since which etcd, or the master, has reported without a gap."""
        self._killed: dict[Place, float] = {}
        """Start of the last process that was found hung, by place."""
        self._checked = self._resumed = now

    def progress_reported(self, members: Iterable[Place], now: float) -> None:
        """Record a progress report of the master with its list of members."""
        self._record((MASTER, 0), now)
        for place in members:
            self._reported[place] = now

    def etcd_answered(self, now: float) -> None:
        """Record an answer of the job's own etcd."""
        self._record((ETCD, 0), now)

    def _record(self, place: Place, now: float) -> None:
        if self._is_silent(place, now):
            self._since[place] = now
        self._reported[place] = now

    def _is_silent(self, place: Place, now: float) -> bool:
        return now - self._reported.get(place, float("-inf")) > _GAP_SECONDS

    def hung(self, alive: Mapping[Place, float], now: float) -> dict[Place, float]:
        """Return the hung processes to kill with the seconds of their silence; each process is returned once.

        Args:
            alive: Start time of each running process that is not being terminated.
            now: Present time.
        """
        if now - self._checked > _GAP_SECONDS:
            self._resumed = now
        self._checked = now
        found = {
            place: seconds
            for place, seconds in self._silences(alive, now).items()
            if seconds > (self._step_seconds if place[0] == TRAINER else SILENT_SECONDS)
            and alive[place] - self._killed.get(place, float("-inf")) > 1.0
        }
        self._killed |= {place: alive[place] for place in found}
        return found

    def _silences(self, alive: Mapping[Place, float], now: float) -> dict[Place, float]:
        """Return the seconds of silence of each process whose dependencies are not silent."""
        if (ETCD, 0) in alive and self._is_silent((ETCD, 0), now):
            return {(ETCD, 0): self._silence((ETCD, 0), alive, now)}
        if self._is_silent((MASTER, 0), now):
            # A master that has never reported may wait for an etcd that is not run by this process.
            suspected = (MASTER, 0) in alive and ((MASTER, 0) in self._since or (ETCD, 0) in alive)
            return {(MASTER, 0): self._silence((MASTER, 0), alive, now, needs=(ETCD, 0))} if suspected else {}
        members = [place for place in alive if place[0] in {SERVER, TRAINER}]
        return {place: self._silence(place, alive, now, needs=(MASTER, 0)) for place in members}

    def _silence(self, place: Place, alive: Mapping[Place, float], now: float, *, needs: Place | None = None) -> float:
        """Return for how many seconds a process has been silent while its dependency was not.

        A process that has never reported gets START_SECONDS; a trainer has no limit then, because its script may need
        any time for its preparations.
        """
        started, heard = alive[place], self._reported.get(place, float("-inf"))
        has_reported = heard >= started + (_GAP_SECONDS if place[0] in {SERVER, TRAINER} else 0.0)
        if not has_reported and place[0] == TRAINER:
            return 0.0
        last = heard if has_reported else started + START_SECONDS
        return now - max(last, self._resumed, self._since.get(needs, last) if needs is not None else last)
