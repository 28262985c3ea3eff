"""A model of the kube-scheduler: it binds pending pods, and evicts pods for those that may preempt.

The model has one score, no affinities except a pool, no back-off, and a pass takes no time. It has the properties of the
kube-scheduler that matter to a policy:

- pods are tried by priority, then by age, each on the nodes that have room now;
- of these nodes the pod's preferred node is chosen, else the most allocated one (mean over all resources except ``pods``),
  so that large gaps remain for large pods;
- a pod that fits on no node evicts pods of lower priority on one node: first those whose budgets allow it, then the lowest
  priorities, then the fewest; it is nominated there, and evicts no further pods while these terminate;
- room on a node that is nominated for a pod is not given to pods of lower or equal priority.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from shoal.autoscaler.planner.model import Counts
from shoal.simulator.world.cluster import NOWHERE, Cluster, Phase, Pod, PodKind

__all__ = ["Scheduler"]

Budgets = Mapping[int, int]
"""Number of a job -> trainers that can be evicted before the job is below its minimum."""


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """A candidate node for preemption.

    Attributes:
        cost: (victims that break a budget, highest rank, sum of ranks, number) of the victims; the least is the best.
        node: Number of the node.
        victims: Pods to evict.
    """

    cost: tuple[int, int, int, int]
    node: int
    victims: tuple[Pod, ...]


class Scheduler:
    """The scheduler of a cluster.

    Args:
        cluster: The cluster.
        evict: Called with each victim, which it marks as leaving; None: there is no preemption.
        budgets: Returns the trainers that each job can spare; called for each preemption.
    """

    def __init__(
        self, cluster: Cluster, *, evict: Callable[[Pod], None] | None, budgets: Callable[[], Budgets]
    ) -> None:
        self._cluster = cluster
        self._evict = evict
        self._budgets = budgets
        layout = cluster.layout
        self._allocatable = layout.allocatable
        self._allowed = layout.allowed
        self._requests = [tuple(row) for row in layout.shapes.request.tolist()]
        # A resource that a node does not have counts as not allocated.
        self._scale = np.where(layout.allocatable > 0, 1.0 / np.maximum(layout.allocatable, 1), 0.0)[:, :-1]

    def run(self, now: float) -> list[Pod]:
        """Make one pass over all pending pods; return those that were bound."""
        cluster = self._cluster
        cluster.changed = False
        bound: list[Pod] = []
        # In one pass room only shrinks, and later pods do not have a higher rank.
        closed: set[int] = set()
        hopeless: set[int] = set()
        nominated = {pod.number: pod for pod in cluster.pending.values() if pod.nominated != NOWHERE}
        for pod in sorted(cluster.pending.values(), key=lambda pod: (-pod.rank, pod.number)):
            node = NOWHERE
            if pod.number in nominated or pod.shape not in closed:
                node = self._node(pod, nominated)
            if node != NOWHERE:
                nominated.pop(pod.number, None)
                cluster.bind(pod, node, now)
                bound.append(pod)
                continue
            if pod.number not in nominated:
                closed.add(pod.shape)
            pod.refused = now if pod.refused is None else pod.refused
            if self._evict is not None and pod.preempts and pod.shape not in hopeless:
                if self._preempt(pod, nominated):
                    nominated[pod.number] = pod
                else:
                    hopeless.add(pod.shape)
        return bound

    def _reserved(self, pod: Pod, nominated: Mapping[int, Pod]) -> Counts | int:
        """Return [N, R] the room that is reserved for other nominated pods of equal or higher rank; 0: none."""
        others = [each for each in nominated.values() if each.rank >= pod.rank and each is not pod]
        if not others:
            return 0
        reserved = np.zeros_like(self._allocatable)
        for each in others:
            reserved[each.nominated] += self._cluster.request(each)
        return reserved

    def _node(self, pod: Pod, nominated: Mapping[int, Pod]) -> int:
        free = self._allocatable - self._cluster.taken - self._reserved(pod, nominated)
        able = (free >= self._cluster.request(pod)).all(axis=1) & self._allowed[pod.shape]
        for preferred in (pod.nominated, pod.preferred_node):
            if preferred != NOWHERE and able[preferred]:
                return preferred
        if not able.any():
            return NOWHERE
        share = (self._cluster.taken[:, :-1] * self._scale).sum(axis=1)
        return int(np.argmax(np.where(able, share, -1.0)))

    def _preempt(self, pod: Pod, nominated: dict[int, Pod]) -> bool:
        """Evict pods on one node for a pod; return whether room is being made."""
        cluster = self._cluster
        if pod.nominated != NOWHERE and self._under_way(pod):
            return True
        free = self._allocatable - cluster.taken - self._reserved(pod, nominated)
        most = free + sum(
            (amounts for rank, amounts in cluster.by_rank.items() if rank < pod.rank), np.zeros_like(free)
        )
        able = (most >= cluster.request(pod)).all(axis=1) & self._allowed[pod.shape]
        budgets = self._budgets()
        choices = [self._choice(pod, int(node), free[node].tolist(), budgets) for node in np.flatnonzero(able)]
        best = min(choices, key=lambda choice: (choice.cost, choice.node), default=None)
        if best is None:
            pod.nominated = NOWHERE
            nominated.pop(pod.number, None)
            return False
        for other in [each for each in nominated.values() if each.nominated == best.node and each.rank < pod.rank]:
            other.nominated = NOWHERE
            del nominated[other.number]
        pod.nominated = best.node
        for victim in best.victims:
            if victim.phase is not Phase.LEAVING and self._evict is not None:
                self._evict(victim)
        return True

    def _under_way(self, pod: Pod) -> bool:
        on = self._cluster.on[pod.nominated].values()
        return any(each.phase is Phase.LEAVING and each.rank < pod.rank for each in on)

    def _choice(self, pod: Pod, node: int, free: list[int], budgets: Budgets) -> _Choice:
        """Return the victims on a node: all pods of lower rank, except those that fit again after the pod was added."""
        lower = [each for each in self._cluster.on[node].values() if each.rank < pod.rank]
        lower.sort(key=lambda each: (-each.rank, each.bound or 0.0, each.number))
        protected = _protected(lower, budgets)
        left = list(free)
        for each in lower:
            left = [have + freed for have, freed in zip(left, self._requests[each.shape], strict=True)]
        left = [have - need for have, need in zip(left, self._requests[pod.shape], strict=True)]
        victims = []
        for each in sorted(lower, key=lambda each: each.number not in protected):
            remaining = [have - need for have, need in zip(left, self._requests[each.shape], strict=True)]
            if min(remaining) >= 0:
                left = remaining
            else:
                victims.append(each)
        broken = sum(each.number in protected for each in victims)
        ranks = [each.rank for each in victims]
        # The offset makes the cost of each victim positive, however low its rank; the kube-scheduler does the same.
        total = sum(rank + 2**34 for rank in ranks)
        cost = (broken, max(ranks, default=-(2**34)), total, len(victims))
        return _Choice(cost=cost, node=node, victims=tuple(victims))


def _protected(pods: list[Pod], budgets: Budgets) -> set[int]:
    """Return the numbers of pods whose eviction would bring a job below its minimum."""
    left: dict[int, int] = {}
    protected = set()
    for pod in pods:
        if pod.kind is not PodKind.TRAINER or pod.phase is Phase.LEAVING:
            continue
        left[pod.owner] = left.get(pod.owner, budgets.get(pod.owner, 0)) - 1
        if left[pod.owner] < 0:
            protected.add(pod.number)
    return protected
