"""The records under a job's prefix in etcd, read with bounds: a tenant with the job's user may have written any of them.

A record that cannot be read changes nothing in the cache. It is reported on its own job, as are keys that Shoal does not define
and a prefix that holds more than a job writes. Keys are only counted, and values are kept only of the keys that the operator
reads; so what a tenant writes costs the operator no memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from pydantic import ValidationError

from shoal.api.metric_series import REPORTED_SCORES, finite_values
from shoal.api.status import AccountStatus
from shoal.operator.core.reconcile import Ended
from shoal.operator.status.reasons import clipped
from shoal.store import DesiredState, JobKeys, MasterRecord, ReportedState

__all__ = ["MOST_BYTES", "MOST_FOREIGN_KEYS", "MOST_KEYS", "READERS", "RecordError", "Usage", "only_progress", "read"]

MOST_FOREIGN_KEYS: Final = 1000
MOST_KEYS: Final = 100_000
"""One record covers 512 tasks, so this is enough for a hundred epochs of 500,000 tasks each."""
MOST_BYTES: Final = 16 * 2**20
_LARGE_BYTES: Final = 256
"""Records of tasks are smaller than this, and there may be many; only larger values are counted in bytes."""
_MOST_LARGE: Final = MOST_BYTES // _LARGE_BYTES
_LONGEST: Final = 20_000
"""Longest text, in characters; the master clips its own texts at 16,000."""
_MOST_MEMBERS: Final = 100_000
_MOST: Final = 2**63 - 1
_LATEST: Final = 32_503_680_000.0
"""The year 3000, in seconds since 1970."""
_KEY_CHARACTERS: Final = 200


class RecordError(Exception):
    """A value is not a valid record of this version of Shoal; the message has the reason."""


def read(record: str, value: bytes) -> DesiredState | ReportedState | Ended | MasterRecord:
    """Decode a record that the operator reads, by its name.

    Raises:
        RecordError: The value is no such record, or exceeds a bound.
    """
    _, kind = READERS[record]
    try:
        found: Any = msgspec.json.decode(value, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RecordError(clipped(str(error), _KEY_CHARACTERS)) from None
    bounded: Any = _BOUNDED[kind](found)
    return bounded  # type: ignore[no-any-return]


READERS: Final[Mapping[str, tuple[str, type]]] = {
    "desired": ("desired", DesiredState),
    "progress": ("published", ReportedState),
    "outcome": ("ended", Ended),
    "master": ("leader", MasterRecord),
}
"""Name of a record -> the cache's attribute for it, and its type."""


def _whole(*numbers: int) -> None:
    if not all(-_MOST <= each <= _MOST for each in numbers):
        raise RecordError("a number has more than 64 bits")


def _members(*lists: list[int]) -> None:
    for each in lists:
        if len(each) > _MOST_MEMBERS:
            raise RecordError(f"{len(each):,} members are more than a job has")
        _whole(*each)


def _leader(found: MasterRecord) -> MasterRecord:
    _whole(found.generation)
    return found


def _desired(found: DesiredState) -> DesiredState:
    _members(found.drain)
    return found


def _published(found: ReportedState) -> ReportedState:
    _whole(found.generation, found.epoch, found.epochs, found.samples, found.expected)
    _members(found.trainers, found.servers)
    if not 0.0 <= found.moved <= _LATEST:
        raise RecordError(f"moved is no time: {found.moved:g}")
    if not math.isfinite(found.rate):
        raise RecordError("the rate is not finite")
    scores = found.scores[-REPORTED_SCORES:]
    _whole(*(each.epoch for each in scores))
    return msgspec.structs.replace(
        found,
        state=clipped(found.state, _KEY_CHARACTERS),
        stall_reason=clipped(found.stall_reason, _LONGEST),
        values=finite_values(found.values),
        scores=[msgspec.structs.replace(each, values=finite_values(each.values)) for each in scores],
    )


def only_progress(before: ReportedState | None, after: ReportedState | None) -> bool:
    """Return whether only the progress has advanced, so that neither a person nor the controller waits for the change."""
    if before is None or after is None or bool(before.moved) != bool(after.moved):
        return False
    same: dict[str, Any] = {"samples": 0, "rate": 0.0, "moved": 0.0, "epoch": 0, "values": {}, "scores": []}
    return msgspec.structs.replace(before, **same) == msgspec.structs.replace(after, **same)


def _ended(found: Ended) -> Ended:
    if found.state not in {"Complete", "Failed"}:
        raise RecordError(f"{clipped(found.state, _KEY_CHARACTERS)!r} is no end of a job")
    return Ended(found.state, clipped(found.reason, _LONGEST), _account(found.account))


def _account(reported: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the master's account in the form of `AccountStatus`, with the numbers of samples beside the others."""
    if reported is None:
        return None
    samples = reported.get("samples")
    if not isinstance(samples, Mapping):
        raise RecordError("the account has no samples")
    try:
        found = AccountStatus.model_validate({**reported, **samples})
    except (ValidationError, ValueError, OverflowError) as error:
        raise RecordError(f"the account cannot be read: {clipped(str(error), _KEY_CHARACTERS)}") from None
    numbers = found.model_dump()
    if not math.isfinite(found.seconds):
        raise RecordError("the account's seconds are not finite")
    _whole(*(each for each in numbers.values() if isinstance(each, int)))
    return numbers


_BOUNDED: Final[Mapping[type, Callable[[Any], Any]]] = {
    DesiredState: _desired,
    ReportedState: _published,
    Ended: _ended,
    MasterRecord: _leader,
}


@dataclass
class Usage:
    """The usage of etcd under one job's prefix.

    Attributes:
        keys: Number of keys.
        foreign: Number of keys that Shoal does not define.
        bytes: Size of all values of more than 256 bytes.
        example: One of the foreign keys, clipped.
        unread: Name of a record -> why it cannot be read.
    """

    keys: int = 0
    foreign: int = 0
    bytes: int = 0
    example: str = ""
    unread: dict[str, str] = field(default_factory=dict)
    _large: dict[int, int] = field(default_factory=dict)
    """Hash of a key -> size of its value, for large values. The table is full only when their sum exceeds the bound."""

    def written(self, record: str, size: int, *, created: bool) -> None:
        """Count a write of a key, named relative to the job's prefix, with a value of this many bytes."""
        foreign = not JobKeys.knows(record)
        self.keys += created
        self.foreign += created and foreign
        if foreign:
            self.example = clipped(ascii(record), _KEY_CHARACTERS)
        key_hash = hash(record)
        self.bytes -= self._large.pop(key_hash, 0)
        if size > _LARGE_BYTES and len(self._large) < _MOST_LARGE:
            self._large[key_hash] = size
            self.bytes += size

    def removed(self, record: str) -> None:
        """Count the deletion of a key."""
        self.keys = max(0, self.keys - 1)
        self.foreign = max(0, self.foreign - (not JobKeys.knows(record)))
        self.bytes -= self._large.pop(hash(record), 0)
        self.unread.pop(record, None)

    @property
    def problem_kinds(self) -> tuple[object, ...]:
        """Changes when there are other kinds of problems than before."""
        return tuple(self.unread), self.foreign > 0, tuple(over for over, _ in self._bounds())

    def record_problems(self) -> dict[str, str]:
        """Return the present problems: event reason and object -> message with the fix."""
        problems = {
            f"ForeignRecord {record}": f"etcd's {record} of this job is no record of this version of Shoal ({reason}); what "
            "was known before stays. Its writer has the job's user in etcd: see who may read the job's Secrets"
            for record, reason in self.unread.items()
        }
        if self.foreign:
            problems["ForeignKey"] = (
                f"etcd has a key of this job that is none of Shoal's: {self.example}; nothing reads it. Remove it, and see "
                "who may read the job's Secrets"
            )
        over = " and ".join(f"{number} (bound: {bound})" for beyond, (number, bound) in self._bounds() if beyond)
        if over:
            problems["TooMuchInEtcd"] = (
                f"{over} under this job's prefix: etcd is shared by all jobs, and takes no writes when it is full. "
                "Remove what is none of Shoal's, or delete the job"
            )
        return problems

    def _bounds(self) -> Iterator[tuple[bool, tuple[str, str]]]:
        """Yield for each bound whether it is exceeded, the present usage, and the bound."""
        keys = f"{self.foreign:,} keys that are none of Shoal's"
        yield self.foreign > MOST_FOREIGN_KEYS, (keys, f"{MOST_FOREIGN_KEYS:,}")
        yield self.keys > MOST_KEYS, (f"{self.keys:,} keys", f"{MOST_KEYS:,}")
        yield self.bytes > MOST_BYTES, (f"{self.bytes / 2**20:.1f} MiB", f"{MOST_BYTES // 2**20} MiB")
