"""Where each slot's part of the dense parameters lies: in the parameters, and in the bytes that processes exchange.

Trainer and server work out the same layout, each for itself, and then share bare memory: so this is a pure function of
the job's shape, the number of slots, and the slots that a trainer asked for, in their order. No offset ever travels.

Laid end to end, in the shape's order, the dense parameters have T elements. Slot s of S has the elements from
s*T//S up to (s+1)*T//S, cut at the borders between parameters into *pieces*. Slots are thus equal in elements, however
unequal the parameters are; and as element-wise optimizers treat every element alike, where the cuts fall changes
nothing in the result. Only in a parameter with a ``max_norm`` a border moves on to the next whole row.
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
"""Bytes; a cache line, and more than any dtype or vector instruction asks for."""

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
"""Bytes of one element, by the dtype's name in torch."""


def item_size(dtype: str, *, name: str) -> int:
    """Bytes of one element of the tensor ``name``.

    Raises:
        ValueError: There is no such dtype, or none that Shoal can move.
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
    """The pieces of every slot, in the order of the parameters; a slot of a tiny model may have none.

    Raises:
        ValueError: There is no slot at all.
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
    """Elements that must stay together."""
    return math.prod(parameter.shape[1:]) if parameter.max_norm else 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One piece of one slot in an area: ``count`` elements of ``dtype``, ``nbytes`` bytes from ``offset`` on."""

    slot: int
    piece: Piece
    dtype: str
    offset: int
    nbytes: int

    @property
    def count(self) -> int:
        """Elements."""
        return len(self.piece)


class Area:
    """The dense values, or gradients, of some slots as one stretch of bytes.

    Args:
        shape: What the job trains.
        slots_total: Slots of the job.
        attached: The slots in question, in the order in which they lie.

    Attributes:
        slots: The attached slots, in their order.
        entries: Every piece, in the order in which they lie.
        size: Bytes in all, a multiple of ``ALIGNMENT``; 0 if there is nothing.

    Raises:
        ValueError: A slot that the job does not have, or the same one twice; a dtype that cannot be moved.
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
        """The entries of each attached slot: ``pieces(...)[slot]`` in the same order."""
        grouped = {slot: tuple(entries) for slot, entries in groupby(self.entries, key=lambda entry: entry.slot)}
        return {slot: grouped.get(slot, ()) for slot in self.slots}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One whole tensor in an area: ``nbytes`` bytes from ``offset`` on."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    nbytes: int

    @property
    def count(self) -> int:
        """Elements."""
        return math.prod(self.shape)


class TensorArea:
    """Whole tensors (a module's buffers, or its fixed tensors) as one stretch of bytes.

    Args:
        tensors: What lies there, in this order.

    Attributes:
        entries: Every tensor.
        size: Bytes in all, a multiple of ``ALIGNMENT``; 0 if there are none.

    Raises:
        ValueError: A dtype that cannot be moved.
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
