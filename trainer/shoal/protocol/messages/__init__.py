"""Every message that the processes of one job exchange, as msgspec structs.

There is one module for each link; ``docs/exactly-once.md`` states the rules behind the fields. Each direction is one tagged
union, so that a decoder refuses a message of another direction. Tensors are never part of a message: they follow it as the
frame's raw payload, or are in memory that both ends map.

Terms: a *slot* is numbered from 0; a *grant* is a random non-negative 63-bit number, compared for equality only, and 0
means "none"; a *life* is a random number that distinguishes one run of a process from the next.
"""

from shoal.protocol.messages.common import (
    NO_GRANT,
    File,
    Holder,
    JobEvent,
    KeepAlive,
    KeepAliveReply,
    Lease,
    Leave,
    Level,
    SlotMap,
    SlotReport,
)
from shoal.protocol.messages.model import Buffer, DenseParameter, Group, ModelSpec, SparseTable, Tensor
from shoal.protocol.messages.observer import Evaluation, JobAccount, JobProgress, Member, Observe, Samples
from shoal.protocol.messages.server_master import (
    AwaitingInitialValues,
    FinalSnapshotPinned,
    Grant,
    GrantFailed,
    GrantReport,
    JobSettings,
    MissingTasks,
    ReleaseSlot,
    ReleaseSnapshots,
    ReportState,
    RequestState,
    SnapshotWritten,
    TakeFinalSnapshot,
    TrainersDeparted,
)
from shoal.protocol.messages.trainer_master import (
    BatchBegan,
    Complete,
    Drain,
    EpochDone,
    Evaluate,
    Evaluated,
    EvaluateTurn,
    GetSlotMap,
    InitialValuesGiven,
    LogValues,
    LoopFinished,
    Metric,
    NotComplete,
    ProvideInitialValues,
    Register,
    Registered,
    RegistrationRefused,
    RequestTask,
    ReturnTasks,
    Save,
    Saved,
    SaveTurn,
    ScriptFailed,
    ScriptHung,
    Stop,
    StopEarly,
    Stopping,
    TaskCommitted,
    TaskDone,
    TaskLeased,
    TaskReopened,
)
from shoal.protocol.messages.trainer_server import (
    Applied,
    Attach,
    Attached,
    BuffersMerged,
    ExportReply,
    ExportTables,
    Fatal,
    InitialValues,
    MergeBuffers,
    Pull,
    PullReply,
    PullRows,
    Push,
    PushReply,
    RowPart,
    RowsReply,
    SlotBatch,
    TableValues,
)

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
    "Level",
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
    "TrainersDeparted",
]

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
