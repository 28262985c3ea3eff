"""Claims: the assignment of a node, and of victims on it, to each pending foreign pod with a priority above trainers.

Pods with equal shape and priority are placed together, so that as few trainers as possible are preempted for all of them: one
victim may make room for two pods, or three victims for five.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from shoal.autoscaler.planner.colocation import colocated
from shoal.autoscaler.planner.model import Claim, PendingPod, PlannerJob, PlannerMemory, Policy, Snapshot
from shoal.autoscaler.planner.placement import Placement, Victim
from shoal.autoscaler.planner.preemption import PreemptionCandidates

__all__ = ["Claims"]

_CLAIM_SECONDS: Final = 30.0
"""A pod that is not bound to its claimed node after this time cannot run there, for a reason that the planner does not know."""
_UNMET_SECONDS: Final = 300.0
"""Time for which such a pod claims nothing."""
NodeChoice = tuple[int, list[Victim]]
"""A node, and the victims there."""


class Claims:
    """The claims of one plan.

    Args:
        placement: The working state of the plan.
        candidates: The search for nodes where preemption makes room.
        jobs: Jobs in the order of the placement.
        snapshot: The state of the cluster.
        memory: The memory of the last plan.
        policy: The planner's options.
    """

    def __init__(
        self,
        placement: Placement,
        candidates: PreemptionCandidates,
        jobs: Sequence[PlannerJob],
        *,
        snapshot: Snapshot,
        memory: PlannerMemory,
        policy: Policy,
    ) -> None:
        self._placement, self._candidates, self._jobs = placement, candidates, jobs
        self._snapshot, self._memory, self._policy = snapshot, memory, policy
        names = {name: number for number, name in enumerate(snapshot.nodes.names)} if memory.claims else {}
        self._claimed = {uid: (names[node], since) for uid, (node, since) in memory.claims.items() if node in names}
        """Uid of a pod -> (node of its last claim, since when), for nodes that still exist."""
        self._surplus = [max(job.lowest for job in of_class) for of_class in _classes(jobs)]
        """The highest priority of surplus trainers of each class, from the lowest class on."""
        self.made: dict[str, Claim] = {}
        """Uid of a pod -> its claim."""
        self.unmet = self._unmet_claims()
        """Uid of a pod that was not bound to its claimed node -> until when it claims nothing."""

    def make_claims(self, pods: Iterable[PendingPod]) -> None:
        """Make claims for pods, in the order of priority."""
        pending = sorted(pods, key=lambda pod: (-pod.priority, pod.node < 0, pod.uid))
        best_nodes = self._best_nodes(pending)
        left: list[tuple[Victim, str]] = []
        for pod in pending:
            found = self._place(pod, best_nodes.get((pod.shape, pod.priority), []))
            if found is None:
                continue
            node, victims = found
            for each in victims:
                self._placement.preempt(each.job, each.node)
            left += [(each, pod.uid) for each in victims]
            self._placement.reserve(pod.shape, node)
            claimed, since = self._claimed.get(pod.uid, (-1, 0.0))
            since = since if claimed == node else self._snapshot.now
            self.made[pod.uid] = Claim(pod=pod.uid, name=pod.name, node=node, victims={}, since=since)
        self._restore(left)

    @property
    def evicting(self) -> bool:
        """Whether the scheduler makes room for a nominated pod now; pods in `unmet` do not count."""
        waiting = (pod for pod in self._snapshot.pending if pod.node >= 0 and pod.uid not in self.unmet)
        return any(self._scheduler_makes_room(pod) for pod in waiting)

    @property
    def remembered(self) -> dict[str, tuple[str, float]]:
        """The claims for the next plan, see `PlannerMemory.claims`."""
        names = self._snapshot.nodes.names
        return {uid: (names[claim.node], claim.since) for uid, claim in self.made.items()}

    # --- Parts ---

    def _unmet_claims(self) -> dict[str, float]:
        now = self._snapshot.now
        waiting = {pod.uid for pod in self._snapshot.pending}
        unmet = {uid: until for uid, until in self._memory.unmet.items() if until > now and uid in waiting}
        late = (uid for uid, (_, since) in self._claimed.items() if now - since >= _CLAIM_SECONDS)
        return unmet | {uid: now + _UNMET_SECONDS for uid in late if uid in waiting}

    def _below(self, priority: int) -> list[int]:
        """Return the tiers whose trainers have a lower priority."""
        placement = self._placement
        surplus = [rank for rank, highest in enumerate(self._surplus) if highest < priority]
        return [
            *surplus,
            *range(placement.classes, placement.classes + bisect.bisect_left(placement.priorities, priority)),
        ]

    def _scheduler_makes_room(self, pod: PendingPod) -> bool:
        return pod.preempts and self._policy.scheduler_evicts

    def _place(self, pod: PendingPod, best_nodes: list[int]) -> NodeChoice | None:
        """Return the node and the victims for a pod; None: no node fits, or the choice is the scheduler's.

        Args:
            pod: The pending pod.
            best_nodes: Preferred nodes; nodes that were tried are removed.
        """
        placement, tiers = self._placement, self._below(pod.priority)
        if pod.uid in self.unmet or (self._jobs and not tiers):
            return None  # the pod was not bound to its last claim, or its priority is not above that of any trainer
        found = self._nominated_or_claimed(pod, tiers)
        if found is not None:
            return found
        while best_nodes:
            node = best_nodes.pop(0)
            victims = (
                []
                if placement.fits(pod.shape)[node]
                else self._candidates.victims(node, placement.requests[pod.shape], tiers)
            )
            if victims is not None:
                return node, victims
        node = placement.free_node(pod.shape)
        if node >= 0:
            return node, []
        return None if self._scheduler_makes_room(pod) else self._candidates.make(pod.shape, tiers)

    def _nominated_or_claimed(self, pod: PendingPod, tiers: Sequence[int]) -> NodeChoice | None:
        """Return the pod's nominated node, or the node of its last claim, with the victims; None: neither fits."""
        placement = self._placement
        if pod.node >= 0 and placement.eligible[pod.shape, pod.node]:
            victims = self._candidates.victims(pod.node, placement.requests[pod.shape], tiers)
            if victims is not None:
                # The scheduler deletes its own victims; the snapshot does not show that yet.
                return pod.node, [] if self._scheduler_makes_room(pod) else victims
        fits = placement.fits(pod.shape)
        node, _ = self._claimed.get(pod.uid, (-1, 0.0))
        return (node, []) if node >= 0 and fits[node] else None

    def _best_nodes(self, pending: Sequence[PendingPod]) -> dict[tuple[int, int], list[int]]:
        """Return (shape, priority) -> the nodes where new pods of that group cost the fewest trainers."""
        groups: dict[tuple[int, int], int] = defaultdict(int)
        for pod in pending:
            new = pod.uid not in self.unmet and pod.uid not in self._claimed and pod.node < 0
            if new and not self._scheduler_makes_room(pod):
                groups[pod.shape, pod.priority] += 1
        return {group: self._cheapest(*group, count) for group, count in groups.items() if count > 1}

    def _cheapest(self, shape: int, priority: int, count: int) -> list[int]:
        """Return a node for each pod of a group, with as few tiers preempted as possible; empty: not all pods fit."""
        placement, tiers = self._placement, self._below(priority)
        if not placement.count.any():
            return []
        held = np.bincount(placement.shape, placement.count)
        may = placement.eligible[shape][:, None]
        for some in range(1, len(tiers) + 1):
            counts = colocated(
                count,
                request=placement.request[shape],
                trainer=placement.request[int(np.argmax(held))],
                room=np.where(may, placement.room_with(tiers[:some]), 0),
                order=placement.eligible_shapes,
                free=np.where(may, placement.free, 0),
            )
            if counts is not None:
                nodes: list[int] = np.repeat(np.arange(len(placement.free)), counts).tolist()
                return nodes
        return []

    def _restore(self, left: list[tuple[Victim, str]]) -> None:
        """Restore victims that still fit after all claims are made, and record the other victims in their claims.

        Args:
            left: (victim, uid of the pod for which it was preempted).
        """
        placement = self._placement
        victims: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        # Victims of the job with the smallest share are restored first.
        for victim, pod in sorted(
            left, key=lambda each: (self._candidates.share(each[0].job), each[0].job, each[0].node)
        ):
            if placement.fits(int(placement.shape[victim.job]))[victim.node]:
                placement.restore(victim.job, victim.node)
            else:
                victims[pod][self._jobs[victim.job].uid] += 1
        for pod, of in victims.items():
            self.made[pod] = replace(self.made[pod], victims=dict(of))


def _classes(jobs: Iterable[PlannerJob]) -> list[list[PlannerJob]]:
    """Return the jobs of each priority, from the lowest on."""
    found: dict[int, list[PlannerJob]] = defaultdict(list)
    for job in jobs:
        found[job.priority].append(job)
    return [found[priority] for priority in sorted(found)]
