"""The policy `ancestor`: the rule of PaddlePaddle's EDL controller (2017), reimplemented as the baseline for Shoal.

The rule sums the requests of all unfinished pods of the cluster, and adds and removes trainers in a dry run until nothing
changes: up from the least fulfilled job, down from the most fulfilled one, within 97 % of all CPU. It ignores priorities and
pending pods, and of nodes it only checks that *some* node has room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from shoal.autoscaler.planner.model import Counts, PlannerJob
from shoal.simulator.policies.rules import PolicyDecision, PolicyView, Rule

__all__ = ["Ancestor"]

_LIMIT: Final = 0.97
"""Share of all CPU that may be requested: the controller's ``max_load_desired``."""


@dataclass(eq=False)
class _Draft:
    """The state of a job in the dry run.

    Attributes:
        job: The job.
        now: Trainers so far.
        request: [R] request of one trainer.
        gpu: GPUs of one trainer.
    """

    job: PlannerJob
    now: int
    request: Counts
    gpu: int

    def order(self) -> tuple[float, int, int, int]:
        """Return the sort key: the least fulfilled job first; of equals, the job with smaller trainers."""
        fulfilment = (self.now - self.job.min) / (self.job.max - self.job.min)
        return fulfilment, self.gpu, int(self.request[0]), int(self.request[1])


class Ancestor(Rule):
    """EDL's autoscaler: a new job starts with its minimum, and is scaled once all of its trainers run."""

    name: ClassVar[str] = "ancestor"

    def decide(self, view: PolicyView) -> Mapping[str, PolicyDecision]:
        """Return the new number of trainers of each candidate, and the minimum of each new job."""
        snapshot = view.snapshot
        new = [job for job in snapshot.jobs if not view.seen[job.uid].desired]
        drafts = [self._draft(job, view) for job in self._candidates(view)]
        requested = int(view.requested[0]) + sum(self._of_new(job, view) for job in new)
        limit = int(view.allocatable[:, 0].sum() * _LIMIT)
        # The rule considers CPU and memory only.
        idle = view.free[:, :2].copy()
        _dry_run(drafts, idle, requested=requested, limit=limit)
        decisions = {job.uid: PolicyDecision(trainers=job.min) for job in new}
        decisions.update({draft.job.uid: PolicyDecision(trainers=draft.now) for draft in drafts})
        return decisions

    @staticmethod
    def _candidates(view: PolicyView) -> Sequence[PlannerJob]:
        """Return elastic jobs whose trainers all run; all elastic jobs, if all trainers of some job are pending."""
        seen = view.seen
        known = [job for job in view.snapshot.jobs if seen[job.uid].desired]
        stuck = any(seen[job.uid].pending and not seen[job.uid].running and not seen[job.uid].leaving for job in known)
        elastic = [job for job in known if job.min < job.max]
        return [job for job in elastic if stuck or not (seen[job.uid].pending or seen[job.uid].leaving)]

    @staticmethod
    def _draft(job: PlannerJob, view: PolicyView) -> _Draft:
        resources = view.snapshot.resources
        request = view.snapshot.shapes.request[job.shape]
        gpu = sum(int(request[index]) for index, name in enumerate(resources) if name.endswith("/gpu"))
        return _Draft(job, view.seen[job.uid].desired, request, gpu)

    @staticmethod
    def _of_new(job: PlannerJob, view: PolicyView) -> int:
        """Return the CPU of the pods that will be created for a new job."""
        cpu = view.snapshot.shapes.request[:, 0]
        return int(cpu[job.shape]) * job.min + sum(int(cpu[shape]) * count for shape, count in job.fixed)


def _dry_run(drafts: list[_Draft], idle: Counts, *, requested: int, limit: int) -> None:
    """Add and remove trainers until nothing changes.

    The loop terminates: trainers are added only within the limit, and removed only above it.

    Args:
        drafts: The candidates; changed in place.
        idle: [N, 2] free CPU and memory; changed in place.
        requested: CPU requested by all pods.
        limit: Most CPU that may be requested.
    """
    changed = True
    while changed:
        changed = False
        drafts.sort(key=_Draft.order)
        for draft in drafts:
            cpu = int(draft.request[0])
            if draft.now >= draft.job.max or requested + cpu > limit:
                continue
            nodes = np.flatnonzero((idle >= draft.request[:2]).all(axis=1))
            if len(nodes):
                idle[nodes[0]] -= draft.request[:2]
                requested += cpu
                draft.now += 1
                changed = True
        for draft in reversed(drafts):
            above = draft.now > draft.job.max
            if above or (requested > limit and draft.now > draft.job.min):
                requested -= int(draft.request[0])
                draft.now -= 1
                changed = True
