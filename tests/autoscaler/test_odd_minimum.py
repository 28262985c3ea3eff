"""The reason that is reported for a minimum larger than the cluster."""

from __future__ import annotations

import pytest

from tests.autoscaler.loops import Loop, demand, node
from tests.autoscaler.test_odd_loop import asking


@pytest.mark.parametrize(
    ("asks", "low", "words"),
    [
        ({"cpu": "5"}, 40, "needs 40 x cpu 5, the cluster has room for 12 at best: too little cpu"),
        ({"cpu": "21"}, 1, "needs 1 x cpu 21, the cluster has room for 0 at best: too little cpu"),
        ({"memory": "9Gi"}, 4, "needs 4 x memory 9Gi, the cluster has room for 3 at best: too little memory"),
        ({"cpu": "15", "memory": "12Gi"}, 9, "needs 9 x cpu 15, memory 12Gi, the cluster has room for 3 at best: too little cpu and memory"),
        ({"gpu": "1"}, 1, "needs 1 x gpu 1, the cluster has room for 0 at best: too little gpu"),
        ({}, 400, "needs 400 x a pod, the cluster has room for 330 at best: too little pods"),
    ],
)  # fmt: skip
def test_a_minimum_above_the_whole_cluster_names_what_is_short(tmp_path, asks, low, words):
    loop = Loop(tmp_path)
    for name in "nmo":
        loop.made.on_event("Node", node(name, cpu="20"))
    loop.made.set_demand("a", demand("a", low, 500, trainer=asking(**asks)))
    loop.made.set_demand("b", demand("b", 1, 1))
    loop.plan()
    assert (loop.trainers("a"), loop.trainers("b")) == (0, 1), "others are not held up"
    assert loop.made.decision("a").reason == words


def test_where_only_both_together_are_short_none_is_named(tmp_path):
    loop = Loop(tmp_path)
    loop.made.on_event("Node", node("n", cpu="20"))
    big = node("m", cpu="1")
    big["status"]["allocatable"]["memory"] = "64Gi"
    loop.made.on_event("Node", big)
    loop.made.set_demand("a", demand("a", 4, 9, trainer=asking(cpu="5", memory="8Gi")))
    loop.plan()
    assert loop.made.decision("a").reason == "needs 4 x cpu 5, memory 8Gi, the cluster has room for 2 at best"
