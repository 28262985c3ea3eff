"""Copies between a trainer's tensors and the memory areas that are exchanged with parameter servers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shoal.protocol.slot_layout import TensorArea
from shoal.tensors.views import DenseViews, view

__all__ = ["packed", "read_pieces", "unpack", "write_pieces"]


def write_pieces(views: DenseViews, dense: Sequence[Tensor | None]) -> None:
    """Copy flat dense values or gradients into the views' slots; a parameter with None is not written."""
    targets, sources = [], []
    for slot, entries in views.area.by_slot().items():
        for entry, target in zip(entries, views.by_slot[slot], strict=True):
            whole = dense[entry.piece.parameter]
            if whole is not None:
                targets.append(target)
                sources.append(whole[entry.piece.start : entry.piece.stop])
    if targets:
        torch._foreach_copy_(targets, sources)


def read_pieces(views: DenseViews, parameters: Sequence[Tensor]) -> None:
    """Copy the values of the views' slots into the dense parameters, which may be on any device and non-contiguous."""
    targets, sources = [], []
    scattered: dict[int, Tensor] = {}
    with torch.no_grad():
        for slot, entries in views.area.by_slot().items():
            for entry, value in zip(entries, views.by_slot[slot], strict=True):
                index = entry.piece.parameter
                parameter = parameters[index].detach()
                if parameter.is_contiguous():
                    flat = parameter.view(-1)
                else:
                    flat = scattered.setdefault(index, parameter.reshape(-1))
                targets.append(flat[entry.piece.start : entry.piece.stop])
                sources.append(value)
        if targets:
            torch._foreach_copy_(targets, sources)
        for index, flat in scattered.items():
            parameter = parameters[index].detach()
            parameter.copy_(flat.view(parameter.shape))


def packed(area: TensorArea, tensors: Sequence[Tensor]) -> memoryview:
    """Return copies of tensors in the layout of an area.

    Raises:
        ValueError: The number of tensors differs from the area's.
    """
    memory = bytearray(area.size)
    for entry, tensor in zip(area.entries, tensors, strict=True):
        place = view(memory, dtype=entry.dtype, offset=entry.offset, count=entry.count)
        place.copy_(tensor.detach().reshape(-1))
    return memoryview(memory)


def unpack(area: TensorArea, memory: memoryview, tensors: Sequence[Tensor]) -> None:
    """Copy an area's tensors into the module's.

    Raises:
        ValueError: The number of tensors differs from the area's.
    """
    with torch.no_grad():
        for entry, tensor in zip(area.entries, tensors, strict=True):
            place = view(memory, dtype=entry.dtype, offset=entry.offset, count=entry.count)
            tensor.copy_(place.view(tensor.shape))
