"""Invariants of every plan, over random clusters."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
from hypothesis import event, given
from hypothesis import strategies as st

from shoal.autoscaler.planner.model import AllocationReason, PlannerMemory
from shoal.autoscaler.planner.plan import plan
from tests.autoscaler.worlds import FREE_HAND, applied, clusters, placed, requests_of
from tests.soak import examples

CASES = 300


def planned(snapshot, memory=None):
    return plan(snapshot, memory or PlannerMemory(), FREE_HAND)[0]


class After:
    """A cluster after a plan was carried out."""

    def __init__(self, snapshot, allocation, memory):
        self.snapshot, self.allocation, self.memory = snapshot, allocation, memory
        self.request = snapshot.shapes.request
        self.eligible = snapshot.shapes.fits[:, snapshot.nodes.group] & snapshot.nodes.usable
        self.free = snapshot.nodes.room - requests_of(snapshot, allocation)
        total = np.maximum(snapshot.nodes.total, 1)
        self.jobs = {each.uid: each for each in snapshot.jobs}
        self.step = {
            each.uid: max((self.request[each.shape] / total).max(), 1e-12) / each.weight for each in snapshot.jobs
        }
        self.count = {uid: each.trainers for uid, each in allocation.jobs.items()}
        self.at = {uid: placed(each) for uid, each in allocation.jobs.items()}

    def hungry(self):
        """Return the jobs that have their minimum but not their maximum."""
        return [each for each in self.snapshot.jobs if 0 < self.count[each.uid] < each.max]

    def share(self, uid):
        return self.count[uid] * self.step[uid]

    def fits(self, shape, node, room):
        return self.eligible[shape, node] and (room >= self.request[shape]).all()


INVARIANTS = []


def invariant(check):
    """Register a check that runs on every plan."""
    INVARIANTS.append(check)
    return check


def where_all_is_told(check):
    """Skip a check for jobs with servers: the plan does not state their room, because the scheduler places them."""

    @functools.wraps(check)
    def checked(seen):
        if not any(each.fixed for each in seen.snapshot.jobs):
            check(seen)

    return checked


@examples(CASES)
@given(clusters(fixed=True))
def test_a_plan(snapshot):
    """Every plan meets all invariants; one test runs them all because a random cluster costs more than its plan."""
    allocation, memory = plan(snapshot, PlannerMemory(), FREE_HAND)
    seen = After(snapshot, allocation, memory)
    for check in INVARIANTS:
        check(seen)


# --- 1, 2 and 3: placement and counts ---


@invariant
def no_node_holds_more_than_it_has(seen):
    """A node that other pods have overfilled keeps no trainer that requests the resource that is short."""
    for node in np.flatnonzero((seen.free < 0).any(axis=1)):
        lacks = seen.free[node] < 0
        assert not [
            uid for uid, at in seen.at.items() if at.get(node) and (seen.request[seen.jobs[uid].shape][lacks] > 0).any()
        ]


@invariant
def a_job_has_nothing_or_what_lies_between_its_bounds(seen):
    for each in seen.snapshot.jobs:
        given = seen.allocation.jobs[each.uid]
        assert given.trainers == 0 or each.min <= given.trainers <= each.max
        assert given.trainers == sum(placed(given).values())
        assert (given.trainers == 0) == (given.reason == AllocationReason.QUEUED)
        assert all(count <= each.held.get(node, 0) for node, count in given.kept.items())
        assert all(0 < count <= given.added[node] for node, count in given.now.items())
        assert given.message


@invariant
def nothing_new_comes_to_a_node_that_will_not_do(seen):
    for each in seen.snapshot.jobs:
        assert all(seen.eligible[each.shape, node] for node in seen.allocation.jobs[each.uid].added)
    pods = {pod.uid: pod for pod in seen.snapshot.pending}
    assert all(seen.eligible[pods[claim.pod].shape, claim.node] for claim in seen.allocation.claims)


# --- 4, 5 and 6: no job is smaller than it has to be ---


@invariant
@where_all_is_told
def no_job_is_small_while_a_lower_class_has_surplus_where_it_could_be(seen):
    for each in seen.hungry():
        for other in seen.snapshot.jobs:
            if other.priority >= each.priority or seen.count[other.uid] <= other.min:
                continue
            room = seen.request[other.shape]
            where = [n for n in seen.at[other.uid] if seen.fits(each.shape, n, seen.free[n] + room)]
            assert not where, (each.name, other.name)


@invariant
@where_all_is_told
def nobody_could_take_from_one_of_his_class_who_would_still_have_more(seen):
    for each in seen.hungry():
        for other in seen.snapshot.jobs:
            if other.priority != each.priority or other is each or seen.count[other.uid] <= other.min:
                continue
            room = seen.request[other.shape]
            if any(seen.fits(each.shape, n, seen.free[n] + room) for n in seen.at[other.uid]):
                gives = seen.share(other.uid) - seen.step[other.uid]
                assert gives <= seen.share(each.uid) + seen.step[each.uid] + 1e-9


@invariant
@where_all_is_told
def no_room_is_idle_that_somebody_could_use(seen):
    for each in seen.hungry():
        assert not any(seen.fits(each.shape, node, seen.free[node]) for node in range(len(seen.free)))


# --- 7, 10 and 12: claims ---


@invariant
def a_claim_is_unmet_only_where_nobody_could_make_room(seen):
    served = {claim.pod for claim in seen.allocation.claims}
    room = seen.snapshot.nodes.room.copy()
    pods = {pod.uid: pod for pod in seen.snapshot.pending}
    for claim in seen.allocation.claims:
        room[claim.node] -= seen.request[pods[claim.pod].shape]
    for pod in seen.snapshot.pending:
        if pod.uid not in served:
            assert not any(seen.fits(pod.shape, node, room[node]) for node in range(len(room))), pod


@invariant
@where_all_is_told
def no_victim_of_a_claim_could_have_stayed(seen):
    for claim in seen.allocation.claims:
        for uid in claim.victims:
            each = seen.jobs[uid]
            here = seen.at[uid].get(claim.node, 0)
            if here < each.held.get(claim.node, 0):
                assert not seen.fits(each.shape, claim.node, seen.free[claim.node]) or not (
                    0 < seen.count[uid] < each.max
                )


@invariant
def the_room_of_a_claim_is_nobody_elses(seen):
    """The room of a claim is given to no other pod, now or later, so that it is never freed twice."""
    for claim in seen.allocation.claims:
        assert (seen.free[claim.node] >= np.minimum(seen.snapshot.nodes.room[claim.node], 0)).all()
        for uid, count in claim.victims.items():
            assert 0 < count <= seen.jobs[uid].held.get(claim.node, 0)


# --- 8 and 11: the plan is stable, and the order of jobs does not matter ---


@invariant
@where_all_is_told
def what_was_carried_out_is_its_own_plan(seen):
    again, _ = plan(applied(seen.snapshot, seen.allocation), seen.memory, FREE_HAND)
    assert {uid: placed(each) for uid, each in again.jobs.items()} == seen.at
    assert not any(each.added for each in again.jobs.values())


@examples(CASES // 3)
@given(clusters(pending=False), st.randoms(use_true_random=False))
def test_the_order_of_jobs_changes_nothing(snapshot, random):
    jobs = list(snapshot.jobs)
    random.shuffle(jobs)
    assert planned(replace(snapshot, jobs=tuple(jobs))).jobs == planned(snapshot).jobs


# --- 9: more room harms no job ---


@examples(CASES // 3)
@given(clusters(pending=False, held=False, shapes=1, classes=1), st.integers(0, 11), st.integers(1, 8))
def test_more_room_costs_no_job_more_than_one_trainer(snapshot, node, more):
    """Within a class, in leximin order, more room costs at most one trainer.

    Between classes it may cost more: a further minimum of a lower class has precedence over growth of a higher one.
    """
    room = snapshot.nodes.room.copy()
    room[node % len(room)] += more
    richer = replace(snapshot, nodes=replace(snapshot.nodes, room=room))
    before, later = planned(snapshot).jobs, planned(richer).jobs
    small, large = (sorted(made[each.uid].trainers / each.weight for each in snapshot.jobs) for made in (before, later))
    event("lower" if large < small else "no lower")
    for least, most in zip(small, large, strict=True):
        if least != most:
            assert most >= least - 1
            return
