"""The task queue: the tasks of each epoch that are open, leased and done.

A pure state machine, based on evidence only (rule 2): a task is done when every slot has it by evidence of the slot's
current grant. Evidence comes from trainers (``TaskDone``, only for slots whose grant is current) and from the holders'
reports, which *replace* earlier evidence. A task that a restored slot has lost is thereby open and is leased again,
earlier epochs first (rule 7). There is no list of replays, and nothing in etcd decides what is skipped.

An epoch opens when no task of earlier epochs is left to lease and a trainer requests one: when the last task is *done*
if the script's loop pauses between epochs (``evaluate``), otherwise when it is leased. Opening early changes only the
order of work; watermarks are kept by (epoch, task) for ever.

A job that its script stops early ends once the tasks that were begun are done. As tasks are leased in order, these are
all tasks up to the last one that was leased or of which a slot has a batch. If etcd has lost writes and a later report
names a later task, the tasks to be done grow up to that one.
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
"""Sorts before every task."""
MOST_ATTEMPTS: Final = 2**62
"""The limit of an attempt that a trainer reports: attempts counted from there must still fit into a message."""


class TaskQueue:
    """The tasks of one job.

    Args:
        plan: The division of an epoch into tasks.
        epochs: The number of epochs.
        slots: The number of slots; each must have every task.
        reached: The last task that was begun under earlier masters. Default: none.
    """

    def __init__(self, plan: EpochPlan, *, epochs: int, slots: int, reached: Task = NOTHING) -> None:
        self.plan = plan
        self.epochs = epochs
        self.reached = reached
        """The last task that was begun."""
        self.stopped = False
        """Whether the script has stopped the job: no task after ``reached`` is to be done."""
        self.open = -1
        self.attempts = 0
        self.leases: dict[Task, tuple[int, Lease]] = {}
        """Task -> life of the trainer that holds it, and the lease."""
        self._slot_tasks: Grouped[TaskSet] = Grouped()
        self._slot_tasks.replace(range(slots), TaskSet(plan.tasks))
        self._open_tasks: dict[int, set[int]] = {}
        self._waiting: list[Task] = []
        self._by_holder: dict[int, dict[Task, Lease]] = {}
        """Holder -> task -> lease."""
        self._open_batches: dict[int, int] = {}

    # --- Queries ---

    def done(self, task: Task) -> bool:
        """Return whether every slot has the task."""
        return all(task in tasks for tasks in self._slot_tasks.values())

    def epoch_done(self, epoch: int) -> bool:
        """Return whether every task of the epoch and of all earlier epochs is done."""
        return epoch <= self.open and all(not self._open_tasks[e] for e in range(epoch + 1))

    @property
    def all_done(self) -> bool:
        """Whether every task that is to be done is done."""
        return self.epoch_done(self.last)

    @property
    def last(self) -> int:
        """The last epoch that has tasks to be done; -1 if there is none."""
        return self.reached[0] if self.stopped else self.epochs - 1

    @property
    def whole_epochs(self) -> int:
        """The number of epochs of which all tasks are to be done."""
        if not self.stopped:
            return self.epochs
        return max(0, self.reached[0] + (self.reached[1] + 1 == self.plan.tasks))

    @property
    def expected(self) -> int:
        """The number of samples of all tasks that are to be done, over all epochs."""
        if not self.stopped:
            return self.epochs * self.plan.samples_per_epoch
        return max(0, self.reached[0]) * self.plan.samples_per_epoch + self._samples_due(self.reached[0])

    def _samples_due(self, epoch: int) -> int:
        if not self.stopped or epoch < self.reached[0]:
            return self.plan.samples_per_epoch
        if epoch > self.reached[0]:
            return 0
        return sum(self.plan.samples_in_task(task) for task in range(self.reached[1] + 1))

    def begun(self) -> TaskSet:
        """Return every task up to the last one that was begun."""
        return TaskSet.through(self.plan.tasks, self.reached)

    def batches_left(self, epoch: int) -> int:
        """Return the number of batches of the epoch's open tasks; all batches of a task count until it is done."""
        if epoch > self.open:
            return 0 if self.stopped else self.plan.batches
        return self._open_batches[epoch]

    def samples_done(self, epoch: int) -> int:
        """Return the number of samples of the epoch's tasks that are done."""
        if epoch > self.open:
            return 0
        open_tasks = sum(self.plan.samples_in_task(task) for task in self._open_tasks[epoch])
        return self._samples_due(epoch) - open_tasks

    def idle_tasks(self) -> int:
        """Return the number of tasks that can be leased."""
        open_tasks = sum(len(tasks) for tasks in self._open_tasks.values())
        return open_tasks - sum(task[1] in self._open_tasks.get(task[0], ()) for task in self.leases)

    # --- Events ---

    def open_next(self) -> bool:
        """Open the next epoch; return False if there is none."""
        if self.open >= self.last:
            return False
        self.open += 1
        for task in self._recompute(self.open):
            heapq.heappush(self._waiting, (self.open, task))
        return True

    def stop(self) -> None:
        """Reduce the tasks to be done to those that were begun."""
        self.stopped = True
        self._rebuild()

    def _reach(self, task: Task) -> None:
        """Record that a task was begun."""
        if task > self.reached:
            self.reached = task
            if self.stopped:
                self._rebuild()

    def _rebuild(self) -> None:
        """Rebuild the waiting tasks of a stopped job."""
        while self.open_next():
            pass
        free = ((epoch, task) for epoch in range(self.open + 1) for task in self._recompute(epoch))
        self._waiting = [task for task in free if task not in self.leases]
        heapq.heapify(self._waiting)

    def _recompute(self, epoch: int) -> set[int]:
        """Recompute the open tasks of an epoch from the evidence."""
        missing: set[int] = set()
        for tasks in self._slot_tasks.values():
            missing.update(tasks.missing(epoch))
        if self.stopped:
            missing = {task for task in missing if (epoch, task) <= self.reached}
        self._open_tasks[epoch] = missing
        self._open_batches[epoch] = sum(self.plan.batches_in(task) for task in missing)
        return missing

    def lease(self, holder: int, *, early: bool) -> Lease | None:
        """Lease the first waiting task.

        Args:
            holder: The trainer's life.
            early: Whether the next epoch may open while tasks of the current one are leased.

        Returns:
            The lease; None if every open epoch is done (``epoch_done``) or all its open tasks are leased.
        """
        while True:
            while self._waiting:
                task = heapq.heappop(self._waiting)
                if task in self.leases or task[1] not in self._open_tasks[task[0]]:
                    continue
                self.attempts += 1
                self._reach(task)
                lease = Lease(epoch=task[0], task=task[1], attempt=self.attempts)
                self._hold(holder, task, lease)
                return lease
            if not (early and self.open_next()):
                return None

    def renew(self, holder: int, lease: Lease) -> bool:
        """Renew a trainer's lease of an earlier connection or an earlier master.

        Returns:
            Whether the lease is renewed; False if there is no such task, or another trainer holds it.
        """
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
        """Add a trainer's evidence that these slots have a task under their current grants.

        Returns:
            Whether the task is done; in that case its lease has ended, whichever trainer held it.
        """
        task = (lease.epoch, lease.task)
        if not (0 <= lease.epoch <= self.open and 0 <= lease.task < self.plan.tasks):
            return False
        self._reach(task)
        self._slot_tasks.update(slots, lambda tasks: tasks.add(*task))
        if not self.done(task):
            return False
        self._end(task)
        if lease.task in self._open_tasks[lease.epoch]:
            self._open_tasks[lease.epoch].remove(lease.task)
            self._open_batches[lease.epoch] -= self.plan.batches_in(lease.task)
        return True

    def release(self, task: Task, holder: int | None = None) -> bool:
        """Break or return a lease whose task is not done, so that the task waits for a new one.

        `TrainerHandler.removed` breaks the leases of a trainer that has left or died; `TrainerHandler.return_tasks` returns leases.

        Args:
            task: The task.
            holder: The life of the trainer whose lease ends. Default: None, any trainer's.

        Returns:
            Whether there was such a lease.
        """
        current = self.leases.get(task)
        if current is None or (holder is not None and current[0] != holder):
            return False
        self._end(task)
        if task[1] in self._open_tasks.get(task[0], ()):
            heapq.heappush(self._waiting, task)
        return True

    def held_by(self, holder: int) -> list[Lease]:
        """Return a trainer's leases."""
        return list(self._by_holder.get(holder, {}).values())

    def _hold(self, holder: int, task: Task, lease: Lease) -> None:
        self._end(task)
        self.leases[task] = (holder, lease)
        self._by_holder.setdefault(holder, {})[task] = lease

    def _end(self, task: Task) -> None:
        ended = self.leases.pop(task, None)
        if ended is not None:
            held = self._by_holder[ended[0]]
            del held[task]
            if not held:
                del self._by_holder[ended[0]]

    def replace(self, slots: Collection[int], tasks: TaskSet, *, reached: Task = NOTHING) -> int:
        """Replace the evidence about slots by their holder's report (rule 2).

        Args:
            slots: The slots.
            tasks: The tasks that the slots have finished.
            reached: The last task of which the slots have any batch. Default: none.

        Returns:
            The number of batches of reopened tasks.
        """
        before = dict(self._open_tasks)
        self._slot_tasks.replace(slots, tasks)
        self._reach(max(reached, tasks.highest))
        back = 0
        for epoch in range(self.open + 1):
            for task in self._recompute(epoch) - before.get(epoch, set()):
                back += self.plan.batches_in(task)
                if (epoch, task) not in self.leases:
                    heapq.heappush(self._waiting, (epoch, task))
        return back
