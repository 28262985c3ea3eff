"""The grants and histories of a parameter server's slots, without their tensors.

A server process starts without grants: the content of its snapshots is only offered to the master (rule 4). A granted slot
is served under that grant and no other; each grant begins with a report of what the slot has applied (rule 2).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shoal.protocol.epoch_plan import EpochPlan
from shoal.protocol.grouped import Grouped
from shoal.protocol.messages import NO_GRANT, Applied, Push, SlotBatch, SlotReport
from shoal.protocol.task_set import TaskSet
from shoal.pserver.state.watermarks import Watermarks

__all__ = ["SlotStates"]


class SlotStates:
    """The grants and histories of the slots of one server.

    Args:
        plan: How an epoch is divided into tasks and batches.
    """

    def __init__(self, plan: EpochPlan) -> None:
        self.plan = plan
        self.grants: dict[int, int] = {}
        """Slot -> the grant it is served under."""
        self.fresh: dict[int, int] = {}
        """Slot -> grant, of the slots that wait for their initial values, or for the first snapshot of them."""
        self._histories: Grouped[Watermarks] = Grouped()

    def __contains__(self, slot: int) -> bool:
        return slot in self._histories

    @property
    def slots(self) -> list[int]:
        """The slots whose state is complete here, ascending."""
        return sorted(slot for keys, _ in self._histories.groups() for slot in keys)

    def history(self, slot: int) -> Watermarks:
        """Return a slot's history; callers must not change it."""
        return self._histories[slot]

    def load(self, slot: int, history: Watermarks) -> None:
        """Set the history of a slot whose state was loaded from a snapshot or from initial values."""
        self._histories.replace([slot], history)

    def drop(self, slot: int) -> None:
        """Remove a slot's history and grants."""
        self._histories.remove([slot])
        self.grants.pop(slot, None)
        self.fresh.pop(slot, None)

    def grant(self, slot: int, grant: int) -> None:
        """Serve a slot under this grant."""
        self.grants[slot] = grant
        self.fresh.pop(slot, None)

    def reports(self, slots: Iterable[int]) -> list[SlotReport]:
        """Return what these slots have applied, one report for each distinct history; slots without a grant are left out."""
        requested = set(slots)
        reports = []
        for keys, history in self._histories.groups():
            chosen = sorted(keys & requested & self.grants.keys())
            if chosen:
                reports.append(
                    SlotReport(
                        slots=chosen,
                        grants=[self.grants[slot] for slot in chosen],
                        counts=[history.batches] * len(chosen),
                        tasks=history.finished.encode(),
                        reached=history.reached,
                    )
                )
        return reports

    def served(self, slots: Sequence[int], grants: Sequence[int]) -> list[int]:
        """Return the slots that are served under exactly these grants."""
        return [
            slot
            for slot, grant in zip(slots, grants, strict=True)
            if grant != NO_GRANT and self.grants.get(slot) == grant
        ]

    def stale(self, slots: Sequence[int], grants: Sequence[int]) -> bool:
        """Return whether any of the slots is not served under the given grant."""
        return len(self.served(slots, grants)) != len(slots)

    def applied(self, slots: Sequence[int], grants: Sequence[int], *, epoch: int, task: int) -> list[Applied]:
        """Return the number of applied batches of a task at each slot; ``NO_GRANT`` where the given grant is stale."""
        current = set(self.served(slots, grants))
        answers = []
        for keys, history in self._histories.groups():
            chosen = [slot for slot in slots if slot in current and slot in keys]
            if chosen:
                answers.append(
                    Applied(
                        slots=chosen,
                        grants=[self.grants[slot] for slot in chosen],
                        batches=history.applied(epoch, task),
                    )
                )
        stale = [slot for slot in slots if slot not in current]
        if stale:
            answers.append(Applied(slots=stale, grants=[NO_GRANT] * len(stale), batches=0))
        return answers

    def new_slots(self, slots: Sequence[int], push: Push) -> list[int]:
        """Return the slots at which a push is new, ascending.

        Raises:
            ValueError: The push names batches that do not exist.
        """
        current = set(self.served(slots, push.grants))
        new: list[int] = []
        for keys, history in self._histories.groups():
            verdict = history.check_push(push.epoch, push.task, first=push.first, batches=push.batches)
            if verdict.new:
                new.extend(keys & current)
        return sorted(new)

    def advance(self, slots: Sequence[int], push: Push) -> None:
        """Record that a push was applied at these slots."""
        self._histories.update(
            slots,
            lambda history: history.advance(
                push.epoch, push.task, first=push.first, batches=push.batches, skipped=push.skipped
            ),
        )

    def answer(self, slots: Sequence[int], push: Push) -> list[SlotBatch]:
        """Return the number of applied batches of the pushed task at each slot."""
        return [
            SlotBatch(slots=a.slots, grants=a.grants, batches=a.batches)
            for a in self.applied(slots, push.grants, epoch=push.epoch, task=push.task)
        ]

    def mismatched(self, slots: Sequence[int], tasks: TaskSet) -> list[int]:
        """Return the slots that do not have exactly these tasks (rule 9)."""
        return [slot for slot in slots if not self._histories[slot].holds(tasks)]
