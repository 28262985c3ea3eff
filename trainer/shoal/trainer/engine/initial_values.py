"""The initial values that the first trainer sends to the servers: dense values, table rows, buffers and fixed tensors.

The values of a slot are sent in one message, and several slots share a message up to ``PROVIDED_BYTES``, so that neither end
needs more memory than that in addition to its own copy, unless a single slot is larger.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from shoal.protocol.messages import ModelSpec, RowPart
from shoal.protocol.slot_layout import WHOLE_SLOT, Area, TensorArea
from shoal.tensors.table_rows import given_tables, slots_of_table
from shoal.tensors.views import DenseViews, bytes_of
from shoal.trainer.engine.areas import packed, write_pieces

__all__ = ["PROVIDED_BYTES", "Initial"]

PROVIDED_BYTES = 256 * 2**20
"""Maximum size of a message of initial values. Bytes. A single slot may be larger."""


@dataclass
class Initial:
    """The initial values of the job.

    Args:
        shape: The model spec of the job.
        slots: Number of slots of the job.
        dense: One flat tensor per dense parameter, on the CPU.
        tables: One weight [rows, dim] per table, on any device; only those of given tables are read.
        buffers: The module's buffers, on any device.
        fixed: The fixed tensors, on any device.
    """

    shape: ModelSpec
    slots: int
    dense: Sequence[Tensor]
    tables: Sequence[Tensor]
    buffers: Sequence[Tensor]
    fixed: Sequence[Tensor]
    _places: dict[int, Tensor] = field(init=False)
    """Given table -> the slot of each of its rows."""

    def __post_init__(self) -> None:
        self._places = {
            table: slots_of_table(self.shape.tables[table].rows, self.slots) for table in given_tables(self.shape)
        }

    def portions(self, slots: Sequence[int]) -> Iterator[list[int]]:
        """Divide a server's slots, in their order, into one list per message."""
        portion: list[int] = []
        size = 0
        for slot in slots:
            more = self._nbytes(slot)
            if portion and size + more > PROVIDED_BYTES:
                yield portion
                portion, size = [], 0
            portion.append(slot)
            size += more
        if portion:
            yield portion

    def _nbytes(self, slot: int) -> int:
        rows = sum(
            int((places == slot).sum()) * (8 + self.tables[table].element_size() * self.shape.tables[table].dim)
            for table, places in self._places.items()
        )
        whole = sum(part.nbytes for part in (*self.buffers, *self.fixed)) if slot == WHOLE_SLOT else 0
        return Area(self.shape, self.slots, [slot]).size + rows + whole

    def payload(self, slots: Sequence[int]) -> tuple[list[RowPart], list[memoryview]]:
        """Return the parts and the payload of an ``InitialValues`` message for these slots.

        Raises:
            ValueError: The number of buffers or fixed tensors differs from the model spec's.
        """
        area = Area(self.shape, self.slots, slots)
        memory = bytearray(area.size)
        write_pieces(DenseViews(area, memory), self.dense)
        parts: list[RowPart] = []
        payload = [memoryview(memory)]
        for slot in slots:
            for table, places in self._places.items():
                ids = (places == slot).nonzero().squeeze(1)
                weight = self.tables[table].detach()
                parts.append(RowPart(table=table, count=len(ids)))
                payload += [bytes_of(ids), bytes_of(weight[ids.to(weight.device)].cpu())]
        if WHOLE_SLOT in slots:
            payload.append(packed(TensorArea(self.shape.buffers), self.buffers))
            payload.append(packed(TensorArea(self.shape.fixed), self.fixed))
        return parts, payload
