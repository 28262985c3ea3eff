"""The layout of each slot's part of the dense parameters: in the parameters, and in the bytes that processes exchange.

Trainer and server compute the same layout independently and then share plain memory. So the layout is a pure function of
the job's model spec, the number of slots, and the slots that a trainer attached, in their order. No offset is sent.

Concatenated in the order of the model spec, the dense parameters have T elements. Slot s of S has the elements from
s*T//S up to (s+1)*T//S, split at the borders between parameters into *pieces*. Slots thus have equally many elements,
whatever the sizes of the parameters. As element-wise optimizers treat every element alike, the borders have no influence
on the result. Within a parameter with a ``max_norm`` a border moves to the start of the next row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from shoal.protocol.messages import Buffer, DenseParameter, ModelSpec, Tensor

__all__ = [
    "ALIGNMENT",
    "ITEM_SIZES",
    "WHOLE_SLOT",
    "Area",
    "Entry",
    "Piece",
    "TensorArea",
    "TensorEntry",
    "item_size",
    "pieces",
]

WHOLE_SLOT = 0
"""The slot that buffers and fixed tensors belong to."""

ALIGNMENT = 64
"""The alignment in bytes: a cache line, which is more than any dtype or vector instruction requires."""

ITEM_SIZES = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex64": 8,
}
"""The size of one element in bytes, by the dtype's name in torch."""


def item_size(dtype: str, *, name: str) -> int:
    """Return the size in bytes of one element of the tensor ``name``.

    Raises:
        ValueError: The dtype is unknown, or Shoal does not support it.
    """
    if dtype not in ITEM_SIZES:
        raise ValueError(f"{name} has the dtype {dtype}; Shoal moves {', '.join(ITEM_SIZES)}")
    return ITEM_SIZES[dtype]


@dataclass(frozen=True, slots=True)
class Piece:
    """The elements ``start`` .. ``stop - 1`` of the dense parameter with this index, counted row by row."""

    parameter: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def pieces(shape: ModelSpec, slots_total: int) -> list[list[Piece]]:
    """Return the pieces of every slot, in the order of the parameters; a slot of a small model may have none.

    Raises:
        ValueError: ``slots_total`` is below 1.
    """
    if slots_total < 1:
        raise ValueError(f"{slots_total} slots: there must be at least one")
    sizes = [math.prod(parameter.shape) for parameter in shape.dense]
    total = sum(sizes)
    borders = [slot * total // slots_total for slot in range(slots_total + 1)]
    cut: list[list[Piece]] = [[] for _ in range(slots_total)]
    begin, slot = 0, 0
    for index, size in enumerate(sizes):
        end, at = begin + size, begin
        while at < end:
            while borders[slot + 1] <= at:
                slot += 1
            row = _row(shape.dense[index])
            stop = min(end, begin + -(-(borders[slot + 1] - begin) // row) * row)
            cut[slot].append(Piece(index, at - begin, stop - begin))
            at = stop
        begin = end
    return cut


def _row(parameter: DenseParameter) -> int:
    """Return the number of consecutive elements that must be in one slot."""
    return math.prod(parameter.shape[1:]) if parameter.max_norm else 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One piece of one slot in an area: ``count`` elements of ``dtype``, in ``nbytes`` bytes from ``offset`` on."""

    slot: int
    piece: Piece
    dtype: str
    offset: int
    nbytes: int

    @property
    def count(self) -> int:
        """The number of elements."""
        return len(self.piece)


class Area:
    """The layout of the dense values, or gradients, of slots in one range of bytes.

    Args:
        shape: The job's model spec.
        slots_total: The number of slots of the job.
        attached: The slots, in the order of their bytes.

    Attributes:
        slots: The attached slots, in their order.
        entries: Every piece, in the order of their bytes.
        size: The size in bytes, a multiple of ``ALIGNMENT``; 0 if there are no pieces.

    Raises:
        ValueError: The job does not have a slot, a slot is named twice, or a dtype is not supported.
    """

    __slots__ = ("entries", "size", "slots", "slots_total")

    def __init__(self, shape: ModelSpec, slots_total: int, attached: Sequence[int]) -> None:
        cut = pieces(shape, slots_total)
        _check(attached, slots_total)
        found: list[Entry] = []
        offset = 0
        for slot in attached:
            for piece in cut[slot]:
                parameter = shape.dense[piece.parameter]
                nbytes = len(piece) * item_size(parameter.dtype, name=parameter.name)
                found.append(Entry(slot, piece, parameter.dtype, offset, nbytes))
                offset = _aligned(offset + nbytes)
        self.slots = tuple(attached)
        self.slots_total = slots_total
        self.entries = tuple(found)
        self.size = offset

    def by_slot(self) -> dict[int, tuple[Entry, ...]]:
        """Return the entries of each attached slot, in the order of ``pieces(...)[slot]``."""
        grouped = {slot: tuple(entries) for slot, entries in groupby(self.entries, key=lambda entry: entry.slot)}
        return {slot: grouped.get(slot, ()) for slot in self.slots}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One whole tensor in an area, in ``nbytes`` bytes from ``offset`` on."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    nbytes: int

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


class TensorArea:
    """The layout of whole tensors (a module's buffers, or its fixed tensors) in one range of bytes.

    Args:
        tensors: The tensors, in the order of their bytes.

    Attributes:
        entries: Every tensor.
        size: The size in bytes, a multiple of ``ALIGNMENT``; 0 if there are no tensors.

    Raises:
        ValueError: A dtype is not supported.
    """

    __slots__ = ("entries", "size")

    def __init__(self, tensors: Sequence[Tensor | Buffer]) -> None:
        found: list[TensorEntry] = []
        offset = 0
        for tensor in tensors:
            nbytes = math.prod(tensor.shape) * item_size(tensor.dtype, name=tensor.name)
            found.append(TensorEntry(tensor.name, tuple(tensor.shape), tensor.dtype, offset, nbytes))
            offset = _aligned(offset + nbytes)
        self.entries = tuple(found)
        self.size = offset


def _check(attached: Sequence[int], slots_total: int) -> None:
    strange = [slot for slot in attached if not 0 <= slot < slots_total]
    if strange:
        raise ValueError(f"no slots {strange}: the job has {slots_total}")
    if len(set(attached)) != len(attached):
        raise ValueError(f"a slot is named twice: {list(attached)}")


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
