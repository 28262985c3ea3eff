"""The status of a TrainingJob as typed models: what was observed, and for which generation of the spec.

The operator writes it, clients read it; a reader takes fields that it does not know, so that it may be older than the
operator. Nothing here is an age: a time stays true for as long as it is not written again, and `kubectl get` shows it
as an age. Texts that only repeat numbers are computed, so that both can never differ.
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
    "Account",
    "Allocation",
    "Condition",
    "ConditionType",
    "MasterStatus",
    "Progress",
    "Reason",
    "ServersStatus",
    "State",
    "Status",
    "TrainersStatus",
]


class State(StrEnum):
    """Where a job is in its life, in one word."""

    PENDING = "Pending"
    QUEUED = "Queued"
    STARTING = "Starting"
    RUNNING = "Running"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"


class ConditionType(StrEnum):
    """What can be said about a job."""

    ACCEPTED = "Accepted"
    SCHEDULED = "Scheduled"
    AUTOSCALED = "Autoscaled"
    RUNNING = "Running"
    PROGRESSING = "Progressing"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"


class Reason(StrEnum):
    """Why a condition is as it is; `REASONS` says what each means."""

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
        Reason.VALID: "The operator takes the spec as it is.",
        Reason.INVALID_SPEC: "Fields contradict each other in a way that the schema cannot see; the message names them.",
        Reason.INVALID_TEMPLATE: "The API server refuses a pod made from a template; the message has its own words.",
        Reason.CANNOT_CHANGE: "A field was changed that cannot change once the job exists; what was there stays in force.",
        Reason.NAME_TAKEN: "An object with a name that the job needs exists, and belongs to somebody else.",
        Reason.PREDECESSOR_LEAVING: "Objects of a deleted job of the same name are not gone yet.",
        Reason.UNKNOWN_PRIORITY: "The AutoscalerConfig has no priority of this name.",
        Reason.NOT_CHECKED: "The API server could not check the job's pods; the message has its words. It is asked again.",
    },
    ConditionType.SCHEDULED: {
        Reason.PODS_PLACED: "Master, servers and the fewest trainers have nodes.",
        Reason.PODS_PENDING: "Pods are not made yet, or the scheduler has not spoken yet.",
        Reason.QUEUED: "The job waits for room for its fewest trainers.",
        Reason.UNSCHEDULABLE: "The scheduler finds no node for a pod; the message has its own words.",
        Reason.QUOTA_EXCEEDED: "A ResourceQuota of the namespace leaves no room for a pod.",
        Reason.PODS_REFUSED: "The API server, an admission policy or a kubelet refuses a pod or another object of the job; "
        "the message has its words.",
        Reason.NO_PODS_WANTED: "The job is suspended or has ended; its pods leave and none are made.",
    },
    ConditionType.AUTOSCALED: {
        Reason.FOLLOWING: "The job follows the autoscaler's plans; status.allocation has what it is given.",
        Reason.PINNED: "spec.trainer.replicas is set: the autoscaler finds room for so many, and changes nothing.",
        Reason.DISABLED: "The AutoscalerConfig says enabled: false; the job has its pinned number or its minimum.",
        Reason.DRY_RUN: "The AutoscalerConfig says dryRun: true; plans are made, and nobody follows them.",
        Reason.CONFIG_REFUSED: "The AutoscalerConfig cannot be taken; the message says why, and what is in force instead.",
    },
    ConditionType.RUNNING: {
        Reason.TRAINERS_READY: "At least the fewest trainers are ready.",
        Reason.PODS_STARTING: "Pods have nodes and are starting.",
        Reason.IMAGE_PULL_FAILED: "A node cannot pull an image.",
        Reason.CONTAINER_CANNOT_START: "A container cannot be made, such as for a missing volume, Secret or command.",
        Reason.CRASH_LOOP: "A container ends again and again; the message has its exit code.",
        Reason.OUT_OF_MEMORY: "A container was killed at its memory limit.",
        Reason.PODS_EVICTED: "A kubelet ended a pod: its node lacks room or shuts down, or the pod is over its own deadline.",
        Reason.NODE_LOST: "The node of a pod is gone, and the pod is being replaced.",
        Reason.MASTER_AWAY: "The master is not ready or cannot be asked; trainers go on with what they hold.",
        Reason.SERVERS_AWAY: "A parameter server is not ready.",
        Reason.NO_TRAINERS: "Fewer trainers are ready than the job needs.",
        Reason.NO_TRAINERS_WANTED: "The job is suspended or has ended; its trainers leave and none are made.",
    },
    ConditionType.PROGRESSING: {
        Reason.SAMPLES_COMMITTED: "Samples become part of the model.",
        Reason.NOT_BEGUN: "No sample is part of the model yet; the message says what is waited for.",
        Reason.SAVING: "All samples are committed; the model is being written.",
        Reason.STALLED: "Nothing moves; the message says why, in the master's words.",
        Reason.NO_NEWS: "The master has said nothing for a while.",
        Reason.ETCD_UNREACHABLE: "The operator cannot reach etcd, so it does not know; running jobs go on.",
        Reason.NOTHING_TO_DO: "The job is suspended or has ended.",
    },
    ConditionType.SUSPENDED: {
        Reason.SUSPEND_REQUESTED: "spec.suspend is true and all pods are gone; of a job with parameterServer.emptyDir all but "
        "master and servers, which hold the model.",
        Reason.PODS_LEAVING: "spec.suspend is true; snapshots are being written and pods leave.",
        Reason.RESUMED: "spec.suspend is false.",
    },
    ConditionType.COMPLETE: {
        Reason.ALL_SAMPLES_COMMITTED: "The last sample is committed, and the model is written to spec.output.",
    },
    ConditionType.FAILED: {
        Reason.BACKOFF_LIMIT_EXCEEDED: "The script ended by an error of its own more often than runPolicy.backoffLimit.",
        Reason.DEADLINE_EXCEEDED: "The job ran for longer than runPolicy.activeDeadlineSeconds.",
        Reason.TASK_FAILED: "The script failed three times on the same samples; the message names them.",
        Reason.SNAPSHOTS_LOST: "No snapshot is left from which the parameters can be restored.",
        Reason.SCRIPT_FAILED: "The job cannot go on as its script is; the message has the master's words.",
    },
}
"""All reasons by the condition that has them, and what each means."""


_LATEST: Final = datetime(9000, 1, 1, tzinfo=UTC)
"""Of times in a status, so that what is reckoned from them is a time, too."""


def _in_seconds(value: datetime) -> datetime:
    try:
        found = value.astimezone(UTC)
    except OverflowError:  # at either end of the calendar, with an offset
        found = value.replace(tzinfo=UTC)
    return min(found, _LATEST).replace(microsecond=0)


Time = Annotated[AwareDatetime, AfterValidator(_in_seconds)]
"""A moment as Kubernetes writes it: whole seconds, UTC, the year 9000 at the latest."""


class _Part(BaseModel):
    """What all parts of a status have in common: camelCase outside, unknown fields left out, never changed."""

    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, extra="ignore", frozen=True
    )


class Condition(_Part):
    """One thing that is true or not."""

    type: str = Field(description=f"What is said: {', '.join(ConditionType)}.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it is so.")
    reason: str = Field(description="Why, in one word from a fixed list, such as QuotaExceeded.")
    message: str = Field(default="", description="Why, for people: which pod, which field, and what to do.")
    last_transition_time: Time = Field(description="When the status of this condition changed last.")
    observed_generation: int | None = Field(
        default=None, description="Generation of the spec that this was observed for."
    )


class TrainersStatus(_Part):
    """The trainers as they are."""

    wanted: int = Field(default=0, description="How many there should be now, by pin, autoscaler or minimum.")
    ready: int = Field(default=0, description="How many are at work.")
    min: int = Field(default=0, description="spec.trainer.minReplicas, as observed.")
    max: int = Field(default=0, description="spec.trainer.maxReplicas, as observed; the minimum where it is unset.")

    @computed_field(description="Ready and wanted, such as 3/4.")  # type: ignore[prop-decorator]
    @property
    def text(self) -> str:
        """Ready and wanted."""
        return f"{self.ready}/{self.wanted}"

    @computed_field(description="The bounds, such as 2-8.")  # type: ignore[prop-decorator]
    @property
    def range(self) -> str:
        """The bounds."""
        return f"{self.min}-{self.max}" if self.min != self.max else str(self.min)


class ServersStatus(_Part):
    """The parameter servers as they are."""

    wanted: int = Field(default=0, description="How many there should be.")
    ready: int = Field(default=0, description="How many are ready.")

    @computed_field(description="Ready and wanted, such as 2/2.")  # type: ignore[prop-decorator]
    @property
    def text(self) -> str:
        """Ready and wanted."""
        return f"{self.ready}/{self.wanted}"


class MasterStatus(_Part):
    """The master as it is."""

    ready: bool = Field(default=False, description="Whether it answers.")


class Progress(_Part):
    """How far the training is, as the master says."""

    epoch: int | None = Field(default=None, description="Number of the open epoch, from 1.")
    epochs: int | None = Field(default=None, description="How many epochs there are in all.")
    samples: int = Field(default=0, description="Samples that are part of the model, over all epochs.")
    expected: int | None = Field(default=None, description="Samples of all epochs together.")
    rate: float | None = Field(default=None, description="Samples per second, in three digits; recent.")
    estimated_end: Time | None = Field(default=None, description="When the last sample will be committed at this rate.")
    last_step_time: Time | None = Field(default=None, description="When samples were committed last.")
    message: str | None = Field(default=None, description="Why nothing moves, when nothing moves.")

    @field_validator("rate")
    @classmethod
    def _in_three_digits(cls, value: float | None) -> float | None:
        """So that noise is no news."""
        rounded = float(f"{value:.3g}") if value is not None else math.nan
        return rounded if math.isfinite(rounded) else None

    @computed_field(description="Share of the samples that are done, such as 41%.")  # type: ignore[prop-decorator]
    @property
    def percent(self) -> str | None:
        """100% only when all are done."""
        if not self.expected or self.expected < 0:
            return None
        return f"{min(max(100 * self.samples // self.expected, 0), 100)}%"

    @computed_field(description="Open epoch and how many there are, such as 2/3.")  # type: ignore[prop-decorator]
    @property
    def text(self) -> str | None:
        """Open epoch and how many there are."""
        return f"{self.epoch}/{self.epochs}" if self.epoch is not None and self.epochs is not None else None


class Allocation(_Part):
    """What the job was given, and why not more."""

    wanted: int = Field(default=0, description="Trainers that the autoscaler gives the job.")
    ready: int = Field(default=0, description="Trainers of these that are ready.")
    why: str | None = Field(default=None, description="Why it is not more: at max, pinned, no room for cpu 4.")


class Account(_Part):
    """The final account of every sample, over all epochs."""

    epochs: int = Field(default=0, description="Epochs that were trained.")
    expected: int = Field(default=0, description="Samples that were to count.")
    counted: int = Field(default=0, description="Samples that counted.")
    lost: int = Field(default=0, description="Samples that did not; 0 for a job that is complete.")
    twice: int = Field(default=0, description="Samples that counted more than once; always 0.")
    skipped: int = Field(default=0, description="Samples of batches for which the script made no step.")
    replayed: int = Field(default=0, description="Batches that were computed again after a loss.")
    joins: int = Field(default=0, description="Trainers that joined.")
    leaves: int = Field(default=0, description="Trainers that left in order.")
    deaths: int = Field(default=0, description="Trainers that died.")
    seconds: float = Field(default=0.0, description="Seconds from the first task to the end.")


class Status(_Part):
    """What was observed of a job."""

    observed_generation: int | None = Field(default=None, description="Generation of the spec that this is about.")
    state: State | None = Field(default=None, description="Where the job is in its life, in one word.")
    reason: str | None = Field(default=None, description="Reason of the condition that decides the state.")
    conditions: list[Condition] = Field(
        default_factory=list,
        description="What is true of the job and what is not, each with its reason; for `kubectl wait "
        "--for=condition=Complete`. Reasons come from a fixed list.",
    )
    trainers: TrainersStatus | None = Field(default=None, description="Trainers: wanted, ready and bounds.")
    servers: ServersStatus | None = Field(default=None, description="Parameter servers: wanted and ready.")
    master: MasterStatus | None = Field(default=None, description="The master.")
    progress: Progress | None = Field(default=None, description="How far the training is, and how fast.")
    allocation: Allocation | None = Field(default=None, description="What the autoscaler gives, and why not more.")
    account: Account | None = Field(default=None, description="The account of every sample, at the job's end.")
    start_time: Time | None = Field(default=None, description="When the fewest trainers were ready for the first time.")
    completion_time: Time | None = Field(default=None, description="When the job was complete.")
    last_scale_time: Time | None = Field(default=None, description="When the number of wanted trainers changed last.")
    active_seconds: int | None = Field(
        default=None, description="Seconds that the job ran before activeSince, for runPolicy.activeDeadlineSeconds."
    )
    active_since: Time | None = Field(
        default=None, description="Since when the job runs; absent while it is suspended, and after its end."
    )
    failures: int | None = Field(
        default=None, description="Errors of the script's own in a row, for runPolicy.backoffLimit."
    )
    restarts: int | None = Field(
        default=None,
        description="How often the job began again, as its model was lost with its servers' pods (parameterServer.emptyDir); at "
        "runPolicy.backoffLimit it fails.",
    )
    last_failure_time: Time | None = Field(
        default=None, description="When the script last ended by an error of its own."
    )
    selector: str | None = Field(default=None, description="Label selector of the trainers' pods, for autoscalers.")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any] | None) -> Status:
        """From what stands in an object; nothing is an empty status."""
        return cls.model_validate(mapping or {}, by_alias=True, by_name=False)

    def to_mapping(self) -> dict[str, Any]:
        """As it stands in an object: camelCase, without what is not known."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
