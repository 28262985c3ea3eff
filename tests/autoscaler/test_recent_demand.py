"""The recent demand of foreign pods."""

from __future__ import annotations

import pytest

from shoal.autoscaler.snapshot.recent_demand import RecentDemand
from shoal.autoscaler.snapshot.resources import request_of


def pod(uid, cpu="1", **spec):
    containers = [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]
    return {"metadata": {"uid": uid}, "spec": {"containers": containers, **spec}}


def spare(demand, multiple, now):
    return [(request_of(each)["cpu"], count) for each, count in demand.spare(multiple, now=now)]


@pytest.mark.parametrize(
    ("came", "most"), [([0, 1, 2], 3), ([0, 70, 140], 1), ([0, 50, 100, 110], 3), ([0, 60], 2), ([0, 61], 1)]
)
def test_the_most_arrivals_within_a_minute(came, most):
    demand = RecentDemand()
    for number, moment in enumerate(came):
        demand.pod_arrived(pod(f"p{number}"), now=float(moment))
    assert spare(demand, 1.0, 150.0) == [(1000, most)]


def test_each_pod_counts_once_and_kinds_count_apart():
    demand = RecentDemand()
    for _ in range(3):
        demand.pod_arrived(pod("a"), now=1.0)
    demand.pod_arrived(pod("b", cpu="2"), now=1.0)
    demand.pod_arrived(pod("c", nodeSelector={"zone": "a"}), now=1.0)
    assert sorted(spare(demand, 1.0, 2.0)) == [(1000, 1), (1000, 1), (2000, 1)]


def test_a_multiple_is_rounded_up_and_none_is_none():
    demand = RecentDemand()
    for number in range(3):
        demand.pod_arrived(pod(f"p{number}"), now=1.0)
    assert spare(demand, 0.5, 2.0) == [(1000, 2)]
    assert spare(demand, 0.0, 2.0) == []


def test_old_arrivals_are_dropped():
    demand = RecentDemand()
    demand.pod_arrived(pod("a"), now=0.0)
    assert spare(demand, 1.0, 599.0) == [(1000, 1)]
    assert spare(demand, 1.0, 601.0) == []
    assert spare(demand, 1.0, 1.0) == [], "it is not recreated"
