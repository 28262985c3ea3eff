"""Finds the batch that trainers do not survive: a sample that ends its process must not loop for ever.

A script that raises can say what it worked on. One that is killed (out of memory, a crash in a library) cannot: so a task
that was held by a trainer that died is *watched*, and who gets it next announces each of its batches. Deaths are counted
by the batch that was announced last.
"""

from __future__ import annotations

from typing import Final

from shoal.protocol.messages import BatchBegan

__all__ = ["FAILURES_ALLOWED", "DeadlyBatches"]

FAILURES_ALLOWED: Final = 3
"""How often the script may fail on one task, or its process die at one batch, before the job fails."""
SAMPLES_NAMED: Final = 20
TASKS_WATCHED: Final = 10_000

Task = tuple[int, int]


class DeadlyBatches:
    """Who died while working on what."""

    def __init__(self) -> None:
        self._deaths: dict[Task, dict[int, set[int]]] = {}
        """By watched task and batch: the lives that ended there."""
        self._began: dict[int, BatchBegan] = {}
        """By life: the batch announced last."""

    def watches(self, task: Task) -> bool:
        """Whether the batches of a task are to be announced."""
        return task in self._deaths

    def began(self, life: int, message: BatchBegan) -> None:
        """A trainer works on a batch."""
        self._began[life] = BatchBegan(message.lease, message.batch, message.samples[:SAMPLES_NAMED])

    def died(self, life: int, tasks: list[Task]) -> BatchBegan | None:
        """A trainer that held these tasks died.

        Returns:
            The batch at which too many did; None: go on.
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

    def lives(self, life: int) -> None:
        """A trainer is here: where it was taken for dead, it was only cut off."""
        for batches in self._deaths.values():
            for dead in batches.values():
                dead.discard(life)

    def gone(self, life: int) -> None:
        """A trainer works on nothing any more."""
        self._began.pop(life, None)

    def forget(self, task: Task) -> None:
        """A task is done: nothing in it is deadly."""
        self._deaths.pop(task, None)
