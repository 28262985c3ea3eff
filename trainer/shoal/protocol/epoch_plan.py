"""The division of an epoch's samples into batches, and of batches into tasks. No torch: the master uses it too."""

from __future__ import annotations

import math

__all__ = ["EpochPlan", "default_task_batches"]

TASKS_PER_EPOCH = 64
"""The number of tasks per epoch at which `default_task_batches` aims."""
LONGEST_TASK = 64
"""The limit of `default_task_batches`, in batches."""


class EpochPlan:
    """The division of positions 0..samples-1 of an epoch's order into batches, and of these into tasks.

    Args:
        samples: The number of samples in the dataset.
        batch_size: The number of samples in a batch; the last batch of an epoch has the rest.
        drop_last: Whether an incomplete last batch is left out of the epoch, as with ``DataLoader(drop_last=True)``.
        task_batches: The number of batches in a task; the last task of an epoch has the rest.
    """

    __slots__ = ("batch_size", "batches", "samples_per_epoch", "task_batches", "tasks")

    def __init__(self, *, samples: int, batch_size: int, drop_last: bool, task_batches: int) -> None:
        self.batch_size = batch_size
        self.task_batches = task_batches
        self.samples_per_epoch = samples // batch_size * batch_size if drop_last else samples
        self.batches = math.ceil(self.samples_per_epoch / batch_size)
        self.tasks = math.ceil(self.batches / task_batches)

    def batches_in(self, task: int) -> int:
        """Return the number of batches in a task."""
        return min(self.task_batches, self.batches - task * self.task_batches)

    def steps(self, accumulate: int) -> int:
        """Return the number of optimizer steps in an epoch with ``accumulate`` batches per step.

        Accumulation restarts with each task, whose number of batches is a multiple of ``accumulate``.
        """
        return math.ceil(self.batches / accumulate)

    def positions(self, task: int, batch: int) -> range:
        """Return the positions of a task's batch in the epoch's order."""
        start = (task * self.task_batches + batch) * self.batch_size
        return range(start, min(start + self.batch_size, self.samples_per_epoch))

    def samples_in(self, task: int, batch: int) -> int:
        """Return the number of samples in a task's batch."""
        return len(self.positions(task, batch))

    def samples_in_task(self, task: int) -> int:
        """Return the number of samples in a task."""
        size = self.task_batches * self.batch_size
        return min(size, self.samples_per_epoch - task * size)


def default_task_batches(batches: int, *, accumulate: int = 1) -> int:
    """Return the default number of batches in a task, a multiple of ``accumulate``.

    An epoch has about 64 tasks, of about 64 batches at most.
    """
    target = min(LONGEST_TASK, max(1, math.ceil(batches / TASKS_PER_EPOCH)))
    return math.ceil(target / accumulate) * accumulate
