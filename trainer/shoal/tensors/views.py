"""Tensors as views over memory, and the memory of tensors, without copies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shoal.protocol.slot_layout import Area, Entry, TensorArea

__all__ = ["DenseViews", "Memory", "TensorViews", "bytes_of", "view"]

Memory = bytearray | memoryview | Tensor
"""Writable memory, or a tensor of bytes."""


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the writable memory of a CPU tensor, or of a contiguous copy if the tensor is not contiguous."""
    whole: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(whole)


def view(buffer: Memory, *, dtype: str, offset: int, count: int) -> Tensor:
    """Return a tensor [count] that shares the buffer's memory from ``offset`` bytes on.

    Raises:
        ValueError: The buffer is too small or read-only.
    """
    kind: torch.dtype = getattr(torch, dtype)
    nbytes = count * kind.itemsize
    if isinstance(buffer, Tensor):
        if offset + nbytes > buffer.numel():
            raise ValueError(f"{buffer.numel()} bytes, where {offset + nbytes} are needed")
        return buffer[offset : offset + nbytes].view(kind)
    whole = memoryview(buffer)
    if whole.nbytes < offset + nbytes:
        raise ValueError(f"{whole.nbytes} bytes, where {offset + nbytes} are needed")
    if whole.readonly:
        raise ValueError("the memory is read-only: torch needs it writable to view it as a tensor")
    if count == 0:
        return torch.empty(0, dtype=kind)
    return torch.frombuffer(buffer, dtype=kind, offset=offset, count=count)


class DenseViews:
    """The pieces of an area as tensors over memory; created once per connection or payload.

    Args:
        area: The layout of the memory.
        buffer: Writable memory of at least ``area.size`` bytes.

    Attributes:
        by_slot: Attached slot -> one tensor per piece, in the order of the parameters.

    Raises:
        ValueError: The buffer is too small or read-only.
    """

    __slots__ = ("area", "by_slot")

    def __init__(self, area: Area, buffer: Memory) -> None:
        def seen(entry: Entry) -> Tensor:
            return view(buffer, dtype=entry.dtype, offset=entry.offset, count=entry.count)

        self.area = area
        self.by_slot = {slot: [seen(entry) for entry in entries] for slot, entries in area.by_slot().items()}


class TensorViews:
    """Whole tensors over memory.

    Args:
        area: The layout of the memory.
        buffer: Writable memory of at least ``area.size`` bytes.

    Attributes:
        tensors: One flat tensor per entry of the area, in its order.

    Raises:
        ValueError: The buffer is too small or read-only.
    """

    __slots__ = ("tensors",)

    def __init__(self, area: TensorArea, buffer: Memory) -> None:
        self.tensors = [view(buffer, dtype=e.dtype, offset=e.offset, count=e.count) for e in area.entries]
