"""The batch at hand and the pass over the loader that it belongs to, as the session keeps them."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Batch", "Pass", "Place"]

Place = tuple[int, int, int]
"""Epoch, task and batch."""


@dataclass
class Batch:
    """The batch that the script works on."""

    epoch: int
    task: int
    batch: int
    first: int
    """The batch with which its accumulation began."""
    asked: set[int] = field(default_factory=set)
    """The optimizers whose ``step`` was called, whether it counted or not."""
    stepped: set[int] = field(default_factory=set)
    committed: bool = False
    used: str = ""
    """What saw the model before all optimizers had made their steps, so that no other step can be the batch's."""
    abandoned: bool = False
    scheduled: set[int] = field(default_factory=set)
    """The optimizers whose scheduler the script stepped before them."""


@dataclass
class Pass:
    """One pass over the loader."""

    number: int
    batches: int = 0
    trained: bool = False
    """Whether a gradient was seen in it."""
