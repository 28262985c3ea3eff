"""What jobs of one class exchange: who finds no room takes from those who would still have no less than he.

One sweep looks at each shape once, from that of the poorest job on; of a shape only its poorest is looked at, as who holds
more has no more givers than he.
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
"""Nodes that are looked at closely where one trainer's room is not enough for another."""
Floats = npt.NDArray[np.float64]
Stand = tuple[Counts, Counts, Counts]
"""Jobs, nodes and counts."""


class Rebalance:
    """Exchange within classes, and who took part.

    Args:
        placement: Where things stand.
        step: [J] by how much one trainer more raises a job's share.
        top: [J] most trainers.
        tie: [J] who of several at one level is the next.
        now: Seconds.
        before: Job's uid -> (when it last gave or got one, whether it got it), by the last plan.
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
        self._got = np.full(len(step), -np.inf)
        self._gave = np.full(len(step), -np.inf)
        for number, job in enumerate(placement.jobs if before else ()):
            if job.uid in before:
                when, got = before[job.uid]
                (self._got if got else self._gave)[number] = when
        self.moved: dict[str, tuple[float, bool]] = {}
        """Who gave (False) or got (True) a trainer for fairness alone."""
        self.blocked: set[int] = set()
        """Who would have got one, but for the limits on such moves."""
        self._vain: dict[tuple[int, int], tuple[float, int]] = {}
        """Shape and class -> for which level givers were sought last, and when."""
        self._counts: dict[int, Counts] = {}
        """When they were sought -> [J] how many trainers each job had."""
        self._near: dict[tuple[int, int], Stand] = {}
        self._near_clock = -1

    def trades(self, jobs: Counts, *, moves: int, cool_down: float) -> Iterator[int]:
        """One sweep over all shapes of a class; after each trade: how many gave."""
        placement = self._placement
        poorest = self._poorest(jobs, cool_down)
        for shape in list(poorest):
            job = poorest.get(shape)
            if job is None or (job in self.blocked and not moves):
                continue
            nodes = self._nodes(job, jobs, self._now - self._got >= cool_down)
            if nodes is None:
                continue
            node, victims = self._fewest(shape, *nodes) if moves else (-1, [])
            if not moves or len(victims) > moves:
                self.blocked.add(job)
                continue
            for each in victims:
                placement.leave(each.job, each.node)
                self.moved[placement.jobs[each.job].uid] = (self._now, False)
            placement.add(job, node)
            self.moved[placement.jobs[job].uid] = (self._now, True)
            moves -= len(victims)
            yield len(victims)
            poorest = self._poorest(jobs, cool_down)

    def _poorest(self, jobs: Counts, cool_down: float) -> dict[int, int]:
        """Shape -> the job that is its next, the poorest first; none that gave a short time ago."""
        placement = self._placement
        able = jobs[(placement.count[jobs] < self._top[jobs]) & (self._now - self._gave[jobs] >= cool_down)]
        level = (placement.count[able] + 1) * self._step[able]
        able = able[np.lexsort((self._tie[able], level))]
        poorest: dict[int, int] = {}
        for shape, job in zip(placement.shape[able].tolist(), able.tolist(), strict=True):
            poorest.setdefault(shape, job)
        return poorest

    def _nodes(self, job: int, jobs: Counts, rested: Flags) -> tuple[Flags, Stand] | None:
        """[N] where richer jobs could make room for one trainer, and how many may leave where."""
        placement, shape = self._placement, int(self._placement.shape[job])
        level = float((placement.count[job] + 1) * self._step[job])
        gives = self._may_give(level, jobs, rested)
        if not gives.any():
            return None
        key = (shape, int(placement.rank[job]))
        before = self._vain.get(key)
        since = before[1] if before is not None and before[0] <= level else -1
        of, node, count = self._stand(jobs, since)
        some = (gives > 0)[of].nonzero()[0]
        some = some[placement.eligible[shape, node[some]]]
        of, node, count = of[some], node[some], count[some]
        count = np.minimum(count, gives[of])
        large = self._large(shape, of, node, count)
        if not large.any():
            self._vain[key] = (level, placement.clock)
            return None
        return large, (of, node, count)

    def _large(self, shape: int, of: Counts, node: Counts, count: Counts) -> Flags:
        """[N] where there would be room for one pod if these left."""
        placement = self._placement
        large = placement.eligible[shape] if len(of) else np.zeros(0, dtype=np.bool_)
        for resource, amount in enumerate(placement.asks[shape]):
            if not large.any():
                break
            given = np.bincount(node, placement.of_one[of, resource] * count, minlength=len(large))
            large = large & (placement.free[:, resource] + given >= amount)
        return large

    def _fewest(self, shape: int, large: Flags, stand: Stand) -> tuple[int, list[Victim]]:
        """One of these nodes, and who leaves there: fewest, of the richest."""
        placement, request = self._placement, self._placement.asks[shape]
        of, node, count = stand
        some = np.flatnonzero(large[node] & (count > 0))
        of, node, count = of[some], node[some], count[some]
        alone = np.flatnonzero(fitting(placement.free[node] + placement.of_one[of], request))
        if len(alone):
            share = (placement.count * self._step)[of[alone]]
            giver = int(of[alone[share.argmax()]])
            where = self._rather(giver, node[alone[of[alone] == giver]])
            return where, [Victim(giver, where)]
        here: dict[int, dict[int, int]] = {each: {} for each in np.flatnonzero(large)[:_NODES].tolist()}
        some = np.flatnonzero(node <= max(here))
        for each, giver, most in zip(node[some].tolist(), of[some].tolist(), count[some].tolist(), strict=True):
            here[each][giver] = most
        found = [(each, self._together(each, givers, request)) for each, givers in here.items()]
        return min(found, key=lambda each: (len(each[1]), each[0]))

    def _rather(self, job: int, nodes: Counts) -> int:
        """Of these nodes the first where not all of a job's trainers have the minimum's priority, if there is one."""
        first = int(nodes[0])
        if not self._placement.jobs[job].firm:
            return first
        there = self._placement.at(job)
        return next((node for node in nodes.tolist() if not self._placement.firm(job, node, there[node])), first)

    def _stand(self, jobs: Counts, since: int) -> Stand:
        """Trainers of a class; only at nodes where somebody came since, or left, or is of a job that has more now."""
        placement, key = self._placement, (int(jobs[0]), since)
        if self._near_clock != placement.clock:
            self._near, self._near_clock = {}, placement.clock
            self._counts.setdefault(placement.clock, placement.count.copy())
        if key not in self._near:
            stand = placement.places.of_jobs(int(jobs[0]), int(jobs[-1]) + 1)
            if since >= 0:
                of, node, _ = stand
                near = placement.touched > since
                near[node[(placement.count > self._counts[since])[of]]] = True
                some = near[node].nonzero()[0]
                stand = (of[some], node[some], stand[2][some])
            self._near[key] = stand
        return self._near[key]

    def _may_give(self, level: float, jobs: Counts, rested: Flags) -> Counts:
        """[J] how many each can give and have no less than this share, and its minimum."""
        placement, gives = self._placement, np.zeros(len(self._step), dtype=np.int64)
        over = np.floor((placement.count[jobs] * self._step[jobs] - level) / self._step[jobs] + _CLOSE).astype(np.int64)
        most = np.minimum(over, placement.count[jobs] - placement.min[jobs])
        gives[jobs] = np.where(rested[jobs], np.maximum(most, 0), 0)
        return gives

    def _together(self, node: int, here: Mapping[int, int], request: Sequence[int]) -> list[Victim]:
        """Who leaves a node so that there is room, the richest first; all of them together would be enough."""
        placement = self._placement
        lacks = [need - have for need, have in zip(request, placement.free[node].tolist(), strict=True)]
        chosen: list[Victim] = []
        for giver in sorted(here, key=lambda each: (-placement.count[each] * self._step[each], each)):
            own = placement.asks[placement.shape[giver]]
            for _ in range(here[giver]):
                if not any(amount and lack > 0 for amount, lack in zip(own, lacks, strict=True)):
                    break
                chosen.append(Victim(giver, node))
                lacks = [lack - amount for lack, amount in zip(lacks, own, strict=True)]
        return chosen
