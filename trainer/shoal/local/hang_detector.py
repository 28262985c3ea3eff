"""Finds processes of a job that live and do nothing: stopped, in a deadlock, or waiting for a disk for ever. Pure.

A process whose end is seen is started again by the supervisor; one that stands still has no end to be seen. What shows it
is silence where others speak: of a parameter server or trainer that the master knows no longer, of a master that tells no
progress, of an etcd that answers no question. Who needs another one that is silent is not blamed for its own silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from shoal.local.supervisor import ETCD, MASTER, SERVER, TRAINER, Place

__all__ = ["Watchdog"]

SILENT_SECONDS: Final = 30.0
"""Of silence after which etcd, the master or a parameter server is killed. A trainer has the longest time of a step of its
script, which may hold Python's global interpreter lock for as long; where the step has less the kernel ends it sooner."""
START_SECONDS: Final = 60.0
"""A process that has not spoken yet may still import what it needs."""
_GAP_SECONDS: Final = 5.0
"""Without a look of ours: the machine slept or we were stopped, and the others with us. What is told of a process so shortly
after its start may still be of the one before it."""


class Watchdog:
    """Remembers who spoke when; times are seconds of one monotonic clock.

    Args:
        now: The time.
        step_seconds: For which a trainer may be silent.
    """

    def __init__(self, now: float, *, step_seconds: float) -> None:
        self._step_seconds = max(SILENT_SECONDS, step_seconds)
        self._heard: dict[Place, float] = {}
        self._since: dict[Place, float] = {}
        """Since when etcd, or the master, speaks without a gap."""
        self._killed: dict[Place, float] = {}
        """Start of the process that was found last."""
        self._looked = self._resumed = now

    def told(self, members: Iterable[Place], now: float) -> None:
        """The master told its progress, and who is there."""
        self._spoke((MASTER, 0), now)
        for place in members:
            self._heard[place] = now

    def etcd_answered(self, now: float) -> None:
        """The job's own etcd answered a question."""
        self._spoke((ETCD, 0), now)

    def _spoke(self, place: Place, now: float) -> None:
        if self._is_quiet(place, now):
            self._since[place] = now
        self._heard[place] = now

    def _is_quiet(self, place: Place, now: float) -> bool:
        return now - self._heard.get(place, float("-inf")) > _GAP_SECONDS

    def hung(self, alive: Mapping[Place, float], now: float) -> dict[Place, float]:
        """Who is to be killed, and for how many seconds it has been silent; each process is found once.

        Args:
            alive: When each process started that runs and was not told to end.
            now: The time.
        """
        if now - self._looked > _GAP_SECONDS:
            self._resumed = now
        self._looked = now
        found = {
            place: seconds
            for place, seconds in self._silences(alive, now).items()
            if seconds > (self._step_seconds if place[0] == TRAINER else SILENT_SECONDS)
            and alive[place] - self._killed.get(place, float("-inf")) > 1.0
        }
        self._killed |= {place: alive[place] for place in found}
        return found

    def _silences(self, alive: Mapping[Place, float], now: float) -> dict[Place, float]:
        """For how long those have said nothing who cannot blame another one for it."""
        if (ETCD, 0) in alive and self._is_quiet((ETCD, 0), now):
            return {(ETCD, 0): self._silent((ETCD, 0), alive, now)}
        if self._is_quiet((MASTER, 0), now):
            # One that has never spoken may wait for an etcd that is none of ours.
            blamed = (MASTER, 0) in alive and ((MASTER, 0) in self._since or (ETCD, 0) in alive)
            return {(MASTER, 0): self._silent((MASTER, 0), alive, now, needs=(ETCD, 0))} if blamed else {}
        members = [place for place in alive if place[0] in {SERVER, TRAINER}]
        return {place: self._silent(place, alive, now, needs=(MASTER, 0)) for place in members}

    def _silent(self, place: Place, alive: Mapping[Place, float], now: float, *, needs: Place | None = None) -> float:
        """For how long a process has said nothing although the one that it needs spoke.

        One that has never spoken gets its time to start; a trainer, whose script may prepare for as long as it likes, any.
        """
        started, heard = alive[place], self._heard.get(place, float("-inf"))
        spoken = heard >= started + (_GAP_SECONDS if place[0] in {SERVER, TRAINER} else 0.0)
        if not spoken and place[0] == TRAINER:
            return 0.0
        last = heard if spoken else started + START_SECONDS
        return now - max(last, self._resumed, self._since.get(needs, last) if needs is not None else last)
