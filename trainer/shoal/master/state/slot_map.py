"""The slot map: which parameter server serves which slot, under which grant.

A pure state machine for rules 1 to 5 and 9 to 11 of ``docs/exactly-once.md``. A new master trusts no earlier map: the
servers report the slots that they serve (``keep``) and those in their snapshots (``file``), and the master makes a new
random grant for each slot that no server serves. A slot gets initial values (``fresh``) only if every server has replied,
to a request sent *after* the slot lost its holder, that it has nothing of the slot, and if this master still leads.

Slots do not move between servers yet: each has a home server, which is preferred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from shoal.protocol.messages import (
    NO_GRANT,
    Grant,
    Holder,
    ReleaseSlot,
    ReleaseSnapshots,
    ReportState,
    RequestState,
    SlotMap,
    SnapshotWritten,
    TakeFinalSnapshot,
)

__all__ = ["PendingGrant", "ServerOrder", "ServerView", "SlotAssignments", "SlotsLost"]


FILES = 1000
"""The limit of snapshots of one server that the master records. A server keeps few, but does not report deletions; so a
slot is granted from a file of another server than its home only after all servers have replied to the current question."""


class SlotsLost(Exception):  # noqa: N818 - it names a state of affairs
    """A slot of a job that had begun is in no server's memory and in no snapshot; the job cannot continue."""


@dataclass(frozen=True)
class ServerOrder:
    """A message to the server with the life ``server``."""

    server: int
    message: RequestState | Grant | ReleaseSlot | TakeFinalSnapshot | ReleaseSnapshots


@dataclass(frozen=True)
class PendingGrant:
    """A grant whose holder has not reported yet. ``source`` is ``keep``, ``file`` or ``fresh``."""

    server: int
    grant: int
    source: str
    file: str = ""


@dataclass
class ServerView:
    """The last report of a connected server."""

    index: int
    life: int
    addresses: list[str]
    memory: dict[int, tuple[int, int]]
    """Slot -> (grant, batches applied)."""
    files: dict[str, dict[int, int]]
    """Snapshot -> slot -> batches applied."""
    waiting: set[int] = field(default_factory=set)
    """Fresh slots that wait for their initial values."""
    question: int = 0
    requested: int = 0
    """The number of the last ``RequestState`` that was sent to the server."""


class SlotAssignments:
    """The assignments of one job's slots to its servers.

    Args:
        slots: The number of slots.
        servers: The number of parameter servers.
        new_grant: Returns a random grant.
    """

    def __init__(self, *, slots: int, servers: int, new_grant: Callable[[], int]) -> None:
        self.slots = slots
        self.servers = servers
        self.views: dict[int, ServerView] = {}
        self.live: dict[int, tuple[int, int]] = {}
        """Slot -> (server's life, grant)."""
        self.pending: dict[int, PendingGrant] = {}
        self.final_snapshots: dict[int, str] = {}
        self.question = 1
        self.begun = False
        """Whether all slots were served at one time; from then on initial values would discard work."""
        self._new_grant = new_grant
        self._newer: dict[int, int] = {}
        """Slot -> number of snapshots that its holder has written since its grant."""
        self._final_requested: set[tuple[int, int]] = set()

    # --- Questions ---

    def home(self, slot: int) -> int:
        """Return the index of a slot's home server."""
        return slot * self.servers // self.slots

    @property
    def complete(self) -> bool:
        """Whether every slot is served."""
        return len(self.live) == self.slots

    def current(self, slot: int, grant: int) -> bool:
        """Return whether the slot is served under this grant."""
        return slot in self.live and self.live[slot][1] == grant

    def message(self) -> SlotMap:
        """Return the slot map as a message to trainers."""
        lives = sorted({life for life, _ in self.live.values()})
        holders = [Holder(index=v.index, life=v.life, addresses=v.addresses) for v in (self.views[x] for x in lives)]
        place = {life: number for number, life in enumerate(lives)}
        owner = [place[self.live[slot][0]] if slot in self.live else -1 for slot in range(self.slots)]
        grants = [self.live[slot][1] if slot in self.live else NO_GRANT for slot in range(self.slots)]
        return SlotMap(holders=holders, owner=owner, grants=grants)

    def to_initialise(self) -> dict[int, int]:
        """Return slot -> grant of the fresh slots that wait for their initial values."""
        return {
            slot: pending.grant
            for slot, pending in self.pending.items()
            if pending.source == "fresh" and slot in self.views[pending.server].waiting
        }

    def absent(self) -> list[int]:
        """Return the indices of servers that are not connected."""
        return sorted(set(range(self.servers)) - {view.index for view in self.views.values()})

    # --- Events ---

    def state_reported(self, life: int, index: int, report: ReportState) -> list[ServerOrder]:
        """Record a server's state; the caller takes the reports of live slots as evidence. Return orders."""
        memory = {
            slot: (grant, count)
            for held in report.held
            for slot, grant, count in zip(held.slots, held.grants, held.counts, strict=True)
        }
        files = {file.name: dict(zip(file.slots, file.counts, strict=True)) for file in report.files}
        self.views[life] = ServerView(
            index=index,
            life=life,
            addresses=report.addresses,
            memory=memory,
            files=files,
            waiting=set(report.waiting),
            question=report.question,
        )
        orders: list[ServerOrder] = []
        for slot in range(self.slots):
            holder, grant = self.live.get(slot, (0, NO_GRANT))
            own = memory.get(slot)
            if holder == life and (own is None or own[0] != grant):
                self._revoke(slot)
            elif holder and holder != life and own is not None and slot not in self.pending:
                orders.append(ServerOrder(life, ReleaseSlot(slot=slot, grant=own[0])))
            pending = self.pending.get(slot)
            if pending is not None and pending.server == life:
                orders.append(self._grant_order(slot, pending))
        self._final_requested = {requested for requested in self._final_requested if requested[1] != life}
        return orders

    def lost(self, life: int) -> None:
        """Remove a server whose connection has closed or timed out; no server serves its slots."""
        for slot in range(self.slots):
            if self.live.get(slot, (0, 0))[0] == life:
                self._revoke(slot)
            if slot in self.pending and self.pending[slot].server == life:
                del self.pending[slot]
                self.question += 1
        self.views.pop(life, None)

    def awaiting_initial_values(self, life: int, slots: Iterable[int]) -> None:
        """Record that fresh slots of a server wait for their initial values."""
        if life in self.views:
            self.views[life].waiting.update(slots)

    def grant_reported(self, life: int, slot: int, grant: int) -> bool:
        """Record that a server serves a slot under a grant; False if the grant is neither pending nor current."""
        pending = self.pending.get(slot)
        if pending is None or (pending.server, pending.grant) != (life, grant):
            return self.live.get(slot) == (life, grant)
        del self.pending[slot]
        self.live[slot] = (life, grant)
        self.begun = self.begun or self.complete
        self._newer[slot] = 0
        self.final_snapshots.pop(slot, None)
        if life in self.views:
            self.views[life].memory[slot] = (grant, 0)
        return True

    def grant_failed(self, life: int, slot: int, grant: int, file: str) -> None:
        """Discard a pending grant that failed: the server has no such state, or the file is damaged."""
        pending = self.pending.get(slot)
        if pending is None or (pending.server, pending.grant) != (life, grant):
            return
        del self.pending[slot]
        self.question += 1
        view = self.views.get(life)
        if view is None:
            return
        if file:
            view.files.pop(file, None)
        else:
            view.memory.pop(slot, None)

    def snapshot_written(self, life: int, message: SnapshotWritten) -> list[ServerOrder]:
        """Record a snapshot; once the holder has written two, release those of other servers (rule 10)."""
        view = self.views.get(life)
        if view is not None:
            view.files[message.file] = dict(zip(message.slots, message.counts, strict=True))
            while len(view.files) > FILES:
                del view.files[next(iter(view.files))]
        orders: list[ServerOrder] = []
        for slot, grant in zip(message.slots, message.grants, strict=True):
            if self.live.get(slot) != (life, grant):
                continue
            self._newer[slot] = self._newer.get(slot, 0) + 1
            if self._newer[slot] == 2:
                orders.extend(self._release_snapshots(slot, life))
        return orders

    def _release_snapshots(self, slot: int, holder: int) -> Iterable[ServerOrder]:
        for life, view in self.views.items():
            files = [name for name, slots in view.files.items() if slot in slots]
            if life != holder and files:
                yield ServerOrder(life, ReleaseSnapshots(slot=slot, files=files))

    def final_snapshot_orders(self, tasks: bytes) -> list[ServerOrder]:
        """Return orders that request the last snapshot of each slot from its holder, once each (rule 9).

        Args:
            tasks: The tasks that the slots must have, as ``TakeFinalSnapshot`` encodes them.
        """
        requests: dict[int, list[tuple[int, int]]] = {}
        for slot, (life, grant) in self.live.items():
            if slot not in self.final_snapshots and (slot, life) not in self._final_requested:
                self._final_requested.add((slot, life))
                requests.setdefault(life, []).append((slot, grant))
        return [
            ServerOrder(
                life,
                TakeFinalSnapshot(slots=[slot for slot, _ in pairs], grants=[grant for _, grant in pairs], tasks=tasks),
            )
            for life, pairs in requests.items()
        ]

    def final_snapshot_pinned(self, life: int, slot: int, grant: int, file: str) -> None:
        """Record that a slot's last snapshot is read back and pinned."""
        if self.live.get(slot) == (life, grant):
            self.final_snapshots[slot] = file

    def not_final(self) -> None:
        """Discard all last snapshots: a slot lacks tasks, or the tasks to be done have changed."""
        self.final_snapshots.clear()
        self._final_requested.clear()

    def assign(self, *, leads: bool) -> tuple[list[ServerOrder], bool]:
        """Grant every slot that no server serves to a server that has it.

        Args:
            leads: Whether etcd has confirmed, after the last reply to the current question, that this master leads.

        Returns:
            Orders, and whether the lead must be confirmed before further orders.

        Raises:
            SlotsLost: A slot of a job that had begun is on no server.
        """
        orders: list[ServerOrder] = []
        replied = {view.index for view in self.views.values() if view.question == self.question}
        all_answered = len(replied) == self.servers
        confirm = False
        for slot in range(self.slots):
            if slot in self.live or slot in self.pending:
                continue
            found = self._best(slot, everywhere=all_answered)
            if found is None and all_answered:
                if self.begun:
                    raise SlotsLost(self._lost_slot_reason(slot))
                if not leads:
                    confirm = True
                    continue
                found = self._fresh(slot)
            if found is not None:
                self.pending[slot] = found
                orders.append(self._grant_order(slot, found))
        if not self.complete and not all_answered:
            orders.extend(self._request_states())
        return orders, confirm

    def _lost_slot_reason(self, slot: int) -> str:
        return (
            f"no server has a good snapshot of slot {slot} left (it belongs to pserver-{self.home(slot)}): bring its "
            "snapshot folder back, or start the job over"
        )

    def _request_states(self) -> Iterable[ServerOrder]:
        for life, view in self.views.items():
            if self.question not in {view.question, view.requested}:
                view.requested = self.question
                yield ServerOrder(life, RequestState(question=self.question))

    def _best(self, slot: int, *, everywhere: bool) -> PendingGrant | None:
        """Return the best source of a slot: memory before files, then the most batches applied.

        Until all servers have replied, only the slot's home server is a candidate.
        """
        memory: list[tuple[int, int]] = []
        files: list[tuple[int, str, int]] = []
        for life, view in self.views.items():
            if not everywhere and view.index != self.home(slot):
                continue
            if slot in view.memory:
                memory.append((view.memory[slot][1], life))
            files.extend((counts[slot], name, life) for name, counts in view.files.items() if slot in counts)
        if memory:
            return PendingGrant(server=max(memory)[1], grant=self._new_grant(), source="keep")
        if files:
            _, name, life = max(files)
            return PendingGrant(server=life, grant=self._new_grant(), source="file", file=name)
        return None

    def _fresh(self, slot: int) -> PendingGrant:
        home = next(life for life, view in self.views.items() if view.index == self.home(slot))
        return PendingGrant(server=home, grant=self._new_grant(), source="fresh")

    def _grant_order(self, slot: int, pending: PendingGrant) -> ServerOrder:
        message = Grant(slot=slot, grant=pending.grant, source=pending.source, file=pending.file)
        return ServerOrder(pending.server, message)

    def _revoke(self, slot: int) -> None:
        del self.live[slot]
        self.final_snapshots.pop(slot, None)
        self.question += 1  # earlier replies are no basis for initial values any more (rule 11)
