"""What the planner sees, remembers and says: plain values and arrays, no I/O.

Amounts are whole numbers: thousandths for ``cpu``, units (bytes, pieces) for all else. All arrays of one snapshot have the
same order of resources, shapes and nodes. The planner speaks of where things will stand once all that is on its way out has
gone; `Nodes.leaving` says what of that room is still taken now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "Allocation",
    "Claim",
    "Counts",
    "Flags",
    "JobAllocation",
    "Nodes",
    "PendingPod",
    "PlannerJob",
    "PlannerMemory",
    "Policy",
    "Shapes",
    "Snapshot",
    "Why",
]

Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Nodes:
    """All nodes, N of them, with R resources.

    Attributes:
        names: Of each.
        room: [N, R] allocatable less the effective requests of every unfinished pod that is bound there and stays, but for
            trainers of ours. Parameter servers and masters that are bound count as taken. May be negative.
        leaving: [N, R] requests of pods that are being deleted, of any kind: not part of what ``room`` lacks, but in the
            way until they are gone.
        usable: [N] Ready, not cordoned, not being deleted.
        group: [N] which group of taints and labels it belongs to.
        total: [R] what all usable nodes have for pods; shares are of this.
    """

    names: tuple[str, ...]
    room: Counts
    leaving: Counts
    usable: Flags
    group: Counts
    total: Counts


@dataclass(frozen=True, kw_only=True, eq=False)
class Shapes:
    """The different pods, S of them.

    Attributes:
        request: [S, R] effective requests of one pod; every one counts 1 of ``pods``.
        fits: [S, G] whether tolerations, node selector and required affinity let it onto nodes of a group.
    """

    request: Counts
    fits: Flags


@dataclass(frozen=True, kw_only=True)
class PlannerJob:
    """A job that wants trainers.

    Attributes:
        uid: Of the TrainingJob.
        name: NAMESPACE/NAME, for people.
        priority: Of its minimum trainers; jobs of one priority are a class. A foreign pod above it may claim their room.
        surplus: Of its trainers beyond; a foreign pod between the two may claim the room of these. None: the same.
        min: Fewest trainers; with fewer it has none.
        max: Most trainers; the same as ``min`` where the number is pinned.
        shape: Of a trainer.
        fixed: (shape, how many) of its other pods that have no node yet: they need room together with the minimum.
        held: Node -> trainers that are bound there and not on their way out, for each node where there are some.
        firm: Node -> how many of these have the minimum's priority: for one that left, one of the surplus would be made anew.
        weight: Its claim to room among jobs of its class.
        since: When it was created, in seconds.
        pinned: Whether its number is the user's choice.
        unschedulable: Seconds for which a trainer of its own has been refused by the scheduler; 0: none.
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
        """The priority of who gives way first."""
        return self.priority if self.surplus is None else self.surplus

    @property
    def trainers(self) -> int:
        """How many it has."""
        return sum(self.held.values())


@dataclass(frozen=True, kw_only=True)
class PendingPod:
    """A foreign pod that has no node yet.

    Attributes:
        uid: Its own.
        name: NAMESPACE/NAME.
        shape: Its.
        priority: Its.
        node: That is nominated for it; -1: none.
        preempts: Whether the scheduler evicts others for it by itself.
    """

    uid: str
    name: str
    shape: int
    priority: int
    node: int = -1
    preempts: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """The cluster at one moment.

    Attributes:
        now: Seconds that only go forward.
        resources: Names, R of them.
        nodes: All of them.
        shapes: Of all pods that appear here.
        jobs: Those that want trainers: neither suspended nor ended, nor refused.
        pending: Foreign pods without a node that the scheduler may place: none that is gated.
        spare: (shape, how many): pods for which surplus trainers leave room, so that a burst needs no eviction.
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
    """What an operator of a cluster may choose.

    Attributes:
        cool_down_seconds: For so long after a move for fairness alone a job makes none in the other direction.
        moves: Moves for fairness alone in one cycle, over all jobs.
        stuck_seconds: For so long a trainer is refused by the scheduler before its job is held at what runs.
        scheduler_evicts: Pods that preempt by themselves get their room from the scheduler; it is only left free for them.
    """

    cool_down_seconds: float = 60.0
    moves: int = 8
    stuck_seconds: float = 10.0
    scheduler_evicts: bool = True


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Room that is being made, on one node, for one pending pod.

    Attributes:
        pod: Uid of the pod.
        name: NAMESPACE/NAME.
        node: Where, by its number in the plan's snapshot.
        victims: Job's uid -> trainers that give way.
        since: When it was made.
    """

    pod: str
    name: str
    node: int
    victims: Mapping[str, int]
    since: float


@dataclass(frozen=True, kw_only=True)
class PlannerMemory:
    """What one plan leaves for the next.

    Attributes:
        claims: Uid of a pod -> (name of the node that it claims, since when). Numbers of nodes mean something in one snapshot
            only: where a node goes another one takes its number.
        moved: Job's uid -> (when it last gave or got a trainer for fairness alone, whether it got one).
        capped: Job's uid -> (most trainers, until when): the scheduler knows something against more.
        backoff: Job's uid -> (seconds of its last cap, at how many trainers that was), until it has come further.
        unmet: Uids of pods that did not come to their claimed node -> until when they claim nothing.
        rows: Job's uid -> what it held, and the same as arrays of nodes, ascending, and counts. They serve a job whose
            ``held`` is the very same object in the next snapshot, so its numbers of nodes are the next snapshot's too.
    """

    claims: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    moved: Mapping[str, tuple[float, bool]] = field(default_factory=dict)
    capped: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    backoff: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    unmet: Mapping[str, float] = field(default_factory=dict)
    rows: Mapping[str, tuple[Mapping[int, int], Counts, Counts]] = field(
        default_factory=dict, compare=False, repr=False
    )


class Why(StrEnum):
    """Why a job has no more trainers."""

    MAX = "AtMax"
    PINNED = "Pinned"
    FULL = "NoRoom"
    CLAIM = "MakingRoom"
    SHARE = "FairShare"
    REFUSED = "SchedulerRefuses"
    QUEUED = "Queued"


class JobAllocation(NamedTuple):
    """What a job is given. A named tuple, as each plan makes one for each job.

    Attributes:
        trainers: How many it shall have; 0: it waits for its minimum.
        stays: Node -> how many of its trainers stay there.
        comes: Node -> how many new ones fit there.
        now: Node -> how many of these may be created now: the room is there.
        why: Why not more.
        words: The same for people.
        others: (shape, node) where each of its other pods without a node would do best.
        others_now: Whether all of these have their room already.
    """

    trainers: int
    stays: Mapping[int, int]
    comes: Mapping[int, int]
    now: Mapping[int, int]
    why: Why
    words: str
    others: tuple[tuple[int, int], ...] = ()
    others_now: bool = True


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Of each job's uid what it is given, and the claims that are under way."""

    jobs: Mapping[str, JobAllocation]
    claims: tuple[Claim, ...] = ()
