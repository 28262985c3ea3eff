"""The planner's input, memory and output: plain values and arrays, no I/O.

Amounts are whole numbers: thousandths for ``cpu``, units (bytes, pieces) for every other resource. All arrays of one snapshot
have the same order of resources, shapes and nodes. The planner computes the state after every terminating pod has ended;
`Nodes.leaving` is the part of that room which terminating pods still occupy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "AllocationReason",
    "Claim",
    "Counts",
    "Flags",
    "JobAllocation",
    "Nodes",
    "PendingPod",
    "PlanResult",
    "PlannerJob",
    "PlannerMemory",
    "Policy",
    "Shapes",
    "Snapshot",
]

Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Nodes:
    """All nodes of the cluster: N nodes with R resources.

    Attributes:
        names: Name of each node.
        room: [N, R] allocatable less the effective requests of every unfinished pod that is bound there and is not being
            deleted, except Shoal's trainers. Bound parameter servers and masters count as taken. May be negative.
        leaving: [N, R] requests of pods of any kind that are being deleted. They are not subtracted from ``room``, but occupy
            it until they have ended.
        usable: [N] whether the node is Ready, not cordoned and not being deleted.
        group: [N] group of nodes with the same taints and labels.
        total: [R] allocatable of all usable nodes; the denominator of shares.
    """

    names: tuple[str, ...]
    room: Counts
    leaving: Counts
    usable: Flags
    group: Counts
    total: Counts


@dataclass(frozen=True, kw_only=True, eq=False)
class Shapes:
    """The S different shapes of pods: a shape is a set of requests and node constraints.

    Attributes:
        request: [S, R] effective requests of one pod; each pod counts 1 of ``pods``.
        fits: [S, G] whether tolerations, node selector and required affinity allow the pod on nodes of a group.
    """

    request: Counts
    fits: Flags


@dataclass(frozen=True, kw_only=True)
class PlannerJob:
    """A job that needs trainers.

    Attributes:
        uid: Uid of the TrainingJob.
        name: NAMESPACE/NAME, for messages.
        priority: Priority of the minimum trainers; jobs of one priority are a class. A foreign pod above it may claim their
            room.
        surplus: Priority of the trainers beyond the minimum. A foreign pod between the two priorities may claim their room.
            None: `priority`.
        min: Fewest trainers; a job that cannot have them has none.
        max: Most trainers; equal to ``min`` where the number is pinned.
        shape: Shape of a trainer.
        fixed: (shape, count) of the job's other pods that have no node yet: they need room together with the minimum.
        held: Node -> bound trainers that are not being deleted; only nodes with at least one.
        firm: Node -> how many of ``held`` have the minimum's priority: if one of them is deleted, a surplus trainer has to be
            recreated with that priority.
        weight: Divisor of the job's share among jobs of its class. Default: 1.
        since: Creation time of the job, in seconds.
        pinned: Whether the user has set the number of trainers.
        unschedulable: Seconds since the scheduler first refused a trainer of the job that is still pending; 0: none is.
    """

    uid: str
    name: str
    priority: int
    min: int
    max: int
    shape: int
    fixed: tuple[tuple[int, int], ...] = ()
    held: Mapping[int, int] = field(default_factory=dict)
    firm: Mapping[int, int] = field(default_factory=dict)
    weight: float = 1.0
    since: float = 0.0
    pinned: bool = False
    unschedulable: float = 0.0
    surplus: int | None = None

    @property
    def lowest(self) -> int:
        """The lowest priority of the job's trainers: they are preempted first."""
        return self.priority if self.surplus is None else self.surplus

    @property
    def trainers(self) -> int:
        """The number of bound trainers."""
        return sum(self.held.values())


@dataclass(frozen=True, kw_only=True)
class PendingPod:
    """A foreign pod that has no node yet.

    Attributes:
        uid: Uid of the pod.
        name: NAMESPACE/NAME.
        shape: Shape of the pod.
        priority: Priority of the pod.
        node: Node in `status.nominatedNodeName`; -1: none.
        preempts: Whether the scheduler itself preempts other pods for it.
    """

    uid: str
    name: str
    shape: int
    priority: int
    node: int = -1
    preempts: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """The state of the cluster at one point in time.

    Attributes:
        now: Time of the snapshot, in seconds of a monotonic clock.
        resources: Names of the R resources.
        nodes: All nodes.
        shapes: Shapes of all pods of the snapshot.
        jobs: Jobs that need trainers: neither suspended nor ended nor refused.
        pending: Foreign pods without a node, except pods with scheduling gates.
        spare: (shape, count) of the head-room: pods for which surplus trainers leave room, so that a burst needs no eviction.
    """

    now: float
    resources: tuple[str, ...]
    nodes: Nodes
    shapes: Shapes
    jobs: tuple[PlannerJob, ...]
    pending: tuple[PendingPod, ...] = ()
    spare: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The planner's options.

    Attributes:
        cool_down_seconds: Time after a rebalancing move in which a job makes no move in the other direction. Seconds.
            Default: 60.
        moves: Most rebalancing moves in one cycle, over all jobs. Default: 8.
        stuck_seconds: Time for which the scheduler refuses a trainer before its job is capped at its bound trainers. Seconds.
            Default: 10.
        scheduler_evicts: Whether the scheduler makes the room of pods that may preempt; the planner then only leaves the room
            free. Default: True.
    """

    cool_down_seconds: float = 60.0
    moves: int = 8
    stuck_seconds: float = 10.0
    scheduler_evicts: bool = True


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Room on one node that is reserved for one pending pod.

    Attributes:
        pod: Uid of the pod.
        name: NAMESPACE/NAME of the pod.
        node: Number of the node in the plan's snapshot.
        victims: Job's uid -> number of its trainers that are preempted.
        since: When the claim was made, in seconds.
    """

    pod: str
    name: str
    node: int
    victims: Mapping[str, int]
    since: float


class QueueState(NamedTuple):
    """The hysteresis of one job's queueing between two plans. Times in seconds of the snapshots' clock.

    Attributes:
        since: When the minimum was first found without room. None: it has room.
        until: When the job may be admitted again.
        pause: Length of the next back-off. 0: the first one.
        stable: Since when the job has both room and pods. None: it lacks one of them.
        pods: Whether the last plan gave the job trainers, or it had some.
    """

    since: float | None = None
    until: float = 0.0
    pause: float = 0.0
    stable: float | None = None
    pods: bool = False


@dataclass(frozen=True, kw_only=True)
class PlannerMemory:
    """The state that one plan hands to the next.

    Attributes:
        claims: Uid of a pod -> (name of the claimed node, since when). Node names, because node numbers are valid in one
            snapshot only: the number of a removed node is reused.
        moved: Job's uid -> (time of its last rebalancing move, whether it got a trainer (True) or gave one (False)).
        capped: Job's uid -> (most trainers, until when): the scheduler has refused more.
        backoff: Job's uid -> (seconds of its last cap, trainers at that cap), until the job has grown beyond it.
        queue: Job's uid -> the hysteresis of its queueing.
        unmet: Uid of a pod that was not bound to its claimed node -> until when it claims nothing.
        rows: Job's uid -> (`held`, its nodes ascending as an array, their counts as an array). A row is reused for a job whose
            ``held`` is the identical object in the next snapshot; its node numbers are then the same.
    """

    claims: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    moved: Mapping[str, tuple[float, bool]] = field(default_factory=dict)
    capped: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    backoff: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    queue: Mapping[str, QueueState] = field(default_factory=dict)
    unmet: Mapping[str, float] = field(default_factory=dict)
    rows: Mapping[str, tuple[Mapping[int, int], Counts, Counts]] = field(
        default_factory=dict, compare=False, repr=False
    )


class AllocationReason(StrEnum):
    """The reason why a job has no more trainers."""

    MAX = "AtMax"
    PINNED = "Pinned"
    FULL = "NoRoom"
    CLAIM = "MakingRoom"
    SHARE = "FairShare"
    REFUSED = "SchedulerRefuses"
    QUEUED = "Queued"


class JobAllocation(NamedTuple):
    """The allocation of one job. A named tuple, for speed: each plan makes one per job.

    Attributes:
        trainers: Number of trainers; 0: the job is queued for its minimum.
        kept: Node -> trainers that stay there.
        added: Node -> new trainers that are planned there.
        now: Node -> new trainers that can be created now, as their room is free already.
        reason: Reason why the job has no more trainers.
        message: The reason as a message.
        others: (shape, node) of each master or parameter server without a node: the node that suits it best.
        others_now: Whether the room of all `others` is free already. Default: True.
        keeps_pods: Whether the job keeps its pods although its minimum has no room: the time before it is queued has not passed yet.
            Default: False.
    """

    trainers: int
    kept: Mapping[int, int]
    added: Mapping[int, int]
    now: Mapping[int, int]
    reason: AllocationReason
    message: str
    others: tuple[tuple[int, int], ...] = ()
    others_now: bool = True
    keeps_pods: bool = False


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """The result of a plan: the allocation by job's uid, and the claims in progress."""

    jobs: Mapping[str, JobAllocation]
    claims: tuple[Claim, ...] = ()
