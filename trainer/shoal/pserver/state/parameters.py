"""All that a parameter server holds: the dense pieces, table rows, buffers and fixed tensors of its slots.

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

from shoal.protocol.messages import ModelSpec
from shoal.protocol.slot_layout import WHOLE_SLOT
from shoal.pserver.state.buffers import WholeTensors
from shoal.pserver.state.dense import Dense
from shoal.pserver.state.sparse_rows import Table
from shoal.tensors.table_rows import given_tables, slot_of
from shoal.tensors.views import DenseViews, TensorViews

__all__ = ["DenseViews", "Parameters", "TableExport", "TableRows"]

TableRows = tuple[int, Tensor, Tensor]
"""Table index, row numbers int64 [n] (each once), gradients or values [n, dim]."""


@dataclass(frozen=True, slots=True)
class TableExport:
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
        ValueError: A dtype that cannot be moved, or a buffer's merge that does not exist.

    Attributes:
        given: The indices of the tables whose rows the first trainer gives.
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
        """The slots that are held, ascending."""
        return sorted(self._slots)

    def create(self, slot: int) -> bool:
        """Hold the slot from now on: dense zeros, no table row, the optimizer at its start.

        Returns:
            Whether it waits for initial values. Where the first trainer gives anything at all, every slot waits, also
            one without elements, so that the first snapshot has all slots. The slots of a job whose rows are all drawn
            do not wait.

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
        """How many rows of a given table are in a slot."""
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
        """Hold the slot from now on with these initial values.

        Args:
            slot: Which.
            views: Its dense values, and perhaps other slots'.
            rows: Every row of the slot of each given table.
            buffers: For slot 0: the buffers, flat.
            fixed: For slot 0: the fixed tensors, flat.

        Raises:
            ValueError: They are not the slot's values, or not all of them; nothing has changed.
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
        """Hold the slot no longer; nothing happens if it is not held."""
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
        """Let every optimizer take one step at these slots; constrain and average the dense values then.

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

    def read(self, views: DenseViews, *, average: bool = False) -> None:
        """Copy the dense values of the views' slots into them; a slot that is not held here stays as it is there.

        Args:
            views: The memory to write into.
            average: Copy the moving averages instead; of a slot without an applied step, the values.

        Raises:
            ValueError: The job keeps no moving averages.
        """
        self._dense.read(views, average=average)

    def rows(self, index: int, ids: Tensor) -> Tensor:
        """The values [n, dim] of rows of a table; an untouched one has its first values, and stays untouched.

        Raises:
            ValueError: There is no such table or row, or a row is in a slot that is not held here.
        """
        table = self._table(index)
        table.check_ids(ids)
        self._check_held(torch.unique(slot_of(ids, self.slots_total)).tolist())
        return table.rows(ids)

    def state(self, slot: int) -> dict[str, Tensor]:
        """Copies of everything of a slot, by readable names: values, optimizer state, table rows, whole tensors.

        Raises:
            ValueError: The slot is not held.
        """
        self._check_held([slot])
        tensors = self._dense.state(slot)
        for table in self._tables:
            tensors |= table.state(slot)
        return tensors | self._whole.state() if slot == WHOLE_SLOT else tensors

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
            if slot == WHOLE_SLOT:
                self._whole.load(tensors)
        except BaseException:
            self.drop(slot)
            raise

    def export(self, slot: int) -> TableExport:
        """Copies of a slot's values, without optimizer state.

        Raises:
            ValueError: The slot is not held.
        """
        self._check_held([slot])
        return TableExport(self._dense.export(slot), [table.export(slot) for table in self._tables])

    def merge_buffers(self, views: TensorViews, trainers: int) -> None:
        """Merge a trainer's buffers into the job's, and write what they are now into the views.

        Those with merge ``mean`` move by 1/trainers of the difference, so that every trainer has its share in them; to
        those with ``sum`` the view's increase is added; of the others the last writer's stand.

        Args:
            views: The trainer's buffers; of those with ``sum`` the increase since it last took the job's.
            trainers: How many trainers there are; 0: nothing is merged.

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
