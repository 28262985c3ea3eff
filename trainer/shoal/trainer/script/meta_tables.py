"""Sparse tables on the meta device, for tables that are too large to be initialised by the script.

``with torch.device("meta"): table = nn.Embedding(rows, dim, sparse=True)`` takes no memory. The weight is replaced by one on
the CPU, of which the operating system allocates only the pages that are written. The initial values of a row are distributed
like those of ``nn.Embedding``, and drawn as a function of (seed, table, row).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from shoal.trainer.refusal import Refusal

__all__ = ["materialise"]


def materialise(model: nn.Module, optimizers: Sequence[Optimizer]) -> frozenset[int]:
    """Move the sparse tables on the meta device to the CPU, in the model and in its optimizers.

    Args:
        model: The model.
        optimizers: Its optimizers.

    Returns:
        The ids of the new weights, whose values are to be drawn.

    Raises:
        Refusal: An optimizer already has state for such a table.
    """
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        if not isinstance(module, nn.Embedding | nn.EmbeddingBag) or not module.sparse:
            continue
        weight = module._parameters.get("weight")  # noqa: SLF001 - a parametrized one has none
        if weight is not None and weight.is_meta:
            new = made.setdefault(
                id(weight),
                nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), requires_grad=weight.requires_grad),
            )
            module.weight = new
    for optimizer in optimizers:
        if any(id(parameter) in made and state for parameter, state in optimizer.state.items()):
            raise Refusal(
                f"{type(optimizer).__name__} makes its state with the parameter, so it cannot train a table on the meta "
                "device; use SparseAdam or SGD for it"
            )
        for group in optimizer.param_groups:
            group["params"] = [made.get(id(parameter), parameter) for parameter in group["params"]]
    return frozenset(id(parameter) for parameter in made.values())
