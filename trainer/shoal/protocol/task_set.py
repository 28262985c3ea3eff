"""A compact set of finished tasks, over all epochs of a job.

The finished epochs are one number, a finished task of an unfinished epoch is one bit. Parameter servers keep such a set
of the tasks that their slots have applied; the master keeps the sets that they report.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from shoal.protocol.decoding import UNDECODABLE

__all__ = ["TaskSet"]


class _Encoded(msgspec.Struct, frozen=True, array_like=True):
    tasks: int
    whole: int
    bits: dict[int, bytes]


_decoder = msgspec.msgpack.Decoder(_Encoded)


class TaskSet:
    """A set of (epoch, task) for epochs of ``tasks`` tasks each."""

    __slots__ = ("_bits", "_whole", "tasks")

    def __init__(self, tasks: int) -> None:
        self.tasks = tasks
        self._whole = 0
        self._bits: dict[int, int] = {}

    def __repr__(self) -> str:
        parts = {epoch: bits.bit_count() for epoch, bits in sorted(self._bits.items())}
        return f"TaskSet(epochs below {self._whole}, and {parts} of {self.tasks})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TaskSet):
            return NotImplemented
        return self.tasks == other.tasks and self._whole == other._whole and self._bits == other._bits

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __contains__(self, task: tuple[int, int]) -> bool:
        epoch, number = task
        return epoch < self._whole or bool(self._bits.get(epoch, 0) >> number & 1)

    def copy(self) -> TaskSet:
        """Return a copy that shares no state."""
        copied = TaskSet(self.tasks)
        copied._whole, copied._bits = self._whole, dict(self._bits)
        return copied

    def add(self, epoch: int, task: int) -> None:
        """Add a finished task; adding it again has no effect.

        Raises:
            ValueError: There is no such task.
        """
        if not 0 <= task < self.tasks or epoch < 0:
            raise ValueError(f"no task {task} in epoch {epoch}: an epoch has {self.tasks}")
        if epoch < self._whole:
            return
        self._bits[epoch] = self._bits.get(epoch, 0) | 1 << task
        while self._bits.get(self._whole) == (1 << self.tasks) - 1:
            del self._bits[self._whole]
            self._whole += 1

    def count(self, epoch: int) -> int:
        """Return the number of the epoch's tasks in the set."""
        return self.tasks if epoch < self._whole else self._bits.get(epoch, 0).bit_count()

    def includes(self, other: TaskSet) -> bool:
        """Return whether this set has every task of another set with equally many tasks per epoch."""
        whole = all(self.count(epoch) == self.tasks for epoch in range(self._whole, other._whole))
        return whole and all(
            epoch < self._whole or not bits & ~self._bits.get(epoch, 0) for epoch, bits in other._bits.items()
        )

    @property
    def highest(self) -> tuple[int, int]:
        """The last task in the set, by epoch and number; (-1, -1) if the set is empty."""
        epoch = max(self._bits, default=-1)
        if epoch >= 0:
            return epoch, self._bits[epoch].bit_length() - 1
        return (self._whole - 1, self.tasks - 1) if self._whole else (-1, -1)

    @classmethod
    def through(cls, tasks: int, last: tuple[int, int]) -> TaskSet:
        """Return the set of all tasks up to and including ``last``, for epochs of ``tasks`` tasks; empty for (-1, -1)."""
        made = cls(tasks)
        epoch, number = last
        made._whole = epoch + 1 if number + 1 == tasks else max(epoch, 0)
        if 0 <= number < tasks - 1:
            made._bits[epoch] = (1 << number + 1) - 1
        return made

    def missing(self, epoch: int) -> Iterator[int]:
        """Yield the epoch's tasks that are not in the set, in order."""
        if epoch < self._whole:
            return
        lacking = ((1 << self.tasks) - 1) & ~self._bits.get(epoch, 0)
        # By bytes: removing bits from one large integer copies it each time, which takes minutes for a million tasks.
        for place, byte in enumerate(lacking.to_bytes((self.tasks + 7) // 8, "little")):
            if byte:
                yield from (8 * place + bit for bit in range(8) if byte >> bit & 1)

    def encode(self) -> bytes:
        """Return the set as bytes, for reports and snapshots."""
        size = (self.tasks + 7) // 8
        bits = {epoch: value.to_bytes(size, "little") for epoch, value in sorted(self._bits.items())}
        return msgspec.msgpack.encode(_Encoded(tasks=self.tasks, whole=self._whole, bits=bits))

    @classmethod
    def decode(cls, data: bytes) -> TaskSet:
        """Return the set that ``encode`` has encoded.

        Raises:
            ValueError: The bytes are not a valid set of tasks.
        """
        try:
            encoded = _decoder.decode(data)
        except UNDECODABLE as error:
            raise ValueError(f"not a set of tasks: {error}") from error
        decoded = cls(encoded.tasks)
        decoded._whole = encoded.whole
        decoded._bits = {epoch: int.from_bytes(bits, "little") for epoch, bits in encoded.bits.items()}
        if any(value >> encoded.tasks for value in decoded._bits.values()):
            raise ValueError("not a set of tasks: more bits than tasks")
        return decoded
