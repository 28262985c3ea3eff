"""Claims: each pending foreign pod that ranks above trainers gets room on one node, and it is said who gives way for it there.

Pods that are alike are looked at together, so that as few trainers as possible leave for all of them: one that leaves may make
room for two, or three for five.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from shoal.autoscaler.planner.colocation import beside
from shoal.autoscaler.planner.model import Claim, Job, Memory, Pending, Policy, Snapshot
from shoal.autoscaler.planner.placement import Board, Leaver
from shoal.autoscaler.planner.preemption import Rooms

__all__ = ["Claims"]

_CLAIM_SECONDS: Final = 30.0
"""A pod that has not come to its claimed node by then cannot, for a reason that is not seen here."""
_UNMET_SECONDS: Final = 300.0
"""For so long such a pod claims nothing."""
Place = tuple[int, list[Leaver]]
"""A node, and who gives way there."""


class Claims:
    """Those of one plan.

    Args:
        board: Where things stand.
        rooms: What trainers that may give way hold.
        jobs: As the board has them.
        snapshot: The cluster.
        memory: What the last plan left.
        policy: The operator's choices.
    """

    def __init__(
        self, board: Board, rooms: Rooms, jobs: Sequence[Job], *, snapshot: Snapshot, memory: Memory, policy: Policy
    ) -> None:
        self._board, self._rooms, self._jobs = board, rooms, jobs
        self._snapshot, self._memory, self._policy = snapshot, memory, policy
        names = {name: number for number, name in enumerate(snapshot.nodes.names)} if memory.claims else {}
        self._before = {uid: (names[node], since) for uid, (node, since) in memory.claims.items() if node in names}
        """Uid of a pod -> the node that it claimed before and that is there still, and since when."""
        self._surplus = [max(job.lowest for job in of_class) for of_class in _classes(jobs)]
        """Of each class, from the lowest on, the highest priority that surplus trainers have."""
        self.made: dict[str, Claim] = {}
        """By the pod's uid."""
        self.unmet = self._given_up()
        """Pods that came not where room was made -> until when they claim nothing."""

    def serve(self, pods: Iterable[Pending]) -> None:
        """Make room for some pods, in order of priority."""
        pending = sorted(pods, key=lambda pod: (-pod.priority, pod.node < 0, pod.uid))
        spots = self._spots(pending)
        left: list[tuple[Leaver, str]] = []
        for pod in pending:
            found = self._place(pod, spots.get((pod.shape, pod.priority), []))
            if found is None:
                continue
            node, leavers = found
            for each in leavers:
                self._board.leave(each.job, each.node)
            left += [(each, pod.uid) for each in leavers]
            self._board.put(pod.shape, node)
            claimed, since = self._before.get(pod.uid, (-1, 0.0))
            since = since if claimed == node else self._snapshot.now
            self.made[pod.uid] = Claim(pod=pod.uid, name=pod.name, node=node, victims={}, since=since)
        self._give_back(left)

    @property
    def evicting(self) -> bool:
        """Whether the scheduler makes room for somebody now; a pod that has waited too long at its node no longer counts."""
        waiting = (pod for pod in self._snapshot.pending if pod.node >= 0 and pod.uid not in self.unmet)
        return any(self._scheduler_makes_room(pod) for pod in waiting)

    @property
    def ledger(self) -> dict[str, tuple[str, float]]:
        """What the next plan is to know of the claims: see `Memory.claims`."""
        names = self._snapshot.nodes.names
        return {uid: (names[claim.node], claim.since) for uid, claim in self.made.items()}

    # --- Parts ---

    def _given_up(self) -> dict[str, float]:
        now = self._snapshot.now
        waiting = {pod.uid for pod in self._snapshot.pending}
        unmet = {uid: until for uid, until in self._memory.unmet.items() if until > now and uid in waiting}
        late = (uid for uid, (_, since) in self._before.items() if now - since >= _CLAIM_SECONDS)
        return unmet | {uid: now + _UNMET_SECONDS for uid in late if uid in waiting}

    def _below(self, priority: int) -> list[int]:
        """The tiers of those whose pods have a lower priority."""
        board = self._board
        surplus = [rank for rank, highest in enumerate(self._surplus) if highest < priority]
        return [*surplus, *range(board.classes, board.classes + bisect.bisect_left(board.priorities, priority))]

    def _scheduler_makes_room(self, pod: Pending) -> bool:
        return pod.preempts and self._policy.scheduler_evicts

    def _place(self, pod: Pending, spots: list[int]) -> Place | None:
        """Where a pod's room is made; None: nowhere, or that is not to be known here."""
        board, tiers = self._board, self._below(pod.priority)
        if pod.uid in self.unmet or (self._jobs and not tiers):
            return None  # it would not come, or ranks no higher than anybody's trainers and takes its chance as they do
        found = self._known(pod, tiers)
        if found is not None:
            return found
        while spots:
            node = spots.pop(0)
            leavers = [] if board.fits(pod.shape)[node] else self._rooms.leavers(node, board.asks[pod.shape], tiers)
            if leavers is not None:
                return node, leavers
        node = board.free_node(pod.shape)
        if node >= 0:
            return node, []
        return None if self._scheduler_makes_room(pod) else self._rooms.make(pod.shape, tiers)

    def _known(self, pod: Pending, tiers: Sequence[int]) -> Place | None:
        """The node that is nominated for it, or that it claimed before."""
        board = self._board
        if pod.node >= 0 and board.eligible[pod.shape, pod.node]:
            leavers = self._rooms.leavers(pod.node, board.asks[pod.shape], tiers)
            if leavers is not None:
                # Of its own victims the scheduler has said nothing yet: they are being deleted a moment later.
                return pod.node, [] if self._scheduler_makes_room(pod) else leavers
        fits = board.fits(pod.shape)
        node, _ = self._before.get(pod.uid, (-1, 0.0))
        return (node, []) if node >= 0 and fits[node] else None

    def _spots(self, pending: Sequence[Pending]) -> dict[tuple[int, int], list[int]]:
        """Nodes for pods that come together: by shape and priority, those where they cost the fewest trainers."""
        groups: dict[tuple[int, int], int] = defaultdict(int)
        for pod in pending:
            new = pod.uid not in self.unmet and pod.uid not in self._before and pod.node < 0
            if new and not self._scheduler_makes_room(pod):
                groups[pod.shape, pod.priority] += 1
        return {group: self._cheapest(*group, count) for group, count in groups.items() if count > 1}

    def _cheapest(self, shape: int, priority: int, count: int) -> list[int]:
        """Of the fewest tiers that do; none do: nothing."""
        board, tiers = self._board, self._below(priority)
        if not board.count.any():
            return []
        held = np.bincount(board.shape, board.count)
        may = board.eligible[shape][:, None]
        for some in range(1, len(tiers) + 1):
            counts = beside(
                count,
                request=board.request[shape],
                trainer=board.request[int(np.argmax(held))],
                room=np.where(may, board.room_with(tiers[:some]), 0),
                order=board.wanted_by,
                free=np.where(may, board.free, 0),
            )
            if counts is not None:
                nodes: list[int] = np.repeat(np.arange(len(board.free)), counts).tolist()
                return nodes
        return []

    def _give_back(self, left: list[tuple[Leaver, str]]) -> None:
        """Who left for one claim may find that others who left for the next one made room for him, too."""
        board = self._board
        victims: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        # The one with the smallest share has the best right to stay.
        for leaver, pod in sorted(left, key=lambda each: (self._rooms.share(each[0].job), each[0].job, each[0].node)):
            if board.fits(int(board.shape[leaver.job]))[leaver.node]:
                board.back(leaver.job, leaver.node)
            else:
                victims[pod][self._jobs[leaver.job].uid] += 1
        for pod, of in victims.items():
            self.made[pod] = replace(self.made[pod], victims=dict(of))


def _classes(jobs: Iterable[Job]) -> list[list[Job]]:
    """Jobs of each priority, from the lowest on."""
    found: dict[int, list[Job]] = defaultdict(list)
    for job in jobs:
        found[job.priority].append(job)
    return [found[priority] for priority in sorted(found)]
