"""The description of a training script, as a tree of plain values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

LENGTH, WIDTH, ROWS = 3, 4, 9
"""A sample is LENGTH vectors of WIDTH numbers, and LENGTH row numbers of a table of ROWS rows."""


@dataclass(frozen=True)
class Block:
    """One part of the model; it maps [batch, LENGTH, WIDTH] to the same shape.

    ``held``: ``trained``; ``outside`` (frozen, in no optimizer); ``inside`` (frozen, in the optimizer); ``left`` (in no
    optimizer, but not frozen); a number n (frozen, in the optimizer, thawed in epoch n); or -n (frozen in epoch n).
    """

    kind: str
    held: str | int = "trained"


@dataclass(frozen=True)
class Optimizer:
    """One optimizer; its parameters are divided into `groups` groups with different learning rates."""

    kind: str
    options: tuple[tuple[str, Any], ...] = ()
    groups: int = 1
    changes: tuple[tuple[int, str, Any], ...] = ()
    """(epoch, option, value): changes that the script makes at the beginning of the epoch."""


@dataclass(frozen=True)
class Scheduler:
    """A scheduler of one optimizer, which is given by its index."""

    kind: str
    optimizer: int = 0


@dataclass(frozen=True)
class Data:
    """The samples and the loader."""

    samples: int = 8
    batch_size: int = 3
    drop_last: bool = False
    shuffle: bool = True
    sampler: str = ""
    workers: int = 0
    poison: int = -1
    """The sample whose loss is infinite. -1: none."""


@dataclass(frozen=True)
class Spec:
    """A training script."""

    blocks: tuple[Block, ...] = ()
    optimizers: tuple[Optimizer, ...] = (Optimizer("SGD"),)
    sparse: Optimizer = Optimizer("SGD")
    """The optimizer of the sparse tables, if there are any."""
    sparse_inside: bool = False
    """Whether the sparse tables are a group of the first optimizer."""
    data: Data = field(default_factory=Data)
    epochs: int = 1
    seed: int = 0
    servers: int = 1
    schedulers: tuple[Scheduler, ...] = ()
    interval: str = "step"
    script_schedules: bool = True
    """Whether the script keeps its own calls of ``scheduler.step()``."""
    accumulate: int = 1
    task_batches: int | None = None
    clip: str = ""
    amp: bool = False
    zero: str = "before"
    to_none: bool = True
    closure: bool = False
    alternate: bool = False
    """Whether one of two optimizers steps at every other batch only."""
    skip: str = ""
    """Where the script detects the poisoned batch and skips it."""
    hooks: bool = False
    ema: float = 0.0
    clamp: bool = False
    evaluations: int = 0
    middle: str = ""
    """What the script does within the first epoch, after the step of its second batch."""
    saves: str = "end"
    stop: tuple[str, int] | None = None
    mistake: str = ""

    @property
    def dtype(self) -> torch.dtype:
        """The model's dtype: float32 with autocast, which does not convert float64; float64 otherwise."""
        return torch.float32 if self.amp else torch.float64

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch."""
        count = self.data.samples if not self.data.sampler.endswith("part") else self.data.samples - 1
        cut = math.floor if self.data.drop_last else math.ceil
        return math.ceil(cut(count / self.data.batch_size) / self.accumulate)
