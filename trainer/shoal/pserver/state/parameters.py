"""All tensors of a parameter server: the dense pieces, table rows, buffers and fixed tensors of its slots.

The protocol state decides which pushes are applied at which slots; ``Parameters`` only does the arithmetic. Tests compare it
with a plain PyTorch loop, whose results it must equal with one slot or sixteen, kept, moved or restored halfway. A push is
checked completely before anything is modified: after a ``ValueError`` nothing has changed.

There is no lock: the caller must not read a state while a push is applied.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shoal.protocol.messages import ModelSpec
from shoal.protocol.slot_layout import WHOLE_SLOT
from shoal.pserver.state.buffers import WholeTensors
from shoal.pserver.state.dense import Dense
from shoal.pserver.state.sparse_rows import Table
from shoal.tensors.table_rows import given_tables, slot_of
from shoal.tensors.views import DenseViews, TensorViews

__all__ = ["DenseViews", "Parameters", "TableExport", "TableRows"]

TableRows = tuple[int, Tensor, Tensor]
"""Table index, row numbers int64 [n] (distinct), gradients or values [n, dim]."""


@dataclass(frozen=True, slots=True)
class TableExport:
    """Copies of a slot's values without optimizer state: the dense pieces, and per table (row numbers, values)."""

    dense: list[Tensor]
    tables: list[tuple[Tensor, Tensor]]


class Parameters:
    """The parameters and optimizer state of a server's slots.

    Args:
        shape: The model spec of the job.
        slots_total: Number of slots of the job.
        seed: Seed of the job, for the initial values of table rows.

    Raises:
        UnsupportedOptimizer: The optimizer of a group is not supported on parameter servers.
        ValueError: A dtype is not supported, or a buffer's merge does not exist.

    Attributes:
        given: Indices of the given tables, whose initial rows the first trainer supplies.
    """

    def __init__(self, shape: ModelSpec, slots_total: int, seed: int) -> None:
        self.shape = shape
        self.slots_total = slots_total
        self._dense = Dense(shape, slots_total)
        self._tables = [
            Table(table, index, group=shape.groups[table.group], slots_total=slots_total, seed=seed)
            for index, table in enumerate(shape.tables)
        ]
        self.given = given_tables(shape)
        self._whole = WholeTensors(shape)
        self._slots: set[int] = set()

    @property
    def slots(self) -> list[int]:
        """The slots that are held here, ascending."""
        return sorted(self._slots)

    def create(self, slot: int) -> bool:
        """Allocate the slot: dense zeros, no table rows, initial optimizer state.

        Returns:
            Whether it waits for initial values. If the first trainer supplies any values, every slot waits, including
            slots without elements, so that the first snapshot has all slots. If all rows of the job are drawn, no slot
            waits.

        Raises:
            ValueError: The job has no such slot.
        """
        if not 0 <= slot < self.slots_total:
            raise ValueError(f"no slot {slot}: the job has {self.slots_total}")
        self._dense.create(slot)
        for table in self._tables:
            table.create(slot)
        if slot == WHOLE_SLOT:
            self._whole.clear()
        self._slots.add(slot)
        return bool(self.shape.dense or self.given or self._whole)

    def rows_in(self, index: int, slot: int) -> int:
        """Return the number of rows of a given table in a slot."""
        return self._tables[index].rows_in(slot)

    def initialise(
        self,
        slot: int,
        views: DenseViews,
        *,
        rows: Sequence[TableRows] = (),
        buffers: Sequence[Tensor] = (),
        fixed: Sequence[Tensor] = (),
    ) -> None:
        """Allocate the slot with these initial values.

        Args:
            slot: The slot.
            views: Its dense values; may contain other slots, too.
            rows: Every row of the slot, for each given table.
            buffers: The buffers, flat; for slot 0 only.
            fixed: The fixed tensors, flat; for slot 0 only.

        Raises:
            ValueError: They are not exactly the slot's values; nothing has changed.
        """
        self._dense.check([slot], views)
        if [index for index, _, _ in rows] != self.given:
            raise ValueError(f"initial rows of the tables {[index for index, _, _ in rows]} instead of {self.given}")
        for index, ids, values in rows:
            self._tables[index].check_all(slot, ids, values)
        if slot == WHOLE_SLOT:
            self._whole.check(buffers, fixed)
        self.create(slot)
        self._dense.initialise(slot, views.by_slot[slot])
        for index, ids, values in rows:
            self._tables[index].initialise(slot, ids, values)
        if slot == WHOLE_SLOT:
            self._whole.initialise(buffers, fixed)

    def drop(self, slot: int) -> None:
        """Free the slot; no effect if it is not held."""
        if slot not in self._slots:
            return
        self._slots.remove(slot)
        self._dense.drop(slot)
        for table in self._tables:
            table.drop(slot)
        if slot == WHOLE_SLOT:
            self._whole.clear()

    def apply(
        self,
        slots: Collection[int],
        gradients: DenseViews,
        *,
        absent: Collection[int] = (),
        options: Mapping[int, Mapping[str, Any]] | None = None,
        rows: Sequence[TableRows] = (),
    ) -> None:
        """Take one step of every optimizer at these slots, then constrain and average the dense values.

        Args:
            slots: The slots at which the push is new.
            gradients: Gradients of all slots that the trainer attached to; read, never written.
            absent: Dense parameters without a gradient (None in the script): neither value nor state changes.
            options: By group, the options that differ from the registered ones in this step. Default: none.
            rows: The gradients of tables, for all attached slots; a table that is not listed has no gradient.

        Raises:
            ValueError: The push does not match the job; nothing has changed.
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

    def read(self, views: DenseViews, *, average: bool = False) -> None:
        """Copy the dense values of the views' slots into the views; slots that are not held here are not written.

        Args:
            views: The memory to write into.
            average: Copy the moving averages instead; for a slot without an applied step, the values. Default: False.

        Raises:
            ValueError: The job keeps no moving averages.
        """
        self._dense.read(views, average=average)

    def rows(self, index: int, ids: Tensor) -> Tensor:
        """Return the values [n, dim] of rows of a table; a row never pushed has its initial values and is not stored.

        Raises:
            ValueError: There is no such table or row, or a row is in a slot that is not held here.
        """
        table = self._table(index)
        table.check_ids(ids)
        self._check_held(torch.unique(slot_of(ids, self.slots_total)).tolist())
        return table.rows(ids)

    def state(self, slot: int) -> dict[str, Tensor]:
        """Return copies of a slot's state by name: values, optimizer state, table rows, buffers and fixed tensors.

        Raises:
            ValueError: The slot is not held.
        """
        self._check_held([slot])
        tensors = self._dense.state(slot)
        for table in self._tables:
            tensors |= table.state(slot)
        return tensors | self._whole.state() if slot == WHOLE_SLOT else tensors

    def load(self, slot: int, tensors: Mapping[str, Tensor]) -> None:
        """Allocate the slot with tensors that ``state`` returned.

        Raises:
            ValueError: A tensor is missing, or has another size or dtype; the slot is then not held.
        """
        self.create(slot)
        try:
            self._dense.load(slot, tensors)
            for table in self._tables:
                table.load(slot, tensors)
            if slot == WHOLE_SLOT:
                self._whole.load(tensors)
        except BaseException:
            self.drop(slot)
            raise

    def export(self, slot: int) -> TableExport:
        """Return copies of a slot's values, without optimizer state.

        Raises:
            ValueError: The slot is not held.
        """
        self._check_held([slot])
        return TableExport(self._dense.export(slot), [table.export(slot) for table in self._tables])

    def merge_buffers(self, views: TensorViews, trainers: int) -> None:
        """Merge a trainer's buffers into the job's, and copy the result into the views.

        A buffer with merge ``mean`` changes by 1/trainers of the difference, so that all trainers contribute equally; to a
        buffer with ``sum`` the increase in the view is added; any other buffer is overwritten.

        Args:
            views: The trainer's buffers; for ``sum`` the increase since it last received the job's.
            trainers: Number of trainers of the job; 0: nothing is merged.

        Raises:
            ValueError: Slot 0, to which the buffers belong, is not held or waits for its initial values.
        """
        self._check_held([WHOLE_SLOT])
        self._whole.merge(views, trainers)

    def read_fixed(self, views: TensorViews) -> None:
        """Copy the fixed tensors into the views.

        Raises:
            ValueError: Slot 0, to which they belong, is not held or waits for its initial values.
        """
        self._check_held([WHOLE_SLOT])
        self._whole.read_fixed(views)

    def _check_held(self, slots: Collection[int]) -> None:
        missing = sorted(set(slots) - self._slots)
        if missing:
            raise ValueError(f"the slots {missing} are not held here; held are {self.slots}")

    def _table(self, index: int) -> Table:
        if not 0 <= index < len(self._tables):
            raise ValueError(f"no table {index}: the job has {len(self._tables)}")
        return self._tables[index]
