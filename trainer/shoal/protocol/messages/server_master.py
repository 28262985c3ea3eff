"""Messages between parameter servers and the master."""

from __future__ import annotations

from shoal.protocol.messages.common import Count, File, Message, Name, SlotReport, parallel
from shoal.protocol.messages.model import ModelSpec

__all__ = [
    "AwaitingInitialValues",
    "FinalSnapshotPinned",
    "Grant",
    "GrantFailed",
    "GrantReport",
    "JobSettings",
    "MissingTasks",
    "ReleaseSlot",
    "ReleaseSnapshots",
    "ReportState",
    "RequestState",
    "SnapshotWritten",
    "TakeFinalSnapshot",
    "TrainersDeparted",
]


# --- Parameter server to master ----------------------------------------------------------------------------------


class ReportState(Message, frozen=True):
    """A server's whole state (rule 3): the slots that it serves and those in its snapshots.

    Sent on each connection to a master and in reply to ``RequestState``. ``waiting``: slots that wait for their initial
    values. ``question``: number of the master's last ``RequestState`` that this answers (rule 11).
    """

    held: list[SlotReport]
    waiting: list[int]
    files: list[File]
    question: Count
    addresses: list[Name]
    pid: Count
    host: Name


class GrantReport(Message, frozen=True):
    """Report that slots are served under a grant; the reports replace the master's evidence (rule 2).

    The reply to ``Grant``.
    """

    reports: list[SlotReport]


class AwaitingInitialValues(Message, frozen=True):
    """Report fresh slots that wait for their initial values under these grants; the reply to a fresh ``Grant``."""

    slots: list[int]
    grants: list[int]

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        parallel(self.slots, self.grants)


class GrantFailed(Message, frozen=True):
    """Report that a ``Grant`` failed: the snapshot is missing, damaged or foreign, or the slot is not in memory."""

    slot: int
    grant: int
    file: Name
    reason: str


class SnapshotWritten(Message, frozen=True):
    """Report that a snapshot file is durable: written, synced and renamed."""

    file: Name
    slots: list[int]
    grants: list[int]
    counts: list[Count]

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        parallel(self.slots, self.grants, self.counts)


class MissingTasks(Message, frozen=True):
    """Report slots whose last snapshot was not taken, as they lack tasks or have batches of other tasks (rule 9).

    The reply to ``TakeFinalSnapshot``.
    """

    reports: list[SlotReport]


class FinalSnapshotPinned(Message, frozen=True):
    """Report that the last snapshot of these slots is written, read back whole, and pinned (rule 9).

    ``tasks``: repeated from the ``TakeFinalSnapshot`` that it answers. ``samples`` and ``skipped``: the counts of
    samples that each slot keeps with its watermarks.
    """

    file: Name
    tasks: bytes
    slots: list[int]
    grants: list[int]
    samples: list[Count]
    skipped: list[Count]

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        parallel(self.slots, self.grants, self.samples, self.skipped)


# --- Master to parameter server ----------------------------------------------------------------------------------


class JobSettings(Message, frozen=True):
    """The job's settings for a server; sent when it connects, and when the first trainer has registered the model.

    ``shape`` is None until then. ``interval``: seconds between snapshots. ``keep``: snapshots to keep.
    """

    shape: ModelSpec | None
    slots: int
    seed: int
    epochs: int
    interval: float
    keep: int
    lease_seconds: float


class RequestState(Message, frozen=True):
    """Request a new ``ReportState`` that repeats the number ``question`` (rule 11)."""

    question: int


class Grant(Message, frozen=True):
    """Order a server to serve the slot under this grant.

    ``source``: ``keep`` (the server's memory), ``file`` (the snapshot ``file``) or ``fresh`` (initial values).
    """

    slot: int
    grant: int
    source: str
    file: str


class TrainersDeparted(Message, frozen=True):
    """Report to every server that the trainer with this life left, died or timed out.

    The servers close its connections.
    """

    life: int


class ReleaseSlot(Message, frozen=True):
    """Order a server to release the slot if it holds it under this grant: another server serves the slot."""

    slot: int
    grant: int


class TakeFinalSnapshot(Message, frozen=True):
    """Order a server to write, read back and pin the last snapshot of these slots; sent when all tasks are done.

    ``tasks``: exactly the tasks that the slots must have (``TaskSet.encode``); empty means every task of every epoch.
    The server replies with ``FinalSnapshotPinned`` or ``MissingTasks``.
    """

    slots: list[int]
    grants: list[int]
    tasks: bytes

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        parallel(self.slots, self.grants)


class ReleaseSnapshots(Message, frozen=True):
    """Release snapshot files of a server for this slot: other snapshots of the slot are newer (rule 10)."""

    slot: int
    files: list[str]
