"""Watermarks of a slot: for every task of every epoch, how many of its batches are part of the slot's parameters.

They are the source of truth of the exactly-once protocol; the copies in the master, the trainers and etcd are caches. A
watermark changes only when the slot applies a batch, is keyed by (epoch, task), and is kept for ever: a finished task is
stored as one bit, a finished epoch as one number (rule 6). Separate counters of applied batches and samples let the final
count be checked independently of the watermarks.
"""

from __future__ import annotations

import msgspec

from shoal.protocol.decoding import UNDECODABLE
from shoal.protocol.epoch_plan import EpochPlan
from shoal.protocol.task_set import TaskSet

__all__ = ["BatchVerdict", "Watermarks"]


class BatchVerdict(msgspec.Struct, frozen=True):
    """Whether a push is to be applied (``new``), and the watermark of its task before it (``batches``)."""

    new: bool
    batches: int


class _Encoded(msgspec.Struct, frozen=True, array_like=True):
    finished: bytes
    partial: list[tuple[int, int, int]]
    batches: int
    samples: int
    skipped: int


_decoder = msgspec.msgpack.Decoder(_Encoded)


class Watermarks:
    """The history of one slot, or of several slots with equal histories.

    Args:
        plan: How an epoch is divided into tasks and batches.
    """

    __slots__ = ("_partial", "_plan", "batches", "finished", "samples", "skipped")

    def __init__(self, plan: EpochPlan) -> None:
        self._plan = plan
        self.finished = TaskSet(plan.tasks)
        self._partial: dict[tuple[int, int], int] = {}
        self.batches = 0
        self.samples = 0
        self.skipped = 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Watermarks):
            return NotImplemented
        return (self.batches, self.samples, self.skipped, self._partial, self.finished) == (
            other.batches,
            other.samples,
            other.skipped,
            other._partial,
            other.finished,
        )

    __hash__ = None  # type: ignore[assignment]  # mutable

    def copy(self) -> Watermarks:
        """Return a deep copy."""
        copied = Watermarks(self._plan)
        copied.finished = self.finished.copy()
        copied._partial = dict(self._partial)
        copied.batches, copied.samples, copied.skipped = self.batches, self.samples, self.skipped
        return copied

    def applied(self, epoch: int, task: int) -> int:
        """Return the number of applied batches of the task."""
        if (epoch, task) in self.finished:
            return self._plan.batches_in(task)
        return self._partial.get((epoch, task), 0)

    @property
    def reached(self) -> tuple[int, int]:
        """The last (epoch, task) of which any batch was applied; (-1, -1) if none was."""
        return max(self.finished.highest, max(self._partial, default=(-1, -1)))

    def holds(self, tasks: TaskSet) -> bool:
        """Return whether all of these tasks were applied, and no batch of any task after the last of them."""
        return self.finished.includes(tasks) and self.reached <= tasks.highest

    def check_push(self, epoch: int, task: int, *, first: int, batches: int) -> BatchVerdict:
        """Return whether a push of ``batches`` batches, starting with batch ``first``, is new here.

        Raises:
            ValueError: There are no such batches.
        """
        if epoch < 0 or not 0 <= task < self._plan.tasks:
            raise ValueError(f"no task {task} in epoch {epoch}: an epoch has {self._plan.tasks}")
        if batches < 1 or first < 0 or first + batches > self._plan.batches_in(task):
            raise ValueError(f"no batches {first}..{first + batches - 1} in task {task} of epoch {epoch}")
        applied = self.applied(epoch, task)
        return BatchVerdict(new=applied == first, batches=applied)

    def advance(self, epoch: int, task: int, *, first: int, batches: int, skipped: bool = False) -> None:
        """Record that a push which ``check_push`` found new was applied to the parameters."""
        samples = sum(self._plan.samples_in(task, k) for k in range(first, first + batches))
        self.batches += batches
        self.samples += samples
        self.skipped += samples if skipped else 0
        if first + batches < self._plan.batches_in(task):
            self._partial[epoch, task] = first + batches
            return
        self._partial.pop((epoch, task), None)
        self.finished.add(epoch, task)

    def encode(self) -> bytes:
        """Encode the history for a snapshot."""
        partial = [(epoch, task, count) for (epoch, task), count in sorted(self._partial.items())]
        return msgspec.msgpack.encode(
            _Encoded(
                finished=self.finished.encode(),
                partial=partial,
                batches=self.batches,
                samples=self.samples,
                skipped=self.skipped,
            )
        )

    @classmethod
    def decode(cls, data: bytes, plan: EpochPlan) -> Watermarks:
        """Decode the result of ``encode``.

        Raises:
            ValueError: The data are not encoded watermarks, or belong to another plan.
        """
        try:
            encoded = _decoder.decode(data)
        except UNDECODABLE as error:
            raise ValueError(f"not watermarks: {error}") from error
        decoded = cls(plan)
        decoded.finished = TaskSet.decode(encoded.finished)
        if decoded.finished.tasks != plan.tasks:
            raise ValueError(f"watermarks of {decoded.finished.tasks} tasks an epoch; this job has {plan.tasks}")
        decoded._partial = {(epoch, task): count for epoch, task, count in encoded.partial}
        decoded.batches, decoded.samples, decoded.skipped = encoded.batches, encoded.samples, encoded.skipped
        return decoded
