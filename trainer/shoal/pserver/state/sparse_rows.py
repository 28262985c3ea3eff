"""The rows of a sparse table: all rows of a given table, otherwise only the rows that were pushed.

The rows of all slots of a server are stored contiguously in tensors that grow: values, optimizer state, and the slot of each
row. An index with one entry per row of the table, 4 bytes each, has the place of each row. Its cost is small: the
``nn.Embedding`` in every trainer takes ``dim`` times as much, and the operating system allocates only those pages of the
index that are written.

A push gathers its rows into a small dense parameter, takes a step of torch's own optimizer on it, and scatters the result:
the update is bit-identical to torch's, and its cost is proportional to the pushed rows. The step, which torch counts per
parameter, is counted here per slot; it increases with every applied push that has a gradient for the table, even if no row
of the slot is in it, as in a plain loop.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoal.protocol.messages import Group, SparseTable
from shoal.tensors.optimizers import build, check_changed, from_json, row_state
from shoal.tensors.table_rows import GIVEN, first_values, slot_of, slots_of_table

__all__ = ["Table"]

_FIRST_CAPACITY = 1024


class Table:
    """The rows of one table, for the slots that a server holds.

    Args:
        table: Description of the table.
        index: Its index in the model spec.
        group: Its optimizer and options.
        slots_total: Number of slots of the job.
        seed: Seed of the job, for initial values.

    Raises:
        UnsupportedOptimizer: The group's optimizer cannot train a sparse table.
    """

    def __init__(self, table: SparseTable, index: int, *, group: Group, slots_total: int, seed: int) -> None:
        self._table = table
        self._index = index
        self._slots_total = slots_total
        self._seed = seed
        self._dtype: torch.dtype = getattr(torch, table.dtype)
        placeholder = torch.zeros(1, dtype=self._dtype)
        self._optimizer = build(group.optimizer, [placeholder], group.options)
        self._optimizer.state.clear()
        self._name = group.optimizer
        self._options = {k: v for k, v in self._optimizer.param_groups[0].items() if k != "params"}
        self._first_state = row_state(group.optimizer, group.options)
        # Number of rows of each slot; of a given table only.
        self._shares: list[int] = []
        if table.family == GIVEN:
            self._shares = torch.bincount(slots_of_table(table.rows, slots_total), minlength=slots_total).tolist()
        # Place + 1 of each row; 0: not held. The operating system allocates the pages of numpy's zeros on the first write.
        self._places = torch.from_numpy(np.zeros(table.rows, dtype=np.int32))
        self._count = 0
        self._ids = torch.empty(0, dtype=torch.int64)
        self._slots = torch.empty(0, dtype=torch.int32)
        self._values = torch.empty((0, table.dim), dtype=self._dtype)
        self._state = {key: torch.empty((0, table.dim), dtype=self._dtype) for key in self._first_state}
        self._steps: dict[int, int] = {}

    def __len__(self) -> int:
        return self._count

    def create(self, slot: int) -> None:
        """Allocate the slot without any rows."""
        if slot in self._steps:
            self.drop(slot)
        self._steps[slot] = 0

    def rows_in(self, slot: int) -> int:
        """Return the number of rows in a slot; of a given table only."""
        return self._shares[slot]

    def check_all(self, slot: int, ids: Tensor, values: Tensor) -> None:
        """Check that these are the values of every row of a slot of a given table.

        Raises:
            ValueError: A row is missing, appears twice or belongs to another slot, or a size or dtype differs.
        """
        self._check_slot(slot, ids, [values])
        self._check_share(slot, ids)

    def initialise(self, slot: int, ids: Tensor, values: Tensor) -> None:
        """Allocate the slot with these rows and the initial optimizer state.

        Args:
            slot: The slot.
            ids: Row numbers of the slot, int64 [n], distinct.
            values: Values, [n, dim], of the table's dtype.
        """
        self.create(slot)
        places = self._append(ids, torch.full_like(ids, slot))
        self._values[places] = values

    def drop(self, slot: int) -> None:
        """Free the slot's rows and compact the remaining ones."""
        del self._steps[slot]
        here = self._slots[: self._count] == slot
        if not bool(here.any()):
            return
        self._places[self._ids[: self._count][here]] = 0
        stay = (~here).nonzero().squeeze(1)
        self._ids, self._slots, self._values = self._ids[stay], self._slots[stay], self._values[stay]
        self._state = {key: part[stay] for key, part in self._state.items()}
        self._count = len(stay)
        self._places[self._ids] = torch.arange(1, self._count + 1, dtype=torch.int32)

    def check_ids(self, ids: Tensor) -> None:
        """Check that these are row numbers of the table.

        Raises:
            ValueError: They are not int64 [n], or the table has no such row.
        """
        if ids.dtype != torch.int64 or ids.dim() != 1:
            raise ValueError(f"table {self._table.name}: row numbers must be int64 [n], not {ids.dtype} {ids.shape}")
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self._table.rows:
            raise ValueError(
                f"table {self._table.name} has the rows 0..{self._table.rows - 1}; asked for {int(ids.min())}.."
                f"{int(ids.max())}"
            )

    def check(self, ids: Tensor, gradient: Tensor) -> None:
        """Check that a gradient can be applied.

        Raises:
            ValueError: The table does not have the rows, or the size or dtype differs.
        """
        self.check_ids(ids)
        if gradient.shape != (len(ids), self._table.dim) or gradient.dtype != self._dtype:
            raise ValueError(
                f"table {self._table.name}: {list(gradient.shape)} of {gradient.dtype} for {len(ids)} rows of "
                f"{self._table.dim} x {self._dtype}"
            )

    def check_options(self, changed: Mapping[str, Any]) -> None:
        """Check the options of a push for the table's group.

        Raises:
            ValueError: The optimizer does not have the option or accept the value.
        """
        check_changed(self._name, self._options, changed)

    def apply(self, slots: Collection[int], ids: Tensor, gradient: Tensor, *, changed: Mapping[str, Any]) -> None:
        """Take one optimizer step at these slots.

        Args:
            slots: The slots; rows of other slots are ignored.
            ids: Row numbers, int64 [n], distinct.
            gradient: Gradients, [n, dim], of the table's dtype.
            changed: The options that differ from the group's registered ones in this step.
        """
        if not slots:
            return
        group = self._optimizer.param_groups[0]
        group.update(self._options)
        group.update(from_json(changed))
        owners = slot_of(ids, self._slots_total)
        levels: dict[int, list[int]] = {}
        for slot in slots:
            levels.setdefault(self._steps[slot], []).append(slot)
        for step, level in levels.items():
            chosen = torch.zeros(self._slots_total, dtype=torch.bool)
            chosen[level] = True
            here = chosen[owners].nonzero().squeeze(1)
            if len(here):
                self._step(step, self._touch(ids[here], owners[here]), gradient[here])
            for slot in level:
                self._steps[slot] = step + 1

    def rows(self, ids: Tensor) -> Tensor:
        """Return the values of these rows, [n, dim]; a row that is not held has its initial values and is not stored.

        Raises:
            ValueError: There is no such row, or the table is given and a row is not held here.
        """
        self.check_ids(ids)
        places = self._places[ids].long() - 1
        unknown = (places < 0).nonzero().squeeze(1)
        if not len(unknown):
            return self._values[places]
        found = torch.empty((len(ids), self._table.dim), dtype=self._dtype)
        known = (places >= 0).nonzero().squeeze(1)
        found[known] = self._values[places[known]]
        found[unknown] = first_values(self._table, self._index, self._seed, ids[unknown])
        return found

    def export(self, slot: int) -> tuple[Tensor, Tensor]:
        """Return copies of the slot's held rows: their numbers [n], ascending, and values [n, dim]."""
        places = self._places_of(slot)
        return self._ids[places], self._values[places]

    def state(self, slot: int) -> dict[str, Tensor]:
        """Return copies of the slot's state: ``rows/TABLE/ids``, ``/values``, ``/step`` and ``/state/KEY``."""
        prefix = f"rows/{self._table.name}"
        places = self._places_of(slot)
        return {
            f"{prefix}/ids": self._ids[places],
            f"{prefix}/values": self._values[places],
            f"{prefix}/step": torch.tensor(self._steps[slot], dtype=torch.int64),
            **{f"{prefix}/state/{key}": part[places] for key, part in self._state.items()},
        }

    def load(self, slot: int, tensors: Mapping[str, Tensor]) -> None:
        """Install tensors that ``state`` returned.

        Raises:
            ValueError: A tensor is missing, has another size or dtype, or does not belong to the slot.
        """
        prefix = f"rows/{self._table.name}"
        needed = ["ids", "values", "step", *(f"state/{key}" for key in self._state)]
        missing = [f"{prefix}/{name}" for name in needed if f"{prefix}/{name}" not in tensors]
        if missing:
            raise ValueError(f"slot {slot} lacks {', '.join(missing)}")
        ids, values = tensors[f"{prefix}/ids"], tensors[f"{prefix}/values"]
        stored = {key: tensors[f"{prefix}/state/{key}"] for key in self._state}
        self._check_slot(slot, ids, [values, *stored.values()])
        self._check_share(slot, ids)
        self.create(slot)
        self._steps[slot] = int(tensors[f"{prefix}/step"])
        places = self._append(ids, torch.full_like(ids, slot))
        self._values[places] = values
        for key, part in stored.items():
            self._state[key][places] = part

    def _step(self, step: int, places: Tensor, gradient: Tensor) -> None:
        """Take torch's own optimizer step on the rows at these places, all of which have taken ``step`` steps before."""
        values = self._values[places]
        state: dict[str, Any] = {key: part[places] for key, part in self._state.items()}
        if self._name == "Adagrad":
            state["step"] = torch.tensor(float(step))
        elif self._name == "SparseAdam":
            state["step"] = step
            compact = torch.arange(len(places), dtype=torch.int64).unsqueeze(0)
            gradient = torch.sparse_coo_tensor(
                compact, gradient, values.shape, is_coalesced=True, check_invariants=False
            )
        values.grad = gradient
        self._optimizer.param_groups[0]["params"] = [values]
        self._optimizer.state[values] = state
        try:
            self._optimizer.step()
        finally:
            self._optimizer.state.clear()
            self._optimizer.param_groups[0]["params"] = []
        self._values[places] = values.detach()
        for key, part in self._state.items():
            part[places] = state[key]

    def _touch(self, ids: Tensor, owners: Tensor) -> Tensor:
        """Return the places of these rows; rows that are not held are added with their initial values."""
        places = self._places[ids].long() - 1
        new = (places < 0).nonzero().squeeze(1)
        if len(new):
            added = self._append(ids[new], owners[new])
            self._values[added] = first_values(self._table, self._index, self._seed, ids[new])
            places[new] = added
        return places

    def _append(self, ids: Tensor, owners: Tensor) -> Tensor:
        """Add rows and return their places; the caller must set their values."""
        start, end = self._count, self._count + len(ids)
        if end > len(self._ids):
            self._grow(max(end, 2 * len(self._ids), _FIRST_CAPACITY))
        places = torch.arange(start, end, dtype=torch.int64)
        self._ids[start:end] = ids
        self._slots[start:end] = owners.to(torch.int32)
        for key, first in self._first_state.items():
            self._state[key][start:end] = first
        self._places[ids] = (places + 1).to(torch.int32)
        self._count = end
        return places

    def _grow(self, capacity: int) -> None:
        def larger(part: Tensor) -> Tensor:
            grown = torch.empty((capacity, *part.shape[1:]), dtype=part.dtype)
            grown[: self._count] = part[: self._count]
            return grown

        self._ids, self._slots, self._values = larger(self._ids), larger(self._slots), larger(self._values)
        self._state = {key: larger(part) for key, part in self._state.items()}

    def _places_of(self, slot: int) -> Tensor:
        places = (self._slots[: self._count] == slot).nonzero().squeeze(1)
        return places[torch.argsort(self._ids[places])]

    def _check_slot(self, slot: int, ids: Tensor, parts: Sequence[Tensor]) -> None:
        """Check that the parts belong to rows of this slot, and that the rows are distinct."""
        for part in parts:
            self.check(ids, part)
        if len(torch.unique(ids)) != len(ids):
            raise ValueError(f"table {self._table.name}: a row of slot {slot} comes twice")
        if bool((slot_of(ids, self._slots_total) != slot).any()):
            raise ValueError(f"table {self._table.name}: rows of other slots than {slot}")

    def _check_share(self, slot: int, ids: Tensor) -> None:
        """Check that all rows of the slot are there; of a given table only."""
        if self._shares and len(ids) != self._shares[slot]:
            raise ValueError(
                f"table {self._table.name}: {len(ids)} rows of slot {slot}, which has {self._shares[slot]}"
            )
