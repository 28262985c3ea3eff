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


def held_by(board):
    return [{node: count for node, count in board.at(job).items() if count} for job in range(len(board.jobs))]


def moved(board, random):
    """Apply one random change to the placement."""
    job = random.randrange(len(board.jobs))
    node = random.randrange(len(board.free))
    shape = int(board.shape[job])
    act = random.choice([*["add", "many", "leave"] * 3, "back", "settle", "least", "yield", "put", "class", "look"])
    if act == "add" and board.has_room(shape, node):
        board.add(job, node)
    elif act == "many" and board.has_room(shape, node):
        board.protect(job)
        board.add_many(np.array([job]), shape, np.array([node]))
    elif act in {"leave", "back"} and board.locations.at(node):
        job = random.choice(sorted(board.locations.at(node)))
        board.preempt(job, node)
        if act == "back":
            board.restore(job, node)
    elif act == "settle":
        board.protect(job, random.choice([None, 0, 1, 2]))
    elif act == "least":
        board.protect_minimums(np.array([job]))
    elif act == "yield":
        board.make_preemptible(np.array([job]))
    elif act == "class":
        board.protect_class(int(board.rank[job]))
    elif act == "put" and board.has_room(shape, node):
        board.reserve(shape, node)
    elif act == "look":
        board.locations.all()


@examples(100)
@given(clusters(pending=False, nodes=4, jobs=4), st.integers(5, 30), st.randoms(use_true_random=False))
def test_what_is_kept_is_what_a_fresh_board_finds(snapshot, steps, random):
    jobs = in_order(snapshot)
    if not jobs:
        return
    board = Placement(snapshot, jobs, {})
    tiers = range(2 * board.classes)
    for _ in range(steps):
        moved(board, random)
        if random.random() < 0.2:
            looked(board, tiers)
    here = [board.locations.at(node) for node in range(len(board.free))]
    fresh = Placement(snapshot, [replace(job, held=held) for job, held in zip(jobs, held_by(board), strict=True)], {})
    fresh.protected[:] = board.protected
    assert (board.count == fresh.count).all()
    assert (board.free == fresh.free - board.reserved).all()
    for tier in tiers:
        assert (board.preemptible(tier) == fresh.preemptible(tier)).all()
    for shape in range(len(board.request)):
        assert (board.fits(shape) == board.capacity(shape, board.free)).all()
        assert board.total(shape) == board.fits(shape).sum()
        node = board.free_node(shape)
        assert board.has_room(shape, node) if node >= 0 else not board.anywhere(shape, board.free).any()
    assert here == [{job: at[node] for job, at in enumerate(held_by(board)) if node in at} for node in range(len(here))]


def looked(board, tiers):
    for tier in tiers:
        board.preemptible(tier)
    for shape in range(len(board.request)):
        board.fits(shape)
        board.free_node(shape)


@examples(80)
@given(clusters(pending=False, nodes=5), st.randoms(use_true_random=False))
def test_room_is_made_while_any_trainer_is_preemptible(snapshot, random):
    """PreemptionCandidates finds room exactly as long as some node would have enough without all its possible victims."""
    jobs = in_order(snapshot)
    if not jobs:
        return
    board = Placement(snapshot, jobs, {})
    board.protect_minimums(np.arange(len(jobs)))
    rooms = PreemptionCandidates(board, np.ones(len(jobs)))
    tiers = board.tiers(surplus_below=board.classes, minimums_below=random.randrange(board.classes + 1))
    for _ in range(12):
        shape = random.randrange(len(board.request))
        if board.free_node(shape) >= 0:
            board.reserve(shape, board.free_node(shape))
            continue
        found = rooms.make(shape, tiers)
        assert (found is not None) == board.anywhere(shape, board.room_with(tiers)).any()
        if found is not None:
            node, leavers = found
            for each in leavers:
                board.preempt(each.job, each.node)
            assert board.has_room(shape, node)
            board.reserve(shape, node)
