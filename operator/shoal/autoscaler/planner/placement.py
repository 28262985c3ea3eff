"""Where things stand while a plan is made: what is sure of its place, what stands but may have to give way, what is free.

Every trainer that is bound begins as one that *may give way*; it stays unless a plan needs its room. Room is looked for in
this order: nobody gives way; then one tier after the other does, first the surplus of the lowest class. So whoever gives
way does so for somebody, and as few as can be on one node.

Tiers, in the order in which they give way: the surplus of each class from the lowest, then the minimums likewise. A job's
trainers count as surplus as long as it has more than its minimum.

What is asked again and again is kept: how many pods of a shape fit at each node, in which order nodes are taken, what each
tier would give at each node. A clock says when a node was touched last, so that only those are looked at again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal.autoscaler.planner.model import Counts, Flags, PlannerJob, Snapshot
from shoal.autoscaler.planner.trainer_locations import Row, TrainerLocations, row

__all__ = ["Placement", "Victim", "fitting"]

_MANY = 2**31
_FEW = 16
"""So many nodes are looked at one by one rather than as arrays."""
_BYTE = 255
"""Preferences are of two bytes: numpy sorts these in linear time."""


@dataclass(frozen=True)
class Victim:
    """A trainer that gives way.

    Attributes:
        job: Number of its job.
        node: Where it stands.
    """

    job: int
    node: int


def fitting(room: Counts, request: Sequence[int]) -> Flags:
    """[N] which candidates are large enough; resource by resource, as arrays are kept like that."""
    large = np.ones(len(room), dtype=np.bool_)
    for resource, amount in enumerate(request):
        large &= room[:, resource] >= amount
    return large


def _high_byte(amounts: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """What orders as these amounts do, about, in the upper of two bytes."""
    most = float(amounts.max(initial=0.0))
    high: npt.NDArray[np.uint16] = (amounts * (_BYTE / max(most, 1.0))).astype(np.uint16) * np.uint16(_BYTE + 1)
    return high


class _Line:
    """Nodes that have room for a shape, in the order in which they are taken; those that were opened since come first."""

    def __init__(self, nodes: list[int], opened: int, many: int) -> None:
        self.nodes, self.opened, self.many, self.next = nodes, opened, many, 0


class Placement:
    """The working state of one plan.

    Args:
        snapshot: The cluster.
        jobs: Its jobs, from the highest class to the lowest.
        rows: Of the last plan: what was read from jobs that hold the same still.
    """

    def __init__(self, snapshot: Snapshot, jobs: Sequence[PlannerJob], rows: Mapping[str, Row]) -> None:
        self.jobs = jobs
        self.request = snapshot.shapes.request
        self.asks: list[list[int]] = self.request.tolist()
        """The same: of few numbers lists are faster."""
        self.eligible: Flags = snapshot.shapes.fits[:, snapshot.nodes.group] & snapshot.nodes.usable
        self.shape = np.array([job.shape for job in jobs], dtype=np.int64)
        self.of_one: Counts = np.asfortranarray(self.request[self.shape])
        """[J, R] what one trainer asks."""
        priorities, ranks = np.unique(np.array([job.priority for job in jobs], dtype=np.int64), return_inverse=True)
        self.rank: Counts = ranks.astype(np.int64)
        self.priorities: list[int] = priorities.tolist()
        self.classes = len(priorities)
        self.min = np.array([job.min for job in jobs], dtype=np.int64)
        self.sure = np.zeros(len(jobs), dtype=np.int64)
        """[J] how many of a job's trainers give way to nobody any more."""
        self.changes = 0
        """How often somebody came or left."""
        self.changed = np.zeros(len(jobs), dtype=np.bool_)
        """[J] whether it was one of a job's."""
        self.kept = np.zeros_like(snapshot.nodes.room)
        """[N, R] what is kept for pods that are no trainers."""
        self.rows = {job.uid: row(job, rows.get(job.uid)) for job in jobs}
        self.places = TrainerLocations(list(self.rows.values()), len(self.kept))
        of, node, count = self.places.all()
        self.count = np.bincount(of, count, minlength=len(jobs)).astype(np.int64)
        """[J] how many trainers a job has."""
        self.held = self.count.copy()
        """[J] how many it had at first."""
        self.taken = self.sum_of(node, of, count)
        """[N, R] what the trainers that are held take now."""
        self.free: Counts = np.asfortranarray(snapshot.nodes.room - self.taken)
        """[N, R] what nobody takes."""
        self.clock = 0
        self.opened: list[int] = []
        """Nodes where somebody left, one after the other."""
        self.touched = np.zeros(len(self.free), dtype=np.int64)
        """[N] when somebody last came or left."""
        self._known: dict[int, tuple[int, Counts]] = {}
        self._totals: dict[int, tuple[int, int]] = {}
        self._lines: dict[int, _Line] = {}
        self._many = 0
        """How often many came at once; nodes are put in order anew then."""
        self._weak: dict[int, Counts] = {}
        self._most = np.zeros(len(jobs), dtype=np.int64)
        """[J] a job has no more trainers than so many at any node."""
        self.yields = 0
        """How often it was said that many may give way."""
        self.wanted_by: Counts = self.eligible[np.unique(self.shape)].sum(axis=0).astype(np.int64)
        """[N] for how many shapes of trainers a node would do."""
        self._use = _high_byte(self._of_use())

    def _of_use(self) -> npt.NDArray[np.float32]:
        """[N] how many trainers would fit into what is free now, of each shape by itself, and all shapes added up; about, and fast."""
        free = np.maximum(self.free, 0).astype(np.float32)
        use = np.zeros(len(free), dtype=np.float32)
        for shape in np.unique(self.shape).tolist():
            fit = np.full(len(free), _BYTE, dtype=np.float32)
            for resource, amount in enumerate(self.asks[shape]):
                if amount:
                    np.minimum(fit, free[:, resource] * np.float32(1 / amount), out=fit)
            # Half of a thousandth more: a whole number may be a little less in so few digits.
            fit += np.float32(0.0005)
            np.floor(fit, out=fit)
            fit *= self.eligible[shape]
            use += fit
        return use

    def sum_of(self, node: Counts, job: Counts, count: Counts) -> Counts:
        """[N, R] what so many trainers of jobs take at nodes."""
        sums = np.zeros(self.kept.shape, dtype=np.int64, order="F")
        for resource in range(self.kept.shape[1]):
            sums[:, resource] = np.bincount(node, self.of_one[job, resource] * count, minlength=len(sums))
        return sums

    def at(self, job: int) -> dict[int, int]:
        """Node -> how many trainers of a job stand there by this plan."""
        nodes, counts = self.places.of(job)
        return {node: count for node, count in zip(nodes.tolist(), counts.tolist(), strict=True) if count}

    # --- Tiers ---

    def weak(self, tier: int) -> Counts:
        """[N, R] the most that those of a tier who may give way would give at each node, if they did so nowhere else."""
        if tier not in self._weak:
            mine = np.flatnonzero(self.rank == tier % self.classes)
            job, node, count = self.places.of_jobs(int(mine[0]), int(mine[-1]) + 1)
            self._most[mine] = 0
            np.maximum.at(self._most, job, count)
            part = self._gives(job, count)[tier // self.classes]
            some = np.flatnonzero(part > 0)
            self._weak[tier] = self.sum_of(node[some], job[some], part[some])
        return self._weak[tier]

    def _gives(self, job: Counts, count: Counts) -> tuple[Counts, Counts]:
        """Of so many trainers of a job: how many may give way as surplus, and how many beyond that."""
        weak = np.minimum(count, (self.count - self.sure)[job])
        surplus = np.minimum(weak, np.maximum(self.count - self.min, 0)[job])
        return surplus, weak - surplus

    def _weigh(self, job: int, sign: int) -> None:
        """What a job would give is added to what is known of the tiers, or taken from it."""
        rank = int(self.rank[job])
        tiers = [tier for tier in (rank, rank + self.classes) if tier in self._weak]
        if not tiers or self.sure[job] >= self.count[job]:
            return
        nodes, counts = self.places.of(job)
        gives = self._gives(np.full(len(nodes), job), counts)
        for tier in tiers:
            part = gives[tier // self.classes]
            if part.any():
                self._weak[tier][nodes] += sign * part[:, None] * self.of_one[job]

    def _lessen(self, job: int, node: int) -> None:
        """One of a job's surplus leaves a node: it gives one less there, and wherever all of its surplus could have left."""
        weak, surplus = self._weak.get(int(self.rank[job])), self.surplus(job)
        if weak is None:
            return
        near: Counts | int = node
        if surplus <= self._most[job]:
            nodes, counts = self.places.of(job)
            near = nodes[(counts >= surplus) | (nodes == node)]
        weak[near] -= self.of_one[job]

    def weak_of(self, job: int) -> int:
        """How many of a job's trainers may give way."""
        return int(self.count[job]) - int(self.sure[job])

    def firm(self, job: int, node: int, there: int) -> bool:
        """Whether of so many trainers of a job at a node all have the minimum's priority."""
        return there <= self.jobs[job].firm.get(node, 0)

    def surplus(self, job: int) -> int:
        """How many of these are more than its minimum."""
        return int(self.count[job]) - max(int(self.sure[job]), int(self.min[job]))

    def tiers(self, *, surplus_below: int, minimums_below: int) -> list[int]:
        """Those of the surplus of classes below one rank, and of the minimums below another."""
        return [*range(surplus_below), *range(self.classes, self.classes + minimums_below)]

    def room_with(self, tiers: Sequence[int]) -> Counts:
        """[N, R] what would be free if all of these tiers gave way at a node."""
        room = self.free.copy(order="F")
        for tier in tiers:
            room += self.weak(tier)
        return room

    # --- Changes ---

    def put(self, shape: int, node: int, count: int = 1) -> None:
        """Room is kept for a pod that is no trainer; a negative count gives it back."""
        amount = self.request[shape] * count
        self.kept[node] += amount
        self._take(node, amount, opens=count < 0)

    def _take(self, node: int, amount: Counts, *, opens: bool) -> None:
        self.free[node] -= amount
        self.clock += 1
        self.touched[node] = self.clock
        if opens:
            self.opened.append(node)

    def add_many(self, jobs: Counts, shape: int, nodes: Counts) -> None:
        """Jobs of one shape, none of which may give way, have one trainer more each (for each time they are named) at nodes."""
        assert (self.sure[jobs] == self.count[jobs]).all(), "only who is settled grows by many"
        self.changes += 1
        self._many += 1
        each = np.bincount(nodes, minlength=len(self.free))
        where = np.flatnonzero(each)
        self.free[where] -= each[where, None] * self.request[shape]
        self.clock += 1
        self.touched[where] = self.clock
        self._most[jobs] += self.places.add(jobs, nodes)
        more = np.bincount(jobs, minlength=len(self.jobs))
        self.count += more
        self.sure += more
        self.changed[jobs] = True

    def add(self, job: int, node: int) -> None:
        """A job has one trainer more at a node, which gives way to nobody of a class that comes later."""
        self._change(job, node, 1, sure=1)

    def back(self, job: int, node: int) -> None:
        """One who gave way stays after all, and may give way again."""
        self._change(job, node, 1, sure=0)

    def leave(self, job: int, node: int) -> None:
        """One of a job's trainers gives way."""
        self._change(job, node, -1, sure=0)

    def _change(self, job: int, node: int, more: int, *, sure: int) -> None:
        self.changes += 1
        request = self.of_one[job] * more
        one_less = more < 0 and self.surplus(job) > 0 and int(self.rank[job]) + self.classes not in self._weak
        if one_less:
            self._lessen(job, node)
        else:
            self._weigh(job, -1)
        self._take(node, request, opens=more < 0)
        self._most[job] = max(int(self._most[job]), self.places.change(job, node, more))
        self.count[job] += more
        self.sure[job] = min(int(self.sure[job]) + sure, int(self.count[job]))
        self.changed[job] = True
        if not one_less:
            self._weigh(job, 1)

    def settle(self, job: int, count: int | None = None) -> None:
        """So many of a job's trainers (all) give way to nobody any more."""
        self._weigh(job, -1)
        self.sure[job] = self.count[job] if count is None else min(count, self.count[job])
        self._weigh(job, 1)

    def settle_many(self, jobs: Counts) -> None:
        """Of each of these jobs its minimum; what is above it may give way."""
        self.sure[jobs] = np.minimum(self.min[jobs], self.count[jobs])
        self._yield()

    def settle_class(self, rank: int) -> None:
        """All trainers of a class."""
        jobs = self.rank == rank
        self.sure[jobs] = self.count[jobs]
        for tier in (rank, rank + self.classes):
            self._weak.pop(tier, None)

    def yield_all(self, jobs: Counts) -> None:
        """All trainers of these jobs may give way."""
        self.sure[jobs] = 0
        self._yield()

    def _yield(self) -> None:
        self._weak = {}
        self.yields += 1

    # --- Looking for room ---

    def capacity(self, shape: int, room: Counts, nodes: Counts | None = None) -> Counts:
        """How many pods of a shape fit into each room, which is that of all nodes or of these."""
        most = np.full(len(room), _MANY)
        for resource, amount in enumerate(self.asks[shape]):
            if amount:
                np.minimum(most, room[:, resource] // amount, out=most)
        np.maximum(most, 0, out=most)
        most *= self.eligible[shape] if nodes is None else self.eligible[shape, nodes]
        return most

    def anywhere(self, shape: int, room: Counts) -> Flags:
        """[N] where one pod of a shape would have room, if that were the room of each node."""
        where: Flags = self.eligible[shape]
        for resource, amount in enumerate(self.asks[shape]):
            where = where & (room[:, resource] >= amount)
            if not where.any():
                break
        return where

    def fits(self, shape: int) -> Counts:
        """[N] how many pods of a shape fit into what is free; to be read only."""
        seen, most = self._known.get(shape, (-1, None))
        if most is None:
            most = self.capacity(shape, self.free)
        elif seen < self.clock:
            nodes = np.flatnonzero(self.touched > seen)
            most[nodes] = self.capacity(shape, self.free[nodes], nodes)
        self._known[shape] = (self.clock, most)
        return most

    def total(self, shape: int) -> int:
        """How many pods of a shape fit into what is free, if no others come."""
        seen, total = self._totals.get(shape, (-1, 0))
        if seen < self.clock:
            total = int(self.fits(shape).sum())
            self._totals[shape] = (self.clock, total)
        return total

    def has_room(self, shape: int, node: int) -> bool:
        """Whether one more fits at a node."""
        room, ask = self.free[node].tolist(), self.asks[shape]
        return bool(self.eligible[shape, node]) and all(have >= need for have, need in zip(room, ask, strict=True))

    def _in_order(self, most: Counts) -> Counts:
        """Nodes where some fit: those that are of least use to all shapes, and tightest, first."""
        some = np.flatnonzero(most)
        key = self._use[some] + np.minimum(most[some], _BYTE).astype(np.uint16)
        ordered: Counts = some[key.argsort(kind="stable")]
        return ordered

    def fit(self, count: int, most: Counts) -> tuple[Counts, Counts] | None:
        """Nodes and how many on each, so that all find room. None: they do not.

        Args:
            count: How many.
            most: [N] how many fit.
        """
        order = self._in_order(most)
        total = most[order].cumsum()
        if not len(order) or total[-1] < count:
            return None
        last = int(total.searchsorted(count))
        chosen = order[: last + 1]
        counts = most[chosen]
        counts[-1] -= total[last] - count
        return chosen, counts

    def free_node(self, shape: int) -> int:
        """A node with room for one, where nobody gives way; -1: there is none."""
        line = self._lines.get(shape)
        if line is None or line.many < self._many:
            nodes = self._in_order(self.fits(shape)).tolist()
            line = self._lines[shape] = _Line(nodes, len(self.opened), self._many)
        if len(self.opened) - line.opened > _FEW:
            late = np.array(self.opened[line.opened :])
            large = np.flatnonzero(fitting(self.free[late], self.asks[shape]) & self.eligible[shape, late])
            line.opened = line.opened + int(large[0]) if len(large) else len(self.opened)
        while line.opened < len(self.opened):
            if self.has_room(shape, self.opened[line.opened]):
                return self.opened[line.opened]
            line.opened += 1
        while line.next < len(line.nodes):
            if self.has_room(shape, line.nodes[line.next]):
                return line.nodes[line.next]
            line.next += 1
        return -1
