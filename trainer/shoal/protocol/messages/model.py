"""What a job trains: registered by the first trainer, equal in every other trainer."""

from __future__ import annotations

from typing import Any

import msgspec

from shoal.protocol.messages.common import Part

__all__ = ["Buffer", "DenseParameter", "Group", "ModelSpec", "SparseTable", "Tensor"]


class Tensor(Part, frozen=True):
    """Name, shape and torch dtype (``float32``) of a tensor."""

    name: str
    shape: list[int]
    dtype: str


class Buffer(Part, frozen=True):
    """A buffer of the module and how the trainers' copies of it are merged into the job's.

    ``merge``: ``mean`` (each trainer has an equal weight), ``sum`` (each trainer's increase is added) or ``last`` (the
    copy that was merged last is kept).
    """

    name: str
    shape: list[int]
    dtype: str
    merge: str


class DenseParameter(Part, frozen=True):
    """A parameter that is pushed and pulled whole; ``group`` is an index into the groups of all optimizers.

    ``clamp``: [low, high], to which the server clamps the values after each step; None means no bound on that side, as
    JSON has no infinity. An empty list means that the values are not clamped. ``max_norm``: after the clamp, the server
    scales down each row (all values with one first index) whose Euclidean norm is larger; 0 means no limit. The rows of
    a parameter with ``max_norm`` are never split between slots.
    """

    name: str
    shape: list[int]
    dtype: str
    group: int
    clamp: list[float | None] = msgspec.field(default_factory=list)
    max_norm: float = 0.0


class SparseTable(Part, frozen=True):
    """An embedding table, pushed and pulled by rows.

    ``family`` defines a row's initial values. ``given``: the first trainer sends all rows, and the servers hold them
    from the start. Otherwise a row is created on its first push, as a function of (seed, table, row) alone: ``normal``
    has the mean ``first`` and the standard deviation ``second``; ``uniform`` is from ``first`` to ``second``;
    ``constant`` is ``first``. The ``zero_rows`` of a table that is not given start as zeros.
    """

    name: str
    rows: int
    dim: int
    dtype: str
    group: int
    family: str
    first: float
    second: float
    zero_rows: list[int]


class Group(Part, frozen=True):
    """One parameter group: the class in ``torch.optim`` and its options, as they were when the job started."""

    optimizer: str
    options: dict[str, Any]


class ModelSpec(Part, frozen=True, kw_only=True):
    """Everything about script and dataset that must be equal in all trainers, so that (epoch, task, k) names samples.

    ``fixed``: frozen parameters and non-persistent buffers; every trainer uses the first trainer's values, which are
    never merged. ``frozen``: digest of the frozen values that are too large to send; '' if there are none. ``ema``:
    decay of the moving average that the servers keep of every dense parameter; 0 means none.
    """

    samples: int
    fingerprint: str
    batch_size: int
    drop_last: bool
    shuffle: bool
    sampler: str = ""
    """The class of the script's own sampler, which defines the order; empty: shuffled, or in sequence."""
    task_batches: int
    accumulate: int
    dense: list[DenseParameter]
    tables: list[SparseTable]
    groups: list[Group]
    buffers: list[Buffer]
    fixed: list[Tensor] = msgspec.field(default_factory=list)
    frozen: str = ""
    ema: float = 0.0
