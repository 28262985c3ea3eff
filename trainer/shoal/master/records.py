"""What the master keeps in etcd, and nothing else: small records, one key per record or per range of tasks.

Nothing here is a ground to skip work: etcd may forget its last seconds, or all. The records say what cannot be had from
the living (the job's shape, its evaluations, its outcome), and spare a new master some guesses (who held which lease).
Changes are noted as keys; their values are made when a transaction is put together, so that a hundred tasks finished
within one range cost one small put.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from shoal.store import Published
from shoal.wire.messages import Account, Evaluation, Lease, Shape

__all__ = ["RANGE", "Counters", "MemberRecord", "Outcome", "Records", "Schedule"]

RANGE = 512
"""Tasks in one record."""


class MemberRecord(msgspec.Struct):
    """A process that joined and neither left nor died, and the leases it holds."""

    role: str
    index: int
    leases: list[Lease]


class Counters(msgspec.Struct):
    """What is counted over the whole job, for people and for the final account."""

    joins: int = 0
    leaves: int = 0
    deaths: int = 0
    retries: int = 0
    replayed: int = 0
    skipped: int = 0
    not_finite: int = 0
    seconds: float = 0.0


class Schedule(msgspec.Struct):
    """What the first trainer's script said about epochs and seed."""

    epochs: int = 1
    seed: int = 0


class Outcome(msgspec.Struct):
    """How the job ended: ``files`` are the pinned snapshots that hold the final model, by slot."""

    state: str
    reason: str
    files: dict[int, str]
    account: Account | None


_SINGLE: Final[dict[str, tuple[str, Any]]] = {
    "shape": ("shape", Shape),
    "schedule": ("schedule", Schedule),
    "begun": ("begun", bool),
    "epoch": ("open_epoch", int),
    "saved": ("saved", list[str]),
    "outcome": ("outcome", Outcome),
    "counters": ("counters", Counters),
    "progress": ("progress", Published),
}
"""Records of which there is one: their attribute and type."""


class Records:
    """All records of a job, by key relative to the job's prefix, and which of them changed."""

    def __init__(self) -> None:
        self.shape: Shape | None = None
        self.schedule = Schedule()
        self.begun = False
        self.open_epoch = -1
        self.members: dict[int, MemberRecord] = {}
        self.evaluations: dict[int, str] = {}
        self.saved: list[str] = []
        self.outcome: Outcome | None = None
        self.counters = Counters()
        self.progress: Published | None = None
        self._done: dict[tuple[int, int], int] = {}
        self._dirty: set[str] = set()

    @property
    def changed(self) -> bool:
        """Whether there is something to write."""
        return bool(self._dirty)

    def touch(self, *keys: str) -> None:
        """These records changed: ``shape``, ``begun``, ``epoch``, ``saved``, ``outcome``, ``counters`` or ``progress``."""
        self._dirty.update(keys)

    def touch_member(self, life: int) -> None:
        """A member's record changed, or is gone."""
        self._dirty.add(f"members/{life:016x}")

    def evaluated(self, epoch: int, score: str | None) -> None:
        """An epoch's score is known, or holds no longer."""
        if score is None:
            self.evaluations.pop(epoch, None)
        else:
            self.evaluations[epoch] = score
        self._dirty.add(f"evaluations/{epoch:08d}")

    def mark(self, epoch: int, task: int, *, done: bool) -> None:
        """A task was done, or came back."""
        place = (epoch, task // RANGE)
        bit = 1 << task % RANGE
        self._done[place] = self._done.get(place, 0) | bit if done else self._done.get(place, 0) & ~bit
        self._dirty.add(f"tasks/{epoch:08d}/{task // RANGE:08d}")

    def touch_all(self) -> None:
        """Write everything again: etcd has forgotten something."""
        self._dirty.update(key for key, _ in self._all())

    def _all(self) -> Iterable[tuple[str, bytes | None]]:
        for key in _SINGLE:
            yield key, self._value(key)
        for life in self.members:
            yield f"members/{life:016x}", None
        for epoch in self.evaluations:
            yield f"evaluations/{epoch:08d}", None
        for epoch, number in self._done:
            yield f"tasks/{epoch:08d}/{number:08d}", None

    def flush(self) -> list[tuple[str, bytes | None]]:
        """The changed records with their values now (None: delete), and forget that they changed."""
        dirty, self._dirty = self._dirty, set()
        return [(key, self._value(key)) for key in sorted(dirty)]

    def _value(self, key: str) -> bytes | None:
        kind, _, rest = key.partition("/")
        value: Any
        if kind == "tasks":
            epoch, number = rest.split("/")
            return self._done[int(epoch), int(number)].to_bytes(RANGE // 8, "little")
        if kind == "members":
            value = self.members.get(int(rest, 16))
        elif kind == "evaluations":
            value = self.evaluations.get(int(rest))
        else:
            value = {"epoch": self.open_epoch, "begun": self.begun or None}.get(kind, getattr(self, kind, None))
        return None if value is None else msgspec.json.encode(value)

    def load(self, pairs: Iterable[tuple[str, bytes]]) -> None:
        """Take over what an earlier master wrote.

        Raises:
            ValueError: A record cannot be read: another version of Shoal wrote it.
        """
        for key, value in pairs:
            try:
                self._load(key, value)
            except (msgspec.DecodeError, ValueError) as error:
                raise ValueError(f"etcd record {key!r} cannot be read: {error}") from error

    def _load(self, key: str, value: bytes) -> None:
        kind, _, rest = key.partition("/")
        if kind == "tasks":
            epoch, number = rest.split("/")
            self._done[int(epoch), int(number)] = int.from_bytes(value, "little")
        elif kind == "members":
            self.members[int(rest, 16)] = msgspec.json.decode(value, type=MemberRecord)
        elif kind == "evaluations":
            self.evaluations[int(rest)] = msgspec.json.decode(value, type=str)
        elif kind in _SINGLE:
            name, type_ = _SINGLE[kind]
            setattr(self, name, msgspec.json.decode(value, type=type_))

    def evaluation_list(self) -> list[Evaluation]:
        """Scores by epoch."""
        return [Evaluation(epoch=epoch, score=score) for epoch, score in sorted(self.evaluations.items())]
