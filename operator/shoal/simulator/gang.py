"""Gangs in a queue: a job starts when all of it fits at once, and nobody overtakes.

The usual answer of batch schedulers to half-started jobs. What it costs is the room that stands empty before a big job.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from shoal.autoscaler.planner.model import Counts, PlannerJob, Shapes
from shoal.simulator.rules import PolicyView, Rule, Trigger, Wish

__all__ = ["Gang"]


class Gang(Rule):
    """First in, first out, the maximum or nothing.

    A job that would not fit into the empty cluster is passed over: it would hold up the queue for ever.
    """

    name: ClassVar[str] = "gang-fifo"
    triggers: ClassVar[frozenset[Trigger]] = frozenset({Trigger.JOB, Trigger.TRAINER})

    def wish(self, view: PolicyView) -> Mapping[str, Wish]:
        """The maximum for those that were started, and for as many of the next as fit now."""
        snapshot = view.snapshot
        nodes, shapes = snapshot.nodes, snapshot.shapes
        wishes = {job.uid: Wish(trainers=job.max) for job in snapshot.jobs if view.seen[job.uid].wanted}
        free = np.where(nodes.usable[:, None], view.free, 0)
        for pod in sorted(snapshot.pending, key=lambda pod: -pod.priority):
            # They go first in the scheduler's line; room that they will take is none.
            _pack(free, pod.shape, 1, group=nodes.group, shapes=shapes)
        for job in snapshot.jobs:
            if job.uid in wishes:
                continue
            left = free.copy()
            comes = _gang(left, job, group=nodes.group, shapes=shapes)
            if comes is not None:
                free = left
                wishes[job.uid] = Wish(trainers=job.max, comes=comes)
            elif _gang(view.allocatable.copy(), job, group=nodes.group, shapes=shapes) is not None:
                break
        return wishes


def _gang(free: Counts, job: PlannerJob, *, group: Counts, shapes: Shapes) -> Mapping[int, int] | None:
    """Take room for a whole job; where its trainers go, or None if it does not fit."""
    for shape, count in job.fixed:
        if _pack(free, shape, count, group=group, shapes=shapes) is None:
            return None
    return _pack(free, job.shape, job.max, group=group, shapes=shapes)


def _pack(free: Counts, shape: int, count: int, *, group: Counts, shapes: Shapes) -> Mapping[int, int] | None:
    """Take room for all of them, or None if some find none; fullest nodes first."""
    request = shapes.request[shape]
    needed = request > 0
    each = (free[:, needed] // request[needed]).min(axis=1)
    each = np.where(shapes.fits[shape][group], np.maximum(each, 0), 0)
    comes: Counter[int] = Counter()
    for node in np.lexsort((np.arange(len(each)), each)):
        taken = min(int(each[node]), count - comes.total())
        if taken:
            comes[int(node)] += taken
            free[node] -= request * taken
    return comes if comes.total() == count else None
