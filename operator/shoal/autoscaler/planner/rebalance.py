"""Rebalancing within a class: a job without room takes trainers of jobs whose share does not fall below its own.

One pass tries each shape once, in the order of the smallest share. Of each shape only the job with the smallest share is
tried: a job with a larger share cannot have more givers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from shoal.autoscaler.planner.model import Counts, Flags
from shoal.autoscaler.planner.placement import Placement, Victim, fitting

__all__ = ["Rebalance"]

_CLOSE: Final = 1e-9
_NODES: Final = 8
"""Number of nodes that are evaluated exactly when several trainers must leave for one."""
Floats = npt.NDArray[np.float64]
Entries = tuple[Counts, Counts, Counts]
"""Entries of trainers' locations: job, node and count of each."""


class Rebalance:
    """The rebalancing within classes, and the jobs that took part.

    Args:
        placement: The working state of the plan.
        step: [J] share that one trainer adds to its job.
        top: [J] most trainers of each job.
        tie: [J] order of jobs with equal shares; the least is the next.
        now: Time of the snapshot, in seconds.
        before: Job's uid -> (time of its last move, whether it got a trainer), from the last plan.
    """

    def __init__(
        self,
        placement: Placement,
        *,
        step: Floats,
        top: Counts,
        tie: Counts,
        now: float,
        before: Mapping[str, tuple[float, bool]],
    ) -> None:
        self._placement, self._step, self._top, self._tie, self._now = placement, step, top, tie, now
        self._got_at = np.full(len(step), -np.inf)
        self._gave_at = np.full(len(step), -np.inf)
        for number, job in enumerate(placement.jobs if before else ()):
            if job.uid in before:
                when, got = before[job.uid]
                (self._got_at if got else self._gave_at)[number] = when
        self.moved: dict[str, tuple[float, bool]] = {}
        """Job's uid -> (time of the move, whether it got a trainer (True) or gave one (False)), of this plan."""
        self.blocked: set[int] = set()
        """Jobs that did not get a trainer because of the limit on moves."""
        self._failed: dict[tuple[int, int], tuple[float, int]] = {}
        """(shape, class) -> (level, clock) of the last search that found no givers."""
        self._counts: dict[int, Counts] = {}
        """Clock of such a search -> [J] trainers of each job at that time."""
        self._changed: dict[tuple[int, int], Entries] = {}
        self._changed_clock = -1

    def trades(self, jobs: Counts, *, moves: int, cool_down: float) -> Iterator[int]:
        """Make one pass over all shapes of a class; yield the number of given trainers after each trade.

        Args:
            jobs: Jobs of the class.
            moves: Most trainers that may be given.
            cool_down: Seconds after a move in which a job makes none in the other direction.
        """
        placement = self._placement
        smallest = self._smallest_shares(jobs, cool_down)
        for shape in list(smallest):
            job = smallest.get(shape)
            if job is None or (job in self.blocked and not moves):
                continue
            nodes = self._nodes(job, jobs, self._now - self._got_at >= cool_down)
            if nodes is None:
                continue
            node, victims = self._fewest(shape, *nodes) if moves else (-1, [])
            if not moves or len(victims) > moves:
                self.blocked.add(job)
                continue
            for each in victims:
                placement.preempt(each.job, each.node)
                self.moved[placement.jobs[each.job].uid] = (self._now, False)
            placement.add(job, node)
            self.moved[placement.jobs[job].uid] = (self._now, True)
            moves -= len(victims)
            yield len(victims)
            smallest = self._smallest_shares(jobs, cool_down)

    def _smallest_shares(self, jobs: Counts, cool_down: float) -> dict[int, int]:
        """Return shape -> the job with the smallest share, in the order of shares; without jobs that gave within `cool_down`."""
        placement = self._placement
        able = jobs[(placement.count[jobs] < self._top[jobs]) & (self._now - self._gave_at[jobs] >= cool_down)]
        level = (placement.count[able] + 1) * self._step[able]
        able = able[np.lexsort((self._tie[able], level))]
        smallest: dict[int, int] = {}
        for shape, job in zip(placement.shape[able].tolist(), able.tolist(), strict=True):
            smallest.setdefault(shape, job)
        return smallest

    def _nodes(self, job: int, jobs: Counts, cooled_down: Flags) -> tuple[Flags, Entries] | None:
        """Return [N] whether richer jobs could make room for one trainer, and the trainers that they can give; None: nowhere.

        Args:
            job: Job that gets the trainer.
            jobs: Jobs of its class.
            cooled_down: [J] whether the job may give: its cool-down is over.
        """
        placement, shape = self._placement, int(self._placement.shape[job])
        level = float((placement.count[job] + 1) * self._step[job])
        givable = self._givable(level, jobs, cooled_down)
        if not givable.any():
            return None
        key = (shape, int(placement.rank[job]))
        before = self._failed.get(key)
        since = before[1] if before is not None and before[0] <= level else -1
        of, node, count = self._entries_since(jobs, since)
        some = (givable > 0)[of].nonzero()[0]
        some = some[placement.eligible[shape, node[some]]]
        of, node, count = of[some], node[some], count[some]
        count = np.minimum(count, givable[of])
        large = self._large(shape, of, node, count)
        if not large.any():
            self._failed[key] = (level, placement.clock)
            return None
        return large, (of, node, count)

    def _large(self, shape: int, of: Counts, node: Counts, count: Counts) -> Flags:
        """Return [N] whether one pod of a shape fits on each node without these trainers.

        Args:
            shape: Shape of the pod.
            of: Job of each entry.
            node: Node of each entry.
            count: Trainers of each entry.
        """
        placement = self._placement
        large = placement.eligible[shape] if len(of) else np.zeros(0, dtype=np.bool_)
        for resource, amount in enumerate(placement.requests[shape]):
            if not large.any():
                break
            given = np.bincount(node, placement.trainer_request[of, resource] * count, minlength=len(large))
            large = large & (placement.free[:, resource] + given >= amount)
        return large

    def _fewest(self, shape: int, large: Flags, entries: Entries) -> tuple[int, list[Victim]]:
        """Return one of the nodes and the trainers that leave it: as few as possible, of the jobs with the largest shares.

        Args:
            shape: Shape of the pod that needs room.
            large: [N] nodes where enough room can be made.
            entries: Trainers that can be given.
        """
        placement, request = self._placement, self._placement.requests[shape]
        of, node, count = entries
        some = np.flatnonzero(large[node] & (count > 0))
        of, node, count = of[some], node[some], count[some]
        alone = np.flatnonzero(fitting(placement.free[node] + placement.trainer_request[of], request))
        if len(alone):
            share = (placement.count * self._step)[of[alone]]
            giver = int(of[alone[share.argmax()]])
            where = self._preferred(giver, node[alone[of[alone] == giver]])
            return where, [Victim(giver, where)]
        here: dict[int, dict[int, int]] = {each: {} for each in np.flatnonzero(large)[:_NODES].tolist()}
        some = np.flatnonzero(node <= max(here))
        for each, giver, most in zip(node[some].tolist(), of[some].tolist(), count[some].tolist(), strict=True):
            here[each][giver] = most
        found = [(each, self._together(each, givers, request)) for each, givers in here.items()]
        return min(found, key=lambda each: (len(each[1]), each[0]))

    def _preferred(self, job: int, nodes: Counts) -> int:
        """Return the first node where not all of the job's trainers have the minimum's priority; if none, the first node."""
        first = int(nodes[0])
        if not self._placement.jobs[job].firm:
            return first
        there = self._placement.at(job)
        return next((node for node in nodes.tolist() if not self._placement.firm(job, node, there[node])), first)

    def _entries_since(self, jobs: Counts, since: int) -> Entries:
        """Return the trainers of a class on nodes that have changed.

        Args:
            jobs: Jobs of the class.
            since: Clock since when a node's trainers have changed, or the job of one of them has grown; -1: all nodes.
        """
        placement, key = self._placement, (int(jobs[0]), since)
        if self._changed_clock != placement.clock:
            self._changed, self._changed_clock = {}, placement.clock
            self._counts.setdefault(placement.clock, placement.count.copy())
        if key not in self._changed:
            entries = placement.locations.of_jobs(int(jobs[0]), int(jobs[-1]) + 1)
            if since >= 0:
                of, node, _ = entries
                changed = placement.changed_at > since
                changed[node[(placement.count > self._counts[since])[of]]] = True
                some = changed[node].nonzero()[0]
                entries = (of[some], node[some], entries[2][some])
            self._changed[key] = entries
        return self._changed[key]

    def _givable(self, level: float, jobs: Counts, cooled_down: Flags) -> Counts:
        """Return [J] how many trainers each job can give without falling below a share or below its minimum.

        Args:
            level: The share.
            jobs: Jobs of the class.
            cooled_down: [J] whether the job may give: its cool-down is over.
        """
        placement, givable = self._placement, np.zeros(len(self._step), dtype=np.int64)
        over = np.floor((placement.count[jobs] * self._step[jobs] - level) / self._step[jobs] + _CLOSE).astype(np.int64)
        most = np.minimum(over, placement.count[jobs] - placement.min[jobs])
        givable[jobs] = np.where(cooled_down[jobs], np.maximum(most, 0), 0)
        return givable

    def _together(self, node: int, here: Mapping[int, int], request: Sequence[int]) -> list[Victim]:
        """Return trainers that leave a node for a request, those of the job with the largest share first.

        Args:
            node: Number of the node.
            here: Job -> trainers that it can give there; all of them together make enough room.
            request: [R] requests of the pod.
        """
        placement = self._placement
        shortfall = [need - have for need, have in zip(request, placement.free[node].tolist(), strict=True)]
        chosen: list[Victim] = []
        for giver in sorted(here, key=lambda each: (-placement.count[each] * self._step[each], each)):
            own = placement.requests[placement.shape[giver]]
            for _ in range(here[giver]):
                if not any(amount and short > 0 for amount, short in zip(own, shortfall, strict=True)):
                    break
                chosen.append(Victim(giver, node))
                shortfall = [short - amount for short, amount in zip(shortfall, own, strict=True)]
        return chosen
