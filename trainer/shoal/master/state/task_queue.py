"""The task queue: which tasks of which epochs are to be done, who does them, which are done.

A pure state machine. It believes nothing but evidence (rule 2): a task is done when every slot has it by evidence of the
slot's current grant. Evidence comes from trainers (``done``, only for the slots whose grant still stands) and from the
holders' reports, which *replace* what was believed. What a restored slot lost is thereby simply not done and is handed
out again, earlier epochs first (rule 7). There is no list of replays, and nothing in etcd decides what is skipped.

An epoch opens when no task of the earlier ones is left to hand out and somebody asks for more: when the last one is
*done* where the loop ends between epochs (``evaluate``), else already when it is leased. Opening early changes the order
of work only; watermarks are kept by (epoch, task) for ever.

A job that its script stops early ends with what is begun. As tasks are handed out in their order, that is every task up
to the last one that anybody got: to tell by a lease, or by a slot that has a batch of it. Should an etcd that forgot and
a late report bring a later one to light, what is to be done grows by it.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection
from typing import Final

from shoal.protocol.epoch_plan import EpochPlan
from shoal.protocol.grouped import Grouped
from shoal.protocol.messages import Lease
from shoal.protocol.task_set import TaskSet

__all__ = ["TaskQueue"]

Task = tuple[int, int]
NOTHING: Final = (-1, -1)
"""Comes before every task."""
MOST_ATTEMPTS: Final = 2**62
"""That a trainer may speak of: what is counted on from there must still be a number on the wire."""


class TaskQueue:
    """Tasks of one job.

    Args:
        plan: How an epoch is cut into tasks.
        epochs: How many epochs there are.
        slots: How many slots have to have every task.
        reached: The last task that was begun under earlier masters.
    """

    def __init__(self, plan: EpochPlan, *, epochs: int, slots: int, reached: Task = NOTHING) -> None:
        self.plan = plan
        self.epochs = epochs
        self.reached = reached
        """The last task that anybody has begun."""
        self.stopped = False
        """Whether nothing beyond that is to be done any more."""
        self.open = -1
        self.attempts = 0
        self.leases: dict[Task, tuple[int, Lease]] = {}
        """Who (a trainer's life) holds which task, under which lease."""
        self._evidence: Grouped[TaskSet] = Grouped()
        self._evidence.replace(range(slots), TaskSet(plan.tasks))
        self._undone: dict[int, set[int]] = {}
        self._waiting: list[Task] = []
        self._of: dict[int, dict[Task, Lease]] = {}
        """The leases by holder."""
        self._left: dict[int, int] = {}

    # --- Questions ---

    def done(self, task: Task) -> bool:
        """Whether every slot has the task."""
        return all(task in tasks for tasks in self._evidence.values())

    def epoch_done(self, epoch: int) -> bool:
        """Whether every task of the epoch and of all before it is done."""
        return epoch <= self.open and all(not self._undone[e] for e in range(epoch + 1))

    @property
    def all_done(self) -> bool:
        """Whether every task that is to be done is done."""
        return self.epoch_done(self.last)

    @property
    def last(self) -> int:
        """The last epoch of which anything is to be done; -1: of none."""
        return self.reached[0] if self.stopped else self.epochs - 1

    @property
    def whole_epochs(self) -> int:
        """How many epochs are to be done whole."""
        if not self.stopped:
            return self.epochs
        return max(0, self.reached[0] + (self.reached[1] + 1 == self.plan.tasks))

    @property
    def expected(self) -> int:
        """Samples of all tasks that are to be done, over all epochs."""
        if not self.stopped:
            return self.epochs * self.plan.samples_per_epoch
        return max(0, self.reached[0]) * self.plan.samples_per_epoch + self._samples_wanted(self.reached[0])

    def _samples_wanted(self, epoch: int) -> int:
        if not self.stopped or epoch < self.reached[0]:
            return self.plan.samples_per_epoch
        if epoch > self.reached[0]:
            return 0
        return sum(self.plan.samples_in_task(task) for task in range(self.reached[1] + 1))

    def begun(self) -> TaskSet:
        """Every task up to the last one that was begun."""
        return TaskSet.through(self.plan.tasks, self.reached)

    def batches_left(self, epoch: int) -> int:
        """Batches of the epoch's tasks that are to be done and are not (a task counts whole)."""
        if epoch > self.open:
            return 0 if self.stopped else self.plan.batches
        return self._left[epoch]

    def samples_done(self, epoch: int) -> int:
        """Samples of the epoch's tasks that are done."""
        if epoch > self.open:
            return 0
        undone = sum(self.plan.samples_in_task(task) for task in self._undone[epoch])
        return self._samples_wanted(epoch) - undone

    def idle_tasks(self) -> int:
        """Tasks that could be handed out now."""
        undone = sum(len(tasks) for tasks in self._undone.values())
        return undone - sum(task[1] in self._undone.get(task[0], ()) for task in self.leases)

    # --- Events ---

    def open_next(self) -> bool:
        """Open the next epoch; False if there is none."""
        if self.open >= self.last:
            return False
        self.open += 1
        for task in self._look(self.open):
            heapq.heappush(self._waiting, (self.open, task))
        return True

    def stop(self) -> None:
        """From now on only what is begun is to be done."""
        self.stopped = True
        self._bound()

    def _reach(self, task: Task) -> None:
        """Somebody has begun a task."""
        if task > self.reached:
            self.reached = task
            if self.stopped:
                self._bound()

    def _bound(self) -> None:
        """What is to be done ends with what is begun."""
        while self.open_next():
            pass
        free = ((epoch, task) for epoch in range(self.open + 1) for task in self._look(epoch))
        self._waiting = [task for task in free if task not in self.leases]
        heapq.heapify(self._waiting)

    def _look(self, epoch: int) -> set[int]:
        """Find anew what is to be done of an epoch and is not."""
        missing: set[int] = set()
        for tasks in self._evidence.values():
            missing.update(tasks.missing(epoch))
        if self.stopped:
            missing = {task for task in missing if (epoch, task) <= self.reached}
        self._undone[epoch] = missing
        self._left[epoch] = sum(self.plan.batches_in(task) for task in missing)
        return missing

    def lease(self, holder: int, *, early: bool) -> Lease | None:
        """Hand out the first task that waits.

        Args:
            holder: The trainer's life.
            early: Whether the next epoch may open while tasks of this one are still being worked on.

        Returns:
            The lease, or None: then either everything opened is done (``epoch_done``), or others work on what is left.
        """
        while True:
            while self._waiting:
                task = heapq.heappop(self._waiting)
                if task in self.leases or task[1] not in self._undone[task[0]]:
                    continue
                self.attempts += 1
                self._reach(task)
                lease = Lease(epoch=task[0], task=task[1], attempt=self.attempts)
                self._hold(holder, task, lease)
                return lease
            if not (early and self.open_next()):
                return None

    def adopt(self, holder: int, lease: Lease) -> bool:
        """Let a trainer keep a lease from an earlier connection or an earlier master; False if another has the task."""
        task = (lease.epoch, lease.task)
        if not (0 <= lease.epoch < self.epochs and 0 <= lease.task < self.plan.tasks):
            return False
        self._reach(task)
        while self.open < lease.epoch:
            self.open_next()
        other = self.leases.get(task)
        if other is not None and other[0] != holder:
            return False
        self.attempts = max(self.attempts, min(lease.attempt, MOST_ATTEMPTS))
        self._hold(holder, task, lease)
        return True

    def acknowledge(self, lease: Lease, slots: Collection[int]) -> bool:
        """A trainer says that these slots have a task, under their current grants.

        Returns:
            Whether the task is done; then its lease, whoever held it, has ended.
        """
        task = (lease.epoch, lease.task)
        if not (0 <= lease.epoch <= self.open and 0 <= lease.task < self.plan.tasks):
            return False
        self._reach(task)
        self._evidence.update(slots, lambda tasks: tasks.add(*task))
        if not self.done(task):
            return False
        self._end(task)
        if lease.task in self._undone[lease.epoch]:
            self._undone[lease.epoch].remove(lease.task)
            self._left[lease.epoch] -= self.plan.batches_in(lease.task)
        return True

    def release(self, task: Task, holder: int | None = None) -> bool:
        """End a lease (of that holder) without the task being done: it waits again."""
        current = self.leases.get(task)
        if current is None or (holder is not None and current[0] != holder):
            return False
        self._end(task)
        if task[1] in self._undone.get(task[0], ()):
            heapq.heappush(self._waiting, task)
        return True

    def held_by(self, holder: int) -> list[Lease]:
        """A trainer's leases."""
        return list(self._of.get(holder, {}).values())

    def _hold(self, holder: int, task: Task, lease: Lease) -> None:
        self._end(task)
        self.leases[task] = (holder, lease)
        self._of.setdefault(holder, {})[task] = lease

    def _end(self, task: Task) -> None:
        ended = self.leases.pop(task, None)
        if ended is not None:
            held = self._of[ended[0]]
            del held[task]
            if not held:
                del self._of[ended[0]]

    def replace(self, slots: Collection[int], tasks: TaskSet, *, reached: Task = NOTHING) -> int:
        """A holder's report: this is what these slots have, whatever was believed before.

        Args:
            slots: Which.
            tasks: The tasks that they have whole.
            reached: The last task that they have any batch of.

        Returns:
            How many batches are to be done that were not before.
        """
        before = dict(self._undone)
        self._evidence.replace(slots, tasks)
        self._reach(max(reached, tasks.highest))
        back = 0
        for epoch in range(self.open + 1):
            for task in self._look(epoch) - before.get(epoch, set()):
                back += self.plan.batches_in(task)
                if (epoch, task) not in self.leases:
                    heapq.heappush(self._waiting, (epoch, task))
        return back
