"""Sparse tables in the script's modules: rows are fetched right before an operation uses them.

The modules keep their full weight, as in plain PyTorch, but only the rows of the current batch are up to date. The class of
the weight is therefore replaced by one with ``__torch_function__``, which torch calls before each operation: a lookup, by the
module or by ``F.embedding``, first fetches its rows; an operation that would use the whole table is refused with its name.
The backward pass produces a sparse gradient over the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from shoal.protocol.messages import SparseTable
from shoal.tensors.table_rows import first_values
from shoal.trainer.refusal import Refused
from shoal.trainer.script.description import TableModule

__all__ = ["Tables", "rows_of"]

ROWS_AT_ONCE = 1 << 16

Fetch = Callable[[list[tuple[int, Tensor]]], list[Tensor]]

_LOOKUPS = (functional.embedding, functional.embedding_bag)

# Allowed without rows, because they do not read the values: all attributes except `data`, and these methods.
_HARMLESS = frozenset(
    [
        "size",
        "dim",
        "ndimension",
        "numel",
        "nelement",
        "stride",
        "storage_offset",
        "is_contiguous",
        "element_size",
        "is_floating_point",
        "is_complex",
        "get_device",
        "register_hook",
        "register_post_accumulate_grad_hook",
        "requires_grad_",
        "retain_grad",
        "data_ptr",
        "__hash__",
        "__len__",
    ]
)


class _TableWeight(nn.Parameter):
    """The weight of a table; ``_shoal`` is its ``Tables`` object and its index there."""

    _shoal: tuple[Tables, int]

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override] # torch types no name
        """Return a text without values, so that formatting an error message is not refused."""
        del tensor_contents
        return f"Parameter containing:\nthe rows of a sparse table {list(self.shape)}, dtype={self.dtype}"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if not _is_harmless(func):
            for argument in (*args, *kwargs.values()):
                if isinstance(argument, cls):
                    tables, place = argument._shoal  # noqa: SLF001 - our own attribute
                    tables.used(place, func, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 - torch has no public name for it
            return func(*args, **kwargs)


def _is_harmless(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    if name in {"__get__", "__set__", "__delete__"}:
        return getattr(getattr(func, "__self__", None), "__name__", "") != "data"
    return name in _HARMLESS


class Tables:
    """The sparse tables of a model in one trainer.

    Args:
        tables: The tables with their modules and names.
        fetch: Returns rows: for each (table, row numbers int64 [n] on the CPU) the values [n, dim]. None if the weights
            here are the job's own, complete and up to date.
    """

    def __init__(self, tables: Sequence[TableModule], fetch: Fetch | None) -> None:
        self._tables = tables
        self._fetch = fetch
        self._fetched: dict[int, Tensor] = {}
        self.whole = False
        """Whether all rows are up to date until the next batch."""
        for table in tables:
            weight: Any = table.module.weight
            weight.__class__ = _TableWeight
            weight._shoal = (self, table.index)  # noqa: SLF001 - our own attribute

    def new_batch(self) -> None:
        """Mark all fetched rows as out of date."""
        self._fetched.clear()
        self.whole = False

    def used(self, place: int, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Fetch the rows that an operation is about to use.

        Raises:
            Refused: The operation would use all rows.
        """
        table = self._tables[place]
        ids = _ids(func, args, kwargs)
        if ids is not None:
            self._load(table, torch.unique(ids.detach()).cpu().to(torch.int64))
        elif not self.whole:
            raise Refused(
                f"the sparse table {table.name} is used as a whole by {getattr(func, '__name__', func)}: with sparse=True "
                "a trainer has the rows of the present batch only; look rows up (the module, F.embedding), or make the "
                "embedding with sparse=False"
            )

    def _load(self, table: TableModule, ids: Tensor) -> None:
        if self._fetch is None or self.whole:
            return
        weight = table.module.weight
        if not len(ids) or int(ids[0]) < 0 or int(ids[-1]) >= weight.shape[0]:
            return  # the module raises its own error
        known = self._fetched.get(table.index)
        if known is not None:
            ids = ids[~torch.isin(ids, known)]
            if not len(ids):
                return
        values = self._fetch([(table.index, ids)])[0]
        self.write(table, ids, values)
        self._fetched[table.index] = ids if known is None else torch.cat([known, ids])

    def write(self, table: TableModule, ids: Tensor, values: Tensor) -> None:
        """Write rows into the module's weight, through ``.data``, so that autograd does not record a change."""
        weight = data_of(table.module.weight)
        weight[ids.to(weight.device)] = values.to(weight.device)

    def fill(self, table: TableModule, spec: SparseTable, *, seed: int) -> None:
        """Write the initial values of all rows."""
        for start in range(0, spec.rows, ROWS_AT_ONCE):
            rows = torch.arange(start, min(start + ROWS_AT_ONCE, spec.rows))
            self.write(table, rows, first_values(spec, table.index, seed, rows))


def data_of(weight: Tensor) -> Tensor:
    """Return the values of a table's weight without the check of ``_TableWeight``."""
    with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 - torch has no public name for it
        return weight.data


def _ids(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the rows that a lookup uses; None for any other operation."""
    if func in _LOOKUPS:
        found: Tensor = args[0] if args else kwargs["input"]
        return found
    if getattr(func, "__name__", "") == "__getitem__" and isinstance(args[1], Tensor | int | list):
        ids = torch.as_tensor(args[1])
        return ids if not ids.is_floating_point() and ids.dtype != torch.bool else None
    if func in {torch.index_select, Tensor.index_select} and not kwargs and args[1] == 0:
        selected: Tensor = args[2]
        return selected
    return None


def rows_of(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of a table's gradient: row numbers int64 [n], distinct, and values [n, dim], on the CPU."""
    if not gradient.is_sparse:
        values = gradient.detach().cpu()
        ids = values.abs().sum(dim=1).nonzero(as_tuple=True)[0]
        return ids, values[ids]
    gradient = gradient.detach().coalesce()
    return gradient.indices()[0].cpu(), gradient.values().cpu()
