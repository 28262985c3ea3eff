"""What is recorded of a job on this machine for `shoal.sdk`: events, changes of the number of trainers, its beginning. Pure.

The runner adds to the record and writes it into the job's state folder; each run continues the record of the last one.
"""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["MOST_CHANGES", "MOST_EVENTS", "PINNED", "JobRecord", "RecordedEvent", "TrainerChange"]

MOST_CHANGES: Final = 100
"""Number of changes of the number of trainers that are kept, the latest ones."""
MOST_EVENTS: Final = 200
"""Number of events that are kept, the latest ones."""
PINNED: Final = "pinned"
"""Beginning of the cause of a change that a user asked for."""
_LONGEST_TEXT: Final = 4000
_LONGEST_NAME: Final = 100


class RecordedEvent(msgspec.Struct, frozen=True):
    """An event.

    Attributes:
        time: When it happened last. Seconds since 1970.
        level: ``info``, ``warning`` or ``error``.
        text: Description.
        count: How often it happened in a row. Default: 1.
    """

    time: float
    level: str
    text: str
    count: int = 1


class TrainerChange(msgspec.Struct, frozen=True):
    """A change of the desired number of trainers.

    Attributes:
        time: When it changed. Seconds since 1970.
        before: Number of trainers before; 0 before the first run.
        after: Number of trainers after.
        cause: Why it changed.
        by: Program that asked; empty if none did.
    """

    time: float
    before: int
    after: int
    cause: str
    by: str = ""


class _Content(msgspec.Struct):
    began: float | None = None
    events: list[RecordedEvent] = []
    changes: list[TrainerChange] = []


class JobRecord:
    """The record of one job.

    Args:
        content: What `encode` returned. Damaged or empty content is an empty record. Default: empty.

    Attributes:
        changed: Whether something was added since the last call of `encode`.
    """

    def __init__(self, content: bytes = b"") -> None:
        self.changed = False
        try:
            self._content = msgspec.json.decode(content, type=_Content) if content else _Content()
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._content = _Content()

    @property
    def began(self) -> float | None:
        """When the training began. Seconds since 1970; None before."""
        return self._content.began

    @property
    def events(self) -> tuple[RecordedEvent, ...]:
        """The events, the oldest first."""
        return tuple(self._content.events)

    @property
    def changes(self) -> tuple[TrainerChange, ...]:
        """The changes of the number of trainers, the oldest first."""
        return tuple(self._content.changes)

    @property
    def pinned(self) -> TrainerChange | None:
        """The last change, if a user pinned the number of trainers by it; else None."""
        last = self._content.changes[-1] if self._content.changes else None
        return last if last is not None and last.cause.startswith(PINNED) else None

    def begin(self, time: float) -> None:
        """Note that the training began; only the first call has an effect."""
        if self._content.began is None:
            self._content.began, self.changed = time, True

    def add_event(self, time: float, level: str, text: str) -> None:
        """Add an event; one that repeats the last one is counted."""
        text = text[:_LONGEST_TEXT]
        events, count = self._content.events, 1
        if events and (events[-1].level, events[-1].text) == (level, text):
            count += events.pop().count
        events.append(RecordedEvent(time, level, text, count))
        del events[:-MOST_EVENTS]
        self.changed = True

    def resize(self, time: float, trainers: int, cause: str, by: str = "") -> None:
        """Add a change of the number of trainers; the same number again is none."""
        changes = self._content.changes
        before = changes[-1].after if changes else 0
        if before == trainers:
            return
        changes.append(TrainerChange(time, before, trainers, cause, by[:_LONGEST_NAME]))
        del changes[:-MOST_CHANGES]
        self.changed = True

    def encode(self) -> bytes:
        """Return the record as JSON."""
        self.changed = False
        return msgspec.json.encode(self._content)
