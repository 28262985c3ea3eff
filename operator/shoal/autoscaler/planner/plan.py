"""The planner: the number of trainers of each job, and their nodes.

The planner is pure: a snapshot of the cluster and the memory of the last plan go in, an allocation and a new memory come out.

Steps, in this order:

1. Jobs above their maximum shrink.
2. **Claims**: each pending foreign pod of a higher priority is assigned a node.
3. **Minimums** of all classes, from the highest class and the oldest job on, all or nothing.
4. **Growth**, class by class: the job with the smallest share is always the next, into free room and into the surplus of
   lower classes.
5. **Rebalance**: a job that finds no room takes trainers of jobs of its class whose share does not fall below its own.

The share of a job is the share of its dominant resource in the cluster, divided by the job's weight (Ghodsi et al., Dominant
Resource Fairness, NSDI 2011). The result is max-min fair within a class as far as pods can be packed.

A bound trainer stays unless another pod needs its room: a plan that was carried out is its own next plan.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from shoal.autoscaler.planner.claims import Claims
from shoal.autoscaler.planner.colocation import colocated
from shoal.autoscaler.planner.decisions import allocation_of
from shoal.autoscaler.planner.growth import Growth
from shoal.autoscaler.planner.model import Counts, PlannerJob, PlannerMemory, PlanResult, Policy, Snapshot
from shoal.autoscaler.planner.placement import Placement, Victim, fitting
from shoal.autoscaler.planner.preemption import PreemptionCandidates
from shoal.autoscaler.planner.queue_hysteresis import held_back

__all__ = ["plan"]

_PASSES: Final = 16
"""Most passes of a plan. Two or three are usual; with many competing shapes the last one is used, though it may not be the best."""
_FIRST_CAP_SECONDS: Final = 30.0
_LONGEST_CAP_SECONDS: Final = 600.0


def plan(snapshot: Snapshot, memory: PlannerMemory, policy: Policy | None = None) -> tuple[PlanResult, PlannerMemory]:
    """Return the best allocation that is reachable from the bound trainers, and the memory for the next plan.

    Args:
        snapshot: The state of the cluster.
        memory: The memory that the last plan returned; empty for the first plan.
        policy: The cluster operator's options. Default: `Policy()`.
    """
    return _Plan(snapshot, memory, policy or Policy()).result()


class _Plan:
    """The computation of one plan."""

    def __init__(self, snapshot: Snapshot, memory: PlannerMemory, policy: Policy) -> None:
        self._snapshot = snapshot
        self._memory = memory
        self._policy = policy
        jobs = sorted(snapshot.jobs, key=lambda job: (-job.priority, not job.held, job.since, job.uid))
        self._jobs = jobs
        self._placement = Placement(snapshot, jobs, memory.rows)
        self._caps, self._backoff = self._capped(jobs)
        self._top = np.array([job.max for job in jobs], dtype=np.int64)
        if self._caps:
            self._top = np.array([self._caps.get(job.uid, (job.max, 0.0))[0] for job in jobs], dtype=np.int64)
        self._needs_servers = np.array([bool(job.fixed) for job in jobs], dtype=np.bool_)
        self._step = _steps(snapshot, jobs)
        self._candidates = PreemptionCandidates(self._placement, self._step)
        self._queued: set[int] = set()
        self._others: dict[int, list[tuple[int, int]]] = {}
        """Job -> (shape, node) of each of its masters and parameter servers that has no node yet."""
        self._possible: tuple[int, dict[tuple[int, tuple[int, ...]], int]] | None = None
        self._claims = Claims(self._placement, self._candidates, jobs, snapshot=snapshot, memory=memory, policy=policy)

    def result(self) -> tuple[PlanResult, PlannerMemory]:
        placement = self._placement
        self._shrink()
        self._relieve()
        highest = max((job.priority for job in self._jobs), default=0)
        pending = self._snapshot.pending
        self._claims.make_claims(pod for pod in pending if pod.priority > highest)
        self._minimums()
        # A pod whose priority is not above every minimum is served after the minimums, but before all growth.
        self._claims.make_claims(pod for pod in pending if pod.priority <= highest)
        self._keep_spare()
        growth = Growth(
            placement, self._candidates, step=self._step, top=self._top, snapshot=self._snapshot, memory=self._memory
        )
        # While the scheduler still evicts for other pods, the final shares are not known: no rebalancing.
        moves, before = 0 if self._claims.evicting else self._policy.moves, -1
        # Room that a lower class got in this pass may suit a higher class better: repeat until nothing changes.
        for _ in range(_PASSES):
            if before == placement.changes:
                break
            before = placement.changes
            placement.protect_minimums(self._admitted())
            self._retry()
            admitted = self._admitted()
            placement.protect_minimums(admitted)
            for rank in reversed(range(placement.classes)):
                of_class = admitted[placement.rank[admitted] == rank]
                moves = growth.grow(of_class, rank, moves=moves, cool_down=self._policy.cool_down_seconds)
        claims = tuple(self._claims.made.values())
        allocation = allocation_of(
            self._snapshot,
            placement,
            top=self._top,
            queued=self._queued,
            claims=claims,
            caps=self._caps,
            moved=growth.rebalance.blocked,
            others=self._others,
        )
        now = self._snapshot.now
        held = held_back(self._jobs, allocation.jobs, self._memory.queue, now=now)
        allocation = PlanResult(jobs=held.allocations, claims=claims)
        kept = {uid: each for uid, each in self._memory.moved.items() if now - each[0] < self._policy.cool_down_seconds}
        memory = PlannerMemory(
            claims=self._claims.remembered,
            moved=kept | growth.rebalance.moved,
            capped=self._caps,
            backoff=self._backoff,
            queue=held.queue,
            unmet=self._claims.unmet,
            rows=placement.rows,
        )
        return allocation, memory

    def _admitted(self) -> Counts:
        admitted = np.ones(len(self._jobs), dtype=np.bool_)
        admitted[list(self._queued)] = False
        return np.flatnonzero(admitted)

    # --- Caps: jobs whose trainers the scheduler refuses ---

    def _capped(self, jobs: Sequence[PlannerJob]) -> tuple[dict[str, tuple[int, float]], dict[str, tuple[float, int]]]:
        """Return the caps in force, and the back-off of each job: seconds and trainers of its last cap.

        Returns:
            Job's uid -> (most trainers, until when), and job's uid -> (seconds, trainers).
        """
        now = self._snapshot.now
        caps: dict[str, tuple[int, float]] = {}
        backoff: dict[str, tuple[float, int]] = {}
        remembered = self._memory.capped or self._memory.backoff
        for job in jobs if remembered else [job for job in jobs if job.unschedulable >= self._policy.stuck_seconds]:
            last = self._memory.backoff.get(job.uid)
            if last is not None and job.trainers <= last[1]:
                backoff[job.uid] = last  # the job has not grown beyond its last cap
            cap = self._memory.capped.get(job.uid)
            if cap is not None and cap[1] > now:
                caps[job.uid] = (min(cap[0], job.max), cap[1])
            elif job.unschedulable >= self._policy.stuck_seconds:
                pause = min(_LONGEST_CAP_SECONDS, 2 * last[0]) if job.uid in backoff and last else _FIRST_CAP_SECONDS
                at = max(job.min, min(job.max, job.trainers))
                caps[job.uid], backoff[job.uid] = (at, now + pause), (pause, at)
        return caps, backoff

    # --- Jobs above their maximum, nodes above their allocatable ---

    def _shrink(self) -> None:
        """Shrink jobs whose maximum was lowered: first surplus trainers, on nodes that most other shapes could use."""
        placement = self._placement
        for job in np.flatnonzero(placement.count > self._top).tolist():
            while placement.count[job] > self._top[job]:
                there = placement.at(job)
                node = max(
                    there,
                    key=lambda node: (
                        not placement.firm(job, node, there[node]),
                        int(placement.eligible_shapes[node]),
                        -int(placement.free[node].min()),
                        node,
                    ),
                )
                placement.preempt(job, node)

    def _relieve(self) -> None:
        """Preempt trainers on nodes whose room is negative: the node shrank, or foreign pods were bound to it."""
        placement = self._placement
        all_tiers = placement.tiers(surplus_below=placement.classes, minimums_below=placement.classes)
        nothing = [0] * placement.free.shape[1]
        for node in np.flatnonzero(~fitting(placement.free, nothing)).tolist():
            victims = self._candidates.victims(node, nothing, all_tiers)
            if victims is None:
                negative = placement.free[node] < 0
                victims = [
                    Victim(job, node)
                    for job, count in placement.locations.at(node).items()
                    if (placement.request[placement.shape[job]][negative] > 0).any()
                    for _ in range(count)
                ]
            self._leave(victims)

    def _leave(self, victims: Iterable[Victim]) -> None:
        for each in victims:
            self._placement.preempt(each.job, each.node)

    # --- Minimums ---

    def _minimums(self) -> None:
        """Admit the minimums in order; consecutive jobs that lack pods are admitted together."""
        placement, job = self._placement, 0
        while job < len(self._jobs):
            negative = self._needs_servers[job:] | (placement.count[job:] < placement.min[job:])
            other = np.flatnonzero(negative != negative[0])
            end = job + int(other[0]) if len(other) else len(self._jobs)
            if negative[0]:
                self._admit(list(range(job, end)))
            else:
                placement.protect_minimums(np.arange(job, end))
            job = end  # this job may have been preempted by the admission

    def _admit(self, jobs: list[int]) -> None:
        """Admit the jobs' minimums: all at once into free room, else the first half before the second half."""
        if self._admitted_together(jobs):
            return
        if len(jobs) > 1:
            self._admit(jobs[: len(jobs) // 2])
            self._admit(jobs[len(jobs) // 2 :])
        elif not self._admitted_hard(jobs[0]):
            self._queue_job(jobs[0])

    def _admitted_together(self, jobs: list[int]) -> bool:
        placement = self._placement
        takers: dict[int, list[int]] = defaultdict(list)
        # Masters and parameter servers: (their shape, the shape of their job's trainers) -> jobs.
        users: dict[tuple[int, int], list[int]] = defaultdict(list)
        left = placement.free.copy(order="F")
        trainers: list[tuple[int, list[int], np.ndarray]] = []
        others: list[tuple[int, list[int], np.ndarray]] = []
        for job in jobs:
            own = int(placement.shape[job])
            takers[own] += [job] * max(0, int(placement.min[job] - placement.count[job]))
            for shape, count in self._jobs[job].fixed:
                users[shape, own] += [job] * count
        requested = [*((shape, -1) for shape, of in takers.items() if of), *users]
        # Servers first: they do not move later, whereas trainers adapt to the room that is left.
        for shape, trainer_shape in sorted(
            requested, key=lambda request: (request[1] < 0, -self._dominant(request[0]), request)
        ):
            of = takers[shape] if trainer_shape < 0 else users[shape, trainer_shape]
            nodes = self._found(len(of), shape, trainer_shape, left)
            if nodes is None:
                return False
            np.subtract.at(left, nodes, placement.request[shape])
            (trainers if trainer_shape < 0 else others).append((shape, of, nodes))
        self._take(jobs, trainers, others)
        return True

    def _take(
        self,
        jobs: Sequence[int],
        trainers: Sequence[tuple[int, list[int], np.ndarray]],
        others: Sequence[tuple[int, list[int], np.ndarray]],
    ) -> None:
        """Place the pods of admitted jobs.

        Args:
            jobs: Numbers of the jobs.
            trainers: (shape, job of each pod, node of each pod) of trainers.
            others: (shape, job of each pod, node of each pod) of masters and parameter servers.
        """
        placement = self._placement
        for job in jobs:
            placement.protect(job)
        for shape, of, nodes in trainers:
            placement.add_many(np.array(of, dtype=np.int64), shape, nodes)
        for shape, of, nodes in others:
            for job, node in zip(of, nodes.tolist(), strict=True):
                placement.reserve(shape, node)
                self._others.setdefault(job, []).append((shape, node))
        for job in jobs:
            placement.protect(job, int(placement.min[job]))

    def _found(self, count: int, shape: int, trainer_shape: int, left: np.ndarray) -> np.ndarray | None:
        """Return [count] nodes in free room for pods of a shape; None: not all of them fit.

        Args:
            count: Pods.
            shape: The pods' shape.
            trainer_shape: Shape of the trainers that the pods are colocated with; -1: the pods are trainers themselves.
            left: [N, R] free room.
        """
        placement = self._placement
        if trainer_shape < 0:
            found = placement.fit(count, placement.capacity(shape, left))
            return np.repeat(*found) if found is not None else None
        room = np.where(placement.eligible[shape][:, None], left, 0)
        counts = colocated(
            count,
            request=placement.request[shape],
            trainer=placement.request[trainer_shape],
            room=room,
            order=placement.eligible_shapes,
        )
        return np.repeat(np.arange(len(left)), counts) if counts is not None else None

    def _dominant(self, shape: int) -> float:
        total = np.maximum(self._snapshot.nodes.total, 1)
        return float((self._placement.request[shape] / total).max())

    def _admitted_hard(self, job: int) -> bool:
        """Admit one job by preemption of surplus trainers of any class and of whole jobs of lower classes.

        Returns:
            Whether the minimum fits; if not, nothing has changed.
        """
        placement, own = self._placement, int(self._placement.shape[job])
        tiers = placement.tiers(surplus_below=placement.classes, minimums_below=int(placement.rank[job]))
        negative = max(0, int(placement.min[job] - placement.count[job]))
        # A job that lost trainers after its admission still has the room for its servers.
        fixed = () if job in self._others else self._jobs[job].fixed
        units = [(shape, False) for shape, count in fixed for _ in range(count)]
        units += [(own, True)] * negative
        if self._hopeless(Counter(shape for shape, _ in units), tiers):
            return False
        units.sort(key=lambda unit: (unit[1], -self._dominant(unit[0]), unit))
        changes = placement.changes
        # The job's own trainers must not be preempted for its own minimum.
        placement.protect(job)
        placed: list[tuple[int, bool, int, list[Victim]]] = []
        best_nodes: dict[int, list[int]] = {}
        for shape, is_trainer in units:
            if not is_trainer and shape not in best_nodes:
                best_nodes[shape] = self._best_nodes(units.count((shape, False)), shape, own, tiers)
            found = self._node_for(shape, [] if is_trainer else best_nodes[shape], tiers)
            if found is None:
                self._undo(job, placed, changes)
                return False
            node, victims = found
            self._leave(victims)
            placement.add(job, node) if is_trainer else placement.reserve(shape, node)
            placed.append((shape, is_trainer, node, victims))
        placement.protect(job, int(placement.min[job]))
        self._others.setdefault(job, []).extend(
            (shape, node) for shape, is_trainer, node, _ in placed if not is_trainer
        )
        return True

    def _best_nodes(self, count: int, shape: int, trainer: int, tiers: Sequence[int]) -> list[int]:
        """Return [count] nodes where the pods cost the fewest trainers if all of these tiers may be preempted; empty: none."""
        placement, may = self._placement, self._placement.eligible[shape][:, None]
        counts = colocated(
            count,
            request=placement.request[shape],
            trainer=placement.request[trainer],
            room=np.where(may, placement.room_with(tiers), 0),
            order=placement.eligible_shapes,
            free=np.where(may, placement.free, 0),
        )
        return np.repeat(np.arange(len(placement.free)), counts).tolist() if counts is not None else []

    def _node_for(self, shape: int, best_nodes: list[int], tiers: Sequence[int]) -> tuple[int, list[Victim]] | None:
        """Return a node for one pod and the victims there: the first of `best_nodes` that fits, else any node; None: no node.

        Args:
            shape: The pod's shape.
            best_nodes: Preferred nodes; the first one is removed.
            tiers: Tiers that may be preempted, in this order.
        """
        placement = self._placement
        if best_nodes:
            node = best_nodes.pop(0)
            victims = (
                [] if placement.fits(shape)[node] else self._candidates.victims(node, placement.requests[shape], tiers)
            )
            if victims is not None:
                return node, victims
        node = placement.free_node(shape)
        return (node, []) if node >= 0 else self._candidates.make(shape, tiers)

    def _retry(self) -> None:
        """Try queued minimums again, as other pods were placed or preempted since; jobs of lower classes may be preempted whole."""
        placement = self._placement
        for rank in reversed(range(placement.classes)):
            waiting = [job for job in sorted(self._queued) if placement.rank[job] == rank]
            if not waiting:
                continue
            admitted = self._admitted()
            placement.make_preemptible(admitted[placement.rank[admitted] < rank])
            for job in waiting:
                if self._admitted_hard(job):
                    self._queued.discard(job)
                    self._readmit()

    def _readmit(self) -> None:
        """Admit jobs again that were preempted below their minimum; queue those that find no room."""
        placement = self._placement
        for other in self._admitted().tolist():
            if placement.count[other] < placement.min[other] and not self._admitted_hard(other):
                self._queue_job(other)

    def _hopeless(self, units: Counter[int], tiers: Sequence[int]) -> bool:
        """Return whether the pods of one shape do not fit even if all of these tiers are preempted.

        Args:
            units: Shape -> pods.
            tiers: Tiers that may be preempted.
        """
        placement = self._placement
        if self._possible is None or self._possible[0] != placement.changes:
            self._possible = (placement.changes, {})
        known = self._possible[1]
        for shape, count in units.items():
            key = (shape, tuple(tiers))
            if key not in known:
                known[key] = int(placement.capacity(shape, placement.room_with(tiers)).sum())
            if known[key] < count:
                return True
        return False

    def _undo(self, job: int, placed: list[tuple[int, bool, int, list[Victim]]], changes: int) -> None:
        for shape, is_trainer, node, victims in reversed(placed):
            if is_trainer:
                self._placement.preempt(job, node)
            else:
                self._placement.reserve(shape, node, -1)
            for each in reversed(victims):
                self._placement.restore(each.job, each.node)
        self._placement.changes = changes

    def _queue_job(self, job: int) -> None:
        """Queue a job: it keeps no trainers, and the room reserved for its servers is released."""
        self._queued.add(job)
        for shape, node in self._others.pop(job, ()):
            self._placement.reserve(shape, node, -1)
        for node, count in self._placement.at(job).items():
            for _ in range(count):
                self._placement.preempt(job, node)

    # --- Head-room ---

    def _keep_spare(self) -> None:
        """Reserve head-room for expected pods; only surplus trainers are preempted for it."""
        placement = self._placement
        tiers = placement.tiers(surplus_below=placement.classes, minimums_below=0)
        for shape, count in self._snapshot.spare:
            for _ in range(count):
                node = placement.free_node(shape)
                if node < 0:
                    found = self._candidates.make(shape, tiers)
                    if found is None:
                        break
                    node, victims = found
                    self._leave(victims)
                placement.reserve(shape, node)


def _steps(snapshot: Snapshot, jobs: Sequence[PlannerJob]) -> np.ndarray:
    """Return [J] the share that one trainer adds to its job."""
    total = np.maximum(snapshot.nodes.total, 1)
    dominant = (snapshot.shapes.request / total).max(axis=1) if len(snapshot.shapes.request) else np.zeros(0)
    shape = np.array([job.shape for job in jobs], dtype=np.int64)
    weight = np.array([job.weight for job in jobs], dtype=np.float64)
    steps: np.ndarray = np.maximum(dominant[shape], 1e-12) / weight
    return steps
