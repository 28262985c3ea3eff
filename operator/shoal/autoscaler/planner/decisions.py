"""The result of a plan: the trainers of each job, their nodes, how many can be created now, and the reason for not more."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from shoal.autoscaler.planner.model import (
    AllocationReason,
    Claim,
    Counts,
    Flags,
    JobAllocation,
    PlannerJob,
    PlanResult,
    Snapshot,
)
from shoal.autoscaler.planner.placement import Placement, fitting

__all__ = ["allocation_of"]


def allocation_of(
    snapshot: Snapshot,
    placement: Placement,
    *,
    top: Counts,
    queued: Collection[int],
    claims: tuple[Claim, ...],
    caps: Mapping[str, tuple[int, float]],
    moved: Collection[int],
    others: Mapping[int, Sequence[tuple[int, int]]],
) -> PlanResult:
    """Return the allocation at the end of a plan.

    Args:
        snapshot: The state of the cluster.
        placement: The working state at the end of the plan.
        top: [J] most trainers of each job.
        queued: Numbers of jobs whose minimum finds no room.
        claims: Claims of this plan.
        caps: Job's uid -> (most trainers, until when).
        moved: Numbers of jobs that did not get a trainer because of the limit on moves.
        others: Job's number -> (shape, node) of its masters and parameter servers without a node.
    """
    reasons = _Reasons(snapshot, placement, top=top, queued=queued, claims=claims, caps=caps, moved=moved)
    at = placement.locations.rows(placement.changed)
    places = {number: _places(placement.jobs[number].held, there) for number, there in at.items()}
    now = _FreeRoom(snapshot, placement, places) if places or others else None
    late = {number for number, of in others.items() if now is not None and not now.have_room(node for _, node in of)}
    given = {}
    for number, (job, count) in enumerate(zip(placement.jobs, placement.count.tolist(), strict=True)):
        kept, added = places.get(number, (job.held, {}))
        reason, message = reasons.reason(number)
        startable = now.start(number, added) if now is not None and added else {}
        given[job.uid] = JobAllocation(
            trainers=count,
            kept=kept,
            added=added,
            now=startable,
            reason=reason,
            message=message,
            others=tuple(others.get(number, ())),
            others_now=number not in late,
        )
    return PlanResult(jobs=given, claims=claims)


def _places(held: Mapping[int, int], at: Mapping[int, int]) -> tuple[Mapping[int, int], Mapping[int, int]]:
    """Return node -> trainers that stay, and node -> new trainers.

    Args:
        held: Node -> bound trainers.
        at: Node -> planned trainers.
    """
    if not held:
        return {}, at
    kept = {node: min(count, held[node]) for node, count in at.items() if node in held}
    return kept, {node: count - kept.get(node, 0) for node, count in at.items() if count > kept.get(node, 0)}


class _FreeRoom:
    """The room that is free already: terminating pods and trainers that are to leave still occupy theirs.

    Args:
        snapshot: The state of the cluster.
        placement: The working state at the end of the plan.
        places: Job's number -> (node -> trainers that stay, node -> new trainers).
    """

    def __init__(
        self,
        snapshot: Snapshot,
        placement: Placement,
        places: Mapping[int, tuple[Mapping[int, int], Mapping[int, int]]],
    ) -> None:
        self._placement = placement
        # Reserved room is not for trainers; where a node's room is negative now, the reserved room is not free yet.
        self._room: Counts = snapshot.nodes.room - snapshot.nodes.leaving - placement.reserved - placement.taken
        late = placement.free - snapshot.nodes.leaving
        for number, (kept, _) in places.items():
            for node, count in placement.jobs[number].held.items():
                if count > kept.get(node, 0):
                    late[node] -= placement.request[placement.jobs[number].shape] * (count - kept.get(node, 0))
        # On nodes that have room for all of their pods even now, trainers need not be counted one by one.
        self._ample: Flags = fitting(late, [0] * late.shape[1])

    def have_room(self, nodes: Iterable[int]) -> bool:
        """Return whether the reserved room on these nodes is free; valid only before the first call of `start`."""
        return all(bool((self._room[node] >= 0).all()) for node in nodes)

    def start(self, number: int, added: Mapping[int, int]) -> dict[int, int]:
        """Return node -> trainers that can be created now, and take their room.

        Args:
            number: Number of the job.
            added: Node -> new trainers of the job.
        """
        request = self._placement.request[self._placement.jobs[number].shape]
        asked, startable = request > 0, {}
        for node, count in added.items():
            if self._ample[node]:
                startable[node] = count
                continue
            for _ in range(count):
                if not (self._room[node] >= request)[asked].all():
                    break
                self._room[node] -= request
                startable[node] = startable.get(node, 0) + 1
        return startable


class _Reasons:
    """The reasons why jobs have no more trainers, as codes and messages; arguments as in `allocation_of`."""

    def __init__(
        self,
        snapshot: Snapshot,
        placement: Placement,
        *,
        top: Counts,
        queued: Collection[int],
        claims: tuple[Claim, ...],
        caps: Mapping[str, tuple[int, float]],
        moved: Collection[int],
    ) -> None:
        self._snapshot, self._placement = snapshot, placement
        self._count, self._top = placement.count.tolist(), top.tolist()
        self._queued, self._claims, self._caps, self._moved = queued, claims, caps, moved
        self._victims = {uid: claim.name for claim in reversed(claims) for uid in claim.victims}
        self._full: dict[int, tuple[AllocationReason, str]] = {}

    def reason(self, number: int) -> tuple[AllocationReason, str]:  # noqa: PLR0911 - one line for each reason
        """Return the reason for a job, and its message."""
        job, count = self._placement.jobs[number], self._count[number]
        if number in self._queued:
            return AllocationReason.QUEUED, self._queue_message(number, job)
        if job.pinned and count == job.max:
            return AllocationReason.PINNED, f"pinned at {count}"
        if count >= job.max:
            return AllocationReason.MAX, f"at max {job.max}"
        if job.uid in self._caps and count >= self._top[number]:
            return (
                AllocationReason.REFUSED,
                f"the scheduler finds no node for more than {count}, though there seems to be room",
            )
        if job.uid in self._victims:
            return AllocationReason.CLAIM, f"makes room for {self._victims[job.uid]}"
        if number in self._moved:
            return (
                AllocationReason.SHARE,
                "jobs of its priority hold larger shares; rebalancing gives it trainers step by step",
            )
        if job.shape not in self._full:
            self._full[job.shape] = self._no_room(job.shape)
        return self._full[job.shape]

    def _queue_message(self, number: int, job: PlannerJob) -> str:
        placement = self._placement
        best = int(np.minimum(placement.capacity(job.shape, self._snapshot.nodes.room), job.max).sum())
        others = f" plus {sum(each for _, each in job.fixed)} other pods" if job.fixed else ""
        if best >= job.min:
            place = sorted(self._queued).index(number) + 1
            return f"needs {job.min} x {self._pod(job.shape)}{others}, but other pods hold the room; queue position {place}"
        return f"needs {job.min} x {self._pod(job.shape)}{others}, the cluster has room for {best} at best{self._short(job)}"

    def _short(self, job: PlannerJob) -> str:
        """Return the resources that are insufficient for the minimum on their own; empty: only their combination is."""
        request = self._snapshot.shapes.request[job.shape]
        room = np.maximum(self._snapshot.nodes.room[self._placement.eligible[job.shape]], 0)
        asked = np.flatnonzero(request)
        most = (room[:, asked] // request[asked]).sum(axis=0)
        short = [self._snapshot.resources[at] for at in asked[most < job.min].tolist()]
        return f": too little {' and '.join(short)}" if short else ""

    def _no_room(self, shape: int) -> tuple[AllocationReason, str]:
        waiting = [claim.name for claim in self._claims if self._placement.eligible[shape, claim.node]]
        if not waiting:
            return AllocationReason.FULL, f"no node has room for {self._pod(shape)}"
        more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
        return (
            AllocationReason.CLAIM,
            f"no node has room for {self._pod(shape)}, as room is made for {waiting[0]}{more}",
        )

    def _pod(self, shape: int) -> str:
        """Return the requests of one pod of a shape, for messages."""
        request = self._snapshot.shapes.request[shape].tolist()
        named = zip(self._snapshot.resources, request, strict=True)
        amounts = [f"{name} {_amount(name, amount)}" for name, amount in named if amount and name != "pods"]
        return ", ".join(amounts) or "a pod"


def _amount(name: str, amount: int) -> str:
    if name == "cpu":
        return f"{amount / 1000:g}"
    if name in {"memory", "ephemeral-storage"} or name.startswith("hugepages-"):
        for unit, size in (("Ti", 2**40), ("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10)):
            if amount >= size:
                return f"{amount / size:.4g}{unit}"
    return str(amount)
