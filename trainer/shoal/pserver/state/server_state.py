"""A parameter server without sockets, threads and clock: the master's orders, snapshots, and the trainers' requests.

Tensors and disk come in as two small interfaces, so that the very same code runs in tests by the thousand, with counts
for tensors and a dictionary for a disk. The shell (``service``) calls it under one lock, and writes and reads snapshots
outside of it: ``begin_snapshot`` copies what is to be written, ``snapshot_written`` says what became of it;
``next_restore`` names what is to be read, ``restored`` takes it. Until then a slot is what it was, as if the order had
been longer on its way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shoal.protocol import messages as m
from shoal.protocol.epoch_plan import EpochPlan
from shoal.protocol.task_set import TaskSet
from shoal.pserver.state.slot_states import Granted
from shoal.pserver.state.watermarks import Watermarks

__all__ = ["Disk", "DiskError", "ServerState", "Snapshot", "SnapshotSlot", "Tensors"]


class DiskError(Exception):
    """A snapshot cannot be written or read; the message names the file and what is wrong with it."""


class Tensors(Protocol):
    """Parameters and optimizer state of the slots."""

    def create(self, slot: int) -> bool:
        """Make room for a slot; whether it waits for initial values of the first trainer's."""
        ...

    def load(self, slot: int, state: Any) -> None:
        """Take a slot's whole state."""
        ...

    def state(self, slot: int) -> Any:
        """A copy of a slot's whole state."""
        ...

    def drop(self, slot: int) -> None:
        """Let a slot's state go."""
        ...


@dataclass(frozen=True)
class SnapshotSlot:
    """One slot in a snapshot. ``grant`` is what it was served under when it was copied; it is not stored."""

    state: Any
    history: bytes
    batches: int
    samples: int
    skipped: int
    grant: int


Snapshot = dict[int, SnapshotSlot]
"""What a snapshot holds, by slot."""


class Disk(Protocol):
    """Where this server's snapshots are."""

    def files(self) -> list[m.File]:
        """All good snapshots."""
        ...

    def release(self, slot: int, names: Iterable[str]) -> None:
        """For this slot these files need not be kept."""
        ...


class ServerState:
    """One parameter server.

    Args:
        tensors: The slots' tensors.
        disk: The snapshots.
        plan: How epochs are cut.
        epochs: How many there are.
    """

    def __init__(self, tensors: Tensors, disk: Disk, *, plan: EpochPlan, epochs: int) -> None:
        self.granted = Granted(plan)
        self.epochs = epochs
        self.question = 0
        self._tensors = tensors
        self._disk = disk
        self._plan = plan
        self._awaiting_values: set[int] = set()
        self._restoring: dict[int, m.Grant] = {}
        """Slot -> the order by which it is to be read from a snapshot."""
        self._final: dict[int, int] = {}
        """Slot -> grant of those whose last snapshot the master waits for."""
        self._final_said = b""
        """What they must have, as the master said it."""
        self._saved_batches = -1

    # --- The master's orders ---

    def offer(self, *, addresses: list[str], pid: int, host: str) -> m.ReportState:
        """Everything, as a new master must know it (rule 3)."""
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
        """Carry out an order; the replies. An ``Ask`` is answered with an offer by the caller."""
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
                return self._last(message)
            case m.ReleaseSnapshots():
                self._disk.release(message.slot, message.files)
        return []

    def _grant(self, message: m.Grant) -> list[Any]:
        slot, grant = message.slot, message.grant
        granted = self.granted
        self._restoring.pop(slot, None)  # whatever it was: the last order counts
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
        """What is to be read from a snapshot next, the order that came first; None: nothing."""
        return next(iter(self._restoring.values()), None)

    def restored(self, order: m.Grant, state: Any, encoded: bytes) -> list[Any]:
        """A slot's state and history were read, as an order said; what the master must hear.

        They count under the slot's last order, if that names the same snapshot; else they are let go.
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
        """A snapshot cannot be read; what the master must hear."""
        latest = self._take(order)
        if latest is None:
            return []
        return [m.GrantFailed(slot=latest.slot, grant=latest.grant, file=latest.file, reason=reason)]

    def _take(self, order: m.Grant) -> m.Grant | None:
        """The slot's last order, which is carried out now; None: it names another snapshot, or none."""
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

    def _last(self, message: m.TakeFinalSnapshot) -> list[Any]:
        self._final_said = message.tasks
        slots = self.granted.served(message.slots, message.grants)
        unfit = self.granted.unfit(slots, self._final_tasks())
        for slot in slots:
            if slot not in unfit:
                self._final[slot] = self.granted.grants[slot]
        return [m.MissingTasks(reports=self.granted.reports(unfit))] if unfit else []

    def _final_tasks(self) -> TaskSet:
        if self._final_said:
            return TaskSet.decode(self._final_said)
        return TaskSet.through(self._plan.tasks, (self.epochs - 1, self._plan.tasks - 1))

    def awaits_values(self, slot: int, grant: int) -> bool:
        """Whether a slot waits for its initial values under this grant."""
        return slot in self._awaiting_values and self.granted.fresh.get(slot) == grant

    def initialised(self, slots: Iterable[int]) -> None:
        """These slots' tensors have their initial values now; they are served once a snapshot has them."""
        for slot in slots:
            self._awaiting_values.discard(slot)
            self.granted.load(slot, Watermarks(self._plan))

    # --- Snapshots ---

    @property
    def moved(self) -> bool:
        """Whether anything was applied since the last snapshot was begun."""
        return self._batches() != self._saved_batches

    def _batches(self) -> int:
        return sum(self.granted.history(slot).batches for slot in self.granted.slots)

    @property
    def final_wanted(self) -> bool:
        """Whether the master waits for the last snapshot of some slot."""
        return bool(self._final)

    @property
    def first_wanted(self) -> bool:
        """Whether fresh slots have their values and wait for their first snapshot."""
        return any(slot in self.granted for slot in self.granted.fresh)

    def begin_snapshot(self) -> Snapshot:
        """Copy everything that is here; empty if there is nothing."""
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
        """It could not be written: it must be tried again."""
        self._saved_batches = -1

    def snapshot_written(self, name: str, snapshot: Snapshot, *, pinned: bool) -> list[Any]:
        """A snapshot stands (``pinned``: read back whole, and never deleted). What the master must hear."""
        replies: list[Any] = [self._snapped(name, snapshot)]
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
            replies.extend(self._safe(name, snapshot))
        return replies

    def _snapped(self, name: str, snapshot: Snapshot) -> m.SnapshotWritten:
        slots = sorted(snapshot)
        return m.SnapshotWritten(
            file=name,
            slots=slots,
            grants=[snapshot[slot].grant for slot in slots],
            counts=[snapshot[slot].batches for slot in slots],
        )

    def _safe(self, name: str, snapshot: Snapshot) -> list[Any]:
        """Which slots this pinned snapshot makes safe: those asked for, copied under the grant they have now.

        A slot that got a batch of some other task between the order and the copy is not what the master takes it for.
        """
        tasks = self._final_tasks()
        slots: list[int] = []
        unfit: list[int] = []
        for slot, grant in list(self._final.items()):
            if slot in snapshot and snapshot[slot].grant == grant == self.granted.grants.get(slot):
                del self._final[slot]
                fit = Watermarks.decode(snapshot[slot].history, self._plan).holds(tasks)
                (slots if fit else unfit).append(slot)
        replies: list[Any] = [m.MissingTasks(reports=self.granted.reports(unfit))] if unfit else []
        if not slots:
            return replies
        return [
            *replies,
            m.FinalSnapshotPinned(
                file=name,
                tasks=self._final_said,
                slots=slots,
                grants=[snapshot[slot].grant for slot in slots],
                samples=[snapshot[slot].samples for slot in slots],
                skipped=[snapshot[slot].skipped for slot in slots],
            ),
        ]

    # --- Trainers' requests (the tensors' part is the shell's) ---

    def grants_of(self, slots: Sequence[int]) -> list[int]:
        """What these slots are served under here."""
        return [self.granted.grants.get(slot, m.NO_GRANT) for slot in slots]
