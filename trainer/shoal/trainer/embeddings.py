"""Sparse tables in the script's modules: rows are fetched when a forward pass is about to use them.

The modules keep their full weight, as plain PyTorch does; of it only the rows of the present batch are kept up to date.
A hook before ``forward`` sees which those are. What a backward pass leaves is a sparse gradient over the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shoal.trainer.describe import TableModule

__all__ = ["TableHooks", "rows_of"]

Fetch = Callable[[list[tuple[int, Tensor]]], list[Tensor]]


class TableHooks:
    """Hooks on every sparse table's module.

    Args:
        tables: The tables.
        fetch: Gets rows: per (table, row numbers int64 [n] on the CPU) their values [n, dim].
    """

    def __init__(self, tables: Sequence[TableModule], fetch: Fetch) -> None:
        self._fetch = fetch
        self._fetched: dict[int, Tensor] = {}
        for table in tables:
            table.module.register_forward_pre_hook(self._hook(table), with_kwargs=True)

    def new_batch(self) -> None:
        """What was fetched so far is old now."""
        self._fetched.clear()

    def _hook(self, table: TableModule) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            del module
            used = args[0] if args else kwargs["input"]
            self._bring(table, torch.unique(used.detach()).cpu().to(torch.int64))

        return before

    def _bring(self, table: TableModule, ids: Tensor) -> None:
        weight = table.module.weight
        if not len(ids) or int(ids[0]) < 0 or int(ids[-1]) >= weight.shape[0]:
            return  # the module's own error says best what is wrong
        known = self._fetched.get(table.index)
        if known is not None:
            ids = ids[~torch.isin(ids, known)]
            if not len(ids):
                return
        values = self._fetch([(table.index, ids)])[0]
        # Through .data, so that autograd does not take it for a change behind its back.
        weight.data[ids.to(weight.device)] = values.to(weight.device)
        self._fetched[table.index] = ids if known is None else torch.cat([known, ids])


def rows_of(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of a table's gradient: row numbers int64 [n], each once, and values [n, dim], on the CPU."""
    if not gradient.is_sparse:
        values = gradient.detach().cpu()
        ids = values.abs().sum(dim=1).nonzero(as_tuple=True)[0]
        return ids, values[ids]
    gradient = gradient.detach().coalesce()
    return gradient.indices()[0].cpu(), gradient.values().cpu()
