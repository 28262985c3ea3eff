"""Every message that the processes of one job exchange, as msgspec structs.

One module holds them all, because the protocol is read best as a whole: who sends what to whom stands in the section
headings, and the rules behind the fields in ``docs/exactly-once.md``. Each direction is one tagged union, so that a
decoder refuses whatever does not belong there. Tensors never travel inside a message: they follow it as the frame's
raw payload, or lie in memory that both ends map.

Words: a *slot* is numbered from 0; a *grant* is a random non-negative 63-bit number, compared for equality only, and 0
means "none"; *life* is a random number that tells one run of a process from the next.
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
"""A number of things, or a thing's number: far above what a job has, far below what cannot be added up and told again."""
Place = Annotated[int, msgspec.Meta(ge=-1, le=1 << 40)]
"""The same, or -1 for none."""
Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
"""At least one."""
Attempt = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Seed = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Name = Annotated[str, msgspec.Meta(max_length=4096)]
"""Of a file, a host, an address, a tensor, a logged value."""
Score = Annotated[str, msgspec.Meta(max_length=64_000)]
Level = Literal["info", "warning", "error"]


def _parallel(*columns: Sequence[Any]) -> None:
    """Refuse columns of a table that have not the same length."""
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"columns of {', '.join(str(len(column)) for column in columns)} rows")


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A piece of a message."""


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """A message: its class name is its tag."""


# --- What a job trains: told once by the first trainer, the same for every other one -------------------------------


class Tensor(_Part, frozen=True):
    """Name, shape and torch dtype (``float32``) of a tensor."""

    name: str
    shape: list[int]
    dtype: str


class Buffer(_Part, frozen=True):
    """A buffer of the module and how the trainers' copies of it become the job's.

    ``merge``: ``mean`` (each trainer has its share), ``sum`` (each trainer's increase is added) or ``last`` (the last
    writer's stands).
    """

    name: str
    shape: list[int]
    dtype: str
    merge: str


class DenseParameter(_Part, frozen=True):
    """A parameter that is pushed and pulled whole; ``group`` counts over the groups of all optimizers.

    ``clamp``: [low, high]: after each step the server clamps the values; None means no bound on that side, as JSON has
    no infinity. Empty: the values are not clamped. ``max_norm``: after that the server scales down each row (all values
    with one first index) whose Euclidean norm is larger; 0: it does not. The rows of such a parameter are never cut.
    """

    name: str
    shape: list[int]
    dtype: str
    group: int
    clamp: list[float | None] = []
    max_norm: float = 0.0


class SparseTable(_Part, frozen=True):
    """An embedding table, pushed and pulled by rows.

    ``family`` tells a row's first values. ``given``: the first trainer gives all rows, and the servers hold them from
    the beginning. Otherwise a row is made on its first push, drawn by (seed, table, row) alone: ``normal``: mean
    ``first``, deviation ``second``; ``uniform``: from ``first`` to ``second``; ``constant``: ``first``; of such a table
    ``zero_rows`` start as zeros.
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
    """One parameter group: the class in ``torch.optim`` and its options, as they were when the job began."""

    optimizer: str
    options: dict[str, Any]


class ModelSpec(_Part, frozen=True, kw_only=True):
    """Everything about script and dataset that must be equal in all trainers for (epoch, task, k) to name samples.

    ``fixed``: frozen parameters and non-persistent buffers: the first trainer's are every trainer's, and are never
    merged. ``frozen``: digest of the values that are too large for that; '' if there are none. ``ema``: decay of the
    moving average that the servers keep of every dense parameter; 0 means none.
    """

    samples: int
    fingerprint: str
    batch_size: int
    drop_last: bool
    shuffle: bool
    sampler: str = ""
    """The class of the script's own sampler, which gives the order; empty: shuffled, or in sequence."""
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
    """A parameter server that holds slots: where it listens (``unix://``, ``tcp://``; the nearest first)."""

    index: int
    life: int
    addresses: list[Name]


class SlotMap(_Message, frozen=True):
    """The slot map: ``holders[owner[s]]`` serves slot s under ``grants[s]``; owner -1 and grant 0 where nobody does."""

    holders: list[Holder]
    owner: list[int]
    grants: list[int]

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        _parallel(self.owner, self.grants)


class SlotReport(_Part, frozen=True):
    """What slots with the same history have: the finished tasks as ``TaskSet.encode`` writes them.

    ``reached``: epoch and number of the last task that they have any batch of; (-1, -1): of none.
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
    """A snapshot file on offer: its name and, per slot in it, how many batches that slot had applied."""

    name: Name
    slots: list[int]
    counts: list[Count]

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        _parallel(self.slots, self.counts)


# --- Anybody to the master ---------------------------------------------------------------------------------------


class KeepAlive(_Message, frozen=True):
    """I live. Sent by both ends when nothing else was for a third of the lease."""


class KeepAliveReply(_Message, frozen=True):
    """So do I."""


class JobEvent(_Message, frozen=True):
    """Something a person wants to know; ``level`` is ``info``, ``warning`` or ``error``."""

    level: Level
    text: str


class Leave(_Message, frozen=True):
    """I leave by my own will (SIGTERM, drained); what I hold comes back with it.

    ``reason``: why the script ended by itself although the job was not complete; empty where it did not.
    """

    leases: list[Lease]
    reason: str = ""


# --- Trainer to master -------------------------------------------------------------------------------------------


class Register(_Message, frozen=True):
    """What this trainer trains, and the leases it still holds from an earlier connection.

    ``epochs`` and ``seed`` are the script's own, for a manifest that leaves them open.
    """

    shape: ModelSpec
    epochs: Positive
    seed: Seed
    leases: list[Lease]
    pid: Count
    host: Name


class RequestTask(_Message, frozen=True):
    """One more task, please; my loop is in ``epoch``."""

    epoch: Count


class TaskDone(_Message, frozen=True):
    """A task's last batch was acknowledged by every slot s under ``grants[s]``."""

    lease: Lease
    grants: list[int]


class ReturnTasks(_Message, frozen=True):
    """These I will not finish."""

    leases: list[Lease]


class GetSlotMap(_Message, frozen=True):
    """Where are the slots now?"""


class LogValues(_Message, frozen=True):
    """What the script logged last, by name, and how many batches it ran since the last such message."""

    values: dict[Name, float]
    batches: Count
    skipped: Count
    replayed: Count
    not_finite: Count


class Evaluate(_Message, frozen=True):
    """My script is at an evaluation: the ``number``-th of its calls within ``epoch``, from 0."""

    epoch: Count
    number: Count


class Evaluated(_Message, frozen=True):
    """The score of that evaluation (JSON text). From the one trainer that had the turn; then to all who wait for it."""

    epoch: Count
    number: Count
    score: Score


class Metric(_Message, frozen=True):
    """What the script gave to a scheduler that goes by it: the ``number``-th value within ``epoch``, from 0.

    The first trainer's counts for all; there is no answer.
    """

    epoch: Count
    number: Count
    value: float


class LoopFinished(_Message, frozen=True):
    """My loop went through all epochs: complete, or more to do?"""


class Save(_Message, frozen=True):
    """The script wants the model of now at ``path``: its ``number``-th call for that path within ``epoch``, from 0.

    After the last epoch, ``epoch`` is the number of epochs.
    """

    path: Name
    epoch: Count
    number: Count


class Saved(_Message, frozen=True):
    """That model, or a later one, is there. From the one trainer that had the turn; then to all who wait for it."""

    path: Name
    epoch: Count
    number: Count


class StopEarly(_Message, frozen=True):
    """The script, in ``epoch``, wants the job to end with what is begun. Answered with ``Stopping``.

    It is said again when a master greets without knowing of it.
    """

    reason: str
    epoch: Count


class BatchBegan(_Message, frozen=True):
    """The script gets a batch of a watched task now: its samples' indices (20 at most)."""

    lease: Lease
    batch: Count
    samples: list[int]


class InitialValuesGiven(_Message, frozen=True):
    """These slots have their initial values, under these grants. Empty: it could not be done."""

    slots: list[int]
    grants: list[int]


class ScriptFailed(_Message, frozen=True):
    """The user's script ended by an error of its own while it worked on these leases."""

    error: str
    leases: list[Lease]


class ScriptHung(_Message, frozen=True):
    """The script has come no further for ``seconds``; this process ends itself now.

    ``doing`` says in what (``in batch 2 of ...: samples 5, 7``), ``lease`` is the task, if it is in a batch, and ``stack`` the
    lines of the script at which it stands.
    """

    seconds: float
    doing: str
    stack: str
    lease: Lease | None


# --- Master to trainer -------------------------------------------------------------------------------------------


class Registered(_Message, frozen=True):
    """You are in. ``epoch`` is the open one; ``slots`` is the number of slots; ``output`` the manifest's path or ''.

    ``step_seconds`` is how long the script may come no further; ``evaluations`` (the last 1,000) and ``metrics`` (the last 10,000) are in the order of their epochs and numbers;
    ``groups`` are the registered ones; ``joins`` is a number that no other life of a trainer has; ``stopping`` is why
    the script stopped the job, or ''.
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
    """You are not: the reason, with the field and the fix. Final for this process."""

    reason: str


class TaskLeased(_Message, frozen=True):
    """A task is yours. ``left``: batches left to the job in its epoch; ``trainers``: how many there are now.

    ``watched``: a trainer died while it held the task, so each batch is to be announced (``BatchBegan``).
    """

    lease: Lease
    left: int
    trainers: int
    watched: bool


class EpochDone(_Message, frozen=True):
    """Every task up to ``epoch`` is done, or (the script stopped the job) none of it is left: end the loop."""

    epoch: int


class TaskCommitted(_Message, frozen=True):
    """The task is done; its lease has ended."""

    lease: Lease


class TaskReopened(_Message, frozen=True):
    """Not done: some slot lost it, or is served under a new grant. Look at the map and go on from what it has."""

    lease: Lease


class EvaluateTurn(_Message, frozen=True):
    """You are the one that evaluates."""

    epoch: int
    number: int


class SaveTurn(_Message, frozen=True):
    """You are the one that writes the model."""

    path: str
    epoch: int
    number: int


class Stopping(_Message, frozen=True):
    """The script stopped the job: it ends with what is begun. The reason, as the script gave it."""

    reason: str


class ProvideInitialValues(_Message, frozen=True):
    """Give these slots their initial values, under these grants; slot ``slots[i]`` is at ``holders[owner[i]]``."""

    slots: list[int]
    grants: list[int]
    holders: list[Holder]
    owner: list[int]

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        _parallel(self.slots, self.grants, self.owner)


class NotComplete(_Message, frozen=True):
    """Tasks came back: loop again."""


class Complete(_Message, frozen=True):
    """The job is complete: every slot's last snapshot is pinned."""


class Drain(_Message, frozen=True):
    """Finish the batch, hand back, leave."""


class Stop(_Message, frozen=True):
    """The job has failed or was stopped: the reason."""

    reason: str


# --- Parameter server to master ----------------------------------------------------------------------------------


class ReportState(_Message, frozen=True):
    """A server's whole state, repeated until accepted (rule 3): what it serves and what its snapshots hold.

    ``question`` is the number of the master's last ``RequestState`` that this answers (rule 11).
    """

    held: list[SlotReport]
    waiting: list[int]
    files: list[File]
    question: Count
    addresses: list[Name]
    pid: Count
    host: Name


class GrantReport(_Message, frozen=True):
    """These grants stand; the report replaces whatever was believed of the slots (rule 2)."""

    reports: list[SlotReport]


class AwaitingInitialValues(_Message, frozen=True):
    """Fresh slots that wait for their initial values, under these grants."""

    slots: list[int]
    grants: list[int]

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        _parallel(self.slots, self.grants)


class GrantFailed(_Message, frozen=True):
    """The order could not be carried out: there is no such snapshot (or it is damaged, or foreign)."""

    slot: int
    grant: int
    file: Name
    reason: str


class SnapshotWritten(_Message, frozen=True):
    """A snapshot stands: written, synced, renamed."""

    file: Name
    slots: list[int]
    grants: list[int]
    counts: list[Count]

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        _parallel(self.slots, self.grants, self.counts)


class MissingTasks(_Message, frozen=True):
    """The last snapshot was not taken, as these slots lack tasks or have batches of others (rule 9)."""

    reports: list[SlotReport]


class FinalSnapshotPinned(_Message, frozen=True):
    """The last snapshot of these slots is written, read back whole, and pinned.

    ``tasks``: as the ``TakeFinalSnapshot`` that it answers had them. ``samples`` and ``skipped``: what each slot counted itself,
    sample by sample, beside its watermarks.
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
    """I took your offer. The rest is what a server must know to serve."""

    shape: ModelSpec | None
    slots: int
    seed: int
    epochs: int
    interval: float
    keep: int
    lease_seconds: float


class RequestState(_Message, frozen=True):
    """Offer again, and say that you answer this question."""

    question: int


class Grant(_Message, frozen=True):
    """Serve the slot under this grant, from ``source``: ``keep`` (your memory), ``file`` or ``fresh``."""

    slot: int
    grant: int
    source: str
    file: str


class TrainersDeparted(_Message, frozen=True):
    """To every server: the trainer with this life left, died or was silent for too long. Its connections are closed."""

    life: int


class ReleaseSlot(_Message, frozen=True):
    """Let the slot go, if you hold it under this grant."""

    slot: int
    grant: int


class TakeFinalSnapshot(_Message, frozen=True):
    """All is done: write, read back and pin the last snapshot of these slots, or say what they lack.

    ``tasks``: what they must have, and nothing beyond (``TaskSet.encode``); empty: every task of every epoch.
    """

    slots: list[int]
    grants: list[int]
    tasks: bytes

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        _parallel(self.slots, self.grants)


class ReleaseSnapshots(_Message, frozen=True):
    """For this slot these files need not be kept (rule 10)."""

    slot: int
    files: list[str]


# --- Observers (the local runner, `shoal status`) ----------------------------------------------------------------


class Observe(_Message, frozen=True):
    """Send me the progress, now and at each change (several times a second at most)."""


class Member(_Part, frozen=True):
    """One process of the job, as the master sees it."""

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
    """The account of samples, over all epochs. ``skipped`` are among the counted."""

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
    """What there is to know now.

    ``state``: Starting, Running, Saving, Complete or Failed. ``samples_done`` and ``samples_epoch`` are of the open
    epoch, ``samples_total`` over all; ``rate`` in samples per second; ``left_seconds`` < 0 when unknown; ``why`` says
    why nothing moves, when nothing moves; ``events`` are (number, time, level, text), newest last.
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
    """I will ask for these slots, in this order. With ``shared`` > 0 a sealed memfd of that many bytes follows."""

    slots: list[int]
    shared: int


class Pull(_Message, frozen=True):
    """Request how far the attached slots are in a task, and their dense parameters (when ``values``).

    ``average``: the moving averages instead of the values (the values where no step was applied yet); they follow the
    reply as its payload, also where memory is shared.
    """

    grants: list[int]
    epoch: Count
    task: Count
    values: bool
    average: bool = False


class RowPart(_Part, frozen=True):
    """Rows of one table in a payload: ``count`` int64 row numbers, then (where values travel) count x dim values."""

    table: int
    count: Count


class Push(_Message, frozen=True):
    """Batches ``first`` .. ``first + batches - 1`` of a task, as one gradient, for the attached slots.

    ``skipped``: the script made no step; the watermarks move, nothing else does. ``absent``: dense parameters without
    a gradient. ``options``: per group what differs from the registered options. The reply says how far the slots
    are in (``next_epoch``, ``next_task``), and brings the dense parameters when ``values``.
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
    """The values of these rows; a row that nobody pushed yet has its first values."""

    grants: list[int]
    parts: list[RowPart]


class InitialValues(_Message, frozen=True):
    """Initial values of these slots, each under its grant.

    The payload: the dense area of the slots; then the rows of the given tables, one part for each slot and table, by
    slot and then by table (row numbers and values of every row of the slot); then, if slot 0 is among the slots, the
    buffers and the fixed tensors.
    """

    slots: list[int]
    grants: list[int]
    parts: list[RowPart]

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        _parallel(self.slots, self.grants)


class MergeBuffers(_Message, frozen=True):
    """A trainer's buffers (the payload, in the shape's order); the reply brings the job's.

    ``trainers``: how many there are: the buffers with merge ``mean`` move by 1/trainers of the difference, to those
    with ``sum`` the payload's increase is added; 0 means that nothing is merged. With ``fixed`` the fixed tensors are
    requested: no payload, nothing is merged.
    """

    grant: int
    trainers: Count
    fixed: bool


class ExportTables(_Message, frozen=True):
    """A slot's rows of every table, as far as the server holds them (its dense values come with a ``Pull``)."""

    slot: int
    grant: int


# --- Parameter server to trainer ---------------------------------------------------------------------------------


class Attached(_Message, frozen=True):
    """Yes. ``grants``: what these slots are served under now (0: not here)."""

    grants: list[int]


class Applied(_Part, frozen=True):
    """How far a run of attached slots is; ``grant`` 0 means stale: ask the master."""

    slots: list[int]
    grants: list[int]
    batches: int


class PullReply(_Message, frozen=True):
    """The answer to ``Pull``."""

    applied: list[Applied]
    values: bool


class SlotBatch(_Part, frozen=True):
    """What became of a push at some slots: ``batches`` = watermark of the pushed task now."""

    slots: list[int]
    grants: list[int]
    batches: int


class PushReply(_Message, frozen=True):
    """The answer to ``Push``: the watermarks of the pushed task, and of the next one."""

    pushed: list[SlotBatch]
    next: list[Applied]
    values: bool


class RowsReply(_Message, frozen=True):
    """The answer to ``PullRows``; ``stale``: some grant is not the current one, and no values follow."""

    stale: bool


class BuffersMerged(_Message, frozen=True):
    """The answer to ``MergeBuffers``."""

    stale: bool


class TableValues(_Part, frozen=True):
    """Rows of one table in an export."""

    table: int
    count: int


class ExportReply(_Message, frozen=True):
    """The answer to ``ExportTables``: the payload has, per table, row numbers (int64) and values."""

    stale: bool
    tables: list[TableValues]


class Fatal(_Message, frozen=True):
    """The other end cannot go on with this connection: the reason."""

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
