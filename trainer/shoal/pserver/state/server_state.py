"""The protocol state of a parameter server: the master's orders, snapshots and the trainers' requests, without I/O.

Tensors and disk are two small interfaces, so that tests run the same code thousands of times with counters for tensors and a
dictionary for the disk. The ``service`` calls it under one lock, and writes and reads snapshots outside of the lock:
``begin_snapshot`` copies what is to be written and ``snapshot_written`` records the result; ``next_restore`` names what is to
be read and ``restored`` installs it. Until ``restored`` the slot is unchanged, as if the order had arrived later.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shoal.protocol import messages as m
from shoal.protocol.epoch_plan import EpochPlan
from shoal.protocol.task_set import TaskSet
from shoal.pserver.state.slot_states import SlotStates
from shoal.pserver.state.watermarks import Watermarks

__all__ = ["Disk", "DiskError", "ServerState", "Snapshot", "SnapshotSlot", "Tensors"]


class DiskError(Exception):
    """A snapshot cannot be written or read; the message names the file and the reason."""


class Tensors(Protocol):
    """Parameters and optimizer state of the slots."""

    def create(self, slot: int) -> bool:
        """Allocate a slot; return whether it waits for initial values from the first trainer."""
        ...

    def load(self, slot: int, state: Any) -> None:
        """Install the complete state of a slot."""
        ...

    def state(self, slot: int) -> Any:
        """Return a copy of the complete state of a slot."""
        ...

    def drop(self, slot: int) -> None:
        """Free the state of a slot."""
        ...


@dataclass(frozen=True)
class SnapshotSlot:
    """One slot in a snapshot. ``grant`` is its grant at the time of the copy; it is not stored."""

    state: Any
    history: bytes
    batches: int
    samples: int
    skipped: int
    grant: int


Snapshot = dict[int, SnapshotSlot]
"""The content of a snapshot, by slot."""


class Disk(Protocol):
    """The snapshots of this server."""

    def files(self) -> list[m.File]:
        """Return all valid snapshots."""
        ...

    def release(self, slot: int, names: Iterable[str]) -> None:
        """Note that these files need not be kept for this slot (rule 10)."""
        ...


class ServerState:
    """The protocol state of one parameter server.

    Args:
        tensors: The tensors of the slots.
        disk: The snapshots.
        plan: How an epoch is divided into tasks and batches.
        epochs: The number of epochs of the job.
    """

    def __init__(self, tensors: Tensors, disk: Disk, *, plan: EpochPlan, epochs: int) -> None:
        self.granted = SlotStates(plan)
        self.epochs = epochs
        self.question = 0
        self._tensors = tensors
        self._disk = disk
        self._plan = plan
        self._awaiting_values: set[int] = set()
        self._restoring: dict[int, m.Grant] = {}
        """Slot -> the order to restore it from a snapshot."""
        self._final: dict[int, int] = {}
        """Slot -> grant, of the slots whose final snapshot the master waits for."""
        self._final_encoded = b""
        """The encoded tasks that these slots must have, as received from the master; empty: every task of every epoch."""
        self._saved_batches = -1

    # --- The master's orders ---

    def state_report(self, *, addresses: list[str], pid: int, host: str) -> m.ReportState:
        """Return the complete report that the server sends on every connection to a master (rule 3)."""
        return m.ReportState(
            held=self.granted.reports(self.granted.grants),
            waiting=sorted(self._awaiting_values),
            files=self._disk.files(),
            question=self.question,
            addresses=addresses,
            pid=pid,
            host=host,
        )

    def order(self, message: Any) -> list[Any]:
        """Execute an order; return the replies. The caller replies to ``RequestState`` with the result of ``state_report``."""
        match message:
            case m.Grant():
                return self._grant(message)
            case m.ReleaseSlot():
                restoring = self._restoring.get(message.slot)
                if restoring is not None and restoring.grant == message.grant:
                    del self._restoring[message.slot]
                if self.granted.grants.get(message.slot) == message.grant:
                    self._drop(message.slot)
            case m.TakeFinalSnapshot():
                return self._take_final_snapshot(message)
            case m.ReleaseSnapshots():
                self._disk.release(message.slot, message.files)
        return []

    def _grant(self, message: m.Grant) -> list[Any]:
        slot, grant = message.slot, message.grant
        granted = self.granted
        self._restoring.pop(slot, None)  # the latest order replaces any earlier one
        if granted.grants.get(slot) == grant:
            return [m.GrantReport(reports=granted.reports([slot]))]
        if granted.fresh.get(slot) == grant:
            return []
        if message.source == "keep":
            if slot not in granted or slot in granted.fresh:
                return [m.GrantFailed(slot=slot, grant=grant, file="", reason="")]
        elif message.source == "fresh":
            return self._begin_fresh(slot, grant)
        else:
            self._restoring[slot] = message
            return []
        granted.grant(slot, grant)
        return [m.GrantReport(reports=granted.reports([slot]))]

    def next_restore(self) -> m.Grant | None:
        """Return the oldest order for a restore, or None."""
        return next(iter(self._restoring.values()), None)

    def restored(self, order: m.Grant, state: Any, encoded: bytes) -> list[Any]:
        """Install a slot's state and history as read for an order; return the reports for the master.

        They are installed under the slot's latest order if it names the same snapshot; otherwise they are discarded.
        """
        latest = self._take(order)
        if latest is None:
            return []
        slot = latest.slot
        try:
            history = Watermarks.decode(encoded, self._plan)
            self._drop(slot)
            self._tensors.load(slot, state)
        except ValueError as error:
            return [m.GrantFailed(slot=slot, grant=latest.grant, file=latest.file, reason=str(error))]
        self.granted.load(slot, history)
        self.granted.grant(slot, latest.grant)
        return [m.GrantReport(reports=self.granted.reports([slot]))]

    def not_restored(self, order: m.Grant, reason: str) -> list[Any]:
        """Note that the snapshot of an order cannot be read; return the reports for the master."""
        latest = self._take(order)
        if latest is None:
            return []
        return [m.GrantFailed(slot=latest.slot, grant=latest.grant, file=latest.file, reason=reason)]

    def _take(self, order: m.Grant) -> m.Grant | None:
        """Remove and return the slot's latest order; None if it names another snapshot or no order is left."""
        latest = self._restoring.get(order.slot)
        if latest is None or latest.file != order.file:
            return None
        return self._restoring.pop(order.slot)

    def _begin_fresh(self, slot: int, grant: int) -> list[Any]:
        self._drop(slot)
        self.granted.fresh[slot] = grant
        if self._tensors.create(slot):
            self._awaiting_values.add(slot)
            return [m.AwaitingInitialValues(slots=[slot], grants=[grant])]
        self.granted.load(slot, Watermarks(self._plan))
        return []

    def _drop(self, slot: int) -> None:
        if slot in self.granted or slot in self.granted.fresh:
            self._tensors.drop(slot)
        self.granted.drop(slot)
        self._awaiting_values.discard(slot)
        self._final.pop(slot, None)

    def _take_final_snapshot(self, message: m.TakeFinalSnapshot) -> list[Any]:
        self._final_encoded = message.tasks
        slots = self.granted.served(message.slots, message.grants)
        mismatched = self.granted.mismatched(slots, self._final_tasks())
        for slot in slots:
            if slot not in mismatched:
                self._final[slot] = self.granted.grants[slot]
        return [m.MissingTasks(reports=self.granted.reports(mismatched))] if mismatched else []

    def _final_tasks(self) -> TaskSet:
        if self._final_encoded:
            return TaskSet.decode(self._final_encoded)
        return TaskSet.through(self._plan.tasks, (self.epochs - 1, self._plan.tasks - 1))

    def awaits_values(self, slot: int, grant: int) -> bool:
        """Return whether a slot waits for its initial values under this grant."""
        return slot in self._awaiting_values and self.granted.fresh.get(slot) == grant

    def initialised(self, slots: Iterable[int]) -> None:
        """Note that these slots have their initial values; they are served once a snapshot contains them."""
        for slot in slots:
            self._awaiting_values.discard(slot)
            self.granted.load(slot, Watermarks(self._plan))

    # --- Snapshots ---

    @property
    def moved(self) -> bool:
        """Whether a batch was applied since the last snapshot was begun."""
        return self._batches() != self._saved_batches

    def _batches(self) -> int:
        return sum(self.granted.history(slot).batches for slot in self.granted.slots)

    @property
    def final_pending(self) -> bool:
        """Whether the master waits for the final snapshot of any slot."""
        return bool(self._final)

    @property
    def first_pending(self) -> bool:
        """Whether any new slot has its initial values and waits for its first snapshot."""
        return any(slot in self.granted for slot in self.granted.fresh)

    def begin_snapshot(self) -> Snapshot:
        """Copy the state of every complete slot; the result is empty if there is none."""
        self._saved_batches = self._batches()
        snapshot = {}
        for slot in self.granted.slots:
            history = self.granted.history(slot)
            snapshot[slot] = SnapshotSlot(
                state=self._tensors.state(slot),
                history=history.encode(),
                batches=history.batches,
                samples=history.samples,
                skipped=history.skipped,
                grant=self.granted.grants.get(slot, self.granted.fresh.get(slot, m.NO_GRANT)),
            )
        return snapshot

    def snapshot_failed(self) -> None:
        """Note that the snapshot could not be written and must be retried."""
        self._saved_batches = -1

    def snapshot_written(self, name: str, snapshot: Snapshot, *, pinned: bool) -> list[Any]:
        """Note that a snapshot is on the disk; return the reports for the master.

        Args:
            name: Name of the file.
            snapshot: Its content.
            pinned: Whether it was read back completely and pinned, so that it is never deleted.
        """
        replies: list[Any] = [self._written_report(name, snapshot)]
        now_served = [
            slot
            for slot, part in snapshot.items()
            if part.grant != m.NO_GRANT and self.granted.fresh.get(slot) == part.grant
        ]
        for slot in now_served:
            self.granted.grant(slot, self.granted.fresh[slot])
        if now_served:
            replies.append(m.GrantReport(reports=self.granted.reports(now_served)))
        if pinned:
            replies.extend(self._pinned_reports(name, snapshot))
        return replies

    def _written_report(self, name: str, snapshot: Snapshot) -> m.SnapshotWritten:
        slots = sorted(snapshot)
        return m.SnapshotWritten(
            file=name,
            slots=slots,
            grants=[snapshot[slot].grant for slot in slots],
            counts=[snapshot[slot].batches for slot in slots],
        )

    def _pinned_reports(self, name: str, snapshot: Snapshot) -> list[Any]:
        """Return the reports on the slots that this pinned snapshot finalises.

        These are the ordered slots that were copied under their current grant and have exactly the ordered tasks. A slot that
        applied a batch of a further task between the order and the copy is reported as unfit.
        """
        tasks = self._final_tasks()
        slots: list[int] = []
        mismatched: list[int] = []
        for slot, grant in list(self._final.items()):
            if slot in snapshot and snapshot[slot].grant == grant == self.granted.grants.get(slot):
                del self._final[slot]
                fit = Watermarks.decode(snapshot[slot].history, self._plan).holds(tasks)
                (slots if fit else mismatched).append(slot)
        replies: list[Any] = [m.MissingTasks(reports=self.granted.reports(mismatched))] if mismatched else []
        if not slots:
            return replies
        return [
            *replies,
            m.FinalSnapshotPinned(
                file=name,
                tasks=self._final_encoded,
                slots=slots,
                grants=[snapshot[slot].grant for slot in slots],
                samples=[snapshot[slot].samples for slot in slots],
                skipped=[snapshot[slot].skipped for slot in slots],
            ),
        ]

    # --- Trainers' requests (the service handles the tensors) ---

    def grants_of(self, slots: Sequence[int]) -> list[int]:
        """Return the grant of each slot, ``NO_GRANT`` for a slot that is not served here."""
        return [self.granted.grants.get(slot, m.NO_GRANT) for slot in slots]
