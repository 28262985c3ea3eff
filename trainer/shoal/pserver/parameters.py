"""All that a parameter server trains: the dense pieces, table rows and buffers of the slots that it holds.

Which pushes are applied where is the protocol's business; this class is told the slots and does the arithmetic, so that
it can be tested against a plain PyTorch loop, and a loop it must equal: one slot or sixteen, kept or moved or restored
in the middle. It checks a push whole before it touches anything: what raises ``ValueError`` has changed nothing.

It has no lock: the caller sees to it that a state is not read while a push is applied.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shoal.pserver.dense import Dense, DenseViews, Memory, view
from shoal.pserver.tables import Table
from shoal.wire.layout import BufferArea
from shoal.wire.messages import Shape
from shoal.wire.rows import slot_of

__all__ = ["BufferViews", "DenseViews", "Export", "Parameters", "PushedRows"]

PushedRows = tuple[int, Tensor, Tensor]
"""Table index, row numbers int64 [n] (each once), gradient [n, dim]."""

_BUFFERS_SLOT = 0


class BufferViews:
    """The module's buffers as tensors over the memory that holds them.

    Args:
        area: What lies where.
        buffer: Writable memory of at least ``area.size`` bytes.

    Attributes:
        tensors: One flat tensor per buffer, in the shape's order.

    Raises:
        ValueError: The memory is too small or read-only.
    """

    __slots__ = ("tensors",)

    def __init__(self, area: BufferArea, buffer: Memory) -> None:
        self.tensors = [view(buffer, dtype=e.dtype, offset=e.offset, count=e.count) for e in area.entries]


@dataclass(frozen=True, slots=True)
class Export:
    """A slot's values without optimizer state, copied: the dense pieces, and per table (row numbers, values)."""

    dense: list[Tensor]
    tables: list[tuple[Tensor, Tensor]]


class Parameters:
    """The parameters and optimizer state of a server's slots.

    Args:
        shape: What the job trains.
        slots_total: Slots of the job.
        seed: The job's, for the first values of table rows.

    Raises:
        UnsupportedOptimizer: A group's optimizer cannot run here.
        ValueError: A dtype that cannot be moved.
    """

    def __init__(self, shape: Shape, slots_total: int, seed: int) -> None:
        self.shape = shape
        self.slots_total = slots_total
        self._dense = Dense(shape, slots_total)
        self._tables = [
            Table(table, index, group=shape.groups[table.group], slots_total=slots_total, seed=seed)
            for index, table in enumerate(shape.tables)
        ]
        self._buffer_area = BufferArea(shape)
        self._buffers: list[Tensor] | None = None
        self._slots: set[int] = set()

    @property
    def slots(self) -> list[int]:
        """The slots that are held, ascending."""
        return sorted(self._slots)

    def create(self, slot: int) -> bool:
        """Hold the slot from now on: dense zeros, no table row touched, the optimizer at its start.

        Returns:
            Whether it waits for initial values: a slot of table rows alone does not.

        Raises:
            ValueError: The job has no such slot.
        """
        if not 0 <= slot < self.slots_total:
            raise ValueError(f"no slot {slot}: the job has {self.slots_total}")
        self._dense.create(slot)
        for table in self._tables:
            table.create(slot)
        if slot == _BUFFERS_SLOT:
            self._buffers = None
        self._slots.add(slot)
        return self._dense.has_pieces(slot)

    def initialise(self, slot: int, views: DenseViews) -> None:
        """Hold the slot from now on with these initial dense values.

        Raises:
            ValueError: The views do not hold the slot.
        """
        self._dense.check([slot], views)
        self.create(slot)
        self._dense.initialise(slot, views.by_slot[slot])

    def drop(self, slot: int) -> None:
        """Hold the slot no longer; nothing happens if it is not held."""
        if slot not in self._slots:
            return
        self._slots.remove(slot)
        self._dense.drop(slot)
        for table in self._tables:
            table.drop(slot)
        if slot == _BUFFERS_SLOT:
            self._buffers = None

    def apply(
        self,
        slots: Collection[int],
        gradients: DenseViews,
        *,
        absent: Collection[int] = (),
        options: Mapping[int, Mapping[str, Any]] | None = None,
        rows: Sequence[PushedRows] = (),
    ) -> None:
        """Let every optimizer take one step at these slots.

        Args:
            slots: Where the push is new.
            gradients: Of all slots that the trainer attached to; read, never written.
            absent: Dense parameters without a gradient (None in the script): neither value nor state moves.
            options: Per group what differs from the registered options in this step.
            rows: The gradients of tables, for all attached slots; a table that is not among them has none.

        Raises:
            ValueError: The push does not fit; nothing has changed.
        """
        changed = options or {}
        self._check_held(slots)
        self._dense.check(slots, gradients)
        self._dense.check_options(changed)
        seen: set[int] = set()
        for index, ids, gradient in rows:
            table = self._table(index)
            table.check(ids, gradient)
            table.check_options(changed.get(self.shape.tables[index].group, {}))
            if index in seen:
                raise ValueError(f"table {self.shape.tables[index].name} comes twice in one push")
            seen.add(index)
        with torch.no_grad():
            self._dense.apply(slots, gradients, absent=absent, options=changed)
            for index, ids, gradient in rows:
                group = self.shape.tables[index].group
                self._tables[index].apply(slots, ids, gradient, changed=changed.get(group, {}))

    def read(self, views: DenseViews) -> None:
        """Copy the dense values of the views' slots into them; a slot that is not held here stays as it is there."""
        self._dense.read(views)

    def rows(self, index: int, ids: Tensor) -> Tensor:
        """The values [n, dim] of rows of a table; an untouched one has its first values, and stays untouched.

        Raises:
            ValueError: There is no such table or row, or a row is in a slot that is not held here.
        """
        table = self._table(index)
        values = table.rows(ids)
        self._check_held(torch.unique(slot_of(ids, self.slots_total)).tolist())
        return values

    def state(self, slot: int) -> dict[str, Tensor]:
        """Copies of everything of a slot, by readable names: values, optimizer state, table rows, buffers.

        Raises:
            ValueError: The slot is not held.
        """
        self._check_held([slot])
        tensors = self._dense.state(slot)
        for table in self._tables:
            tensors |= table.state(slot)
        if slot == _BUFFERS_SLOT and self._buffers is not None:
            for entry, held in zip(self._buffer_area.entries, self._buffers, strict=True):
                tensors[f"buffers/{entry.name}"] = held.clone().reshape(entry.shape)
        return tensors

    def load(self, slot: int, tensors: Mapping[str, Tensor]) -> None:
        """Hold the slot from now on as ``state`` gave it.

        Raises:
            ValueError: Something is missing or does not fit; the slot is then not held.
        """
        self.create(slot)
        try:
            self._dense.load(slot, tensors)
            for table in self._tables:
                table.load(slot, tensors)
            if slot == _BUFFERS_SLOT:
                self._load_buffers(tensors)
        except BaseException:
            self.drop(slot)
            raise

    def export(self, slot: int) -> Export:
        """Copies of a slot's values, without optimizer state.

        Raises:
            ValueError: The slot is not held.
        """
        self._check_held([slot])
        return Export(self._dense.export(slot), [table.export(slot) for table in self._tables])

    def merge_buffers(self, views: BufferViews, trainers: int) -> None:
        """Merge a trainer's buffers into the job's, and write what they are now into the views.

        Floating-point ones move by 1/trainers of the difference, so that every trainer has its share in them; of the
        others, such as counters, the last writer's stand. The first to come sets them all.

        Args:
            views: The trainer's buffers.
            trainers: How many trainers there are; 0: only read (the views stay as they are if nobody wrote yet).

        Raises:
            ValueError: Slot 0, to which the buffers belong, is not held.
        """
        self._check_held([_BUFFERS_SLOT])
        if trainers > 0:
            self._merge(views, trainers)
        for seen, held in zip(views.tensors, self._buffers or [], strict=self._buffers is not None):
            seen.copy_(held)

    def _merge(self, views: BufferViews, trainers: int) -> None:
        if self._buffers is None:
            self._buffers = [seen.clone() for seen in views.tensors]
            return
        for seen, held in zip(views.tensors, self._buffers, strict=True):
            if trainers > 1 and (held.is_floating_point() or held.is_complex()):
                held.add_((seen - held) / trainers)
            else:
                held.copy_(seen)

    def _load_buffers(self, tensors: Mapping[str, Tensor]) -> None:
        if not any(name.startswith("buffers/") for name in tensors):
            return
        loaded: list[Tensor] = []
        for entry in self._buffer_area.entries:
            stored = tensors.get(f"buffers/{entry.name}")
            if stored is None or stored.numel() != entry.count or stored.dtype != getattr(torch, entry.dtype):
                raise ValueError(f"slot {_BUFFERS_SLOT} has no buffers/{entry.name} {entry.shape} of {entry.dtype}")
            loaded.append(stored.reshape(-1).clone())
        self._buffers = loaded

    def _check_held(self, slots: Collection[int]) -> None:
        missing = sorted(set(slots) - self._slots)
        if missing:
            raise ValueError(f"the slots {missing} are not held here; held are {self.slots}")

    def _table(self, index: int) -> Table:
        if not 0 <= index < len(self._tables):
            raise ValueError(f"no table {index}: the job has {len(self._tables)}")
        return self._tables[index]
