"""Where things stand while a plan is made: what is sure of its place, what stands but may have to give way, what is free.

Every trainer that is bound begins as one that *may give way*; it stays unless a plan needs its room. Room is looked for in
this order: nobody gives way; then one tier after the other does, first the surplus of the lowest class. So whoever gives
way does so for somebody, and as few as can be on one node.

Tiers, in the order in which they give way: the surplus of each class from the lowest, then the minimums likewise. A job's
trainers count as surplus as long as it has more than its minimum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal.autoscaler.model import Counts, Flags, Job, Snapshot

__all__ = ["Board", "Leaver", "Row"]

Floats = npt.NDArray[np.float64]
_MANY = np.int64(2**31)
_TRIES = 8
"""Nodes that are looked at closely once one was found that would do."""


@dataclass(frozen=True)
class Leaver:
    """A trainer that gives way.

    Attributes:
        job: Number of its job.
        node: Where it stands.
    """

    job: int
    node: int


Row = tuple[Mapping[int, int], Counts, Counts]
Rows = Mapping[str, Row]


def _row(job: Job, rows: Rows) -> Row:
    """What a job holds, its nodes and its counts: as the last plan read it, if it is the very same."""
    known = rows.get(job.uid)
    if known is not None and known[0] is job.held:
        return known
    size = len(job.held)
    nodes = np.fromiter(job.held.keys(), dtype=np.int64, count=size)
    return job.held, nodes, np.fromiter(job.held.values(), dtype=np.int64, count=size)


class _Entries:
    """Where trainers stand, as arrays: what was held, and each change since."""

    def __init__(self, rows: Sequence[Row]) -> None:
        nothing = np.zeros(0, dtype=np.int64)
        self.job: Counts = np.repeat(np.arange(len(rows)), [len(row[1]) for row in rows])
        self.node: Counts = np.concatenate([nothing, *(row[1] for row in rows)])
        self.count: Counts = np.concatenate([nothing, *(row[2] for row in rows)])
        self._changes: list[tuple[int, int, int]] = []

    def one(self, job: int, node: int, count: int) -> None:
        self._changes.append((job, node, count))

    def add(self, jobs: Counts, nodes: Counts) -> None:
        self._merge()
        self.job = np.concatenate([self.job, jobs])
        self.node = np.concatenate([self.node, nodes])
        self.count = np.concatenate([self.count, np.ones(len(jobs), dtype=np.int64)])

    def all(self) -> _Entries:
        """With every change; of the same job and node there may be several."""
        self._merge()
        return self

    def _merge(self) -> None:
        if self._changes:
            job, node, count = np.array(self._changes, dtype=np.int64).T
            self.job = np.concatenate([self.job, job])
            self.node = np.concatenate([self.node, node])
            self.count = np.concatenate([self.count, count])
            self._changes = []


class Board:
    """The working state of one plan.

    Args:
        snapshot: The cluster.
        jobs: Its jobs, from the highest class to the lowest.
        rows: Of the last plan: what was read from jobs that hold the same still.
    """

    def __init__(self, snapshot: Snapshot, jobs: Sequence[Job], rows: Rows) -> None:
        self.jobs = jobs
        self.request = snapshot.shapes.request
        self.eligible: Flags = snapshot.shapes.fits[:, snapshot.nodes.group] & snapshot.nodes.usable
        self.shape = np.array([job.shape for job in jobs], dtype=np.int64)
        priorities = sorted({job.priority for job in jobs})
        rank = {priority: number for number, priority in enumerate(priorities)}
        self.rank = np.array([rank[job.priority] for job in jobs], dtype=np.int64)
        self.classes = len(priorities)
        self.min = np.array([job.min for job in jobs], dtype=np.int64)
        self.at: list[Mapping[int, int]] = [job.held for job in jobs]
        """Of each job: node -> trainers that stand there by this plan."""
        self.sure = np.zeros(len(jobs), dtype=np.int64)
        """[J] how many of a job's trainers give way to nobody any more."""
        self.changes = 0
        """How often somebody came or left."""
        self.kept = np.zeros_like(snapshot.nodes.room)
        """[N, R] what is kept for pods that are no trainers."""
        self.rows = {job.uid: _row(job, rows) for job in jobs}
        self._entries = _Entries([self.rows[job.uid] for job in jobs])
        entries = self._entries
        self.count = np.bincount(entries.job, entries.count, minlength=len(jobs)).astype(np.int64)
        """[J] how many trainers a job has."""
        self.taken = self._sum(entries.node, self.shape[entries.job], entries.count, len(self.kept))
        """[N, R] what the trainers that are held take now."""
        self.free: Counts = snapshot.nodes.room - self.taken
        """[N, R] what nobody takes."""
        self._own: dict[int, dict[int, int]] = {}
        """Those of `at` that are no longer the snapshot's."""
        self._came: dict[int, set[int]] = {}
        self._weak: Counts | None = None
        self._known: dict[int, Counts] = {}
        """Shape -> [N] how many fit into what is free; kept up to date."""
        self._largest = np.zeros((max(1, self.classes), self.kept.shape[1]), dtype=np.int64)
        np.maximum.at(self._largest, self.rank, self.request[self.shape])
        self.wanted_by = self.eligible[np.unique(self.shape)].sum(axis=0).astype(np.int64)
        """[N] for how many shapes of trainers a node would do: the least wanted are taken first."""

    def _sum(self, place: Counts, shape: Counts, count: Counts, places: int) -> Counts:
        """[places, R] requests of so many pods of a shape, by place."""
        sums = [
            np.bincount(place, self.request[shape, resource] * count, minlength=places)
            for resource in range(self.request.shape[1])
        ]
        return np.stack(sums, axis=1).astype(np.int64)

    def entries(self) -> tuple[Counts, Counts, Counts]:
        """Jobs, nodes and counts of all trainers that stand; of one job at one node there may be several, less than 0 too."""
        entries = self._entries.all()
        return entries.job, entries.node, entries.count

    def sum_of(self, node: Counts, job: Counts, count: Counts) -> Counts:
        """[N, R] what so many trainers of jobs take at nodes."""
        return self._sum(node, self.shape[job], count, len(self.free))

    # --- Tiers ---

    @property
    def weak(self) -> Counts:
        """[tier, N, R]: held by those who may give way. Of a job all or nothing is in it, so it promises too much at times."""
        if self._weak is None:
            tier = self.rank + np.where(self.count > self.min, 0, self.classes)
            entries, nodes = self._entries.all(), len(self.free)
            weak = (self.sure < self.count)[entries.job]
            job, node, count = entries.job[weak], entries.node[weak], entries.count[weak]
            places = 2 * max(1, self.classes) * nodes
            summed = self._sum(tier[job] * nodes + node, self.shape[job], count, places)
            self._weak = summed.reshape(2 * max(1, self.classes), nodes, self.request.shape[1])
        return self._weak

    def tier(self, job: int) -> int:
        """In which of the tiers its trainers are now, if they may give way."""
        surplus = self.count[job] > self.min[job]
        return int(self.rank[job] + (0 if surplus else self.classes))

    def tiers(self, *, surplus_below: int, minimums_below: int) -> list[int]:
        """Those of the surplus of classes below one rank, and of the minimums below another."""
        return [*range(surplus_below), *range(self.classes, self.classes + minimums_below)]

    def here(self, node: int) -> list[int]:
        """Jobs that have trainers at a node."""
        entries = self._entries
        found = {*entries.job[entries.node == node].tolist(), *self._came.get(node, ())}
        return sorted(job for job in found if self.at[job].get(node))

    # --- Changes ---

    def put(self, shape: int, node: int, count: int = 1) -> None:
        """Room is kept for a pod that is no trainer; a negative count gives it back."""
        amount = self.request[shape] * count
        self.kept[node] += amount
        self._take(node, amount)

    def _take(self, node: int, amount: Counts) -> None:
        self.free[node] -= amount
        left = self.free[node]
        for shape, most in self._known.items():
            if self.eligible[shape, node]:
                request = self.request[shape]
                asked = request > 0
                most[node] = max(0, int((left[asked] // request[asked]).min())) if asked.any() else _MANY

    def add_many(self, jobs: Counts, shape: int, nodes: Counts, counts: Counts) -> None:
        """Jobs (one number per trainer) of one shape, none of which may give way, have one more each, at these nodes."""
        assert (self.sure[jobs] == self.count[jobs]).all(), "only who is settled grows by many"
        self.changes += 1
        self.free[nodes] -= counts[:, None] * self.request[shape]
        for known, most in self._known.items():
            most[nodes] = self.capacity(known, self.free[nodes], nodes)
        where = np.repeat(nodes, counts)
        self._entries.add(jobs, where)
        for job, node in zip(jobs.tolist(), where.tolist(), strict=True):
            at = self._owned(job)
            at[node] = at.get(node, 0) + 1
            self._came.setdefault(node, set()).add(job)
        more = np.bincount(jobs, minlength=len(self.jobs))
        self.count += more
        self.sure += more

    def add(self, job: int, node: int) -> None:
        """A job has one trainer more at a node, which gives way to nobody of a class that comes later."""
        self._more(job, node, sure=1)

    def back(self, job: int, node: int) -> None:
        """One who gave way stays after all, and may give way again."""
        self._more(job, node, sure=0)

    def _more(self, job: int, node: int, *, sure: int) -> None:
        self.changes += 1
        before = self._weak_tier(job)
        request = self.request[self.shape[job]]
        self._take(node, request)
        at = self._owned(job)
        at[node] = at.get(node, 0) + 1
        self._entries.one(job, node, 1)
        self._came.setdefault(node, set()).add(job)
        if before is not None and self._weak is not None:
            self._weak[before, node] += request
        self.count[job] += 1
        self.sure[job] += sure
        self._retier(job, before)

    def leave(self, job: int, node: int) -> None:
        """One of a job's trainers gives way."""
        self.changes += 1
        before = self._weak_tier(job)
        request = self.request[self.shape[job]]
        if before is not None and self._weak is not None:
            self._weak[before, node] -= request
        self._take(node, -request)
        at = self._owned(job)
        at[node] -= 1
        if not at[node]:
            del at[node]
        self._entries.one(job, node, -1)
        self.count[job] -= 1
        self.sure[job] = min(self.sure[job], self.count[job])
        self._retier(job, before)

    def settle(self, job: int, count: int | None = None) -> None:
        """So many of a job's trainers (all) give way to nobody any more."""
        before = self._weak_tier(job)
        self.sure[job] = self.count[job] if count is None else min(count, self.count[job])
        self._retier(job, before)

    def settle_many(self, jobs: Sequence[int], *, minimum: bool) -> None:
        """Of each of these jobs its minimum, or all."""
        self.sure[jobs] = np.minimum(self.min[jobs], self.count[jobs]) if minimum else self.count[jobs]
        self._weak = None

    def yield_all(self, jobs: Sequence[int]) -> None:
        """All trainers of these jobs may give way."""
        self.sure[jobs] = 0
        self._weak = None

    def _owned(self, job: int) -> dict[int, int]:
        if job not in self._own:
            self.at[job] = self._own[job] = dict(self.at[job])
        return self._own[job]

    def _weak_tier(self, job: int) -> int | None:
        """The tier that a job's trainers are counted in; None: they give way to nobody."""
        return self.tier(job) if self.sure[job] < self.count[job] else None

    def _retier(self, job: int, before: int | None) -> None:
        if self._weak is None:
            return
        after = self._weak_tier(job)
        if before == after:
            return
        request = self.request[self.shape[job]]
        for node, count in self.at[job].items():
            if before is not None:
                self._weak[before, node] -= request * count
            if after is not None:
                self._weak[after, node] += request * count

    # --- Looking for room ---

    def capacity(self, shape: int, room: Counts, nodes: Counts | None = None) -> Counts:
        """How many pods of a shape fit into each room, which is that of all nodes or of these."""
        request = self.request[shape]
        most = np.full(len(room), _MANY)
        for resource in np.flatnonzero(request):
            np.minimum(most, room[:, resource] // request[resource], out=most)
        np.maximum(most, 0, out=most)
        most[~(self.eligible[shape] if nodes is None else self.eligible[shape, nodes])] = 0
        return most

    def fits(self, shape: int) -> Counts:
        """[N] how many pods of a shape fit into what is free; to be read only."""
        if shape not in self._known:
            self._known[shape] = self.capacity(shape, self.free)
        return self._known[shape]

    def fit(self, count: int, most: Counts) -> tuple[Counts, Counts] | None:
        """Nodes and how many on each, so that all find room; the least wanted and tightest first. None: they do not.

        Args:
            count: How many.
            most: [N] how many fit.
        """
        some = np.flatnonzero(most)
        if most[some].sum() < count or not len(some):
            return None
        order = some[np.argsort(self._preference(most)[some], kind="stable")]
        each = most[order]
        total = np.cumsum(each)
        last = int(np.searchsorted(total, count))
        chosen, counts = order[: last + 1], each[: last + 1].copy()
        counts[-1] -= total[last] - count
        return chosen, counts

    def _preference(self, most: Counts) -> Counts:
        key: Counts = self.wanted_by * 2**16 + np.minimum(most, 2**15)
        return key

    def free_node(self, shape: int) -> int:
        """A node with room for one, where nobody gives way; -1: there is none."""
        most = self.fits(shape)
        if not most.any():
            return -1
        return int(np.where(most > 0, self._preference(most), _MANY * 2**20).argmin())

    def make_room(
        self,
        shape: int,
        tiers: Sequence[int],
        *,
        share: Callable[[int], float],
        nodes: Flags | None = None,
    ) -> tuple[int, list[Leaver]] | None:
        """A node, and who gives way there for one pod; as few tiers as do, then as few trainers.

        Args:
            shape: Of the pod.
            tiers: Who may give way, in this order.
            share: Of a job; who has the larger one gives way first.
            nodes: [N] where; None: everywhere.
        """
        request = self.request[shape]
        room = self.free.copy()
        where = self.eligible[shape] if nodes is None else self.eligible[shape] & nodes
        for number, tier in enumerate(tiers):
            # Of a job with surplus all trainers are counted there, so at a tier of minimums there may be nothing to add.
            if tier < self.classes and not self.weak[tier].any():
                continue
            room += self.weak[tier]
            found = np.flatnonzero(where & (room >= request).all(axis=1))
            best: tuple[tuple[int, float, int], int, list[Leaver]] | None = None
            for tried, node in enumerate(self._cheapest_first(found, request, tiers[: number + 1])):
                if best is not None and tried >= _TRIES:
                    break
                leavers = self.leavers(int(node), request, tiers[: number + 1], share=share)
                if leavers is None:
                    continue
                key = (len(leavers), -sum(share(each.job) for each in leavers), int(node))
                if best is None or key < best[0]:
                    best = (key, int(node), leavers)
            if best is not None:
                return best[1], best[2]
        return None

    def _cheapest_first(self, nodes: Counts, request: Counts, tiers: Sequence[int]) -> Counts:
        """By how many would have to give way, about."""
        lacks = np.maximum(request - self.free[nodes], 0)
        ranks = sorted({tier % max(1, self.classes) for tier in tiers})
        largest = np.maximum(self._largest[ranks].max(axis=0), 1)
        about = (-(-lacks // largest)).max(axis=1)
        ordered: Counts = nodes[np.lexsort((nodes, about))]
        return ordered

    def leavers(
        self, node: int, request: Counts, tiers: Sequence[int], *, share: Callable[[int], float]
    ) -> list[Leaver] | None:
        """Who gives way at a node so that a request fits; None: not even all of these tiers would do."""
        lacks = request - self.free[node]
        chosen: list[Leaver] = []
        given: dict[int, int] = {}
        for tier in tiers:
            for leaver in self._of_tier(node, tier, lacks, given, share):
                if (lacks <= 0).all():
                    break
                chosen.append(leaver)
                given[leaver.job] = given.get(leaver.job, 0) + 1
                lacks = lacks - self.request[self.shape[leaver.job]]
        if (lacks > 0).any():
            return None
        # Who was chosen before another one who covers it all stays.
        for leaver in list(chosen):
            without = lacks + self.request[self.shape[leaver.job]]
            if (without <= 0).all():
                chosen.remove(leaver)
                lacks = without
        return chosen

    def _of_tier(
        self, node: int, tier: int, lacks: Counts, given: dict[int, int], share: Callable[[int], float]
    ) -> Iterator[Leaver]:
        """Trainers of a tier at a node: first one who is enough alone, else those who give most, of jobs that hold most."""
        rank = tier % self.classes
        jobs = [job for job in self.here(node) if self.rank[job] == rank and self.sure[job] < self.count[job]]
        needed = np.flatnonzero(lacks > 0)

        def gain(job: int) -> float:
            request = self.request[self.shape[job]][needed]
            return float(np.minimum(request / lacks[needed], 1.0).sum())

        jobs.sort(key=lambda job: (-gain(job), -share(job), job))
        for job in jobs:
            if not gain(job):
                continue
            weak = int(self.count[job] - self.sure[job])
            most = weak if tier >= self.classes else max(0, min(weak, int(self.count[job] - self.min[job])))
            most = min(self.at[job].get(node, 0), most) - given.get(job, 0)
            for _ in range(max(0, most)):
                yield Leaver(job, node)
