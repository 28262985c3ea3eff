"""The values that a job's script logs, over time: a bounded series of records. Pure.

A record is a mapping: `time` (ISO 8601, UTC), `epoch` (from 1), `samples` (committed over all epochs), and the values by their
names. `pandas.DataFrame` takes a list of them. The operator keeps a series of each job in a ConfigMap; on one machine the local
runner keeps it in the state folder.

The series spans the whole training, however long it runs: when it is full, every second one of the older records is dropped, and
later records are as far apart as the remaining ones. Scores of evaluations are rare, so their records are thinned only when there
are more of them than of the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from statistics import median
from typing import Any, Final

import msgspec

__all__ = [
    "LONGEST_NAME",
    "METRICS_KEY",
    "MOST_BYTES",
    "MOST_POINTS",
    "MOST_VALUES",
    "REPORTED_SCORES",
    "SCORE",
    "EpochScore",
    "MetricSeries",
    "finite_values",
    "metrics_name",
    "score_values",
]

MOST_POINTS: Final = 500
MOST_BYTES: Final = 256 * 1024
"""Longest JSON text of a series. An object of Kubernetes may have 1 MiB."""
MOST_VALUES: Final = 20
"""Values of one record."""
LONGEST_NAME: Final = 100
"""Longest name of a value, in characters; `job.log` accepts no longer one."""
REPORTED_SCORES: Final = 4
"""Number of the last evaluations whose scores are passed to a series together."""
SCORE: Final = "score"
METRICS_KEY: Final = "metrics.json"
"""Key of the ConfigMap's data, and the name of the file on one machine."""
_LONGEST_SCORE: Final = 4096
"""Longest score that is read, in characters."""
_FIELDS: Final = frozenset(("time", "epoch", "samples"))
_TOLERANCE: Final = 0.9
"""Share of the distance of two records that the next one must have: reports arrive with some jitter."""


def metrics_name(job: str) -> str:
    """Return the name of the ConfigMap with the series of a job."""
    return f"{job}-metrics"


def finite_values(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the values that a record may have: finite numbers, the first `MOST_VALUES` of them, with clipped names.

    The names of a record's own fields (`time`, `epoch`, `samples`) are left out.
    """
    found: dict[str, float] = {}
    for name, value in values.items():
        if len(found) == MOST_VALUES:
            break
        if isinstance(value, bool) or not isinstance(value, int | float) or name in _FIELDS or not name:
            continue
        try:
            number = float(value)
        except OverflowError:
            continue
        if math.isfinite(number):
            found[name[:LONGEST_NAME]] = number
    return found


def score_values(text: str) -> dict[str, float]:
    """Return the values of an evaluation's score.

    A number has the name `score`, and the numbers of a mapping have names such as `score.auc`.

    Args:
        text: The score as JSON text. One that is longer than 4,096 characters, or has another form, has no values.
    """
    if len(text) > _LONGEST_SCORE:
        return {}
    try:
        found = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return {}
    named = {f"{SCORE}.{name}": value for name, value in found.items()} if isinstance(found, dict) else {SCORE: found}
    return finite_values(named)


@dataclass(frozen=True)
class EpochScore:
    """The score of an evaluation.

    Attributes:
        epoch: Number of the epoch that was evaluated, from 1.
        values: The score's values by name, as of `score_values`.
    """

    epoch: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class _Entry:
    """A record of the series: its place in the order, its time in seconds since 1970, its values, and its size as JSON."""

    number: int
    seconds: float
    values: Mapping[str, float]
    record: Mapping[str, Any]
    size: int


class MetricSeries:
    """The series of one job: at most `MOST_POINTS` records, and `MOST_BYTES` as JSON.

    Args:
        records: Records of an earlier series, the oldest first. Those without the form of a record are left out. Default: none.
    """

    def __init__(self, records: Iterable[object] = ()) -> None:
        self._count = 0
        self._values: list[_Entry] = []
        self._scores: list[_Entry] = []
        for each in records:
            entry = self._read(each)
            if entry is not None:
                (self._scores if all(map(_is_score, entry.values)) else self._values).append(entry)
        self._interval = _TOLERANCE * _distance(self._values) if len(self._values) > MOST_POINTS // 4 else 0.0
        self._thin()

    @classmethod
    def from_json(cls, text: str) -> MetricSeries:
        """Return the series of a JSON text. A text that is no list of records is an empty series."""
        try:
            found = msgspec.json.decode(text)
        except (ValueError, RecursionError):
            found = []
        return cls(found if isinstance(found, list) else [])

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records, the oldest first."""
        entries = sorted([*self._values, *self._scores], key=lambda entry: entry.number)
        return [dict(entry.record) for entry in entries]

    def to_json(self) -> str:
        """Return the records as a JSON list, of at most `MOST_BYTES` bytes."""
        return msgspec.json.encode(self.records).decode()

    def add(
        self,
        *,
        time: datetime,
        epoch: int,
        samples: int,
        values: Mapping[str, float],
        scores: Sequence[EpochScore] = (),
    ) -> bool:
        """Append what a job has reported; return whether it is new.

        A report that repeats the previous one adds nothing, and neither do scores that the series has. The newest record of
        values is always kept: where it is too close to its predecessor, the next one replaces it.

        Args:
            time: When it was reported, with a time zone.
            epoch: Number of the open epoch, from 1.
            samples: Samples committed over all epochs.
            values: The values that were logged last, by name; see `finite_values`.
            scores: The last evaluations, the oldest first.
        """
        new = False
        for score in scores:
            found = finite_values(score.values)
            if found and not self._has_score(score.epoch, found):
                self._scores.append(self._entry(time, score.epoch, samples, found))
                new = True
        found = finite_values(values)
        if found and not self._repeats(epoch, samples, found):
            if self._is_close():
                del self._values[-1]
            self._values.append(self._entry(time, epoch, samples, found))
            new = True
        self._thin()
        return new

    def _has_score(self, epoch: int, values: Mapping[str, float]) -> bool:
        """Return whether a score was added already; those of earlier epochs may have been thinned out since."""
        if not self._scores:
            return False
        last = int(self._scores[-1].record["epoch"])
        return epoch < last or any(
            entry.record["epoch"] == epoch and entry.values == values for entry in reversed(self._scores)
        )

    def _repeats(self, epoch: int, samples: int, values: Mapping[str, float]) -> bool:
        """Return whether a report is the same as the previous one."""
        # A script may log nothing but values that are named as scores are: these are among the scores when a series is read.
        entries = self._values or self._scores
        if not entries:
            return False
        last = entries[-1]
        return (last.record["epoch"], last.record["samples"], last.values) == (epoch, samples, values)

    def _is_close(self) -> bool:
        """Return whether the newest record of values is too close to its predecessor to be kept."""
        if len(self._values) < 2:
            return False
        return 0.0 <= self._values[-1].seconds - self._values[-2].seconds < self._interval

    def _entry(self, time: datetime, epoch: int, samples: int, values: Mapping[str, float]) -> _Entry:
        at = time.astimezone(UTC)
        text = f"{at.replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"
        record = {"time": text, "epoch": epoch, "samples": samples, **values}
        self._count += 1
        return _Entry(self._count, at.timestamp(), values, record, len(msgspec.json.encode(record)) + 1)

    def _read(self, record: object) -> _Entry | None:
        """Return the entry of a record; None: it is none."""
        if not isinstance(record, dict) or not all(isinstance(name, str) for name in record):
            return None
        values, epoch, samples = finite_values(record), _whole(record.get("epoch")), _whole(record.get("samples"))
        try:
            time = datetime.fromisoformat(str(record.get("time")))
        except ValueError:
            return None
        if epoch is None or samples is None or not values or time.tzinfo is None or not 1 < time.year < 9999:
            return None
        return self._entry(time, epoch, samples, values)

    def _thin(self) -> None:
        """Drop older records until the series is within its bounds."""
        size = sum(entry.size for entry in (*self._values, *self._scores)) + 1
        while len(self._values) + len(self._scores) > MOST_POINTS or size > MOST_BYTES:
            if len(self._values) >= len(self._scores):
                self._values = _halved(self._values)
                self._interval = max(2 * self._interval, _TOLERANCE * _distance(self._values))
            else:
                self._scores = _halved(self._scores)
            size = sum(entry.size for entry in (*self._values, *self._scores)) + 1


def _whole(value: object) -> int | None:
    """Return a whole number of at most 64 bits; None: the value is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def _is_score(name: str) -> bool:
    return name == SCORE or name.startswith(f"{SCORE}.")


def _halved(entries: list[_Entry]) -> list[_Entry]:
    """Drop every second one of the older entries. The newest ones stay: a report repeats the last scores."""
    older, newest = entries[:-REPORTED_SCORES], entries[-REPORTED_SCORES:]
    return [*older[::2], *newest]


def _distance(entries: list[_Entry]) -> float:
    """Return the usual distance of two entries, in seconds; 0: there is none. A pause of the job does not change it."""
    gaps = [after.seconds - before.seconds for before, after in pairwise(entries)]
    return max(0.0, median(gaps)) if gaps else 0.0
