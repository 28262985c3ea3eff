"""Foreign pods whose priority lies between that of a job's surplus and that of its minimum."""

from __future__ import annotations

import pytest

from tests.autoscaler.loops import Loop, demand, node, pod, trainer


@pytest.fixture
def loop(tmp_path):
    loop = Loop(tmp_path)
    for name, value in (("minimum", -6), ("surplus", -10)):
        loop.made.on_event("PriorityClass", {"metadata": {"name": name}, "value": value})
    loop.made.on_event("Node", node("n"))
    return loop


def waiting(name, priority):
    """Return a pending pod of one CPU for which only the planner, not the scheduler, makes room."""
    metadata = {"name": name, "namespace": "d", "uid": name, "resourceVersion": "1"}
    spec = pod()["spec"] | {"priority": priority, "preemptionPolicy": "Never"}
    return {"metadata": metadata, "spec": spec, "status": {"phase": "Pending"}}


def runs(loop, low):
    for index in range(4):
        loop.made.on_event("Pod", trainer("a", index, "n"))
    loop.made.set_demand("a", demand("a", low, 9, priority=-11), minimum="minimum", surplus="surplus")


@pytest.mark.parametrize(("priority", "left"), [(0, 2), (-5, 2), (-8, 2), (-9, 2), (-10, 4), (-11, 4)])
def test_it_claims_from_the_surplus_alone(loop, priority, left):
    runs(loop, 2)
    for name in "wxyz"[:2]:
        loop.made.on_event("Pod", waiting(name, priority))
    loop.plan()
    assert loop.trainers("a") == left
    assert len(loop.last_plan.claims) == (2 if left == 2 else 0)


@pytest.mark.parametrize(("priority", "left"), [(0, 0), (-5, 0), (-6, 2), (-8, 2)])
def test_it_never_takes_a_minimum_that_ranks_above_it(loop, priority, left):
    runs(loop, 2)
    for name in "wxyz":
        loop.made.on_event("Pod", waiting(name, priority))
    loop.plan()
    loop.clock.now += 11
    loop.plan()
    assert loop.trainers("a") == left


def test_a_waiting_minimum_is_placed_first(loop):
    for name in "wx":
        loop.made.on_event("Pod", waiting(name, -8))
    loop.made.set_demand("a", demand("a", 3, 9, priority=-11), minimum="minimum", surplus="surplus")
    loop.plan()
    assert loop.trainers("a") == 3
    assert len(loop.last_plan.claims) == 1, "what is left, before the job grows"
