"""The placement that is updated while a plan is made equals one computed afresh."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shoal.autoscaler.planner.placement import Placement
from shoal.autoscaler.planner.preemption import PreemptionCandidates
from tests.autoscaler.worlds import clusters
from tests.soak import examples


def in_order(snapshot):
    return sorted(snapshot.jobs, key=lambda job: (-job.priority, not job.held, job.since, job.uid))


def held_by(placement):
    return [{node: count for node, count in placement.at(job).items() if count} for job in range(len(placement.jobs))]


def moved(placement, random):
    """Apply one random change to the placement."""
    job = random.randrange(len(placement.jobs))
    node = random.randrange(len(placement.free))
    shape = int(placement.shape[job])
    act = random.choice([*["add", "many", "leave"] * 3, "back", "settle", "least", "yield", "put", "class", "look"])
    if act == "add" and placement.has_room(shape, node):
        placement.add(job, node)
    elif act == "many" and placement.has_room(shape, node):
        placement.protect(job)
        placement.add_many(np.array([job]), shape, np.array([node]))
    elif act in {"leave", "back"} and placement.locations.at(node):
        job = random.choice(sorted(placement.locations.at(node)))
        placement.preempt(job, node)
        if act == "back":
            placement.restore(job, node)
    elif act == "settle":
        placement.protect(job, random.choice([None, 0, 1, 2]))
    elif act == "least":
        placement.protect_minimums(np.array([job]))
    elif act == "yield":
        placement.make_preemptible(np.array([job]))
    elif act == "class":
        placement.protect_class(int(placement.rank[job]))
    elif act == "put" and placement.has_room(shape, node):
        placement.reserve(shape, node)
    elif act == "look":
        placement.locations.all()


@examples(100)
@given(clusters(pending=False, nodes=4, jobs=4), st.integers(5, 30), st.randoms(use_true_random=False))
def test_what_is_kept_is_what_a_fresh_board_finds(snapshot, steps, random):
    jobs = in_order(snapshot)
    if not jobs:
        return
    placement = Placement(snapshot, jobs, {})
    tiers = range(2 * placement.classes)
    for _ in range(steps):
        moved(placement, random)
        if random.random() < 0.2:
            looked(placement, tiers)
    here = [placement.locations.at(node) for node in range(len(placement.free))]
    fresh = Placement(
        snapshot, [replace(job, held=held) for job, held in zip(jobs, held_by(placement), strict=True)], {}
    )
    fresh.protected[:] = placement.protected
    assert (placement.count == fresh.count).all()
    assert (placement.free == fresh.free - placement.reserved).all()
    for tier in tiers:
        assert (placement.preemptible(tier) == fresh.preemptible(tier)).all()
    for shape in range(len(placement.request)):
        assert (placement.fits(shape) == placement.capacity(shape, placement.free)).all()
        assert placement.total(shape) == placement.fits(shape).sum()
        node = placement.free_node(shape)
        assert placement.has_room(shape, node) if node >= 0 else not placement.anywhere(shape, placement.free).any()
    assert here == [
        {job: at[node] for job, at in enumerate(held_by(placement)) if node in at} for node in range(len(here))
    ]


def looked(placement, tiers):
    for tier in tiers:
        placement.preemptible(tier)
    for shape in range(len(placement.request)):
        placement.fits(shape)
        placement.free_node(shape)


@examples(80)
@given(clusters(pending=False, nodes=5), st.randoms(use_true_random=False))
def test_room_is_made_while_any_trainer_is_preemptible(snapshot, random):
    """PreemptionCandidates finds room exactly as long as some node would have enough without all its possible victims."""
    jobs = in_order(snapshot)
    if not jobs:
        return
    placement = Placement(snapshot, jobs, {})
    placement.protect_minimums(np.arange(len(jobs)))
    rooms = PreemptionCandidates(placement, np.ones(len(jobs)))
    tiers = placement.tiers(surplus_below=placement.classes, minimums_below=random.randrange(placement.classes + 1))
    for _ in range(12):
        shape = random.randrange(len(placement.request))
        if placement.free_node(shape) >= 0:
            placement.reserve(shape, placement.free_node(shape))
            continue
        found = rooms.make(shape, tiers)
        assert (found is not None) == placement.anywhere(shape, placement.room_with(tiers)).any()
        if found is not None:
            node, leavers = found
            for each in leavers:
                placement.preempt(each.job, each.node)
            assert placement.has_room(shape, node)
            placement.reserve(shape, node)
