"""The input of policies, made of the simulation's state: what the operator would have in its informers' cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from shoal.autoscaler.planner.model import Nodes, PendingPod, PlannerJob, Snapshot
from shoal.simulator.policies.rules import ObservedWorld, PolicyView
from shoal.simulator.world.cluster import Cluster, Phase, PodKind
from shoal.simulator.world.jobs import SimulatedJob

__all__ = ["view_of"]


def view_of(now: float, cluster: Cluster, jobs: Sequence[SimulatedJob]) -> PolicyView:
    """Return the input of a policy.

    Args:
        now: Simulated time, in seconds.
        cluster: The cluster.
        jobs: Jobs that have arrived and not ended.
    """
    layout = cluster.layout
    occupied = cluster.taken - cluster.leaving - cluster.trainers
    nodes = Nodes(
        names=layout.names,
        room=layout.allocatable - occupied,
        leaving=cluster.leaving.copy(),
        usable=np.ones(len(layout.names), dtype=np.bool_),
        group=layout.group,
        total=layout.allocatable.sum(axis=0),
    )
    # Jobs with equal arrival times keep the trace's order.
    ordered = sorted(jobs, key=lambda job: (job.arrival, job.number))
    snapshot = Snapshot(
        now=now,
        resources=layout.resources,
        nodes=nodes,
        shapes=layout.shapes,
        jobs=tuple(_job(now, job) for job in ordered),
        pending=tuple(
            PendingPod(
                uid=pod.name,
                name=pod.name,
                shape=pod.shape,
                priority=pod.priority,
                node=pod.nominated,
                preempts=pod.preempts,
            )
            for pod in cluster.pending.values()
            if pod.kind is PodKind.FOREIGN
        ),
    )
    return PolicyView(
        snapshot=snapshot,
        seen={job.uid: _seen(job) for job in ordered},
        allocatable=layout.allocatable,
        free=layout.allocatable - cluster.taken,
        requested=cluster.taken.sum(axis=0) + cluster.waiting,
    )


def _job(now: float, job: SimulatedJob) -> PlannerJob:
    refused = min((pod.refused for pod in job.waiting if pod.refused is not None), default=now)
    return PlannerJob(
        uid=job.uid,
        name=job.uid,
        priority=job.spec.priority,
        min=job.spec.min,
        max=job.spec.max,
        shape=job.shape,
        fixed=_without_node(job),
        held=dict(sorted(Counter(pod.node for pod in job.bound).items())),
        weight=job.spec.weight,
        since=job.arrival,
        unschedulable=now - refused,
    )


def _without_node(job: SimulatedJob) -> tuple[tuple[int, int], ...]:
    """Return (shape, count) of masters and servers without a node: all of them before the job has begun."""
    if not job.started:
        return job.others
    pending = Counter(pod.shape for pod in job.other_pods.values() if pod.phase is Phase.PENDING)
    return tuple(sorted(pending.items()))


def _seen(job: SimulatedJob) -> ObservedWorld:
    running = job.running
    return ObservedWorld(desired=job.desired, running=running, pending=len(job.trainers) - running, leaving=job.leaving)
