"""How an epoch's samples are cut: into batches, and batches into tasks. No torch here: the master needs it too."""

from __future__ import annotations

import math

__all__ = ["EpochPlan", "default_task_batches"]

TASKS_PER_EPOCH = 64
LONGEST_TASK = 64


class EpochPlan:
    """Cuts positions 0..samples-1 of an epoch's order into batches, and these into tasks.

    Args:
        samples: In the dataset.
        batch_size: Samples in a batch; the last batch of an epoch has the rest.
        drop_last: Leave the rest out, as ``DataLoader(drop_last=True)`` does: those samples sit the epoch out.
        task_batches: Batches in a task; the last task of an epoch has the rest.
    """

    __slots__ = ("batch_size", "batches", "samples_per_epoch", "task_batches", "tasks")

    def __init__(self, *, samples: int, batch_size: int, drop_last: bool, task_batches: int) -> None:
        self.batch_size = batch_size
        self.task_batches = task_batches
        self.samples_per_epoch = samples // batch_size * batch_size if drop_last else samples
        self.batches = math.ceil(self.samples_per_epoch / batch_size)
        self.tasks = math.ceil(self.batches / task_batches)

    def batches_in(self, task: int) -> int:
        """Batches in a task."""
        return min(self.task_batches, self.batches - task * self.task_batches)

    def steps(self, accumulate: int) -> int:
        """Optimizer steps in an epoch: accumulations begin anew with each task, whose batches are a multiple of it."""
        return math.ceil(self.batches / accumulate)

    def positions(self, task: int, batch: int) -> range:
        """Positions in the epoch's order of a task's batch."""
        start = (task * self.task_batches + batch) * self.batch_size
        return range(start, min(start + self.batch_size, self.samples_per_epoch))

    def samples_in(self, task: int, batch: int) -> int:
        """Samples in a task's batch."""
        return len(self.positions(task, batch))

    def samples_in_task(self, task: int) -> int:
        """Samples in a task."""
        size = self.task_batches * self.batch_size
        return min(size, self.samples_per_epoch - task * size)


def default_task_batches(batches: int, *, accumulate: int = 1) -> int:
    """Batches in a task when nobody says: some 64 tasks an epoch, at most 64 batches each, whole accumulations."""
    wanted = min(LONGEST_TASK, max(1, math.ceil(batches / TASKS_PER_EPOCH)))
    return math.ceil(wanted / accumulate) * accumulate
