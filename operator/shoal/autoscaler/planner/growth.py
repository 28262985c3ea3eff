"""The growth of the jobs of one class: the job with the smallest share is always the next.

While there is room for all jobs, many trainers are placed in one batch: a bisection finds the highest level (share) at which
every job finds room. From there on trainers are placed one by one in the order of shares, and a shape that finds no room is
closed. After `_PLACEMENTS_PER_SHAPE` placements per shape the level is raised again for the shapes that are still open.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from shoal.autoscaler.planner.model import Counts, Flags, PlannerMemory, Snapshot
from shoal.autoscaler.planner.placement import Placement
from shoal.autoscaler.planner.preemption import PreemptionCandidates
from shoal.autoscaler.planner.rebalance import Rebalance

__all__ = ["Growth"]

_CLOSE: Final = 1e-9
_FEW: Final = 16
"""Up to this number trainers are placed one by one; more of them by another search for the level."""
_PLACEMENTS_PER_SHAPE: Final = 24
"""Placements per open shape that cost about as much as one more search for the level."""
Floats = npt.NDArray[np.float64]
Placed = tuple[int, Counts, Counts]
"""(shape, job of each trainer, node of each trainer)."""


class Growth:
    """The growth of all classes, one after the other.

    Args:
        placement: The working state of the plan; minimums are protected.
        candidates: The search for nodes where preemption makes room.
        step: [J] share that one trainer adds to its job.
        top: [J] most trainers of each job.
        snapshot: The state of the cluster.
        memory: The memory of the last plan.
    """

    def __init__(
        self,
        placement: Placement,
        candidates: PreemptionCandidates,
        *,
        step: Floats,
        top: Counts,
        snapshot: Snapshot,
        memory: PlannerMemory,
    ) -> None:
        self._placement, self._candidates = placement, candidates
        self._step = step
        self._top = top
        self._tie = np.empty(len(step), dtype=np.int64)
        # Of jobs with equal shares the one with the most bound trainers is the next, then the oldest (by number).
        self._tie[np.argsort(-placement.held, kind="stable")] = np.arange(len(step))
        self._last: dict[int, tuple[Flags, int, Counts]] = {}
        """Class -> (closed shapes, clock at that time, [J] trainers of each job at that time), of its last growth."""
        self.rebalance = Rebalance(placement, step=step, top=top, tie=self._tie, now=snapshot.now, before=memory.moved)

    def grow(self, jobs: Counts, rank: int, *, moves: int, cool_down: float) -> int:
        """Grow all jobs of a class.

        Args:
            jobs: Jobs of the class.
            rank: Rank of the class.
            moves: Most rebalancing moves.
            cool_down: Seconds after a move in which a job makes none in the other direction.

        Returns:
            Moves that are left.
        """
        self._placement.protect_class(rank)
        if not len(self._below_top(jobs)):
            return moves
        tiers = self._placement.tiers(surplus_below=rank, minimums_below=0)
        closed = self._closed_now(jobs, rank, tiers)
        seen = self._placement.clock
        self._fill(jobs, tiers, closed)
        while True:
            traded = 0
            for given in self.rebalance.trades(jobs, moves=moves, cool_down=cool_down):
                traded, moves = traded + given, moves - given
                # A giver may grow on another node, and a trainer may leave more room than the receiver needs.
                self._open(closed, self._placement.changed_at > seen, tiers)
                seen = self._placement.clock
                self._fill(jobs, tiers, closed)
            if not traded:
                self._last[rank] = (closed, seen, self._placement.count.copy())
                return moves

    def _below_top(self, jobs: Counts) -> Counts:
        growing: Counts = jobs[self._placement.count[jobs] < self._top[jobs]]
        return growing

    # --- Growth into free room, and into the surplus of lower classes ---

    def _fill(self, jobs: Counts, tiers: Sequence[int], closed: Flags) -> None:
        """Grow the jobs until each job is at its top or its shape is closed."""
        placement = self._placement
        while True:
            growing = self._below_top(jobs)
            growing = growing[~closed[placement.shape[growing]]]
            if not len(growing):
                return
            self._raise_together(growing)
            self._place_by_share(growing, tiers, closed)

    def _closed_now(self, jobs: Counts, rank: int, tiers: Sequence[int]) -> Flags:
        """Return [S] the closed shapes; shapes closed in an earlier pass are only checked on nodes that have improved since."""
        placement = self._placement
        if rank not in self._last:
            return self._closed(jobs, tiers)
        closed, seen, count = self._last[rank]
        of, node, _ = placement.locations.all()
        near = placement.changed_at > seen
        # A job of a lower class that has grown has more surplus on each of its nodes.
        near[node[((placement.count > count) & (placement.rank < rank))[of]]] = True
        self._open(closed, near, tiers)
        return closed

    def _closed(self, jobs: Counts, tiers: Sequence[int]) -> Flags:
        """Return [S] whether a shape of a job below its top finds no room even if all of these tiers are preempted."""
        placement = self._placement
        closed = np.zeros(len(placement.request), dtype=np.bool_)
        room = placement.room_with(tiers) if tiers else placement.free
        for shape in np.unique(placement.shape[self._below_top(jobs)]).tolist():
            closed[shape] = not placement.anywhere(shape, room).any()
        return closed

    def _open(self, closed: Flags, near: Flags, tiers: Sequence[int]) -> None:
        """Reopen closed shapes that find room on some nodes.

        Args:
            closed: [S] closed shapes; changed in place.
            near: [N] nodes to check. On other nodes there is no room, as the surplus of lower classes has only shrunk.
            tiers: Tiers that may be preempted.
        """
        placement = self._placement
        nodes = np.flatnonzero(near)
        room = placement.free[nodes] + sum(placement.preemptible(tier)[nodes] for tier in tiers)
        large = (room >= placement.request[:, None]).all(axis=2) & placement.eligible[:, nodes]
        closed &= ~large.any(axis=1)

    def _place_by_share(self, jobs: Counts, tiers: Sequence[int], closed: Flags) -> None:
        """Place trainers one by one in the order of shares, until no job finds room or `_PLACEMENTS_PER_SHAPE` per shape were placed."""
        placement, top = self._placement, self._top
        jobs = self._below_top(jobs)
        levels = (placement.count[jobs] + 1) * self._step[jobs]
        queue = list(zip(levels.tolist(), self._tie[jobs].tolist(), jobs.tolist(), strict=True))
        heapq.heapify(queue)
        left = _PLACEMENTS_PER_SHAPE * len(np.unique(placement.shape[jobs]))
        while queue and left:
            _, tie, job = heapq.heappop(queue)
            shape = int(placement.shape[job])
            if closed[shape]:
                continue
            left -= 1
            node = placement.free_node(shape)
            if node < 0:
                found = self._candidates.make(shape, tiers) if tiers else None
                if found is None:
                    closed[shape] = True
                    continue
                node = found[0]
                for each in found[1]:
                    placement.preempt(each.job, each.node)
            placement.add(job, node)
            if placement.count[job] < top[job]:
                heapq.heappush(queue, (float((placement.count[job] + 1) * self._step[job]), tie, job))

    def _raise_together(self, jobs: Counts) -> None:
        """Grow the jobs to the highest level at which all of them find room, by bisection."""
        placement, step, top = self._placement, self._step[jobs], self._top[jobs]
        room = [placement.total(shape) for shape in set(placement.shape[jobs].tolist())]
        if not all(room) or sum(room) <= _FEW:
            return

        def missing(level: float) -> Counts:
            target = np.minimum(np.floor(level / step + _CLOSE), top).astype(np.int64)
            more: Counts = np.maximum(target - placement.count[jobs], 0)
            return more

        low, high = 0.0, float((top * step).max())
        level = high
        # Two levels that differ by `_FEW` trainers or fewer only differ in the order of jobs.
        while high - low > high * _CLOSE and int(missing(high).sum()) > _FEW:
            placed = self._placed(jobs, missing(level))
            if placed is None:
                high = level
            else:
                low = level
                for shape, takers, nodes in placed:
                    placement.add_many(takers, shape, nodes)
            level = (low + high) / 2

    def _placed(self, jobs: Counts, more: Counts) -> list[Placed] | None:
        """Return locations in free room for more trainers of each job; None: not all of them fit.

        Args:
            jobs: Jobs that grow.
            more: New trainers of each of these jobs.
        """
        placement = self._placement
        shapes = placement.shape[jobs]
        needs = np.bincount(shapes, more)
        target = np.flatnonzero(needs).tolist()
        if any(needs[shape] > placement.total(shape) for shape in target):
            return None
        free, filled = placement.free, np.zeros(len(placement.free), dtype=np.bool_)
        placed: list[Placed] = []
        for shape in sorted(target, key=lambda shape: (-int(placement.request[shape].max()), shape)):
            most = placement.fits(shape)
            if placed:
                most, late = most.copy(), np.flatnonzero(filled)
                most[late] = placement.capacity(shape, free[late], late)
            found = placement.fit(int(needs[shape]), most)
            if found is None:
                return None
            nodes, each = found
            if len(target) > 1:
                free = free if placed else free.copy(order="F")
                free[nodes] -= each[:, None] * placement.request[shape]
                filled[nodes] = True
            same_shape = shapes == shape
            placed.append((shape, np.repeat(jobs[same_shape], more[same_shape]), np.repeat(nodes, each)))
        return placed
