"""The policy `gang-fifo`: jobs start in the order of arrival, each when all of its pods fit at once.

Batch schedulers use gang scheduling to avoid partially started jobs. Its cost is the room that stays idle before a large job.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from shoal.autoscaler.planner.model import Counts, PlannerJob, Shapes
from shoal.simulator.policies.rules import PolicyDecision, PolicyView, Rule, Trigger

__all__ = ["Gang"]


class Gang(Rule):
    """The policy that gives jobs, first in, first out, their maximum or nothing.

    A job that does not fit into the empty cluster is skipped: it would block the queue for ever.
    """

    name: ClassVar[str] = "gang-fifo"
    triggers: ClassVar[frozenset[Trigger]] = frozenset({Trigger.JOB, Trigger.TRAINER})

    def decide(self, view: PolicyView) -> Mapping[str, PolicyDecision]:
        """Return the maximum of the started jobs, and of as many of the next jobs as fit now."""
        snapshot = view.snapshot
        nodes, shapes = snapshot.nodes, snapshot.shapes
        decisions = {job.uid: PolicyDecision(trainers=job.max) for job in snapshot.jobs if view.seen[job.uid].desired}
        free = np.where(nodes.usable[:, None], view.free, 0)
        for pod in sorted(snapshot.pending, key=lambda pod: -pod.priority):
            # The scheduler places these pods first: their room is not available.
            _pack(free, pod.shape, 1, group=nodes.group, shapes=shapes)
        for job in snapshot.jobs:
            if job.uid in decisions:
                continue
            left = free.copy()
            added = _gang(left, job, group=nodes.group, shapes=shapes)
            if added is not None:
                free = left
                decisions[job.uid] = PolicyDecision(trainers=job.max, added=added)
            elif _gang(view.allocatable.copy(), job, group=nodes.group, shapes=shapes) is not None:
                break
        return decisions


def _gang(free: Counts, job: PlannerJob, *, group: Counts, shapes: Shapes) -> Mapping[int, int] | None:
    """Take room for all pods of a job; return node -> trainers, or None if they do not fit."""
    for shape, count in job.fixed:
        if _pack(free, shape, count, group=group, shapes=shapes) is None:
            return None
    return _pack(free, job.shape, job.max, group=group, shapes=shapes)


def _pack(free: Counts, shape: int, count: int, *, group: Counts, shapes: Shapes) -> Mapping[int, int] | None:
    """Take room for pods of a shape, on the fullest nodes first; return node -> pods, or None if they do not fit."""
    request = shapes.request[shape]
    needed = request > 0
    each = (free[:, needed] // request[needed]).min(axis=1)
    each = np.where(shapes.fits[shape][group], np.maximum(each, 0), 0)
    added: Counter[int] = Counter()
    for node in np.lexsort((np.arange(len(each)), each)):
        taken = min(int(each[node]), count - added.total())
        if taken:
            added[int(node)] += taken
            free[node] -= request * taken
    return added if added.total() == count else None
