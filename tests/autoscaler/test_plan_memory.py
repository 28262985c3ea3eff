"""The data that a plan keeps for the next one saves time and does not change the result."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shoal.autoscaler.planner.model import PendingPod, PlannerMemory, Policy
from shoal.autoscaler.planner.plan import plan
from shoal.autoscaler.snapshot.cluster_state import ClusterState
from tests.autoscaler.test_cluster_state import node, pod
from tests.autoscaler.worlds import FREE_HAND, applied, clusters
from tests.soak import examples

POLICIES = [FREE_HAND, Policy(), Policy(moves=1, scheduler_evicts=False)]


def pod_comes(snapshot, random):
    shape = random.randrange(len(snapshot.shapes.request))
    pod = PendingPod(uid=f"late-{snapshot.now}", name="default/late", shape=shape, priority=0, preempts=False)
    return replace(snapshot, pending=(*snapshot.pending, pod))


def pods_go(snapshot, random):
    return replace(snapshot, pending=())


def node_stops(snapshot, random):
    usable = snapshot.nodes.usable.copy()
    usable[random.randrange(len(usable))] ^= True
    return replace(snapshot, nodes=replace(snapshot.nodes, usable=usable))


def node_fills(snapshot, random):
    room = snapshot.nodes.room.copy()
    node = random.randrange(len(room))
    room[node] = np.maximum(room[node] + random.randrange(-5, 6), 0)
    return replace(snapshot, nodes=replace(snapshot.nodes, room=room))


def trainer_dies(snapshot, random):
    held = [(number, node) for number, job in enumerate(snapshot.jobs) for node, count in job.held.items() if count]
    if not held:
        return snapshot
    number, node = random.choice(held)
    jobs = list(snapshot.jobs)
    jobs[number] = replace(jobs[number], held=jobs[number].held | {node: jobs[number].held[node] - 1})
    return replace(snapshot, jobs=tuple(jobs))


def job_goes(snapshot, random):
    return replace(snapshot, jobs=tuple(random.sample(snapshot.jobs, max(0, len(snapshot.jobs) - 1))))


def node_goes(snapshot, random):
    """Delete a node as ClusterState does.

    The last node takes its number, and a job without pods on either node stays the same object.
    """
    nodes, last = snapshot.nodes, len(snapshot.nodes.names) - 1
    deleted = random.randrange(last + 1)
    order = [last if number == deleted else number for number in range(last)]
    if not order:
        return snapshot
    number = {old: new for new, old in enumerate(order)}

    def moved(job):
        if not {deleted, last} & job.held.keys():
            return job
        held, firm = ({number[at]: count for at, count in of.items() if at in number} for of in (job.held, job.firm))
        return replace(job, held=held, firm=firm)

    pending = tuple(replace(each, node=number.get(each.node, -1)) for each in snapshot.pending)
    arrays = {name: getattr(nodes, name)[order] for name in ("room", "leaving", "usable", "group")}
    nodes = replace(nodes, names=tuple(nodes.names[at] for at in order), **arrays)
    return replace(snapshot, nodes=nodes, jobs=tuple(moved(job) for job in snapshot.jobs), pending=pending)


EVENTS = [pod_comes, pods_go, node_stops, node_fills, trainer_dies, job_goes, node_goes]


@examples(60)
@given(clusters(fixed=True), st.integers(2, 6), st.sampled_from(POLICIES), st.randoms(use_true_random=False))
def test_a_plan_that_reads_nothing_again_is_the_same(snapshot, steps, policy, random):
    memory = PlannerMemory()
    for _ in range(steps):
        allocation, after = plan(snapshot, memory, policy)
        for claim in allocation.claims:
            if claim.since < snapshot.now:
                assert memory.claims[claim.pod] == (snapshot.nodes.names[claim.node], claim.since)
        slow, slow_after = plan(snapshot, replace(memory, rows={}), policy)
        assert (allocation, after) == (slow, slow_after)
        memory = after
        if random.random() < 0.7:
            snapshot = applied(snapshot, allocation)
        snapshot = replace(random.choice(EVENTS)(snapshot, random), now=snapshot.now + 30.0)


def test_a_claim_keeps_its_node_while_other_nodes_are_removed_and_added():
    """A claim stays on its node while numbers change.

    The last node takes the number of a deleted one, and a new node takes the number that the last one had.
    """
    view = ClusterState()
    for name in ("a", "b", "c"):
        view.node_changed(node(name))
    for name in ("a", "b"):
        view.pod_changed(pod(f"fills-{name}", at=name, cpu="10"), now=0.0)
    view.pod_changed(pod("web", cpu="5"), now=0.0)

    def claimed(memory, now):
        snapshot = view.snapshot([], now=now)
        allocation, memory = plan(snapshot, memory, FREE_HAND)
        (claim,) = allocation.claims
        return snapshot.nodes.names[claim.node], claim.since, memory

    first, _, memory = claimed(PlannerMemory(), 1.0)
    view.node_changed(node("a"), deleted=True)
    view.node_changed(node("d"))
    second, since, memory = claimed(memory, 2.0)
    assert (first, second, since) == ("c", "c", 1.0)
    view.node_changed(node("c"), deleted=True)
    assert claimed(memory, 3.0)[:2] == ("d", 3.0)
