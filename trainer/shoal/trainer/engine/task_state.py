"""The state of a trainer's tasks and slots: the pure core of its side of the protocol (rules 1 and 12). No I/O.

A trainer processes the batches of one task in order. For each slot it records the grant of the last reply and the number of
batches that the slot has applied; both are valid only while the slot map has that grant. The next batch is the one that the
least advanced slot lacks; slots that already have it ignore the push.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from shoal.protocol.epoch_plan import EpochPlan
from shoal.protocol.messages import NO_GRANT, Lease, SlotMap, TaskDone

__all__ = ["TaskState"]


class TaskState:
    """Leases, map and watermarks of one trainer.

    Args:
        plan: How an epoch is divided into tasks and batches.
        slots: Number of slots of the job.
    """

    def __init__(self, plan: EpochPlan, *, slots: int) -> None:
        self.plan = plan
        self.slots = slots
        self.map: SlotMap | None = None
        self.current: Lease | None = None
        self.waiting: deque[Lease] = deque()
        """Leases of later tasks, oldest first; reopened tasks come before all others."""
        self.unanswered: dict[tuple[int, int], TaskDone] = {}
        """Tasks reported as done that the master has not confirmed; the reports are repeated to every new master."""
        self._at: dict[tuple[int, int], dict[int, tuple[int, int]]] = {}

    # --- Leases ---

    def leases(self) -> list[Lease]:
        """Return all leases of this trainer, the current one first."""
        current = [self.current] if self.current is not None else []
        # Copies, because the link's thread also calls this when it registers at a master.
        return [*current, *list(self.waiting), *(done.lease for done in list(self.unanswered.values()))]

    def leased(self, lease: Lease) -> None:
        """Add a lease.

        If this trainer has reported the task under an earlier attempt, the report was committed and the task was reopened
        since: the ``TaskCommitted`` for that report was lost or is late.
        """
        reported = self.unanswered.get((lease.epoch, lease.task))
        if reported is not None and reported.lease.attempt != lease.attempt:
            self.committed(reported.lease)
        if not self._renewed(lease):
            self.waiting.append(lease)

    def reopened(self, lease: Lease) -> None:
        """Take back a task that was reported as done but that some slot lacks."""
        self.unanswered.pop((lease.epoch, lease.task), None)
        self._at.pop((lease.epoch, lease.task), None)
        if not self._renewed(lease):
            self.waiting.appendleft(lease)

    def _renewed(self, lease: Lease) -> bool:
        """Replace the lease of a held task, as the master only accepts the new one; return False if it is not held."""
        task = (lease.epoch, lease.task)
        if self.current is not None and (self.current.epoch, self.current.task) == task:
            self.current = lease
            return True
        for place, held in enumerate(self.waiting):
            if (held.epoch, held.task) == task:
                self.waiting[place] = lease
                return True
        return task in self.unanswered

    def committed(self, lease: Lease) -> None:
        """Note that the master committed a reported task; ignored if the task was leased again since that report."""
        reported = self.unanswered.get((lease.epoch, lease.task))
        if reported is not None and reported.lease.attempt == lease.attempt:
            del self.unanswered[lease.epoch, lease.task]

    def begin(self) -> Lease | None:
        """Make the next waiting lease the current one."""
        if self.current is None and self.waiting:
            self.current = self.waiting.popleft()
        return self.current

    def return_all(self) -> list[Lease]:
        """Remove and return every lease that is not reported as done."""
        returned = [lease for lease in self.leases() if (lease.epoch, lease.task) not in self.unanswered]
        self.current = None
        self.waiting.clear()
        self._at.clear()
        return returned

    def finish(self) -> TaskDone:
        """End the current task, whose last batch every slot has acknowledged; return the report for the master."""
        lease = self.current
        assert lease is not None
        known = self._at.pop((lease.epoch, lease.task))
        done = TaskDone(lease=lease, grants=[known[slot][0] for slot in range(self.slots)])
        self.unanswered[lease.epoch, lease.task] = done
        self.current = None
        return done

    # --- Slots ---

    def mapped(self, new: SlotMap) -> None:
        """Use a new slot map; discard what was recorded of slots under another grant."""
        self.map = new
        for known in self._at.values():
            for slot in [slot for slot, (grant, _) in known.items() if new.grants[slot] != grant]:
                del known[slot]

    @property
    def served(self) -> bool:
        """Whether the slot map has a holder for every slot."""
        return self.map is not None and NO_GRANT not in self.map.grants

    def applied(self, epoch: int, task: int, slots: Iterable[int], grants: Iterable[int], batches: int) -> bool:
        """Record how many batches of a task slots have applied; return False if a grant differs from the slot map's."""
        if self.map is None:
            return False
        known = self._at.setdefault((epoch, task), {})
        fresh = True
        for slot, grant in zip(slots, grants, strict=True):
            if grant == NO_GRANT or grant != self.map.grants[slot]:
                known.pop(slot, None)
                fresh = False
            else:
                known[slot] = (grant, batches)
        return fresh

    def forget(self, slots: Iterable[int]) -> None:
        """Discard what was recorded of these slots, whose server does not reply."""
        unreachable = set(slots)
        for known in self._at.values():
            for slot in unreachable & known.keys():
                del known[slot]

    def known(self, lease: Lease) -> bool:
        """Return whether the number of applied batches of a task is known for every slot."""
        return len(self._at.get((lease.epoch, lease.task), ())) == self.slots

    def next_batch(self) -> int | None:
        """Return the first batch of the current task that a slot lacks; None while that is unknown.

        If no slot lacks any, the result is the task's number of batches.
        """
        lease = self.current
        if lease is None or not self.known(lease):
            return None
        return min(batches for _, batches in self._at[lease.epoch, lease.task].values())

    def trim(self) -> None:
        """Discard what was recorded of tasks that are not leased."""
        held = {(lease.epoch, lease.task) for lease in self.leases()}
        for task in [task for task in self._at if task not in held]:
            del self._at[task]
