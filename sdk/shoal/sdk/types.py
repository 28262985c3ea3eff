"""The values that callers pass to the SDK and get from it. All of them are frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from shoal.api.status import State

__all__ = [
    "Account",
    "Event",
    "JobStatus",
    "LogLine",
    "Member",
    "ParameterServers",
    "Progress",
    "Replicas",
    "Resources",
    "SizeChange",
    "State",
    "Trainers",
]

_ENDED = frozenset((State.COMPLETE, State.FAILED))


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Resources of one process.

    Attributes:
        cpu: Requested cores, such as 1, 0.5 or "500m". Default: none.
        memory: Requested memory, and its limit, such as "1Gi". Default: none.
        gpu: Number of GPUs (``nvidia.com/gpu``). Default: none.
        requests: Further requests, by resource. Default: none.
        limits: Further limits, by resource. Default: none.
    """

    cpu: float | str | None = None
    memory: str | int | None = None
    gpu: int | None = None
    requests: Mapping[str, str | float] = field(default_factory=dict)
    limits: Mapping[str, str | float] = field(default_factory=dict)

    def to_mapping(self) -> dict[str, Any]:
        """Return the resources as a manifest has them."""
        named = {"cpu": self.cpu, "memory": self.memory}
        requests = {**{name: value for name, value in named.items() if value is not None}, **self.requests}
        limits: dict[str, Any] = {"memory": self.memory} if self.memory is not None else {}
        limits |= {"nvidia.com/gpu": self.gpu} if self.gpu is not None else {}
        limits |= self.limits
        parts = {"requests": requests, "limits": limits}
        return {key: {k: str(v) for k, v in part.items()} for key, part in parts.items() if part}


@dataclass(frozen=True, kw_only=True)
class Trainers:
    """Number and resources of the trainers.

    Attributes:
        min: Fewest trainers that the job can use. Default: None, 1 or the manifest's.
        max: Most trainers that the job can use. Default: None, the same as `min`, or the manifest's.
        replicas: Pins the number of trainers. Default: None, the number varies between the bounds.
        resources: Resources of one trainer. Default: None, none.
    """

    min: int | None = None
    max: int | None = None
    replicas: int | None = None
    resources: Resources | None = None


@dataclass(frozen=True, kw_only=True)
class ParameterServers:
    """Number, resources and storage of the parameter servers.

    Attributes:
        replicas: Number of parameter servers. Default: 1.
        resources: Resources of one parameter server. Default: None, none.
        storage: Size of the claim for each server's snapshots. Default: None, that of the manifest's default.
        storage_class: StorageClass of these claims. Default: None, that of the cluster.
        empty_dir: Whether snapshots are kept in the pods, and lost with them. Default: false.
    """

    replicas: int = 1
    resources: Resources | None = None
    storage: str | None = None
    storage_class: str | None = None
    empty_dir: bool = False


@dataclass(frozen=True)
class Replicas:
    """Number of processes of a role: those that are ready, those desired, and the bounds."""

    ready: int = 0
    desired: int = 0
    min: int = 0
    max: int = 0


@dataclass(frozen=True)
class Progress:
    """Progress of the training.

    Attributes:
        samples: Samples committed over all epochs.
        expected: Samples of all epochs together; None while unknown.
        epoch: Number of the open epoch, from 1; None before the first.
        epochs: Number of epochs; None while unknown.
        rate: Present rate in samples per second; None while unknown.
        estimated_end: When the last sample will be committed at this rate; None while unknown.
        message: Why no samples are committed; empty while they are.
    """

    samples: int = 0
    expected: int | None = None
    epoch: int | None = None
    epochs: int | None = None
    rate: float | None = None
    estimated_end: datetime | None = None
    message: str = ""

    @property
    def percent(self) -> float | None:
        """Share of the samples that are committed, from 0 to 100, with one decimal; None while unknown. 100 means all."""
        if not self.expected:
            return None
        return min(1000 * self.samples // self.expected, 1000) / 10

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the estimated end, at least 0; None while it is unknown."""
        if self.estimated_end is None:
            return None
        return max(0.0, (self.estimated_end - datetime.now(UTC)).total_seconds())


@dataclass(frozen=True)
class Account:
    """The final account of every sample, over all epochs."""

    epochs: int
    expected: int
    counted: int
    lost: int
    twice: int
    skipped: int
    replayed: int
    joins: int
    leaves: int
    deaths: int
    seconds: float


@dataclass(frozen=True)
class Member:
    """A process of a job.

    Attributes:
        name: Name of the process, such as ``trainer-0``.
        state: What it does: its phase, or the reason why it does not run.
        node: Node that it runs on; empty on one machine.
        restarts: Number of restarts.
        message: Details of the state; empty if there are none.
    """

    name: str
    state: str
    node: str = ""
    restarts: int = 0
    message: str = ""


@dataclass(frozen=True)
class JobStatus:
    """State of a job at one time.

    Attributes:
        name: Name of the job.
        namespace: Namespace of the job; empty on one machine.
        state: Phase of the job, in one word.
        reason: Reason of the state, in one word from a fixed list; empty if there is none.
        message: Details of the reason, such as what the job waits for; empty if there are none.
        progress: Progress of the training.
        trainers: Number of trainers.
        parameter_servers: Number of parameter servers.
        account: The account of every sample; None before the end.
        created: When the job was created; None if it is unknown.
        started: When the training began; None before.
        ended: When the job completed; None before.
        refusal: Why the operator refuses the job, so that it does not start; empty if it does not.
        uid: Uid of the job, which distinguishes it from a later one of the same name.
    """

    name: str
    namespace: str = ""
    state: State = State.PENDING
    reason: str = ""
    message: str = ""
    progress: Progress = Progress()
    trainers: Replicas = Replicas()
    parameter_servers: Replicas = Replicas()
    account: Account | None = None
    created: datetime | None = None
    started: datetime | None = None
    ended: datetime | None = None
    refusal: str = ""
    uid: str = field(default="", repr=False)

    @property
    def is_ended(self) -> bool:
        """Whether the job is complete or has failed."""
        return self.state in _ENDED

    @property
    def is_complete(self) -> bool:
        """Whether the job is complete."""
        return self.state is State.COMPLETE


@dataclass(frozen=True)
class Event:
    """A change of a job that was recorded for users.

    Attributes:
        time: When it happened last.
        kind: ``Normal`` or ``Warning``.
        reason: Reason in one word.
        message: Details.
        count: How often it happened. Default: 1.
    """

    time: datetime
    kind: str
    reason: str
    message: str
    count: int = 1


@dataclass(frozen=True)
class SizeChange:
    """A change of the desired number of trainers.

    Attributes:
        time: When it changed.
        before: Number of trainers before.
        after: Number of trainers after.
        cause: Why it changed, such as ``pinned by spec.trainer.replicas``.
        by: Who asked: the field manager of the change, such as ``kubectl``, or ``autoscaler``; empty if unknown.
    """

    time: datetime
    before: int
    after: int
    cause: str
    by: str = ""


@dataclass(frozen=True)
class LogLine:
    """A line of a process's log.

    Attributes:
        process: Name of the process, such as ``trainer-0``.
        text: The line, without its end.
    """

    process: str
    text: str

    def __str__(self) -> str:
        return self.text
