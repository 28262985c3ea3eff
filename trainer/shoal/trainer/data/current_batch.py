"""The state of the current batch and of the pass over the loader that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Batch", "Pass", "Place"]

Place = tuple[int, int, int]
"""Epoch, task and batch."""


@dataclass
class Batch:
    """The batch that the script processes."""

    epoch: int
    task: int
    batch: int
    first: int
    """The first batch of its accumulation."""
    step_called: set[int] = field(default_factory=set)
    """The optimizers whose ``step`` was called, whether it counted or not."""
    stepped: set[int] = field(default_factory=set)
    committed: bool = False
    used: str = ""
    """What used the model before all optimizers had stepped, so that further steps for the batch are refused."""
    abandoned: bool = False
    scheduled: set[int] = field(default_factory=set)
    """The optimizers whose scheduler the script stepped before the optimizer."""


@dataclass
class Pass:
    """One pass over the loader."""

    number: int
    batches: int = 0
    trained: bool = False
    """Whether any batch of the pass left a gradient or called ``step``."""
