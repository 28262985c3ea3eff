"""The master's records in etcd: small values, one key per record or per range of tasks.

No record is a reason to skip work, as etcd may lose its last seconds or everything. The records hold what the members of
the job cannot report (the model, the evaluations, the outcome), and hints for a new master (which trainer held which
lease). Changes are noted as keys; their values are encoded when a transaction is built, so that a hundred tasks finished
within one range cost one small put.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from shoal.protocol.decoding import UNDECODABLE
from shoal.protocol.messages import Evaluation, JobAccount, Lease, Metric, ModelSpec
from shoal.store import ReportedState

__all__ = ["RANGE", "SEVERAL", "Counters", "JobSchedule", "MemberRecord", "Outcome", "Records", "StopRecord"]

RANGE = 512
"""The number of tasks in one record."""
EVALUATIONS_OF_AN_EPOCH: Final = 1000
"""The limit of scores that are kept per epoch."""
EVALUATIONS_SENT: Final = 1000
"""The limit of scores in one message."""
EVALUATIONS_CHARACTERS: Final = 2_000_000
"""The limit of characters of all scores in one message."""
METRICS: Final = 10_000
"""The limit of metrics that are kept."""
PATHS: Final = 1000
"""The limit of paths of model files that are kept."""
PATHS_CHARACTERS: Final = 200_000
"""The limit of characters of all paths that are kept."""
VALUE_BYTES: Final = 1_000_000
"""The limit of one record, in bytes: etcd accepts 1.5 MiB in one request."""


class MemberRecord(msgspec.Struct):
    """A process that has joined and has neither left nor died, and the leases that it holds.

    ``joined``: the number of trainers that had joined at its join, itself included; 0 for a parameter server.
    """

    role: str
    index: int
    leases: list[Lease]
    joined: int


class Counters(msgspec.Struct):
    """Counters over the whole job, for people and for the final account. ``seconds``: the time before its end."""

    joins: int = 0
    leaves: int = 0
    deaths: int = 0
    retries: int = 0
    replayed: int = 0
    skipped: int = 0
    not_finite: int = 0
    seconds: float = 0.0


class JobSchedule(msgspec.Struct):
    """The epochs and the seed of the first trainer's script."""

    epochs: int = 1
    seed: int = 0


class Outcome(msgspec.Struct):
    """The outcome of the job: ``files`` are the pinned snapshots that hold the final model, by slot."""

    state: str
    reason: str
    files: dict[int, str]
    account: JobAccount | None


class StopRecord(msgspec.Struct):
    """An early stop by the script: its reason, and the epoch of the script's loop."""

    reason: str
    epoch: int


_SINGLE: Final[dict[str, tuple[str, Any]]] = {
    "shape": ("shape", ModelSpec),
    "schedule": ("schedule", JobSchedule),
    "begun": ("begun", bool),
    "epoch": ("open_epoch", int),
    "reached": ("reached", tuple[int, int]),
    "stopped": ("stopped", StopRecord),
    "saved": ("saved", dict[str, tuple[int, int]]),
    "outcome": ("outcome", Outcome),
    "counters": ("counters", Counters),
    "progress": ("progress", ReportedState),
}
"""Records with one key each: key -> attribute and type."""


SEVERAL: Final = ("members/", "evaluations/", "metrics/", "tasks/")
"""Prefixes of records with any number of keys."""


class Records:
    """All records of a job, and the keys, relative to the job's prefix, of those that have changed."""

    def __init__(self) -> None:
        self.shape: ModelSpec | None = None
        self.schedule = JobSchedule()
        self.begun = False
        self.open_epoch = -1
        self.members: dict[int, MemberRecord] = {}
        self.reached = (-1, -1)
        """Epoch and number of the last task that was begun."""
        self.stopped: StopRecord | None = None
        self.evaluations: dict[int, dict[int, str]] = {}
        """Epoch -> number of the call within it -> score."""
        self.metrics: dict[tuple[int, int], float] = {}
        """Epoch and number of the call within it -> value."""
        self.saved: dict[str, tuple[int, int]] = {}
        """Path -> epoch and number of the call that it was written for, in the order of writing."""
        self.outcome: Outcome | None = None
        self.counters = Counters()
        self.progress: ReportedState | None = None
        self.oversized: dict[str, int] = {}
        """Records that were not written as they exceed `VALUE_BYTES`: key -> bytes."""
        self._done: dict[tuple[int, int], int] = {}
        self._dirty: set[str] = set()

    @property
    def changed(self) -> bool:
        """Whether a record has changed since the last ``flush``."""
        return bool(self._dirty)

    def note_changed(self, *keys: str) -> None:
        """Mark records with one key each as changed."""
        self._dirty.update(keys)

    def note_member_changed(self, life: int) -> None:
        """Mark a member's record as changed or deleted."""
        self._dirty.add(f"members/{life:016x}")

    def score(self, epoch: int, number: int) -> str | None:
        """Return the score of an evaluation; None if it is not known."""
        return self.evaluations.get(epoch, {}).get(number)

    def evaluated(self, epoch: int, number: int, score: str) -> None:
        """Record a score. Of an epoch with more than 1,000 scores, the last ones are kept."""
        scores = self.evaluations.setdefault(epoch, {})
        scores[number] = score
        self._dirty.add(_evaluation(epoch, number))
        if len(scores) > EVALUATIONS_OF_AN_EPOCH:
            oldest = min(scores)
            del scores[oldest]
            self._dirty.add(_evaluation(epoch, oldest))

    def scores_stale(self, epoch: int) -> bool:
        """Delete an epoch's scores, which are stale; return whether there were any."""
        stale = self.evaluations.pop(epoch, {})
        self._dirty.update(_evaluation(epoch, number) for number in stale)
        return bool(stale)

    def measured(self, epoch: int, number: int, value: float) -> None:
        """Record a metric: the first value for (epoch, number) counts; the last 10,000 metrics are kept."""
        place = (epoch, number)
        if place in self.metrics or (len(self.metrics) >= METRICS and place < min(self.metrics)):
            return
        self.metrics[place] = value
        self._dirty.add(_metric(place))
        if len(self.metrics) > METRICS:
            oldest = min(self.metrics)
            del self.metrics[oldest]
            self._dirty.add(_metric(oldest))

    def record_model_file(self, path: str, epoch: int, number: int) -> None:
        """Record that a model is written at a path. At most 1,000 paths and 200,000 characters of them are kept."""
        before = self.saved.pop(path, (epoch, number))
        self.saved[path] = max(before, (epoch, number))
        while len(self.saved) > PATHS or (len(self.saved) > 1 and sum(map(len, self.saved)) > PATHS_CHARACTERS):
            del self.saved[next(iter(self.saved))]
        self.note_changed("saved")

    def record_task(self, epoch: int, task: int, *, done: bool) -> None:
        """Mark a task as done or open."""
        place = (epoch, task // RANGE)
        bit = 1 << task % RANGE
        self._done[place] = self._done.get(place, 0) | bit if done else self._done.get(place, 0) & ~bit
        self._dirty.add(f"tasks/{epoch:08d}/{task // RANGE:08d}")

    def note_all_changed(self) -> None:
        """Mark all records as changed: etcd has lost writes."""
        self._dirty.update(key for key, _ in self._all())

    def _all(self) -> Iterable[tuple[str, bytes | None]]:
        for key in _SINGLE:
            yield key, self._value(key)
        for life in self.members:
            yield f"members/{life:016x}", None
        for epoch, scores in self.evaluations.items():
            for number in scores:
                yield _evaluation(epoch, number), None
        for place in self.metrics:
            yield _metric(place), None
        for epoch, number in self._done:
            yield f"tasks/{epoch:08d}/{number:08d}", None

    def flush(self) -> list[tuple[str, bytes | None]]:
        """Return the changed records with their current values (None: delete), and clear the marks.

        A record above `VALUE_BYTES` is left out and noted in ``oversized``.
        """
        dirty, self._dirty = self._dirty, set()
        changes = []
        for key in sorted(dirty):
            value = self._value(key)
            if value is not None and len(value) > VALUE_BYTES:
                self.oversized[key] = len(value)
            else:
                changes.append((key, value))
        return changes

    def _value(self, key: str) -> bytes | None:
        kind, _, rest = key.partition("/")
        value: Any
        if kind == "tasks":
            return self._done[_place(rest)].to_bytes(RANGE // 8, "little")
        if kind == "members":
            value = self.members.get(int(rest, 16))
        elif kind == "evaluations":
            value = self.score(*_place(rest))
        elif kind == "metrics":
            found = self.metrics.get(_place(rest))
            value = None if found is None else repr(found)  # JSON has no infinity
        else:
            value = {"epoch": self.open_epoch, "begun": self.begun or None}.get(kind, getattr(self, kind, None))
        return None if value is None else msgspec.json.encode(value)

    def load(self, pairs: Iterable[tuple[str, bytes]]) -> None:
        """Load the records of an earlier master.

        Raises:
            ValueError: A record cannot be decoded, as another version of Shoal wrote it.
        """
        for key, value in pairs:
            try:
                self._load(key, value)
            except (*UNDECODABLE, ValueError) as error:
                raise ValueError(f"etcd record {key!r} cannot be read: {error}") from error

    def _load(self, key: str, value: bytes) -> None:
        kind, _, rest = key.partition("/")
        if kind == "tasks":
            self._done[_place(rest)] = int.from_bytes(value, "little")
        elif kind == "members":
            self.members[int(rest, 16)] = msgspec.json.decode(value, type=MemberRecord)
        elif kind == "evaluations":
            epoch, number = _place(rest)
            self.evaluations.setdefault(epoch, {})[number] = msgspec.json.decode(value, type=str)
        elif kind == "metrics":
            self.metrics[_place(rest)] = float(msgspec.json.decode(value, type=str))
        elif kind in _SINGLE:
            name, type_ = _SINGLE[kind]
            setattr(self, name, msgspec.json.decode(value, type=type_))

    def evaluation_list(self) -> list[Evaluation]:
        """Return the last scores, 1,000 and 2,000,000 characters at most, ordered by epoch and number."""
        found: list[Evaluation] = []
        room = EVALUATIONS_CHARACTERS
        for epoch in sorted(self.evaluations, reverse=True):
            for number, score in sorted(self.evaluations[epoch].items(), reverse=True):
                room -= len(score)
                if len(found) == EVALUATIONS_SENT or room < 0:
                    return found[::-1]
                found.append(Evaluation(epoch=epoch, number=number, score=score))
        return found[::-1]

    def metric_list(self) -> list[Metric]:
        """Return all metrics, ordered by epoch and number."""
        places = sorted(self.metrics.items())
        return [Metric(epoch=epoch, number=number, value=value) for (epoch, number), value in places]


def _evaluation(epoch: int, number: int) -> str:
    return f"evaluations/{epoch:08d}/{number:04d}"


def _metric(place: tuple[int, int]) -> str:
    return f"metrics/{place[0]:08d}/{place[1]:08d}"


def _place(rest: str) -> tuple[int, int]:
    """Return the two numbers at the end of a key."""
    epoch, number = rest.split("/")
    return int(epoch), int(number)
