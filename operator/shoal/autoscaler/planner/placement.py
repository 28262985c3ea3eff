"""The working state of a plan: protected trainers, preemptible trainers and free room of each node.

Every bound trainer is *preemptible* at first, and stays unless the plan needs its room; a *protected* trainer cannot be
preempted any more by this plan. Room is searched first without preemption, then with one more tier at a time, the surplus
of the lowest class first. So each victim makes room for another pod, and a node has as few victims as possible.

Tiers, in the order of preemption: the surplus of each class from the lowest on, then the minimums of each class from the
lowest on. A trainer of a job counts as surplus while the job has more than its minimum.

Repeated queries are cached: how many pods of a shape fit on each node, the order of nodes, the room that each tier would
free on each node. A logical clock records the last change of each node, so that only changed nodes are computed again.
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
"""Up to this number nodes are checked one by one, more of them as arrays."""
_BYTE = 255
"""Sort keys of nodes have two bytes: numpy sorts these in linear time."""


@dataclass(frozen=True)
class Victim:
    """A trainer that is preempted.

    Attributes:
        job: Number of its job.
        node: Number of its node.
    """

    job: int
    node: int


def fitting(room: Counts, request: Sequence[int]) -> Flags:
    """Return [N] whether each room fits a request; computed by resource, as the arrays are column-major."""
    large = np.ones(len(room), dtype=np.bool_)
    for resource, amount in enumerate(request):
        large &= room[:, resource] >= amount
    return large


def _high_byte(amounts: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Return the amounts, scaled to the upper byte of two bytes; their order is approximately kept."""
    most = float(amounts.max(initial=0.0))
    high: npt.NDArray[np.uint16] = (amounts * (_BYTE / max(most, 1.0))).astype(np.uint16) * np.uint16(_BYTE + 1)
    return high


class _NodeOrder:
    """The nodes with room for a shape, in the order of use; nodes where a trainer left later are used before these.

    Args:
        nodes: Nodes with room when the order was computed.
        freed: Length of `Placement.freed` at that time.
        many: Number of batch placements at that time.
    """

    def __init__(self, nodes: list[int], freed: int, many: int) -> None:
        self.nodes, self.freed, self.many, self.next = nodes, freed, many, 0


class Placement:
    """The working state of one plan.

    Args:
        snapshot: The state of the cluster.
        jobs: Its jobs, from the highest class to the lowest; a job's number is its index here.
        rows: Job's uid -> row of the last plan; reused for jobs whose trainers have not changed.
    """

    def __init__(self, snapshot: Snapshot, jobs: Sequence[PlannerJob], rows: Mapping[str, Row]) -> None:
        self.jobs = jobs
        self.request = snapshot.shapes.request
        self.requests: list[list[int]] = self.request.tolist()
        """`request` as lists, which are faster for a few numbers."""
        self.eligible: Flags = snapshot.shapes.fits[:, snapshot.nodes.group] & snapshot.nodes.usable
        self.shape = np.array([job.shape for job in jobs], dtype=np.int64)
        self.trainer_request: Counts = np.asfortranarray(self.request[self.shape])
        """[J, R] request of one trainer."""
        priorities, ranks = np.unique(np.array([job.priority for job in jobs], dtype=np.int64), return_inverse=True)
        self.rank: Counts = ranks.astype(np.int64)
        self.priorities: list[int] = priorities.tolist()
        self.classes = len(priorities)
        self.min = np.array([job.min for job in jobs], dtype=np.int64)
        self.protected = np.zeros(len(jobs), dtype=np.int64)
        """[J] protected trainers of each job."""
        self.changes = 0
        """Number of additions and removals of trainers."""
        self.changed = np.zeros(len(jobs), dtype=np.bool_)
        """[J] whether trainers of the job were added or removed."""
        self.reserved = np.zeros_like(snapshot.nodes.room)
        """[N, R] room that is reserved for pods that are not trainers."""
        self.rows = {job.uid: row(job, rows.get(job.uid)) for job in jobs}
        self.locations = TrainerLocations(list(self.rows.values()), len(self.reserved))
        of, node, count = self.locations.all()
        self.count = np.bincount(of, count, minlength=len(jobs)).astype(np.int64)
        """[J] planned trainers of each job."""
        self.held = self.count.copy()
        """[J] bound trainers of each job."""
        self.taken = self.sum_of(node, of, count)
        """[N, R] requests of the bound trainers."""
        self.free: Counts = np.asfortranarray(snapshot.nodes.room - self.taken)
        """[N, R] free room."""
        self.clock = 0
        self.freed: list[int] = []
        """Nodes where room was freed, in order of time."""
        self.changed_at = np.zeros(len(self.free), dtype=np.int64)
        """[N] clock of the node's last change."""
        self._known: dict[int, tuple[int, Counts]] = {}
        self._totals: dict[int, tuple[int, int]] = {}
        self._orders: dict[int, _NodeOrder] = {}
        self._many = 0
        """Number of batch placements; after each one the order of nodes is computed again."""
        self._preemptible: dict[int, Counts] = {}
        self._most = np.zeros(len(jobs), dtype=np.int64)
        """[J] upper bound of the job's trainers on one node."""
        self.resets = 0
        """How often the trainers of many jobs were made preemptible."""
        self.eligible_shapes: Counts = self.eligible[np.unique(self.shape)].sum(axis=0).astype(np.int64)
        """[N] number of trainers' shapes for which the node is eligible."""
        self._fit_key = _high_byte(self._fit_counts())

    def _fit_counts(self) -> npt.NDArray[np.float32]:
        """Return [N] the sum over all shapes of the trainers of that shape that fit into the free room; approximate, for speed."""
        free = np.maximum(self.free, 0).astype(np.float32)
        use = np.zeros(len(free), dtype=np.float32)
        for shape in np.unique(self.shape).tolist():
            fit = np.full(len(free), _BYTE, dtype=np.float32)
            for resource, amount in enumerate(self.requests[shape]):
                if amount:
                    np.minimum(fit, free[:, resource] * np.float32(1 / amount), out=fit)
            # Add 0.0005: float32 may represent a whole quotient as slightly less.
            fit += np.float32(0.0005)
            np.floor(fit, out=fit)
            fit *= self.eligible[shape]
            use += fit
        return use

    def sum_of(self, node: Counts, job: Counts, count: Counts) -> Counts:
        """Return [N, R] the requests of trainers, summed by node.

        Args:
            node: Node of each entry.
            job: Job of each entry.
            count: Trainers of each entry.
        """
        sums = np.zeros(self.reserved.shape, dtype=np.int64, order="F")
        for resource in range(self.reserved.shape[1]):
            sums[:, resource] = np.bincount(node, self.trainer_request[job, resource] * count, minlength=len(sums))
        return sums

    def at(self, job: int) -> dict[int, int]:
        """Return node -> planned trainers of a job there."""
        nodes, counts = self.locations.of(job)
        return {node: count for node, count in zip(nodes.tolist(), counts.tolist(), strict=True) if count}

    # --- Tiers ---

    def preemptible(self, tier: int) -> Counts:
        """Return [N, R] the room that a tier's preemptible trainers would free on each node if no other node had victims."""
        if tier not in self._preemptible:
            mine = np.flatnonzero(self.rank == tier % self.classes)
            job, node, count = self.locations.of_jobs(int(mine[0]), int(mine[-1]) + 1)
            self._most[mine] = 0
            np.maximum.at(self._most, job, count)
            part = self._split_preemptible(job, count)[tier // self.classes]
            some = np.flatnonzero(part > 0)
            self._preemptible[tier] = self.sum_of(node[some], job[some], part[some])
        return self._preemptible[tier]

    def _split_preemptible(self, job: Counts, count: Counts) -> tuple[Counts, Counts]:
        """Return how many of the given trainers are preemptible as surplus, and how many as minimum.

        Args:
            job: Job of each entry.
            count: Trainers of each entry.
        """
        preemptible = np.minimum(count, (self.count - self.protected)[job])
        surplus = np.minimum(preemptible, np.maximum(self.count - self.min, 0)[job])
        return surplus, preemptible - surplus

    def _add_preemptible(self, job: int, sign: int) -> None:
        """Add the room that a job's preemptible trainers would free to the cached tiers (sign 1), or subtract it (-1)."""
        rank = int(self.rank[job])
        tiers = [tier for tier in (rank, rank + self.classes) if tier in self._preemptible]
        if not tiers or self.protected[job] >= self.count[job]:
            return
        nodes, counts = self.locations.of(job)
        givable = self._split_preemptible(np.full(len(nodes), job), counts)
        for tier in tiers:
            part = givable[tier // self.classes]
            if part.any():
                self._preemptible[tier][nodes] += sign * part[:, None] * self.trainer_request[job]

    def _subtract_one(self, job: int, node: int) -> None:
        """Update the cached tier for one surplus trainer less on a node.

        The job frees one trainer less on that node, and on each node where all of its surplus could have been preempted.
        """
        preemptible, surplus = self._preemptible.get(int(self.rank[job])), self.surplus(job)
        if preemptible is None:
            return
        near: Counts | int = node
        if surplus <= self._most[job]:
            nodes, counts = self.locations.of(job)
            near = nodes[(counts >= surplus) | (nodes == node)]
        preemptible[near] -= self.trainer_request[job]

    def preemptible_of(self, job: int) -> int:
        """Return the number of a job's preemptible trainers."""
        return int(self.count[job]) - int(self.protected[job])

    def firm(self, job: int, node: int, there: int) -> bool:
        """Return whether all of `there` trainers of a job on a node have the minimum's priority."""
        return there <= self.jobs[job].firm.get(node, 0)

    def surplus(self, job: int) -> int:
        """Return the number of a job's preemptible trainers beyond its minimum."""
        return int(self.count[job]) - max(int(self.protected[job]), int(self.min[job]))

    def tiers(self, *, surplus_below: int, minimums_below: int) -> list[int]:
        """Return the tiers: the surplus of classes below one rank, then the minimums of classes below another."""
        return [*range(surplus_below), *range(self.classes, self.classes + minimums_below)]

    def room_with(self, tiers: Sequence[int]) -> Counts:
        """Return [N, R] the room of each node if all of these tiers were preempted there."""
        room = self.free.copy(order="F")
        for tier in tiers:
            room += self.preemptible(tier)
        return room

    # --- Changes ---

    def reserve(self, shape: int, node: int, count: int = 1) -> None:
        """Reserve room on a node for pods that are not trainers; a negative count releases it."""
        amount = self.request[shape] * count
        self.reserved[node] += amount
        self._take(node, amount, frees=count < 0)

    def _take(self, node: int, amount: Counts, *, frees: bool) -> None:
        self.free[node] -= amount
        self.clock += 1
        self.changed_at[node] = self.clock
        if frees:
            self.freed.append(node)

    def add_many(self, jobs: Counts, shape: int, nodes: Counts) -> None:
        """Add a protected trainer on each of the nodes, in one batch.

        Args:
            jobs: Job of each trainer; all of the trainers of these jobs are protected.
            shape: Shape of all of these trainers.
            nodes: Node of each trainer.
        """
        assert (self.protected[jobs] == self.count[jobs]).all(), (
            "a batch is only added to jobs whose trainers are all protected"
        )
        self.changes += 1
        self._many += 1
        each = np.bincount(nodes, minlength=len(self.free))
        where = np.flatnonzero(each)
        self.free[where] -= each[where, None] * self.request[shape]
        self.clock += 1
        self.changed_at[where] = self.clock
        self._most[jobs] += self.locations.add(jobs, nodes)
        more = np.bincount(jobs, minlength=len(self.jobs))
        self.count += more
        self.protected += more
        self.changed[jobs] = True

    def add(self, job: int, node: int) -> None:
        """Add a protected trainer of a job on a node."""
        self._change(job, node, 1, protected=1)

    def restore(self, job: int, node: int) -> None:
        """Restore a victim; it is preemptible again."""
        self._change(job, node, 1, protected=0)

    def preempt(self, job: int, node: int) -> None:
        """Remove a trainer of a job from a node: it is preempted."""
        self._change(job, node, -1, protected=0)

    def _change(self, job: int, node: int, more: int, *, protected: int) -> None:
        self.changes += 1
        request = self.trainer_request[job] * more
        one_less = more < 0 and self.surplus(job) > 0 and int(self.rank[job]) + self.classes not in self._preemptible
        if one_less:
            self._subtract_one(job, node)
        else:
            self._add_preemptible(job, -1)
        self._take(node, request, frees=more < 0)
        self._most[job] = max(int(self._most[job]), self.locations.change(job, node, more))
        self.count[job] += more
        self.protected[job] = min(int(self.protected[job]) + protected, int(self.count[job]))
        self.changed[job] = True
        if not one_less:
            self._add_preemptible(job, 1)

    def protect(self, job: int, count: int | None = None) -> None:
        """Protect trainers of a job: exactly `count` of them, or all (None)."""
        self._add_preemptible(job, -1)
        self.protected[job] = self.count[job] if count is None else min(count, self.count[job])
        self._add_preemptible(job, 1)

    def protect_minimums(self, jobs: Counts) -> None:
        """Protect the minimum of each job; its surplus is preemptible."""
        self.protected[jobs] = np.minimum(self.min[jobs], self.count[jobs])
        self._reset()

    def protect_class(self, rank: int) -> None:
        """Protect all trainers of a class."""
        jobs = self.rank == rank
        self.protected[jobs] = self.count[jobs]
        for tier in (rank, rank + self.classes):
            self._preemptible.pop(tier, None)

    def make_preemptible(self, jobs: Counts) -> None:
        """Make all trainers of these jobs preemptible."""
        self.protected[jobs] = 0
        self._reset()

    def _reset(self) -> None:
        self._preemptible = {}
        self.resets += 1

    # --- Search for room ---

    def capacity(self, shape: int, room: Counts, nodes: Counts | None = None) -> Counts:
        """Return how many pods of a shape fit into each room.

        Args:
            shape: Number of the shape.
            room: [N, R] room of each node.
            nodes: The nodes of `room`. Default: all nodes.
        """
        most = np.full(len(room), _MANY)
        for resource, amount in enumerate(self.requests[shape]):
            if amount:
                np.minimum(most, room[:, resource] // amount, out=most)
        np.maximum(most, 0, out=most)
        most *= self.eligible[shape] if nodes is None else self.eligible[shape, nodes]
        return most

    def anywhere(self, shape: int, room: Counts) -> Flags:
        """Return [N] whether one pod of a shape fits on each node, given [N, R] room."""
        where: Flags = self.eligible[shape]
        for resource, amount in enumerate(self.requests[shape]):
            where = where & (room[:, resource] >= amount)
            if not where.any():
                break
        return where

    def fits(self, shape: int) -> Counts:
        """Return [N] how many pods of a shape fit into the free room; the array is read-only."""
        seen, most = self._known.get(shape, (-1, None))
        if most is None:
            most = self.capacity(shape, self.free)
        elif seen < self.clock:
            nodes = np.flatnonzero(self.changed_at > seen)
            most[nodes] = self.capacity(shape, self.free[nodes], nodes)
        self._known[shape] = (self.clock, most)
        return most

    def total(self, shape: int) -> int:
        """Return how many pods of a shape fit into the free room of all nodes."""
        seen, total = self._totals.get(shape, (-1, 0))
        if seen < self.clock:
            total = int(self.fits(shape).sum())
            self._totals[shape] = (self.clock, total)
        return total

    def has_room(self, shape: int, node: int) -> bool:
        """Return whether one more pod of a shape fits on a node."""
        room, ask = self.free[node].tolist(), self.requests[shape]
        return bool(self.eligible[shape, node]) and all(have >= need for have, need in zip(room, ask, strict=True))

    def _in_order(self, most: Counts) -> Counts:
        """Return the nodes with `most` > 0: first those that are of least use to all shapes, then the tightest."""
        some = np.flatnonzero(most)
        key = self._fit_key[some] + np.minimum(most[some], _BYTE).astype(np.uint16)
        ordered: Counts = some[key.argsort(kind="stable")]
        return ordered

    def fit(self, count: int, most: Counts) -> tuple[Counts, Counts] | None:
        """Return nodes and the number of pods on each, so that all pods fit; None: they do not.

        Args:
            count: Pods.
            most: [N] pods that fit on each node.
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
        """Return a node with free room for one pod of a shape; -1: none."""
        order = self._orders.get(shape)
        if order is None or order.many < self._many:
            nodes = self._in_order(self.fits(shape)).tolist()
            order = self._orders[shape] = _NodeOrder(nodes, len(self.freed), self._many)
        if len(self.freed) - order.freed > _FEW:
            late = np.array(self.freed[order.freed :])
            large = np.flatnonzero(fitting(self.free[late], self.requests[shape]) & self.eligible[shape, late])
            order.freed = order.freed + int(large[0]) if len(large) else len(self.freed)
        while order.freed < len(self.freed):
            if self.has_room(shape, self.freed[order.freed]):
                return self.freed[order.freed]
            order.freed += 1
        while order.next < len(order.nodes):
            if self.has_room(shape, order.nodes[order.next]):
                return order.nodes[order.next]
            order.next += 1
        return -1
