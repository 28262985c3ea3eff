"""The cluster of a simulation: its pods, and what they take on which node.

Sums by node are kept beside the pods, so that a pass of the scheduler costs arrays and not loops over pods.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import numpy as np

from shoal.autoscaler.planner.model import Counts
from shoal.simulator.layout import Layout

__all__ = ["NOWHERE", "Cluster", "Phase", "Pod", "PodKind", "rank_of"]

NOWHERE: Final = -1


class PodKind(Enum):
    """Whose pod it is."""

    TRAINER = "trainer"
    OTHER = "other"
    """A job's master or parameter server."""
    FOREIGN = "foreign"


class Phase(Enum):
    """Where a pod is on its way."""

    PENDING = "pending"
    """Without a node."""
    STARTING = "starting"
    RUNNING = "running"
    LEAVING = "leaving"
    """Told to stop; it takes its room until it has."""
    GONE = "gone"


def rank_of(priority: int, kind: PodKind) -> int:
    """A priority as a cluster would have it where each role is a class of its own.

    A trace names one priority for all pods of a job; masters and servers stand a little above its trainers.
    """
    return 4 * priority + (1 if kind is PodKind.OTHER else 0)


@dataclass(eq=False, slots=True, kw_only=True)
class Pod:
    """One pod.

    Attributes:
        number: Unique, ascending by creation.
        owner: Number of its job, or the number of jobs for a foreign pod.
        rank: What the scheduler compares.
        surplus: Whether it is a trainer above its job's minimum.
        preempts: Whether the scheduler may evict others for it.
        node: Where it is bound, or was.
        nominated: Where room is being made for it.
        hint: The node that its creator prefers.
        refused: When the scheduler first found no room for it.
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
    hint: int = NOWHERE
    node: int = NOWHERE
    nominated: int = NOWHERE
    phase: Phase = Phase.PENDING
    bound: float | None = None
    refused: float | None = None


@dataclass(eq=False)
class Cluster:
    """All pods that are not gone, and sums over them.

    Attributes:
        pending: Without a node, by number, oldest first.
        on: By node, its pods by number.
        taken: [N, R] by all pods that are bound and not gone.
        leaving: [N, R] of it by pods that are leaving.
        trainers: [N, R] of it by trainers that stay.
        by_rank: Rank -> [N, R] of it by pods of that rank.
        by_owner: [owners, R] requests of bound pods.
        waiting: [R] requests of pods that are pending.
        changed: Whether the scheduler has something new to look at.
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
        """What a pod needs, [R]."""
        row: Counts = self.layout.shapes.request[pod.shape]
        return row

    def number(self) -> int:
        """Of the next pod."""
        self.created += 1
        return self.created

    def add(self, pod: Pod) -> None:
        """A new pod waits for a node."""
        self.pending[pod.number] = pod
        self.waiting += self.request(pod)
        self.changed = True

    def bind(self, pod: Pod, node: int, now: float) -> None:
        """A pending pod gets its node."""
        del self.pending[pod.number]
        self.waiting -= self.request(pod)
        pod.node, pod.bound, pod.phase, pod.nominated = node, now, Phase.STARTING, NOWHERE
        self.on[node][pod.number] = pod
        self._count(pod, 1)
        if pod.kind is PodKind.TRAINER:
            self.trainers[node] += self.request(pod)

    def leave(self, pod: Pod) -> None:
        """A bound pod is told to stop."""
        pod.phase = Phase.LEAVING
        self.leaving[pod.node] += self.request(pod)
        if pod.kind is PodKind.TRAINER:
            self.trainers[pod.node] -= self.request(pod)

    def remove(self, pod: Pod) -> None:
        """A pod is gone, from wherever it was."""
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
        pod.phase = Phase.GONE
        self.changed = True

    def _count(self, pod: Pod, sign: int) -> None:
        amounts = sign * self.request(pod)
        self.taken[pod.node] += amounts
        self.by_owner[pod.owner] += amounts
        if pod.rank not in self.by_rank:
            self.by_rank[pod.rank] = np.zeros_like(self.taken)
        self.by_rank[pod.rank][pod.node] += amounts
