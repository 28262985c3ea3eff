"""Random clusters for the planner, and their state after an allocation was carried out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from shoal.autoscaler.planner.model import Nodes, PendingPod, PlannerJob, Policy, Shapes, Snapshot

__all__ = ["FREE_HAND", "applied", "cluster", "clusters", "job", "requests_of"]

FREE_HAND = Policy(cool_down_seconds=0.0, moves=10**6, scheduler_evicts=False)
"""A policy without a limit on moves for fairness, in which the planner does all evictions."""
NAMES = ("cpu", "memory", "pods", "nvidia.com/gpu")


def cluster(
    rooms, shapes, jobs=(), *, pending=(), groups=None, fits=None, usable=None, leaving=None, now=100.0, spare=()
):
    """Build a snapshot from plain lists."""
    room = np.array(rooms, dtype=np.int64).reshape(len(rooms), -1)
    count, resources = room.shape
    request = np.array(shapes, dtype=np.int64).reshape(len(shapes), resources)
    group = np.array(groups if groups is not None else [0] * count, dtype=np.int64)
    return Snapshot(
        now=now,
        resources=NAMES[:resources],
        nodes=Nodes(
            names=tuple(f"n{number}" for number in range(count)),
            room=room,
            leaving=np.array(leaving, dtype=np.int64) if leaving is not None else np.zeros_like(room),
            usable=np.array(usable if usable is not None else [True] * count, dtype=np.bool_),
            group=group,
            total=np.maximum(room, 0).sum(axis=0),
        ),
        shapes=Shapes(
            request=request,
            fits=np.array(fits, dtype=np.bool_)
            if fits is not None
            else np.ones((len(shapes), int(group.max(initial=0)) + 1), dtype=np.bool_),
        ),
        jobs=tuple(jobs),
        pending=tuple(pending),
        spare=tuple(spare),
    )


def job(name, low, high, *, shape=0, priority=-10, held=None, **more):
    """Return a job whose name is also its uid."""
    more = {"uid": name, "name": f"default/{name}", "min": low, "max": high} | more
    return PlannerJob(shape=shape, priority=priority, held=held or {}, **more)


def requests_of(snapshot, allocation):
    """Return what trainers and claims take on each node after the allocation was carried out, of shape [N, R]."""
    taken = np.zeros_like(snapshot.nodes.room)
    for each in snapshot.jobs:
        for node, count in placed(allocation.jobs[each.uid]).items():
            taken[node] += snapshot.shapes.request[each.shape] * count
    pods = {pod.uid: pod for pod in snapshot.pending}
    for claim in allocation.claims:
        taken[claim.node] += snapshot.shapes.request[pods[claim.pod].shape]
    return taken


def placed(given):
    """Return, by node, the number of a job's trainers after the allocation was carried out."""
    return {node: given.kept.get(node, 0) + given.added.get(node, 0) for node in given.kept | given.added}


def applied(snapshot, allocation):
    """Return the cluster after the allocation: new trainers run, victims have left, and claimed pods run on their nodes."""
    room = snapshot.nodes.room.copy()
    pods = {pod.uid: pod for pod in snapshot.pending}
    for claim in allocation.claims:
        room[claim.node] -= snapshot.shapes.request[pods.pop(claim.pod).shape]
    jobs = tuple(replace(each, held=placed(allocation.jobs[each.uid])) for each in snapshot.jobs)
    nodes = replace(snapshot.nodes, room=room, leaving=np.zeros_like(room))
    return replace(snapshot, nodes=nodes, jobs=jobs, pending=tuple(pods.values()))


@st.composite
def clusters(draw, *, nodes=12, jobs=6, pending=True, held=True, fixed=False, classes=3, shapes=4):
    """Generate nodes of a few sizes, some unusable, in groups; shapes that fit some groups; jobs with trainers anywhere."""
    resources = draw(st.integers(1, 4))
    count = draw(st.integers(1, nodes))
    groups = draw(st.integers(1, 3))
    amounts = st.lists(st.integers(0, 20), min_size=resources, max_size=resources)
    room = [draw(amounts) for _ in range(count)]
    group = draw(st.lists(st.integers(0, groups - 1), min_size=count, max_size=count))
    usable = draw(st.lists(st.sampled_from([True, True, True, False]), min_size=count, max_size=count))
    number = draw(st.integers(1, shapes))
    asked = st.lists(st.integers(0, 6), min_size=resources, max_size=resources).filter(any)
    request = [draw(asked) for _ in range(number)]
    fits = [
        draw(st.lists(st.sampled_from([True, True, False]), min_size=groups, max_size=groups)) for _ in range(number)
    ]
    made = []
    left = np.array(room)
    servers = fixed and draw(st.booleans())
    for index in range(draw(st.integers(0, jobs))):
        low = draw(st.integers(1, 4))
        high = draw(st.integers(low, 10))
        shape = draw(st.integers(0, number - 1))
        has: dict[int, int] = {}
        if held and draw(st.booleans()):
            for node in draw(st.lists(st.integers(0, count - 1), max_size=8)):
                if (left[node] >= request[shape]).all():
                    left[node] -= request[shape]
                    has[node] = has.get(node, 0) + 1
        pods = ((draw(st.integers(0, number - 1)), draw(st.integers(1, 2))),) if servers and draw(st.booleans()) else ()
        pinned = draw(st.sampled_from([False, False, True]))
        made.append(
            job(
                f"j{index}", low, low if pinned else high, shape=shape, held=has, fixed=pods, pinned=pinned,
                priority=-10 + draw(st.integers(0, classes - 1)), since=float(draw(st.integers(0, 3))),
                weight=draw(st.sampled_from([1.0, 1.0, 2.0])),
            )
        )  # fmt: skip
    waiting = [
        PendingPod(
            uid=f"p{index}", name=f"default/p{index}", shape=draw(st.integers(0, number - 1)),
            priority=draw(st.integers(0, 2)), node=draw(st.sampled_from([-1, -1, 0])), preempts=draw(st.booleans()),
        )
        for index in range(draw(st.integers(0, 4)) if pending else 0)
    ]  # fmt: skip
    if held and draw(st.booleans()) and count:
        # More foreign pods have been added to this node since, so that it may hold more than it has.
        node = draw(st.integers(0, count - 1))
        room[node] = [max(0, amount - draw(st.integers(0, 6))) for amount in room[node]]
    return cluster(room, request, made, pending=waiting, groups=group, fits=fits, usable=usable)
