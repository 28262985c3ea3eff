"""Model specs, plain loops and memory views for the tests of the parameter server's tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shoal.protocol.messages import Buffer, DenseParameter, Group, ModelSpec, SparseTable
from shoal.protocol.messages import Tensor as TensorShape
from shoal.protocol.slot_layout import Area, pieces
from shoal.pserver.state.parameters import Parameters, TableRows
from shoal.tensors.optimizers import group_options
from shoal.tensors.table_rows import slots_of_table
from shoal.tensors.views import DenseViews

SIZES: dict[str, list[int]] = {"weight": [7, 5], "scale": [], "bias": [3], "deep.weight": [4, 4]}


def make_shape(
    *,
    optimizer: str = "SGD",
    options: dict[str, Any] | None = None,
    sizes: dict[str, list[int]] | None = None,
    dtype: str = "float32",
    tables: list[SparseTable] | None = None,
    groups: list[Group] | None = None,
    buffers: list[Buffer] | None = None,
    fixed: list[TensorShape] | None = None,
    clamps: dict[str, list[float | None]] | None = None,
    norms: dict[str, float] | None = None,
    ema: float = 0.0,
) -> ModelSpec:
    given = SIZES if sizes is None else sizes
    return ModelSpec(
        samples=100,
        fingerprint="f",
        batch_size=10,
        drop_last=False,
        shuffle=True,
        task_batches=2,
        accumulate=1,
        dense=[
            DenseParameter(name, size, dtype, 0, (clamps or {}).get(name, []), (norms or {}).get(name, 0.0))
            for name, size in given.items()
        ],
        tables=tables or [],
        groups=groups or [Group(optimizer, registered(optimizer, options or {}))],
        buffers=buffers or [],
        fixed=fixed or [],
        ema=ema,
    )


def registered(optimizer: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that a trainer registers for a script's optimizer."""
    made = getattr(torch.optim, optimizer)([torch.zeros(1)], **options)
    return group_options(made.param_groups[0])


def make_views(shape: ModelSpec, slots_total: int, slots: list[int]) -> DenseViews:
    area = Area(shape, slots_total, slots)
    return DenseViews(area, bytearray(max(area.size, 1)))


def fill(views: DenseViews, shape: ModelSpec, values: list[Tensor | None]) -> DenseViews:
    """Write whole parameters (or gradients) into the views."""
    cut = pieces(shape, views.area.slots_total)
    for slot, tensors in views.by_slot.items():
        for piece, tensor in zip(cut[slot], tensors, strict=True):
            value = values[piece.parameter]
            if value is not None:
                tensor.copy_(value.reshape(-1)[piece.start : piece.stop])
    return views


def whole(parameters: Parameters, shape: ModelSpec, slots_total: int, *, average: bool = False) -> list[Tensor]:
    """Return the dense parameters, or their moving averages, assembled from all slots."""
    views = make_views(shape, slots_total, parameters.slots)
    parameters.read(views, average=average)
    made = [torch.zeros(p.shape, dtype=getattr(torch, p.dtype)).reshape(-1) for p in shape.dense]
    cut = pieces(shape, slots_total)
    for slot, tensors in views.by_slot.items():
        for piece, tensor in zip(cut[slot], tensors, strict=True):
            made[piece.parameter][piece.start : piece.stop] = tensor
    return [value.reshape(p.shape) for value, p in zip(made, shape.dense, strict=True)]


def rows_of_slot(slot: int, slots_total: int, weights: dict[int, Tensor]) -> list[TableRows]:
    """Return the rows of given tables (index -> weight) that belong to a slot."""
    found = []
    for table, weight in weights.items():
        ids = (slots_of_table(len(weight), slots_total) == slot).nonzero().squeeze(1)
        found.append((table, ids, weight[ids]))
    return found


def started(
    shape: ModelSpec,
    slots_total: int,
    values: list[Tensor],
    *,
    weights: dict[int, Tensor] | None = None,
    buffers: Sequence[Tensor] = (),
    fixed: Sequence[Tensor] = (),
) -> Parameters:
    """Return parameters of every slot with these initial values; ``weights`` are those of the given tables."""
    parameters = Parameters(shape, slots_total, seed=5)
    views = fill(make_views(shape, slots_total, list(range(slots_total))), shape, list(values))
    for slot in range(slots_total):
        rows = rows_of_slot(slot, slots_total, weights or {})
        parameters.initialise(slot, views, rows=rows, buffers=buffers, fixed=fixed)
    return parameters


def restarted(parameters: Parameters) -> Parameters:
    """Return fresh parameters, loaded from the state of existing ones."""
    fresh = Parameters(parameters.shape, parameters.slots_total, seed=5)
    for slot in parameters.slots:
        fresh.load(slot, parameters.state(slot))
    return fresh
