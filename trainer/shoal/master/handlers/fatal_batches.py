"""Finds a batch that kills trainers, so that a sample that ends its process is not retried for ever.

A script that raises an exception reports its task. A process that is killed (out of memory, a crash in a library) cannot:
so a task that was held by a trainer that died is *watched*, and the next trainer that leases it announces each of its
batches. Deaths are counted by the batch that was announced last.
"""

from __future__ import annotations

from typing import Final

from shoal.protocol.messages import BatchBegan

__all__ = ["FAILURES_ALLOWED", "FatalBatches"]

FAILURES_ALLOWED: Final = 3
"""The number of failures of the script on one task, or of deaths at one batch, at which the job fails."""
SAMPLES_NAMED: Final = 20
"""The number of samples of a batch that a message names."""
TASKS_WATCHED: Final = 10_000
"""The number of watched tasks that are kept, the latest ones."""

Task = tuple[int, int]


class FatalBatches:
    """The deaths of trainers by watched task and batch."""

    def __init__(self) -> None:
        self._deaths: dict[Task, dict[int, set[int]]] = {}
        """By watched task and batch: the lives of the trainers that died there."""
        self._began: dict[int, BatchBegan] = {}
        """By a trainer's life: the batch that it announced last."""

    def watches(self, task: Task) -> bool:
        """Return whether trainers must announce the batches of a task."""
        return task in self._deaths

    def began(self, life: int, message: BatchBegan) -> None:
        """Record the batch that a trainer has announced."""
        self._began[life] = BatchBegan(message.lease, message.batch, message.samples[:SAMPLES_NAMED])

    def died(self, life: int, tasks: list[Task]) -> BatchBegan | None:
        """Record the death of a trainer that held these tasks.

        Returns:
            The batch at which `FAILURES_ALLOWED` trainers have died; None if there is none.
        """
        for task in tasks:
            self._deaths.setdefault(task, {})
        while len(self._deaths) > TASKS_WATCHED:
            del self._deaths[next(iter(self._deaths))]
        began = self._began.pop(life, None)
        if began is None or (began.lease.epoch, began.lease.task) not in self._deaths:
            return None
        at = self._deaths[began.lease.epoch, began.lease.task].setdefault(began.batch, set())
        at.add(life)
        return began if len(at) >= FAILURES_ALLOWED else None

    def reconnected(self, life: int) -> None:
        """Discard the deaths of a trainer that has registered again: only its connection was lost."""
        for batches in self._deaths.values():
            for dead in batches.values():
                dead.discard(life)

    def removed(self, life: int) -> None:
        """Discard the announced batch of a trainer that has left or died."""
        self._began.pop(life, None)

    def forget(self, task: Task) -> None:
        """Stop watching a task that is done."""
        self._deaths.pop(task, None)
