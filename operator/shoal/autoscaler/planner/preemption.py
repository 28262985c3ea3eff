"""The search for preemption candidates: the node, and the victims on it, that make room for one more pod.

Nodes with enough preemptible room are ordered by an estimate, and `_TRIES` of them at a time are evaluated exactly. Evaluated
nodes are kept for the next pod of the same shape: then the best one is evaluated again, and further nodes fill up the list.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from shoal.autoscaler.planner.placement import Placement, Victim

__all__ = ["PreemptionCandidates"]

_TRIES: Final = 4
"""Number of nodes that are evaluated exactly."""
_BYTE: Final = 255
Found = tuple[int, list[Victim]]
"""A node, and the victims there."""
_Cost = tuple[int, int, float, int]
"""(victims, victims with the minimum's priority, negated sum of shares, node). The least is the best."""


class PreemptionCandidates:
    """The search for nodes where the preemption of trainers makes room.

    Args:
        placement: The working state of the plan.
        step: [J] share that one trainer adds to its job; trainers of the job with the larger share are preempted first.
    """

    def __init__(self, placement: Placement, step: npt.NDArray[np.float64]) -> None:
        self._placement, self._step = placement, step
        self._cached: dict[tuple[int, tuple[int, ...]], _CandidateNodes] = {}
        self._largest = np.zeros((max(1, placement.classes), placement.request.shape[1]), dtype=np.int64)
        np.maximum.at(self._largest, placement.rank, placement.trainer_request)

    def share(self, job: int) -> float:
        """Return the present share of a job."""
        return float(self._placement.count[job] * self._step[job])

    def make(self, shape: int, tiers: Sequence[int]) -> Found | None:
        """Return a node and the victims there for one pod: as few tiers as possible, then as few victims; None: no node.

        Args:
            shape: Shape of the pod.
            tiers: Tiers that may be preempted, in this order.
        """
        key = (shape, tuple(tiers))
        nodes_of_shape = self._cached.get(key)
        if nodes_of_shape is not None and nodes_of_shape.resets == self._placement.resets:
            found = nodes_of_shape.best()
            if found is not None:
                return found
        self._cached[key] = nodes_of_shape = _CandidateNodes(self, self._placement, shape, tiers)
        return nodes_of_shape.best()

    def nodes(self, shape: int, tiers: Sequence[int]) -> list[int]:
        """Return the nodes with room for the shape if these tiers are preempted, in order of the estimated number of victims."""
        placement, ask = self._placement, self._placement.requests[shape]
        found = np.flatnonzero(placement.anywhere(shape, placement.room_with(tiers)))
        ranks = sorted({tier % max(1, placement.classes) for tier in tiers})
        largest = np.maximum(self._largest[ranks].max(axis=0), 1)
        about = np.zeros(len(found), dtype=np.int64)
        for resource, amount in enumerate(ask):
            np.maximum(about, -((placement.free[found, resource] - amount) // int(largest[resource])), out=about)
        ordered: list[int] = found[np.minimum(about, _BYTE).astype(np.uint8).argsort(kind="stable")].tolist()
        return ordered

    def firm(self, node: int, victims: Sequence[Victim]) -> int:
        """Return how many victims have the minimum's priority.

        For each of these a surplus trainer of its job has to be recreated with that priority.
        """
        jobs = Counter(each.job for each in victims if self._placement.jobs[each.job].firm)
        here = self._placement.locations.at(node) if jobs else {}
        return sum(
            self._placement.firm(job, node, here[job] - left) for job, count in jobs.items() for left in range(count)
        )

    def victims(self, node: int, request: Sequence[int], tiers: Sequence[int]) -> list[Victim] | None:
        """Return the victims on a node that make room for a request; None: all of these tiers are not enough.

        Args:
            node: Number of the node.
            request: [R] requests of the pod.
            tiers: Tiers that may be preempted, in this order.
        """
        placement = self._placement
        here = placement.locations.at(node)
        shortfall = [need - have for need, have in zip(request, placement.free[node].tolist(), strict=True)]
        chosen: list[Victim] = []
        given: dict[int, int] = {}
        for tier in tiers:
            if max(shortfall) <= 0:
                break
            for job, ask in self._of_tier(node, here, tier, shortfall, given):
                if max(shortfall) <= 0:
                    break
                chosen.append(Victim(job, node))
                given[job] = given.get(job, 0) + 1
                shortfall = [short - amount for short, amount in zip(shortfall, ask, strict=True)]
        if max(shortfall) > 0:
            return None
        # A victim that a later, larger victim has made unnecessary stays.
        for victim in list(chosen):
            ask = placement.requests[placement.shape[victim.job]]
            without = [short + amount for short, amount in zip(shortfall, ask, strict=True)]
            if max(without) <= 0:
                chosen.remove(victim)
                shortfall = without
        return chosen

    def _of_tier(
        self, node: int, here: Mapping[int, int], tier: int, shortfall: Sequence[int], given: Mapping[int, int]
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield the victims of a tier on a node as (job, request of one trainer).

        First the trainers that cover most of the missing room, then those of the job with the largest share, then those
        without the minimum's priority.
        """
        placement = self._placement
        rank, candidates = tier % placement.classes, []
        for job, count in here.items():
            if placement.rank[job] != rank:
                continue
            most = min(count, placement.surplus(job) if tier < placement.classes else placement.preemptible_of(job))
            if most <= 0:
                continue
            ask = placement.requests[placement.shape[job]]
            gain = sum(min(have / short, 1.0) for have, short in zip(ask, shortfall, strict=True) if short > 0)
            if gain:
                candidates.append((-gain, -self.share(job), placement.firm(job, node, count), job, most, ask))
        for *_, job, most, ask in sorted(candidates):
            for _ in range(most - given.get(job, 0)):
                yield job, ask


class _CandidateNodes:
    """The candidate nodes of one shape: a heap of evaluated nodes, and the nodes not yet evaluated."""

    def __init__(
        self, candidates: PreemptionCandidates, placement: Placement, shape: int, tiers: Sequence[int]
    ) -> None:
        self.resets = placement.resets
        self._candidates, self._shape, self._request = candidates, shape, placement.requests[shape]
        self._tiers = (tiers[: number + 1] for number in range(len(tiers)))
        self._now: Sequence[int] = ()
        self._untried: Iterator[int] = iter(())
        self._evaluated: list[_Cost] = []

    def best(self) -> Found | None:
        """Return the best of the evaluated nodes and a few further ones, with its victims; None: there is none."""
        while True:
            self._evaluate_some()
            if self._evaluated:
                candidate = heapq.heappop(self._evaluated)
                victims = self._candidates.victims(candidate[-1], self._request, self._now)
                if victims is None:
                    continue
                now = self._cost(candidate[-1], victims)
                heapq.heappush(self._evaluated, now)
                if self._evaluated[0] == now or now <= candidate:
                    return candidate[-1], victims
            else:
                more = next(self._tiers, None)
                if more is None:
                    return None
                self._now, self._untried = more, iter(self._candidates.nodes(self._shape, more))

    def _evaluate_some(self) -> None:
        while len(self._evaluated) < _TRIES:
            node = next(self._untried, None)
            if node is None:
                return
            victims = self._candidates.victims(node, self._request, self._now)
            if victims is not None:
                heapq.heappush(self._evaluated, self._cost(node, victims))

    def _cost(self, node: int, victims: Sequence[Victim]) -> _Cost:
        share = sum(self._candidates.share(each.job) for each in victims)
        return len(victims), self._candidates.firm(node, victims), -share, node
