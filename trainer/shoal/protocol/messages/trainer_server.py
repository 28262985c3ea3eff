"""Messages between trainers and parameter servers."""

from __future__ import annotations

from typing import Any

from shoal.protocol.messages.common import Count, Message, Part, Positive, parallel

__all__ = [
    "Applied",
    "Attach",
    "Attached",
    "BuffersMerged",
    "ExportReply",
    "ExportTables",
    "Fatal",
    "InitialValues",
    "MergeBuffers",
    "Pull",
    "PullReply",
    "PullRows",
    "Push",
    "PushReply",
    "RowPart",
    "RowsReply",
    "SlotBatch",
    "TableValues",
]


# --- Trainer to parameter server ---------------------------------------------------------------------------------


class Attach(Message, frozen=True):
    """Attach slots to this connection, in this order; the first request of a connection.

    With ``shared`` > 0 a sealed memfd of that many bytes follows. The reply is ``Attached``.
    """

    slots: list[int]
    shared: int


class Pull(Message, frozen=True):
    """Request the watermarks of the attached slots in a task and, with ``values``, their dense parameters.

    ``average``: the moving averages instead of the values (the values if no step was applied yet); they follow the
    reply as its payload, even if memory is shared.
    """

    grants: list[int]
    epoch: Count
    task: Count
    values: bool
    average: bool = False


class RowPart(Part, frozen=True):
    """Rows of one table in a payload: ``count`` int64 row numbers, then (where values are sent) count x dim values."""

    table: int
    count: Count


class Push(Message, frozen=True):
    """Push batches ``first`` .. ``first + batches - 1`` of a task, as one gradient, to the attached slots.

    ``skipped``: the script made no step, so that only the watermarks change. ``absent``: dense parameters without a
    gradient. ``options``: per group, the options that differ from the registered ones. ``PushReply`` has the watermarks
    of the task and of (``next_epoch``, ``next_task``) and, with ``values``, the dense parameters.
    """

    grants: list[int]
    epoch: Count
    task: Count
    first: Count
    batches: Positive
    samples: Count
    skipped: bool
    absent: list[int]
    options: dict[int, dict[str, Any]]
    parts: list[RowPart]
    next_epoch: Count
    next_task: Count
    values: bool


class PullRows(Message, frozen=True):
    """Request the values of rows; a row that was never pushed has its initial values."""

    grants: list[int]
    parts: list[RowPart]


class InitialValues(Message, frozen=True):
    """Send slots their initial values, each under its grant; the reply is ``InitialValuesGiven``.

    The payload is the dense area of the slots; then the rows of the given tables, one part for each slot and table,
    ordered by slot and then by table (row numbers and values of every row of the slot); then, if slot 0 is among the
    slots, the buffers and the fixed tensors.
    """

    slots: list[int]
    grants: list[int]
    parts: list[RowPart]

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        parallel(self.slots, self.grants)


class MergeBuffers(Message, frozen=True):
    """Merge a trainer's buffers (the payload, in the order of ``ModelSpec``); the reply has the job's buffers.

    ``trainers``: the number of trainers. Buffers with merge ``mean`` change by 1/trainers of the difference; the
    payload's increase is added to those with ``sum``; 0 means that nothing is merged. ``fixed``: request the fixed
    tensors; there is no payload, and nothing is merged.
    """

    grant: int
    trainers: Count
    fixed: bool


class ExportTables(Message, frozen=True):
    """Request the rows of every table that the server holds of a slot (``Pull`` requests the dense values)."""

    slot: int
    grant: int


# --- Parameter server to trainer ---------------------------------------------------------------------------------


class Attached(Message, frozen=True):
    """The reply to ``Attach``. ``grants``: the current grants of the slots at this server; 0: not served here."""

    grants: list[int]


class Applied(Part, frozen=True):
    """The watermark of attached slots in a task; a grant of 0 means stale: request the slot map from the master."""

    slots: list[int]
    grants: list[int]
    batches: int


class PullReply(Message, frozen=True):
    """The reply to ``Pull``."""

    applied: list[Applied]
    values: bool


class SlotBatch(Part, frozen=True):
    """The result of a push at some slots; ``batches`` is the current watermark of the pushed task."""

    slots: list[int]
    grants: list[int]
    batches: int


class PushReply(Message, frozen=True):
    """The reply to ``Push``: the watermarks of the pushed task, and of the next one."""

    pushed: list[SlotBatch]
    next: list[Applied]
    values: bool


class RowsReply(Message, frozen=True):
    """The reply to ``PullRows``; ``stale``: a grant is not the current one, and no values follow."""

    stale: bool


class BuffersMerged(Message, frozen=True):
    """The reply to ``MergeBuffers``; ``stale``: the grant is not the current one, and no buffers follow."""

    stale: bool


class TableValues(Part, frozen=True):
    """Rows of one table in an export."""

    table: int
    count: int


class ExportReply(Message, frozen=True):
    """The reply to ``ExportTables``: the payload has, per table, row numbers (int64) and values."""

    stale: bool
    tables: list[TableValues]


class Fatal(Message, frozen=True):
    """The server cannot continue with this connection, for this ``reason``, and closes it."""

    reason: str
