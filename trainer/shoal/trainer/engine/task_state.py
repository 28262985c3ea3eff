"""What a trainer knows of its tasks and of the slots: the pure core of its side of the protocol (rules 1 and 12).

A trainer works through the batches of one task in order. For each slot it knows under which grant it was last served,
and how far that slot is in the task; both are believed only as long as the map shows that grant. The next batch is the
one that the least advanced slot lacks; what the others make of it is their business (they know it already).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from shoal.protocol.epoch_plan import EpochPlan
from shoal.protocol.messages import NO_GRANT, Lease, SlotMap, TaskDone

__all__ = ["Work"]


class Work:
    """Leases, map and watermarks of one trainer.

    Args:
        plan: How epochs are cut.
        slots: How many slots there are.
    """

    def __init__(self, plan: EpochPlan, *, slots: int) -> None:
        self.plan = plan
        self.slots = slots
        self.map: SlotMap | None = None
        self.current: Lease | None = None
        self.waiting: deque[Lease] = deque()
        """Leases to work on later, first come, first served; but what must be redone comes first."""
        self.unanswered: dict[tuple[int, int], TaskDone] = {}
        """Tasks reported as done that the master has not confirmed: told again to every master."""
        self._at: dict[tuple[int, int], dict[int, tuple[int, int]]] = {}

    # --- Leases ---

    def leases(self) -> list[Lease]:
        """Every lease that is held, the current one first."""
        current = [self.current] if self.current is not None else []
        # Copies first: the link's thread asks too, when it greets a master.
        return [*current, *list(self.waiting), *(done.lease for done in list(self.unanswered.values()))]

    def leased(self, lease: Lease) -> None:
        """A task is ours. If we have reported it, that was believed, and the task came back since: its ``Over`` is late."""
        reported = self.unanswered.get((lease.epoch, lease.task))
        if reported is not None and reported.lease.attempt != lease.attempt:
            self.over(reported.lease)
        if not self._renewed(lease):
            self.waiting.append(lease)

    def redo(self, lease: Lease) -> None:
        """A task that we reported is not done."""
        self.unanswered.pop((lease.epoch, lease.task), None)
        self._at.pop((lease.epoch, lease.task), None)
        if not self._renewed(lease):
            self.waiting.appendleft(lease)

    def _renewed(self, lease: Lease) -> bool:
        """Hold its task under this lease from now on, as the master knows no other; False if the task is not held."""
        task = (lease.epoch, lease.task)
        if self.current is not None and (self.current.epoch, self.current.task) == task:
            self.current = lease
            return True
        for place, held in enumerate(self.waiting):
            if (held.epoch, held.task) == task:
                self.waiting[place] = lease
                return True
        return task in self.unanswered

    def over(self, lease: Lease) -> None:
        """A task that we reported is done, unless the word is on an older report and the task was leased anew since."""
        reported = self.unanswered.get((lease.epoch, lease.task))
        if reported is not None and reported.lease.attempt == lease.attempt:
            del self.unanswered[lease.epoch, lease.task]

    def begin(self) -> Lease | None:
        """Make the next waiting lease the current one."""
        if self.current is None and self.waiting:
            self.current = self.waiting.popleft()
        return self.current

    def give_all_back(self) -> list[Lease]:
        """Forget every lease that is not reported as done; what they were."""
        given = [lease for lease in self.leases() if (lease.epoch, lease.task) not in self.unanswered]
        self.current = None
        self.waiting.clear()
        self._at.clear()
        return given

    def finish(self) -> TaskDone:
        """The current task's last batch was acknowledged everywhere: what to report."""
        lease = self.current
        assert lease is not None
        known = self._at.pop((lease.epoch, lease.task))
        done = TaskDone(lease=lease, grants=[known[slot][0] for slot in range(self.slots)])
        self.unanswered[lease.epoch, lease.task] = done
        self.current = None
        return done

    # --- Slots ---

    def mapped(self, new: SlotMap) -> None:
        """The master's map: what is known of a slot under another grant is known no longer."""
        self.map = new
        for known in self._at.values():
            for slot in [slot for slot, (grant, _) in known.items() if new.grants[slot] != grant]:
                del known[slot]

    @property
    def served(self) -> bool:
        """Whether the map names a holder for every slot."""
        return self.map is not None and NO_GRANT not in self.map.grants

    def applied(self, epoch: int, task: int, slots: Iterable[int], grants: Iterable[int], batches: int) -> bool:
        """A server's word on how far slots are in a task; False if some grant is not the map's."""
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
        """These slots' server does not answer."""
        gone = set(slots)
        for known in self._at.values():
            for slot in gone & known.keys():
                del known[slot]

    def known(self, lease: Lease) -> bool:
        """Whether it is known of every slot how far it is in a task."""
        return len(self._at.get((lease.epoch, lease.task), ())) == self.slots

    def next_batch(self) -> int | None:
        """The current task's first batch that some slot lacks (its number of batches, if none does); None: unknown."""
        lease = self.current
        if lease is None or not self.known(lease):
            return None
        return min(batches for _, batches in self._at[lease.epoch, lease.task].values())

    def trim(self) -> None:
        """Forget what is known of tasks that are not held."""
        held = {(lease.epoch, lease.task) for lease in self.leases()}
        for task in [task for task in self._at if task not in held]:
            del self._at[task]
