"""The cluster of a simulation: its pods, and their requests on each node.

Sums by node are kept in addition to the pods, so that a pass of the scheduler works on arrays instead of looping over pods.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import numpy as np

from shoal.autoscaler.planner.model import Counts
from shoal.simulator.world.layout import Layout

__all__ = ["NOWHERE", "Cluster", "Phase", "Pod", "PodKind", "rank_of"]

NOWHERE: Final = -1


class PodKind(Enum):
    """The kind of a pod's owner and its role."""

    TRAINER = "trainer"
    OTHER = "other"
    """A job's master or parameter server."""
    FOREIGN = "foreign"


class Phase(Enum):
    """The phase of a pod."""

    PENDING = "pending"
    """Without a node."""
    STARTING = "starting"
    RUNNING = "running"
    LEAVING = "leaving"
    """Being deleted; it takes its room until it has stopped."""
    DELETED = "gone"


def rank_of(priority: int, kind: PodKind) -> int:
    """Return the rank that the scheduler compares, as if each role had a PriorityClass of its own.

    A trace has one priority for all pods of a job; masters and parameter servers rank 1 above its trainers.
    """
    return 4 * priority + (1 if kind is PodKind.OTHER else 0)


@dataclass(eq=False, slots=True, kw_only=True)
class Pod:
    """A pod. Times are in seconds of simulated time; nodes are numbers, `NOWHERE` if there is none.

    Attributes:
        number: Unique number, ascending by creation.
        owner: Number of the pod's job; for a foreign pod the number of jobs in the trace.
        rank: Rank that the scheduler compares.
        surplus: Whether the pod is a trainer beyond its job's minimum.
        preempts: Whether the scheduler may evict other pods for it.
        lifetime: Seconds after its start at which the pod ends; None: it runs until it is deleted.
        preferred_node: Node that the pod's creator prefers.
        node: Node to which the pod is or was bound.
        nominated: Node where room is being made for the pod.
        refused: When the scheduler first found no room for the pod.
    """

    number: int
    name: str
    kind: PodKind
    owner: int
    shape: int
    rank: int
    priority: int
    created: float
    surplus: bool = False
    preempts: bool = False
    lifetime: float | None = None
    preferred_node: int = NOWHERE
    node: int = NOWHERE
    nominated: int = NOWHERE
    phase: Phase = Phase.PENDING
    bound: float | None = None
    refused: float | None = None


@dataclass(eq=False)
class Cluster:
    """All pods that exist, and sums over them.

    Attributes:
        layout: The nodes and shapes.
        owners: Number of owners: the jobs, and one for all foreign pods.
        pending: Pods without a node by number, oldest first.
        on: Pods of each node by number.
        taken: [N, R] requests of all bound pods, leaving pods included.
        leaving: [N, R] part of `taken` by leaving pods.
        trainers: [N, R] part of `taken` by trainers that are not leaving.
        by_rank: Rank -> [N, R] part of `taken` by pods of that rank.
        by_owner: [owners, R] requests of bound pods.
        waiting: [R] requests of pending pods.
        changed: Whether there are changes that the scheduler has not handled.
        created: Number of pods created so far.
    """

    layout: Layout
    owners: int
    pending: dict[int, Pod] = field(default_factory=dict)
    by_rank: dict[int, Counts] = field(default_factory=dict)
    changed: bool = False
    created: int = 0

    def __post_init__(self) -> None:
        rows = self.layout.allocatable
        self.on: list[dict[int, Pod]] = [{} for _ in range(len(rows))]
        self.taken: Counts = np.zeros_like(rows)
        self.leaving: Counts = np.zeros_like(rows)
        self.trainers: Counts = np.zeros_like(rows)
        self.by_owner: Counts = np.zeros((self.owners, rows.shape[1]), dtype=np.int64)
        self.waiting: Counts = np.zeros(rows.shape[1], dtype=np.int64)

    def request(self, pod: Pod) -> Counts:
        """Return [R] the request of a pod."""
        row: Counts = self.layout.shapes.request[pod.shape]
        return row

    def number(self) -> int:
        """Return the number of the next pod."""
        self.created += 1
        return self.created

    def add(self, pod: Pod) -> None:
        """Add a new pending pod."""
        self.pending[pod.number] = pod
        self.waiting += self.request(pod)
        self.changed = True

    def bind(self, pod: Pod, node: int, now: float) -> None:
        """Bind a pending pod to a node."""
        del self.pending[pod.number]
        self.waiting -= self.request(pod)
        pod.node, pod.bound, pod.phase, pod.nominated = node, now, Phase.STARTING, NOWHERE
        self.on[node][pod.number] = pod
        self._count(pod, 1)
        if pod.kind is PodKind.TRAINER:
            self.trainers[node] += self.request(pod)

    def begin_deletion(self, pod: Pod) -> None:
        """Mark a bound pod as leaving."""
        pod.phase = Phase.LEAVING
        self.leaving[pod.node] += self.request(pod)
        if pod.kind is PodKind.TRAINER:
            self.trainers[pod.node] -= self.request(pod)

    def remove(self, pod: Pod) -> None:
        """Remove a pod in any phase."""
        if pod.phase is Phase.PENDING:
            del self.pending[pod.number]
            self.waiting -= self.request(pod)
        else:
            if pod.phase is Phase.LEAVING:
                self.leaving[pod.node] -= self.request(pod)
            elif pod.kind is PodKind.TRAINER:
                self.trainers[pod.node] -= self.request(pod)
            del self.on[pod.node][pod.number]
            self._count(pod, -1)
        pod.phase = Phase.DELETED
        self.changed = True

    def _count(self, pod: Pod, sign: int) -> None:
        amounts = sign * self.request(pod)
        self.taken[pod.node] += amounts
        self.by_owner[pod.owner] += amounts
        if pod.rank not in self.by_rank:
            self.by_rank[pod.rank] = np.zeros_like(self.taken)
        self.by_rank[pod.rank][pod.node] += amounts
