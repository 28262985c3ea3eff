"""Every message that the processes of one job exchange, as msgspec structs.

One module holds them all, so that the protocol can be read as a whole: the section headings name the sender and the
receiver, ``docs/exactly-once.md`` states the rules behind the fields. Each direction is one tagged union, so that a
decoder refuses a message of another direction. Tensors are never part of a message: they follow it as the frame's raw
payload, or are in memory that both ends map.

Terms: a *slot* is numbered from 0; a *grant* is a random non-negative 63-bit number, compared for equality only, and 0
means "none"; a *life* is a random number that distinguishes one run of a process from the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

__all__ = [
    "NO_GRANT",
    "Applied",
    "Attach",
    "Attached",
    "AwaitingInitialValues",
    "BatchBegan",
    "Buffer",
    "BuffersMerged",
    "Complete",
    "DenseParameter",
    "Drain",
    "EpochDone",
    "Evaluate",
    "EvaluateTurn",
    "Evaluated",
    "Evaluation",
    "ExportReply",
    "ExportTables",
    "Fatal",
    "File",
    "FinalSnapshotPinned",
    "FromMaster",
    "GetSlotMap",
    "Grant",
    "GrantFailed",
    "GrantReport",
    "Group",
    "Holder",
    "InitialValues",
    "InitialValuesGiven",
    "JobAccount",
    "JobEvent",
    "JobProgress",
    "JobSettings",
    "KeepAlive",
    "KeepAliveReply",
    "Lease",
    "Leave",
    "LogValues",
    "LoopFinished",
    "Member",
    "MergeBuffers",
    "Metric",
    "MissingTasks",
    "ModelSpec",
    "NotComplete",
    "Observe",
    "ProvideInitialValues",
    "Pull",
    "PullReply",
    "PullRows",
    "Push",
    "PushReply",
    "Register",
    "Registered",
    "RegistrationRefused",
    "ReleaseSlot",
    "ReleaseSnapshots",
    "ReportState",
    "RequestState",
    "RequestTask",
    "ReturnTasks",
    "RowPart",
    "RowsReply",
    "Samples",
    "Save",
    "SaveTurn",
    "Saved",
    "ScriptFailed",
    "ScriptHung",
    "SlotBatch",
    "SlotMap",
    "SlotReport",
    "SnapshotWritten",
    "SparseTable",
    "Stop",
    "StopEarly",
    "Stopping",
    "TableValues",
    "TakeFinalSnapshot",
    "TaskCommitted",
    "TaskDone",
    "TaskLeased",
    "TaskReopened",
    "Tensor",
    "ToMaster",
    "ToServer",
    "ToTrainer",
]

NO_GRANT = 0

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
"""A count or an index from 0. The bound is far above a job's numbers; sums still fit into a 64-bit integer."""
Place = Annotated[int, msgspec.Meta(ge=-1, le=1 << 40)]
"""An epoch or a task number from 0; -1 means none."""
Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
"""A count of at least 1."""
Attempt = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Seed = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Name = Annotated[str, msgspec.Meta(max_length=4096)]
"""The name of a file, a host, an address, a tensor or a logged value."""
Score = Annotated[str, msgspec.Meta(max_length=64_000)]
Level = Literal["info", "warning", "error"]


def _parallel(*columns: Sequence[Any]) -> None:
    """Raise ValueError if the columns of a table differ in length."""
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"columns of {', '.join(str(len(column)) for column in columns)} rows")


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A piece of a message."""


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """A message; its class name is its tag."""


# --- What a job trains: registered by the first trainer, equal in every other trainer -------------------------------


class Tensor(_Part, frozen=True):
    """Name, shape and torch dtype (``float32``) of a tensor."""

    name: str
    shape: list[int]
    dtype: str


class Buffer(_Part, frozen=True):
    """A buffer of the module and how the trainers' copies of it are merged into the job's.

    ``merge``: ``mean`` (each trainer has an equal weight), ``sum`` (each trainer's increase is added) or ``last`` (the
    copy that was merged last is kept).
    """

    name: str
    shape: list[int]
    dtype: str
    merge: str


class DenseParameter(_Part, frozen=True):
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
    clamp: list[float | None] = []
    max_norm: float = 0.0


class SparseTable(_Part, frozen=True):
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


class Group(_Part, frozen=True):
    """One parameter group: the class in ``torch.optim`` and its options, as they were when the job started."""

    optimizer: str
    options: dict[str, Any]


class ModelSpec(_Part, frozen=True, kw_only=True):
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
    fixed: list[Tensor] = []
    frozen: str = ""
    ema: float = 0.0


# --- Common parts -----------------------------------------------------------------------------------------------


class Lease(_Part, frozen=True):
    """A trainer's hold on a task. ``attempt`` counts the leases of the whole job."""

    epoch: Count
    task: Count
    attempt: Attempt


class Holder(_Part, frozen=True):
    """A parameter server that holds slots, with the addresses at which it listens (``unix://`` before ``tcp://``)."""

    index: int
    life: int
    addresses: list[Name]


class SlotMap(_Message, frozen=True):
    """The slot map, sent by the master to trainers: when all slots are served, and in reply to ``GetSlotMap``.

    ``holders[owner[s]]`` serves slot s under ``grants[s]``; owner -1 and grant 0 mean that no server does.
    """

    holders: list[Holder]
    owner: list[int]
    grants: list[int]

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        _parallel(self.owner, self.grants)


class SlotReport(_Part, frozen=True):
    """The state of slots with the same history; ``tasks`` are the finished tasks, written by ``TaskSet.encode``.

    ``counts``: batches applied, per slot. ``reached``: epoch and number of the last task of which the slots have any
    batch; (-1, -1) if they have none.
    """

    slots: list[int]
    grants: list[int]
    counts: list[Count]
    tasks: bytes
    reached: tuple[Place, Place]

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        _parallel(self.slots, self.grants, self.counts)


class File(_Part, frozen=True):
    """A snapshot file of a server: its name and, per slot in it, the number of batches that the slot had applied."""

    name: Name
    slots: list[int]
    counts: list[Count]

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        _parallel(self.slots, self.counts)


# --- Every role to the master ------------------------------------------------------------------------------------


class KeepAlive(_Message, frozen=True):
    """Keep-alive; sent to the master when nothing was sent or nothing was received for a quarter of the lease."""


class KeepAliveReply(_Message, frozen=True):
    """The master's reply to ``KeepAlive``."""


class JobEvent(_Message, frozen=True):
    """An event of a trainer or server for the job's log; ``level`` is ``info``, ``warning`` or ``error``."""

    level: Level
    text: str


class Leave(_Message, frozen=True):
    """Sent by a trainer or server that leaves in an orderly way (SIGTERM, drained, finished); it returns its leases.

    ``reason``: why the script ended by itself before the job was complete; empty if it did not.
    """

    leases: list[Lease]
    reason: str = ""


# --- Trainer to master -------------------------------------------------------------------------------------------


class Register(_Message, frozen=True):
    """Register this trainer: what it trains, and the leases that it still holds; the first message of a connection.

    ``epochs`` and ``seed`` are the script's, used where the manifest does not set them. The master replies with
    ``Registered`` or ``RegistrationRefused``.
    """

    shape: ModelSpec
    epochs: Positive
    seed: Seed
    leases: list[Lease]
    pid: Count
    host: Name


class RequestTask(_Message, frozen=True):
    """Request one more task; the trainer's loop is in ``epoch``. The reply is ``TaskLeased`` or ``EpochDone``."""

    epoch: Count


class TaskDone(_Message, frozen=True):
    """Report that every slot s acknowledged a task's last batch under ``grants[s]`` (rule 1).

    The master replies with ``TaskCommitted`` or ``TaskReopened``.
    """

    lease: Lease
    grants: list[int]


class ReturnTasks(_Message, frozen=True):
    """Return leases whose tasks this trainer will not finish; the master leases the tasks anew. There is no reply."""

    leases: list[Lease]


class GetSlotMap(_Message, frozen=True):
    """Request the slot map; sent while a server does not answer, refuses a grant or is unreachable (rule 12)."""


class LogValues(_Message, frozen=True):
    """The values that the script logged last, by name, and counts of batches since the last such message.

    Sent every 0.2 s at most. ``not_finite`` counts logged values that are not finite.
    """

    values: dict[Name, float]
    batches: Count
    skipped: Count
    replayed: Count
    not_finite: Count


class Evaluate(_Message, frozen=True):
    """Request the score of an evaluation: the script's ``number``-th call of ``evaluate`` in ``epoch``, from 0.

    The master replies to one trainer with ``EvaluateTurn``, and to all with ``Evaluated`` once the score is known.
    """

    epoch: Count
    number: Count


class Evaluated(_Message, frozen=True):
    """The score of an evaluation, as JSON text.

    Sent to the master by the trainer that had the turn, then by the master to all trainers that wait for the score.
    """

    epoch: Count
    number: Count
    score: Score


class Metric(_Message, frozen=True):
    """A value that the script passed to a learning rate scheduler: the ``number``-th within ``epoch``, from 0.

    The master keeps the first value that it receives for (epoch, number); there is no reply.
    """

    epoch: Count
    number: Count
    value: float


class LoopFinished(_Message, frozen=True):
    """Report that the trainer's loop has ended all epochs; the reply is ``Complete`` or ``NotComplete``."""


class Save(_Message, frozen=True):
    """Request that the current model is written to ``path``: the ``number``-th call for it in ``epoch``, from 0.

    After the last epoch, ``epoch`` is the number of epochs. The master replies to one trainer at a time with
    ``SaveTurn``, and to all with ``Saved`` once the file is written.
    """

    path: Name
    epoch: Count
    number: Count


class Saved(_Message, frozen=True):
    """The model of a call of ``save``, or of a later call for the same path, is written.

    Sent to the master by the trainer that had the turn, then by the master to all trainers that wait for the file.
    """

    path: Name
    epoch: Count
    number: Count


class StopEarly(_Message, frozen=True):
    """Request, from the script in ``epoch``, that the job ends once all tasks that were begun are done.

    The master replies with ``Stopping``. The trainer repeats the request to a new master that has no record of it.
    """

    reason: str
    epoch: Count


class BatchBegan(_Message, frozen=True):
    """Announce that the script starts a batch of a watched task; ``samples`` are its indices, 20 at most."""

    lease: Lease
    batch: Count
    samples: list[int]


class InitialValuesGiven(_Message, frozen=True):
    """Report that slots have received their initial values under these grants; empty if that failed.

    Sent by the server to the trainer in reply to ``InitialValues``, and by the trainer to the master.
    """

    slots: list[int]
    grants: list[int]


class ScriptFailed(_Message, frozen=True):
    """Report that the user's script raised an exception while the trainer held these leases."""

    error: str
    leases: list[Lease]


class ScriptHung(_Message, frozen=True):
    """Report that the script has made no progress for ``seconds``; the trainer process exits after it.

    ``doing`` describes the activity (``in batch 2 of ...: samples 5, 7``), ``lease`` is the task if the script is in a
    batch, and ``stack`` has the script's current lines.
    """

    seconds: float
    doing: str
    stack: str
    lease: Lease | None


# --- Master to trainer -------------------------------------------------------------------------------------------


class Registered(_Message, frozen=True):
    """The trainer is registered; the reply to ``Register``.

    ``epoch`` is the open epoch; ``slots`` is the number of slots; ``output`` is the manifest's output path or ''.
    ``step_seconds`` is the step timeout of the script, in seconds. ``evaluations`` (the last 1,000) and ``metrics``
    (the last 10,000) are ordered by epoch and number. ``groups`` are the job's registered parameter groups. ``joins``
    is a number that no other life of a trainer has. ``stopping`` is why the script stopped the job, or ''.
    """

    epochs: int
    seed: int
    epoch: int
    slots: int
    output: str
    lease_seconds: float
    step_seconds: float
    trainers: int
    joins: int
    groups: list[Group]
    evaluations: list[Evaluation]
    metrics: list[Metric]
    stopping: str


class RegistrationRefused(_Message, frozen=True):
    """The trainer is refused; ``reason`` names the field and the fix. Final for this process."""

    reason: str


class TaskLeased(_Message, frozen=True):
    """A task is leased to the trainer; the reply to ``RequestTask``.

    ``left``: batches of the task's epoch that are not done. ``trainers``: the number of registered trainers.
    ``watched``: a trainer died while it held the task, so the trainer must announce each batch (``BatchBegan``).
    """

    lease: Lease
    left: int
    trainers: int
    watched: bool


class EpochDone(_Message, frozen=True):
    """Every task up to ``epoch`` is done, or left out as the script stopped the job; the trainer's loop must end.

    The reply to ``RequestTask`` when no task of the loop's epoch is left.
    """

    epoch: int


class TaskCommitted(_Message, frozen=True):
    """The task is done and its lease has ended; the reply to ``TaskDone``."""

    lease: Lease


class TaskReopened(_Message, frozen=True):
    """The task is not done: a slot lost it, or is served under a new grant; the reply to ``TaskDone``.

    The trainer keeps the lease, reads the slot map and continues from the slots' watermarks.
    """

    lease: Lease


class EvaluateTurn(_Message, frozen=True):
    """Assign the evaluation to this trainer; the reply is ``Evaluated``."""

    epoch: int
    number: int


class SaveTurn(_Message, frozen=True):
    """Assign the writing of the model to this trainer; the reply is ``Saved``."""

    path: str
    epoch: int
    number: int


class Stopping(_Message, frozen=True):
    """The script stopped the job, for the script's ``reason``: only tasks that were begun are done. To all trainers."""

    reason: str


class ProvideInitialValues(_Message, frozen=True):
    """Request that one trainer sends these slots their initial values, under these grants (rule 11).

    ``holders[owner[i]]`` serves the slot ``slots[i]``. The trainer replies with ``InitialValuesGiven``.
    """

    slots: list[int]
    grants: list[int]
    holders: list[Holder]
    owner: list[int]

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        _parallel(self.slots, self.grants, self.owner)


class NotComplete(_Message, frozen=True):
    """Tasks are open again or still open: the trainer must loop again. Sent to trainers that finished their loop."""


class Complete(_Message, frozen=True):
    """The job is complete: every slot's last snapshot is pinned. Sent to finished trainers and to all servers."""


class Drain(_Message, frozen=True):
    """The trainer is drained: it must finish its batch, return its leases and leave."""


class Stop(_Message, frozen=True):
    """The job has failed, for this ``reason``; sent to all trainers."""

    reason: str


# --- Parameter server to master ----------------------------------------------------------------------------------


class ReportState(_Message, frozen=True):
    """A server's whole state (rule 3): the slots that it serves and those in its snapshots.

    Sent on each connection to a master and in reply to ``RequestState``. ``waiting``: slots that wait for their initial
    values. ``question``: number of the master's last ``RequestState`` that this answers (rule 11).
    """

    held: list[SlotReport]
    waiting: list[int]
    files: list[File]
    question: Count
    addresses: list[Name]
    pid: Count
    host: Name


class GrantReport(_Message, frozen=True):
    """Report that slots are served under a grant; the reports replace the master's evidence (rule 2).

    The reply to ``Grant``.
    """

    reports: list[SlotReport]


class AwaitingInitialValues(_Message, frozen=True):
    """Report fresh slots that wait for their initial values under these grants; the reply to a fresh ``Grant``."""

    slots: list[int]
    grants: list[int]

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        _parallel(self.slots, self.grants)


class GrantFailed(_Message, frozen=True):
    """Report that a ``Grant`` failed: the snapshot is missing, damaged or foreign, or the slot is not in memory."""

    slot: int
    grant: int
    file: Name
    reason: str


class SnapshotWritten(_Message, frozen=True):
    """Report that a snapshot file is durable: written, synced and renamed."""

    file: Name
    slots: list[int]
    grants: list[int]
    counts: list[Count]

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        _parallel(self.slots, self.grants, self.counts)


class MissingTasks(_Message, frozen=True):
    """Report slots whose last snapshot was not taken, as they lack tasks or have batches of other tasks (rule 9).

    The reply to ``TakeFinalSnapshot``.
    """

    reports: list[SlotReport]


class FinalSnapshotPinned(_Message, frozen=True):
    """Report that the last snapshot of these slots is written, read back whole, and pinned (rule 9).

    ``tasks``: repeated from the ``TakeFinalSnapshot`` that it answers. ``samples`` and ``skipped``: the counts of
    samples that each slot keeps with its watermarks.
    """

    file: Name
    tasks: bytes
    slots: list[int]
    grants: list[int]
    samples: list[Count]
    skipped: list[Count]

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        _parallel(self.slots, self.grants, self.samples, self.skipped)


# --- Master to parameter server ----------------------------------------------------------------------------------


class JobSettings(_Message, frozen=True):
    """The job's settings for a server; sent when it connects, and when the first trainer has registered the model.

    ``shape`` is None until then. ``interval``: seconds between snapshots. ``keep``: snapshots to keep.
    """

    shape: ModelSpec | None
    slots: int
    seed: int
    epochs: int
    interval: float
    keep: int
    lease_seconds: float


class RequestState(_Message, frozen=True):
    """Request a new ``ReportState`` that repeats the number ``question`` (rule 11)."""

    question: int


class Grant(_Message, frozen=True):
    """Order a server to serve the slot under this grant.

    ``source``: ``keep`` (the server's memory), ``file`` (the snapshot ``file``) or ``fresh`` (initial values).
    """

    slot: int
    grant: int
    source: str
    file: str


class TrainersDeparted(_Message, frozen=True):
    """Report to every server that the trainer with this life left, died or timed out.

    The servers close its connections.
    """

    life: int


class ReleaseSlot(_Message, frozen=True):
    """Order a server to release the slot if it holds it under this grant: another server serves the slot."""

    slot: int
    grant: int


class TakeFinalSnapshot(_Message, frozen=True):
    """Order a server to write, read back and pin the last snapshot of these slots; sent when all tasks are done.

    ``tasks``: exactly the tasks that the slots must have (``TaskSet.encode``); empty means every task of every epoch.
    The server replies with ``FinalSnapshotPinned`` or ``MissingTasks``.
    """

    slots: list[int]
    grants: list[int]
    tasks: bytes

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        _parallel(self.slots, self.grants)


class ReleaseSnapshots(_Message, frozen=True):
    """Release snapshot files of a server for this slot: other snapshots of the slot are newer (rule 10)."""

    slot: int
    files: list[str]


# --- Observers (the local runner, `shoal status`) ----------------------------------------------------------------


class Observe(_Message, frozen=True):
    """Request the job's progress: at once, and then every 0.2 s; sent by an observer to the master."""


class Member(_Part, frozen=True):
    """One process of the job; ``since`` is the number of seconds since it connected."""

    role: str
    index: int
    life: int
    pid: int
    host: str
    address: str
    state: str
    task: str
    since: float


class Evaluation(_Part, frozen=True):
    """The score of the ``number``-th evaluation within an epoch, as JSON text."""

    epoch: int
    number: int
    score: str


class Samples(_Part, frozen=True):
    """The account of samples, over all epochs. ``counted`` includes ``skipped``."""

    expected: int
    counted: int
    lost: int
    twice: int
    skipped: int


class JobAccount(_Part, frozen=True):
    """The job's final account."""

    state: str
    epochs: int
    samples: Samples
    joins: int
    leaves: int
    deaths: int
    replayed: int
    seconds: float


class JobProgress(_Message, frozen=True):
    """The job's progress; the master's reply to ``Observe``.

    ``state``: Starting, Running, Saving, Complete or Failed. ``samples_done`` and ``samples_epoch`` are of the open
    epoch, ``samples_total`` over all epochs; ``rate`` is in samples per second; ``left_seconds`` < 0 when unknown;
    ``why``: the reason when no task is being finished; ``events`` are (number, time, level, text), newest last.
    """

    state: str
    reason: str
    generation: int
    etcd: str
    epoch: int
    epochs: int
    samples_done: int
    samples_epoch: int
    samples_total: int
    samples_expected: int
    rate: float
    left_seconds: float
    values: dict[str, float]
    members: list[Member]
    evaluations: list[Evaluation]
    retries: int
    skipped: int
    replayed: int
    not_finite: int
    joins: int
    leaves: int
    deaths: int
    saved: list[str]
    why: str
    events: list[tuple[int, float, str, str]]
    account: JobAccount | None


# --- Trainer to parameter server ---------------------------------------------------------------------------------


class Attach(_Message, frozen=True):
    """Attach slots to this connection, in this order; the first request of a connection.

    With ``shared`` > 0 a sealed memfd of that many bytes follows. The reply is ``Attached``.
    """

    slots: list[int]
    shared: int


class Pull(_Message, frozen=True):
    """Request the watermarks of the attached slots in a task and, with ``values``, their dense parameters.

    ``average``: the moving averages instead of the values (the values if no step was applied yet); they follow the
    reply as its payload, even if memory is shared.
    """

    grants: list[int]
    epoch: Count
    task: Count
    values: bool
    average: bool = False


class RowPart(_Part, frozen=True):
    """Rows of one table in a payload: ``count`` int64 row numbers, then (where values are sent) count x dim values."""

    table: int
    count: Count


class Push(_Message, frozen=True):
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


class PullRows(_Message, frozen=True):
    """Request the values of rows; a row that was never pushed has its initial values."""

    grants: list[int]
    parts: list[RowPart]


class InitialValues(_Message, frozen=True):
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
        _parallel(self.slots, self.grants)


class MergeBuffers(_Message, frozen=True):
    """Merge a trainer's buffers (the payload, in the order of ``ModelSpec``); the reply has the job's buffers.

    ``trainers``: the number of trainers. Buffers with merge ``mean`` change by 1/trainers of the difference; the
    payload's increase is added to those with ``sum``; 0 means that nothing is merged. ``fixed``: request the fixed
    tensors; there is no payload, and nothing is merged.
    """

    grant: int
    trainers: Count
    fixed: bool


class ExportTables(_Message, frozen=True):
    """Request the rows of every table that the server holds of a slot (``Pull`` requests the dense values)."""

    slot: int
    grant: int


# --- Parameter server to trainer ---------------------------------------------------------------------------------


class Attached(_Message, frozen=True):
    """The reply to ``Attach``. ``grants``: the current grants of the slots at this server; 0: not served here."""

    grants: list[int]


class Applied(_Part, frozen=True):
    """The watermark of attached slots in a task; a grant of 0 means stale: request the slot map from the master."""

    slots: list[int]
    grants: list[int]
    batches: int


class PullReply(_Message, frozen=True):
    """The reply to ``Pull``."""

    applied: list[Applied]
    values: bool


class SlotBatch(_Part, frozen=True):
    """The result of a push at some slots; ``batches`` is the current watermark of the pushed task."""

    slots: list[int]
    grants: list[int]
    batches: int


class PushReply(_Message, frozen=True):
    """The reply to ``Push``: the watermarks of the pushed task, and of the next one."""

    pushed: list[SlotBatch]
    next: list[Applied]
    values: bool


class RowsReply(_Message, frozen=True):
    """The reply to ``PullRows``; ``stale``: a grant is not the current one, and no values follow."""

    stale: bool


class BuffersMerged(_Message, frozen=True):
    """The reply to ``MergeBuffers``; ``stale``: the grant is not the current one, and no buffers follow."""

    stale: bool


class TableValues(_Part, frozen=True):
    """Rows of one table in an export."""

    table: int
    count: int


class ExportReply(_Message, frozen=True):
    """The reply to ``ExportTables``: the payload has, per table, row numbers (int64) and values."""

    stale: bool
    tables: list[TableValues]


class Fatal(_Message, frozen=True):
    """The server cannot continue with this connection, for this ``reason``, and closes it."""

    reason: str


ToMaster = (
    KeepAlive
    | JobEvent
    | Leave
    | Register
    | RequestTask
    | TaskDone
    | ReturnTasks
    | GetSlotMap
    | LogValues
    | Evaluate
    | Evaluated
    | Metric
    | LoopFinished
    | Save
    | Saved
    | StopEarly
    | BatchBegan
    | InitialValuesGiven
    | ScriptFailed
    | ScriptHung
    | ReportState
    | GrantReport
    | GrantFailed
    | AwaitingInitialValues
    | SnapshotWritten
    | MissingTasks
    | FinalSnapshotPinned
    | Observe
)
FromMaster = (
    KeepAliveReply
    | Registered
    | RegistrationRefused
    | TaskLeased
    | EpochDone
    | TaskCommitted
    | TaskReopened
    | SlotMap
    | EvaluateTurn
    | Evaluated
    | SaveTurn
    | Saved
    | Stopping
    | ProvideInitialValues
    | NotComplete
    | Complete
    | Drain
    | Stop
    | JobSettings
    | RequestState
    | Grant
    | TrainersDeparted
    | ReleaseSlot
    | TakeFinalSnapshot
    | ReleaseSnapshots
    | JobProgress
)
ToServer = Attach | Pull | Push | PullRows | InitialValues | MergeBuffers | ExportTables
ToTrainer = Attached | PullReply | PushReply | RowsReply | BuffersMerged | ExportReply | InitialValuesGiven | Fatal
