"""The status of a TrainingJob as typed models: the observed state, and the generation of the spec it belongs to.

The operator writes it and clients read it. A reader ignores unknown fields, so that it may be older than the operator.
The status has times and no ages: a time need not be updated, and `kubectl get` shows it as an age. Texts that repeat
numbers are computed from them, so that both are always consistent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, computed_field, field_validator
from pydantic.alias_generators import to_camel

__all__ = [
    "REASONS",
    "AccountStatus",
    "Allocation",
    "Condition",
    "ConditionType",
    "HistoryEntry",
    "MasterStatus",
    "ProgressStatus",
    "Reason",
    "ServersStatus",
    "State",
    "Status",
    "TrainersStatus",
]


class State(StrEnum):
    """Phase of a job, in one word."""

    PENDING = "Pending"
    QUEUED = "Queued"
    STARTING = "Starting"
    RUNNING = "Running"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"


class ConditionType(StrEnum):
    """Types of a job's conditions."""

    ACCEPTED = "Accepted"
    SCHEDULED = "Scheduled"
    AUTOSCALED = "Autoscaled"
    RUNNING = "Running"
    PROGRESSING = "Progressing"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"


class Reason(StrEnum):
    """Reasons of the conditions; their meanings are in `REASONS`."""

    VALID = "Valid"
    INVALID_SPEC = "InvalidSpec"
    INVALID_TEMPLATE = "InvalidTemplate"
    CANNOT_CHANGE = "CannotChange"
    NAME_TAKEN = "NameTaken"
    PREDECESSOR_LEAVING = "PredecessorLeaving"
    UNKNOWN_PRIORITY = "UnknownPriority"
    NOT_CHECKED = "NotChecked"

    PODS_PLACED = "PodsPlaced"
    PODS_PENDING = "PodsPending"
    QUEUED = "Queued"
    UNSCHEDULABLE = "Unschedulable"
    QUOTA_EXCEEDED = "QuotaExceeded"
    PODS_REFUSED = "PodsRefused"
    NO_PODS_WANTED = "NoPodsWanted"

    FOLLOWING = "Following"
    PINNED = "Pinned"
    DISABLED = "Disabled"
    DRY_RUN = "DryRun"
    CONFIG_REFUSED = "ConfigRefused"

    TRAINERS_READY = "TrainersReady"
    PODS_STARTING = "PodsStarting"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CONTAINER_CANNOT_START = "ContainerCannotStart"
    CRASH_LOOP = "CrashLoop"
    OUT_OF_MEMORY = "OutOfMemory"
    PODS_EVICTED = "PodsEvicted"
    NODE_LOST = "NodeLost"
    MASTER_AWAY = "MasterAway"
    SERVERS_AWAY = "ServersAway"
    NO_TRAINERS = "NoTrainers"
    NO_TRAINERS_WANTED = "NoTrainersWanted"

    SAMPLES_COMMITTED = "SamplesCommitted"
    NOT_BEGUN = "NotBegun"
    SAVING = "Saving"
    STALLED = "Stalled"
    NO_NEWS = "NoNews"
    ETCD_UNREACHABLE = "EtcdUnreachable"
    NOTHING_TO_DO = "NothingToDo"

    SUSPEND_REQUESTED = "SuspendRequested"
    PODS_LEAVING = "PodsLeaving"
    RESUMED = "Resumed"

    ALL_SAMPLES_COMMITTED = "AllSamplesCommitted"

    BACKOFF_LIMIT_EXCEEDED = "BackoffLimitExceeded"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    TASK_FAILED = "TaskFailed"
    SNAPSHOTS_LOST = "SnapshotsLost"
    SCRIPT_FAILED = "ScriptFailed"


REASONS: Final[Mapping[ConditionType, Mapping[Reason, str]]] = {
    ConditionType.ACCEPTED: {
        Reason.VALID: "The operator accepts the spec.",
        Reason.INVALID_SPEC: "Fields contradict each other in a way that the schema cannot check; the message names them.",
        Reason.INVALID_TEMPLATE: "The API server rejects a pod made from a template; the message has the server's error.",
        Reason.CANNOT_CHANGE: "A field was changed that cannot change once the job exists; the old value stays in force.",
        Reason.NAME_TAKEN: "An object with a name that the job needs exists and does not belong to the job.",
        Reason.PREDECESSOR_LEAVING: "Objects of a deleted job of the same name still exist.",
        Reason.UNKNOWN_PRIORITY: "The AutoscalerConfig has no priority of this name.",
        Reason.NOT_CHECKED: "The API server could not check the job's pods; the message has its error. It is retried.",
    },
    ConditionType.SCHEDULED: {
        Reason.PODS_PLACED: "Master, servers and minReplicas trainers have nodes.",
        Reason.PODS_PENDING: "Pods are not created yet, or the scheduler has not processed them yet.",
        Reason.QUEUED: "The job waits for room for minReplicas trainers.",
        Reason.UNSCHEDULABLE: "The scheduler finds no node for a pod; the message has the scheduler's message.",
        Reason.QUOTA_EXCEEDED: "A ResourceQuota of the namespace leaves no room for a pod.",
        Reason.PODS_REFUSED: "The API server, an admission policy or a kubelet refuses a pod or another object of the job; "
        "the message has its error.",
        Reason.NO_PODS_WANTED: "The job is suspended or has ended; its pods are deleted and none are created.",
    },
    ConditionType.AUTOSCALED: {
        Reason.FOLLOWING: "The job follows the autoscaler's plans; its allocation is in status.allocation.",
        Reason.PINNED: "spec.trainer.replicas is set: the autoscaler finds room for that number and does not change it.",
        Reason.DISABLED: "The AutoscalerConfig has enabled: false; the job has its pinned number or its minimum.",
        Reason.DRY_RUN: "The AutoscalerConfig has dryRun: true; plans are computed, and jobs do not follow them.",
        Reason.CONFIG_REFUSED: "The AutoscalerConfig is invalid; the message has the reason and the configuration in force.",
    },
    ConditionType.RUNNING: {
        Reason.TRAINERS_READY: "At least minReplicas trainers are ready.",
        Reason.PODS_STARTING: "Pods have nodes and are starting.",
        Reason.IMAGE_PULL_FAILED: "A node cannot pull an image.",
        Reason.CONTAINER_CANNOT_START: "A container cannot be created, such as for a missing volume, Secret or command.",
        Reason.CRASH_LOOP: "A container exits repeatedly; the message has its exit code.",
        Reason.OUT_OF_MEMORY: "A container was killed at its memory limit.",
        Reason.PODS_EVICTED: "A kubelet terminated a pod: its node lacks resources or shuts down, or the pod's deadline passed.",
        Reason.NODE_LOST: "The node of a pod is lost, and the pod is being replaced.",
        Reason.MASTER_AWAY: "The master is not ready or not reachable; trainers continue with the tasks that they have leased.",
        Reason.SERVERS_AWAY: "A parameter server is not ready.",
        Reason.NO_TRAINERS: "Fewer trainers are ready than the job needs.",
        Reason.NO_TRAINERS_WANTED: "The job is suspended or has ended; its trainers are deleted and none are created.",
    },
    ConditionType.PROGRESSING: {
        Reason.SAMPLES_COMMITTED: "Samples are being committed.",
        Reason.NOT_BEGUN: "No sample is committed yet; the message has what the job waits for.",
        Reason.SAVING: "All samples are committed; the model is being written.",
        Reason.STALLED: "No samples are committed; the message has the master's reason.",
        Reason.NO_NEWS: "The master has not reported yet, is not ready, or reports neither progress nor a reason.",
        Reason.ETCD_UNREACHABLE: "The operator cannot reach etcd, so the progress is unknown; running jobs continue.",
        Reason.NOTHING_TO_DO: "The job is suspended or has ended.",
    },
    ConditionType.SUSPENDED: {
        Reason.SUSPEND_REQUESTED: "spec.suspend is true and all pods are deleted; with parameterServer.emptyDir all except "
        "master and servers, which hold the model.",
        Reason.PODS_LEAVING: "spec.suspend is true; snapshots are being written and pods are being deleted.",
        Reason.RESUMED: "spec.suspend is false.",
    },
    ConditionType.COMPLETE: {
        Reason.ALL_SAMPLES_COMMITTED: "The last sample is committed, and the model is written to spec.output.",
    },
    ConditionType.FAILED: {
        Reason.BACKOFF_LIMIT_EXCEEDED: "The script failed more often than runPolicy.backoffLimit allows.",
        Reason.DEADLINE_EXCEEDED: "The job ran for longer than runPolicy.activeDeadlineSeconds.",
        Reason.TASK_FAILED: "The script failed three times on the same samples; the message names them.",
        Reason.SNAPSHOTS_LOST: "No snapshot is left from which the parameters can be restored.",
        Reason.SCRIPT_FAILED: "The job cannot continue with its script; the message has the master's reason.",
    },
}
"""The reasons of each condition, with their meanings."""


_LATEST: Final = datetime(9000, 1, 1, tzinfo=UTC)
"""Latest time in a status, so that sums with it are valid times, too."""


def _in_seconds(value: datetime) -> datetime:
    try:
        found = value.astimezone(UTC)
    except OverflowError:  # at either end of the calendar, with an offset
        found = value.replace(tzinfo=UTC)
    return min(found, _LATEST).replace(microsecond=0)


Time = Annotated[AwareDatetime, AfterValidator(_in_seconds)]
"""A time as Kubernetes writes it: whole seconds, UTC, not later than the year 9000."""


class _Part(BaseModel):
    """Base class of all parts of a status: camelCase aliases, unknown fields are ignored, instances are frozen."""

    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, extra="ignore", frozen=True
    )


class Condition(_Part):
    """A condition of a job, as in other Kubernetes objects."""

    type: str = Field(description=f"Type of the condition: {', '.join(ConditionType)}.")
    status: Literal["True", "False", "Unknown"] = Field(description="Status of the condition.")
    reason: str = Field(description="Reason in one word from a fixed list, such as QuotaExceeded.")
    message: str = Field(default="", description="Details of the reason: the pod or field, and the fix.")
    last_transition_time: Time = Field(description="Time of the last change of the condition's status.")
    observed_generation: int | None = Field(
        default=None, description="Generation of the spec that the condition was observed for."
    )


class TrainersStatus(_Part):
    """Observed state of the trainers."""

    desired: int = Field(default=0, description="Desired number of trainers, from pin, autoscaler or minimum.")
    ready: int = Field(default=0, description="Number of trainers that are ready.")
    min: int = Field(default=0, description="spec.trainer.minReplicas, as observed.")
    max: int = Field(default=0, description="spec.trainer.maxReplicas, as observed; the minimum if it is unset.")

    @computed_field(description="Ready and desired trainers, such as 3/4.")  # type: ignore[prop-decorator]
    @property
    def text(self) -> str:
        """Ready and desired trainers."""
        return f"{self.ready}/{self.desired}"

    @computed_field(description="Bounds of the number of trainers, such as 2-8.")  # type: ignore[prop-decorator]
    @property
    def range(self) -> str:
        """Bounds of the number of trainers."""
        return f"{self.min}-{self.max}" if self.min != self.max else str(self.min)


class ServersStatus(_Part):
    """Observed state of the parameter servers."""

    desired: int = Field(default=0, description="Desired number of parameter servers.")
    ready: int = Field(default=0, description="Number of parameter servers that are ready.")

    @computed_field(description="Ready and desired parameter servers, such as 2/2.")  # type: ignore[prop-decorator]
    @property
    def text(self) -> str:
        """Ready and desired parameter servers."""
        return f"{self.ready}/{self.desired}"


class MasterStatus(_Part):
    """Observed state of the master."""

    ready: bool = Field(default=False, description="Whether the master is ready.")


class ProgressStatus(_Part):
    """Progress of the training, as reported by the master."""

    epoch: int | None = Field(default=None, description="Number of the open epoch, from 1.")
    epochs: int | None = Field(default=None, description="Number of epochs.")
    samples: int = Field(default=0, description="Samples committed over all epochs.")
    expected: int | None = Field(default=None, description="Samples of all epochs together.")
    rate: float | None = Field(default=None, description="Present rate in samples per second, rounded to three digits.")
    estimated_end: Time | None = Field(default=None, description="When the last sample will be committed at this rate.")
    last_step_time: Time | None = Field(default=None, description="When samples were committed last.")
    message: str | None = Field(default=None, description="Why no samples are committed; absent while they are.")

    @field_validator("rate")
    @classmethod
    def _in_three_digits(cls, value: float | None) -> float | None:
        """Round the rate to three digits, so that noise does not change the status."""
        rounded = float(f"{value:.3g}") if value is not None else math.nan
        return rounded if math.isfinite(rounded) else None

    @computed_field(description="Share of the samples that are committed, such as 41%.")  # type: ignore[prop-decorator]
    @property
    def percent(self) -> str | None:
        """Share of the samples that are committed; rounded down, so 100% means all."""
        if not self.expected or self.expected < 0:
            return None
        return f"{min(max(100 * self.samples // self.expected, 0), 100)}%"

    @computed_field(description="Open epoch and number of epochs, such as 2/3.")  # type: ignore[prop-decorator]
    @property
    def text(self) -> str | None:
        """Open epoch and number of epochs."""
        return f"{self.epoch}/{self.epochs}" if self.epoch is not None and self.epochs is not None else None


class Allocation(_Part):
    """The job's allocation by the autoscaler, with the reason why it is not larger."""

    desired: int = Field(default=0, description="Number of trainers that the autoscaler gives the job.")
    ready: int = Field(default=0, description="Number of these trainers that are ready.")
    message: str | None = Field(
        default=None, description="Why the job gets no more trainers: at max, pinned, no room for cpu 4."
    )


class HistoryEntry(_Part):
    """A change of the desired number of trainers."""

    time: Time = Field(description="When the operator observed the change.")
    before: int = Field(default=0, description="Desired number of trainers before the change.")
    after: int = Field(default=0, description="Desired number of trainers after the change.")
    cause: str = Field(
        default="",
        description="Why it changed: pinned by spec.trainer.replicas, suspended, resumed, or the autoscaler's reason.",
    )
    by: str = Field(
        default="",
        description="Who asked: the field manager of the change in metadata.managedFields, such as kubectl, or "
        "autoscaler; scale for a request to the scale subresource whose manager was not recorded; empty if unknown.",
    )


class AccountStatus(_Part):
    """The final account of every sample, over all epochs."""

    epochs: int = Field(default=0, description="Epochs that were trained.")
    expected: int = Field(default=0, description="Samples that should count.")
    counted: int = Field(default=0, description="Samples that counted.")
    lost: int = Field(default=0, description="Samples that did not count; 0 for a complete job.")
    twice: int = Field(default=0, description="Samples that counted more than once; always 0.")
    skipped: int = Field(default=0, description="Samples of batches for which the script made no step.")
    replayed: int = Field(default=0, description="Batches that were computed again after a loss.")
    joins: int = Field(default=0, description="Trainers that joined.")
    leaves: int = Field(default=0, description="Trainers that left after a drain or at the end.")
    deaths: int = Field(default=0, description="Trainers that failed or were killed.")
    seconds: float = Field(default=0.0, description="Seconds from the first task to the end.")


class Status(_Part):
    """Observed state of a job."""

    observed_generation: int | None = Field(default=None, description="Generation of the spec that this status is for.")
    state: State | None = Field(default=None, description="Phase of the job, in one word.")
    reason: str | None = Field(default=None, description="Reason of the condition that determines the state.")
    conditions: list[Condition] = Field(
        default_factory=list,
        description="Conditions of the job, each with its reason; for `kubectl wait "
        "--for=condition=Complete`. The reasons are from a fixed list.",
    )
    trainers: TrainersStatus | None = Field(default=None, description="Trainers: desired, ready and bounds.")
    servers: ServersStatus | None = Field(default=None, description="Parameter servers: desired and ready.")
    master: MasterStatus | None = Field(default=None, description="The master.")
    progress: ProgressStatus | None = Field(default=None, description="Progress and rate of the training.")
    allocation: Allocation | None = Field(
        default=None, description="Allocation by the autoscaler, and why it is not larger."
    )
    account: AccountStatus | None = Field(default=None, description="The account of every sample, at the job's end.")
    start_time: Time | None = Field(
        default=None, description="When minReplicas trainers were ready for the first time."
    )
    completion_time: Time | None = Field(default=None, description="When the job was complete.")
    last_scale_time: Time | None = Field(default=None, description="When the desired number of trainers changed last.")
    history: list[HistoryEntry] = Field(
        default_factory=list,
        description="The last 100 changes of the desired number of trainers, the oldest first, each with its cause.",
    )
    active_seconds: int | None = Field(
        default=None, description="Seconds that the job ran before activeSince, for runPolicy.activeDeadlineSeconds."
    )
    active_since: Time | None = Field(
        default=None, description="When the job started or resumed; absent while it is suspended, and after its end."
    )
    failures: int | None = Field(
        default=None, description="Consecutive failures of the script, for runPolicy.backoffLimit."
    )
    restarts: int | None = Field(
        default=None,
        description="Number of restarts of the job because its model was lost with its servers' pods "
        "(parameterServer.emptyDir); at runPolicy.backoffLimit the job fails.",
    )
    retried: str | None = Field(
        default=None,
        description="Value of the annotation shoal.dev/retry that was acted on last, or seen while the job ran.",
    )
    last_failure_time: Time | None = Field(default=None, description="When the script failed last.")
    selector: str | None = Field(default=None, description="Label selector of the trainers' pods, for autoscalers.")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any] | None) -> Status:
        """Parse the status of an object; None is an empty status."""
        return cls.model_validate(mapping or {}, by_alias=True, by_name=False)

    def to_mapping(self) -> dict[str, Any]:
        """Return the status for an object: camelCase, without unknown values and without an empty history."""
        empty = None if self.history else {"history"}
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=empty)
