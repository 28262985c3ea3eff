"""The cluster state built from events, against a model that evaluates every manifest each time.

This is one module because the single cases and the model use the same few manifests.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.autoscaler.job_demand import JobDemand
from shoal.autoscaler.snapshot import cluster_state as module
from shoal.autoscaler.snapshot.cluster_state import ClusterState
from shoal.autoscaler.snapshot.constraints import constraints_of, eligible, node_info, usable
from shoal.autoscaler.snapshot.resources import allocatable_of, request_of
from tests.soak import examples

REFUSED = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}


def node(name="n", *, cpu="10", labels=None, taints=(), ready="True", uid="", revision=0, cordoned=False, going=False):
    metadata = {"name": name, "uid": uid or f"uid-{name}", "labels": labels or {}, "resourceVersion": str(revision)}
    metadata |= {"deletionTimestamp": "t"} if going else {}
    allocatable = cpu if isinstance(cpu, dict) else {"cpu": cpu, "memory": "8Gi", "pods": "110"}
    status = {"allocatable": allocatable, "conditions": [{"type": "Ready", "status": ready}]}
    return {"metadata": metadata, "spec": {"taints": list(taints), "unschedulable": cordoned}, "status": status}


def pod(name="web", *, uid="", at="", cpu="1", phase="Running", role="", of="u", owner=None, going=False, revision=0,
        refused=False, namespace="default", status=None, **spec):  # fmt: skip
    metadata = {"name": name, "namespace": namespace, "uid": uid or f"uid-{name}", "resourceVersion": str(revision)}
    if role:
        metadata["labels"] = {"shoal.dev/uid": of, "shoal.dev/role": role}
    kind = "TrainingJob" if role == "trainer" else "ReplicaSet"
    metadata["ownerReferences"] = [{"kind": kind, "uid": of if owner is None else owner, "controller": True}]
    metadata |= {"deletionTimestamp": "t"} if going else {}
    said = {"phase": phase if at else "Pending", "conditions": [REFUSED] if refused else []}
    asked = cpu if isinstance(cpu, dict) else {"cpu": cpu}
    return {
        "metadata": metadata,
        "spec": {"containers": [{"resources": {"requests": asked}}], "nodeName": at, **spec},
        "status": said | (status or {}),
    }


def trainer(index=0, *, job="j", of="u", **rest):
    return pod(f"{job}-trainer-{index}", role="trainer", of=of, **rest)


def demand(uid="u", name="j", *, cpu="2", fixed=(), **rest):
    made = {"uid": uid, "name": name, "namespace": "default", "priority": -5, "min": 1, "max": 4}
    return JobDemand(**made | {"trainer": trainer(cpu=cpu, job=name, of=uid), "fixed": fixed} | rest)


def seen(*events, nodes=("n",)):
    view = ClusterState()
    for each in nodes:
        view.node_changed(node(each) if isinstance(each, str) else each)
    for each in events:
        view.pod_changed(each, now=0.0)
    return view


def cpu_of(view, *jobs, what="room"):
    shot = view.snapshot(jobs, now=0.0)
    return dict(zip(shot.nodes.names, getattr(shot.nodes, what)[:, 0].tolist(), strict=True))


def pending_of(view, *jobs):
    return sorted(each.name for each in view.snapshot(jobs, now=0.0).pending)


def test_an_empty_cluster():
    shot = ClusterState().snapshot([demand(fixed=[(pod(), 2, "master")])], now=3.0)
    assert (shot.now, shot.nodes.names, shot.nodes.room.shape, shot.nodes.group.shape) == (3.0, (), (0, 3), (0,))
    assert (shot.shapes.request.shape, shot.shapes.fits.shape) == ((2, 3), (2, 0))
    assert (shot.jobs[0].held, shot.jobs[0].fixed, shot.pending) == ({}, ((1, 2),), ())
    assert ClusterState().snapshot([], now=0.0).shapes.request.shape == (0, 3)


@pytest.mark.parametrize("lacking", [{}, {"status": None}, {"status": {"allocatable": None, "conditions": None}}])
def test_a_node_without_status_has_no_room(lacking):
    view = seen(pod(at="n"), nodes=[{"metadata": {"name": "n"}} | lacking])
    shot = view.snapshot([], now=0.0)
    assert (shot.nodes.room.tolist(), shot.nodes.usable.tolist()) == ([[-1000, 0, -1]], [False])


@pytest.mark.parametrize(
    ("cpu", "room"), [("100m", 9900), ("1e-1", 9900), ("1u", 9999), ("5.", 5000), ("0.5Ki", -502_000), ("1E", 10_000 - 2**50)]
)  # fmt: skip
def test_quantities_of_every_kind(cpu, room):
    assert cpu_of(seen(pod(at="n", cpu=cpu))) == {"n": room}


@pytest.mark.parametrize(
    ("there", "room", "leaving"),
    [
        (pod(at="n"), 9000, 0), (pod(at="n", phase="Pending"), 9000, 0), (pod(at="n", phase="Succeeded"), 10_000, 0),
        (pod(at="n", phase="Failed", going=True), 10_000, 0), (pod(at="n", going=True), 10_000, 1000),
        (trainer(at="n", going=True), 10_000, 1000), (trainer(at="n"), 10_000, 0), (trainer(at="n", of="v"), 9000, 0),
        (trainer(at="n", owner="v"), 9000, 0), (trainer(at="n", namespace="other"), 9000, 0),
        (pod("j-master-x", role="master", at="n"), 9000, 0), (pod(at="dead"), 10_000, 0), (pod(), 10_000, 0),
    ],
)  # fmt: skip
def test_what_counts_where(there, room, leaving):
    view = seen(there)
    asks = demand(cpu="1")
    assert (cpu_of(view, asks), cpu_of(view, asks, what="leaving")) == ({"n": room}, {"n": leaving})


def test_a_pod_weighs_once_its_node_is_known_and_no_longer():
    view = seen(pod(at="late"), trainer(at="late"), nodes=[node(ready="False")])
    assert view.snapshot([demand(cpu="1")], now=0.0).jobs[0].held == {}
    view.node_changed(node("late"))
    assert (cpu_of(view, demand(cpu="1")), view.snapshot([demand(cpu="1")], now=0.0).jobs[0].held) == (
        {"n": 10_000, "late": 9000},
        {1: 1},
    )
    view.node_changed(node("n"), deleted=True)
    assert view.snapshot([], now=0.0).nodes.usable.tolist() == [True]
    assert (cpu_of(view, demand(cpu="1")), view.snapshot([demand(cpu="1")], now=0.0).jobs[0].held) == (
        {"late": 9000},
        {0: 1},
    )
    view.node_changed(node("late"), deleted=True)
    view.node_changed(node("late", uid="another"))
    assert cpu_of(view, demand(cpu="1")) == {"late": 9000}


@pytest.mark.parametrize(
    ("waiting", "pending"),
    [
        (pod(), True), (pod(schedulingGates=[{"name": "wait"}]), False), (pod(schedulingGates=[]), True),
        (pod(going=True), False), (pod(schedulerName="other"), True), (pod(status={"phase": "Failed"}), False),
        (trainer(), False), (trainer(of="v"), True), (trainer(owner="v"), True),
        (pod("j-pserver-0", role="pserver"), False), (pod("web", role="pserver"), True),
        (pod("j-master-x", role="pserver"), True), (pod("j-pserver-0", role="pserver", namespace="other"), True),
        (pod("j-pserver-0", role="cook"), True),
    ],
)  # fmt: skip
def test_the_pending_pods(waiting, pending):
    assert (pending_of(seen(waiting), demand()) != []) is pending


def test_the_fields_of_a_pending_pod():
    view = seen(pod(priority=7, preemptionPolicy="Never", status={"nominatedNodeName": "n"}), pod("w2", cpu="2"))
    first, second = view.snapshot([], now=0.0).pending
    assert (first.uid, first.name, first.priority, first.node, first.preempts) == (
        "uid-web",
        "default/web",
        7,
        0,
        False,
    )
    assert (second.priority, second.node, second.preempts) == (0, -1, True)
    view.node_changed(node(), deleted=True)
    assert view.snapshot([], now=0.0).pending[0].node == -1


def test_trainers_that_are_held():
    view = seen(
        trainer(0, at="n"),
        trainer(1, at="m"),
        trainer(2, at="m"),
        trainer(3, at="m", going=True),
        trainer(4),
        nodes="nm",
    )
    shot = view.snapshot([demand()], now=0.0)
    assert shot.jobs[0].held == {0: 1, 1: 2}
    view.pod_changed(trainer(1, at="m", phase="Failed"), now=0.0)
    assert view.snapshot([demand()], now=0.0).jobs[0].held == {0: 1, 1: 1}
    assert shot.jobs[0].held == {0: 1, 1: 2}, "a snapshot is immutable"


def test_other_pods_of_a_job_that_have_no_node_yet():
    fixed = [(pod(cpu="3"), 3, "pserver"), (pod(cpu="1"), 1, "master")]
    servers = [pod(f"j-pserver-{at}", role="pserver") for at in range(3)]
    view = seen(*servers, pod("j-master-x", role="master", at="n"))
    assert [count for _, count in view.snapshot([demand(fixed=fixed)], now=0.0).jobs[0].fixed] == [3]
    view.pod_changed(pod("j-pserver-0", role="pserver", at="n"), now=0.0)
    view.pod_changed(pod("j-pserver-1", role="pserver", at="gone"), now=0.0)
    view.pod_changed(pod("j-master-x", role="master", at="n", going=True), now=0.0)
    view.pod_changed(pod("k-pserver-7", role="pserver", at="n"), now=0.0)
    assert [count for _, count in view.snapshot([demand(fixed=fixed)], now=0.0).jobs[0].fixed] == [2, 1]


def test_how_long_the_scheduler_refuses_a_trainer():
    view = ClusterState()
    view.pod_changed(trainer(0), now=1.0)
    assert view.snapshot([demand()], now=9.0).jobs[0].unschedulable == 0
    view.pod_changed(trainer(0, refused=True), now=10.0)
    view.pod_changed(trainer(1, refused=True), now=12.0)
    view.pod_changed(trainer(0, refused=True), now=14.0)
    assert view.snapshot([demand()], now=15.0).jobs[0].unschedulable == 5
    view.pod_changed(trainer(0, at="n", refused=True), now=16.0)
    assert view.snapshot([demand()], now=17.0).jobs[0].unschedulable == 5
    view.pod_changed(trainer(1), now=18.0)
    view.pod_changed(trainer(1, refused=True), now=20.0)
    assert view.snapshot([demand()], now=21.0).jobs[0].unschedulable == 1
    view.pod_changed(trainer(1), now=22.0, deleted=True)
    assert view.snapshot([demand()], now=23.0).jobs[0].unschedulable == 0


def test_repeated_and_late_events():
    versions = [("n", 3), ("n", 3), ("n", 5), ("", 4)]
    view = seen(*(pod(at=at, revision=each) for at, each in versions), nodes=[node(revision=5)])
    view.node_changed(node(revision=4, cpu="1"))
    assert (cpu_of(view), pending_of(view)) == ({"n": 9000}, [])
    view.pod_changed(pod(at="n", revision=6), now=0.0, deleted=True)
    view.pod_changed(pod(at="n", revision=6), now=0.0, deleted=True)
    view.pod_changed(pod(at="n", revision=5), now=0.0)
    assert cpu_of(view) == {"n": 10_000}
    view.node_changed(node(revision=7), deleted=True)
    view.node_changed(node(revision=6))
    assert cpu_of(view) == {}


def test_what_kubelets_write_all_the_time_is_no_news():
    view = ClusterState()
    heartbeat = node(revision=2)
    heartbeat["status"]["conditions"].append({"type": "MemoryPressure", "status": "False", "lastHeartbeatTime": "t"})
    assert [view.node_changed(each) for each in (node(revision=1), heartbeat)] == [True, False]
    assert view.node_changed(node(revision=3, cordoned=True))
    life = [pod(phase="Pending"), pod(at="n", phase="Pending"), pod(at="n"), pod(at="n", status={"podIP": "10.1.1.1"})]
    assert [view.pod_changed(each, now=0.0) for each in life] == [True, True, False, False]
    assert view.pod_changed(pod(at="n", going=True), now=0.0)
    assert [view.pod_changed(pod(at="n"), now=0.0, deleted=True) for _ in range(2)] == [True, False]
    assert [view.node_changed(node(), deleted=True) for _ in range(2)] == [True, False]


def test_a_pod_that_was_replaced_by_another_of_its_name():
    view = seen(trainer(uid="old", at="n", revision=5), trainer(uid="new", at="n", revision=7))
    assert view.snapshot([demand()], now=0.0).jobs[0].held == {0: 1}
    view.pod_changed(trainer(uid="old", at="n", revision=6), now=0.0)
    view.pod_changed(trainer(uid="older", at="n", revision=3), now=0.0)
    view.pod_changed(trainer(uid="old", at="n", revision=8), now=0.0, deleted=True)
    assert view.snapshot([demand()], now=0.0).jobs[0].held == {0: 1}
    view.pod_changed(trainer(uid="new", at="n", revision=9), now=0.0, deleted=True)
    assert view.snapshot([demand()], now=0.0).jobs[0].held == {}


def test_a_node_that_was_replaced_by_another_of_its_name():
    view = seen(pod(at="n"), nodes=[node(uid="old", revision=1), node(uid="new", revision=3, cpu="5")])
    view.node_changed(node(uid="old", revision=2), deleted=True)
    assert cpu_of(view) == {"n": 4000}


def test_objects_missing_in_a_listing_are_removed():
    view = seen(pod(at="n", revision=3), pod("w2", at="n", revision=9), nodes=[node(revision=3), node("m", revision=9)])
    view.forget_missing("Pod", [], revision=5)
    view.forget_missing("Node", [], revision=5)
    assert cpu_of(view) == {"m": 10_000}
    view.node_changed(node(revision=3))
    assert cpu_of(view) == {"m": 10_000, "n": 9000}
    view.forget_missing("Pod", {"uid-web"})
    view.forget_missing("Node", {"n"})
    assert cpu_of(view) == {"n": 10_000}


def test_room_of_resources_that_are_added_later():
    view = seen(pod(at="n", cpu={"gpu": "1"}), pod("w2", cpu={"disk": "3"}))
    view.node_changed(node("m", cpu={"gpu": "4", "pods": "9"}))
    shot = view.snapshot([], now=0.0)
    assert shot.resources == ("cpu", "memory", "pods", "gpu", "disk")
    assert shot.nodes.room.tolist() == [[10_000, 2**33, 109, -1, 0], [0, 0, 9, 4, 0]]
    assert shot.shapes.request.tolist() == [[0, 0, 1, 0, 3]]


def test_a_resource_is_counted_again_when_a_node_offers_it():
    view = seen(*(pod(f"w{at}", at="n", cpu={f"r{at:03}": "1"}) for at in range(100)), pod("x", cpu={"r099": "2"}))
    assert len(view.snapshot([], now=0.0).resources) < 80
    view.node_changed(node("n", cpu={"r099": "4"}))
    shot = view.snapshot([], now=0.0)
    column = shot.resources.index("r099")
    assert (shot.nodes.room[0, [column, 2]].tolist(), shot.shapes.request[0, column]) == ([3, -100], 2)


def test_unreadable_values_are_reported():
    view = seen(pod(at="n", cpu="much"), nodes=[node(cpu="x")])
    view.snapshot([demand(cpu="-1")], now=0.0)
    assert set(view.problems) == {"Node n", "Pod default/web", "TrainingJob default/j"}
    assert "much" in view.problems["Pod default/web"][0]
    view.snapshot([demand(uid="next", cpu="y")], now=0.0)
    assert "'y'" in view.problems["TrainingJob default/j"][0]
    view.node_changed(node())
    view.pod_changed(pod(at="n"), now=0.0)
    view.snapshot([], now=0.0)
    assert view.problems == {}


def test_pods_of_too_many_shapes_wait(monkeypatch):
    monkeypatch.setattr(module, "_MOST_PENDING_SHAPES", 2)
    view = seen(*(pod(f"w{at}", cpu=str(at), priority=at % 3) for at in range(1, 7)), pod("again", cpu="2"))
    assert pending_of(view) == ["default/again", "default/w2", "default/w5"]
    assert len(view.snapshot([], now=0.0).shapes.request) == 2


def test_shapes_that_are_equal_are_one_and_unused_ones_go():
    view = seen(*(pod(f"w{at}", cpu=str(1 + at // 2)) for at in range(10)))
    assert [each.shape for each in view.snapshot([], now=0.0).pending] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    for at in range(6):
        view.pod_changed(pod(f"w{at}"), now=0.0, deleted=True)
    shot = view.snapshot([demand()], now=0.0, spare=[(pod(cpu="4"), 3)])
    assert [each.shape for each in shot.pending] == [3, 3, 4, 4]
    assert (shot.jobs[0].shape, shot.spare) == (1, ((3, 3),)), "two CPUs are still known"
    for at in range(6, 10):
        view.pod_changed(pod(f"w{at}"), now=0.0, deleted=True)
    assert view.snapshot([demand()], now=0.0).shapes.request.tolist() == [[2000, 0, 1]]


class Model:
    """Hold all manifests and compute every answer from them afresh."""

    def __init__(self):
        self.nodes, self.pods, self.dead, self.since = {}, {}, set(), {}

    def node(self, made, *, deleted=False):
        name, uid, revision = (
            made["metadata"]["name"],
            made["metadata"]["uid"],
            int(made["metadata"]["resourceVersion"]),
        )
        known = self.nodes.get(name)
        if deleted:
            self.dead.add(uid)
            if known and known["metadata"]["uid"] == uid:
                del self.nodes[name]
        elif uid not in self.dead and (known is None or int(known["metadata"]["resourceVersion"]) <= revision):
            self.nodes[name] = made

    def pod(self, made, now, *, deleted=False):
        uid, revision, name = (
            made["metadata"]["uid"],
            int(made["metadata"]["resourceVersion"]),
            made["metadata"]["name"],
        )
        if deleted:
            self.dead.add(uid)
            self.forget(uid)
            return
        rivals = [
            each for each in self.pods.values() if each["metadata"]["name"] == name or each["metadata"]["uid"] == uid
        ]
        if uid in self.dead or any(int(each["metadata"]["resourceVersion"]) > revision for each in rivals):
            return
        for each in rivals:
            if each["metadata"]["uid"] != uid:
                self.dead.add(each["metadata"]["uid"])
                self.forget(each["metadata"]["uid"])
        self.pods[uid] = made
        if REFUSED in made["status"]["conditions"] and not made["spec"]["nodeName"]:
            self.since.setdefault(uid, now)
        else:
            self.since.pop(uid, None)

    def forget(self, uid):
        self.pods.pop(uid, None)
        self.since.pop(uid, None)

    def job_of(self, each, demands):
        """Return the uid of the demand that a pod belongs to, and the role of the pod."""
        labels = each["metadata"].get("labels") or {"shoal.dev/uid": "", "shoal.dev/role": ""}
        uid, role = labels["shoal.dev/uid"], labels["shoal.dev/role"]
        if uid not in demands:
            return None, ""
        owned = each["metadata"]["ownerReferences"][0]["uid"] == uid
        named = each["metadata"]["name"].startswith(f"{demands[uid].name}-{role}-")
        return (uid, role) if (owned if role == "trainer" else named) else (None, "")

    def answer(self, demands, now):
        demands = {each.uid: each for each in demands}
        room = {name: Counter(allocatable_of(each)) for name, each in self.nodes.items()}
        leaving = {name: Counter() for name in self.nodes}
        held, firm, bound, pending, refused = Counter(), Counter(), Counter(), {}, dict.fromkeys(demands, 0.0)
        for uid, each in self.pods.items():
            of, role = self.job_of(each, demands)
            at, going = each["spec"]["nodeName"], "deletionTimestamp" in each["metadata"]
            if each["status"]["phase"] in {"Succeeded", "Failed"} or (at and at not in self.nodes):
                continue
            if going and at:
                leaving[at].update(request_of(each))
            elif at and role == "trainer":
                held[of, at] += 1
                lowest = demands[of].priority if demands[of].surplus is None else demands[of].surplus
                firm[of, at] += each["spec"]["priority"] > lowest
                # The planner counts a running trainer with the request of a trainer created now.
                room[at].subtract(request_of(each))
                room[at].update(request_of(demands[of].trainer))
            elif at:
                room[at].subtract(request_of(each))
                bound[of, role] += 1
            elif role == "trainer" and not going and uid in self.since:
                refused[of] = max(refused[of], now - self.since[uid])
            elif of is None and not going and not each["spec"].get("schedulingGates"):
                pending[uid] = self.meaning(each), each["spec"]["priority"], each["status"]["nominatedNodeName"]
        for name, each in self.nodes.items():
            unread = set()
            allocatable_of(each, unread=unread)
            for resource in unread:
                there = [(request_of(demands[of].trainer), count) for (of, at), count in held.items() if at == name]
                room[name][resource] = sum(asked.get(resource, 0) * count for asked, count in there)
        return {
            "room": {name: plain(each) for name, each in room.items()},
            "leaving": {name: plain(each) for name, each in leaving.items()},
            "usable": {name for name, each in self.nodes.items() if usable(each)},
            "pending": {uid: (*rest, at if at in self.nodes else None) for uid, (*rest, at) in pending.items()},
            "jobs": {
                uid: (self.meaning(each.trainer), {at: (count, firm[of, at]) for (of, at), count in held.items() if of == uid}, refused[uid],
                      [(self.meaning(made), count - bound[uid, role]) for made, count, role in each.fixed if count > bound[uid, role]])
                for uid, each in demands.items()
            },
        }  # fmt: skip

    def meaning(self, made):
        """Return what a shape means: its request, and the nodes that it may use."""
        let = {name for name, each in self.nodes.items() if eligible(constraints_of(made), node_info(each))}
        return plain(request_of(made)), let


def plain(amounts):
    return {name: value for name, value in amounts.items() if value}


def read(shot):
    """Convert a snapshot into the model's form."""
    nodes, shapes = shot.nodes, shot.shapes
    assert all(each.flags.c_contiguous for each in (nodes.room, nodes.leaving, shapes.request))

    def amounts(row):
        return plain(dict(zip(shot.resources, row.tolist(), strict=True)))

    def shape(index):
        let = shapes.fits[index][nodes.group]
        return amounts(shapes.request[index]), {name for name, fits in zip(nodes.names, let, strict=True) if fits}

    return {
        "room": {name: amounts(nodes.room[at]) for at, name in enumerate(nodes.names)},
        "leaving": {name: amounts(nodes.leaving[at]) for at, name in enumerate(nodes.names)},
        "usable": {name for name, yes in zip(nodes.names, nodes.usable, strict=True) if yes},
        "pending": {each.uid: (shape(each.shape), each.priority, (*nodes.names, None)[each.node]) for each in shot.pending},
        "jobs": {
            each.uid: (shape(each.shape), {nodes.names[at]: (count, each.firm.get(at, 0)) for at, count in each.held.items()}, each.unschedulable,
                       [(shape(of), count) for of, count in each.fixed])
            for each in shot.jobs
        },
    }  # fmt: skip


maybe = st.sampled_from([False, False, False, True])
zones = st.sampled_from([{}, {"zone": "a"}, {"zone": "b"}])
nodes = st.fixed_dictionaries({
    "name": st.sampled_from("nmo"), "uid": st.sampled_from(["", "", "another"]),
    "cpu": st.sampled_from(["4", "3500m", "1Ki", {}, {"gpu": "2"}, "4 CPUs", {"gpu": "-1", "cpu": "4"}]), "labels": zones,
    "taints": st.sampled_from([(), ({"key": "k", "effect": "NoSchedule"},)]), "ready": st.sampled_from(["True", "True", "False"]),
    "cordoned": maybe, "going": maybe,
})  # fmt: skip
who = st.sampled_from([
    ("web-0", {}), ("web-1", {}), ("j-trainer-0", {"role": "trainer"}), ("j-trainer-1", {"role": "trainer"}),
    ("k-trainer-0", {"role": "trainer", "of": "v"}), ("x", {"role": "trainer", "owner": "v"}), ("j-pserver-0", {"role": "pserver"}),
    ("k-pserver-0", {"role": "pserver"}), ("j-master-0", {"role": "master"}),
])  # fmt: skip
pods = st.fixed_dictionaries({
    "who": who, "life": st.integers(0, 1), "at": st.sampled_from(["", "n", "m", "o", "gone"]),
    "cpu": st.sampled_from(["1", "250m", "1E", {"gpu": "1"}, {}]), "phase": st.sampled_from(["Running", "Running", "Succeeded"]),
    "going": maybe, "refused": st.booleans(), "priority": st.sampled_from([0, 5]), "nodeSelector": zones,
    "tolerations": st.sampled_from([[], [{"operator": "Exists"}]]), "schedulingGates": st.sampled_from([[], [], [{"name": "g"}]]),
    "status": st.sampled_from([{"nominatedNodeName": each} for each in ("", "n", "gone")]),
})  # fmt: skip
events = st.one_of(
    st.tuples(st.just("node"), nodes, maybe), st.tuples(st.just("pod"), pods, maybe), st.tuples(st.just("pod"), pods, st.just(False)),
    st.tuples(st.just("again"), st.integers(0, 30)), st.tuples(st.just("listing"), st.sampled_from(["Pod", "Node"]), st.integers(0, 8)),
    st.tuples(st.just("jobs"), st.sampled_from(["", "u", "v", "uv"])),
)  # fmt: skip
DEMANDS = {
    "u": demand(
        "u",
        "j",
        priority=5,
        surplus=0,
        fixed=((pod(cpu="2"), 2, "pserver"), (pod(cpu="1", nodeSelector={"zone": "a"}), 1, "master")),
    ),
    "v": demand("v", "k", cpu={"gpu": "1"}),
}


class Both:
    """Apply each event both to the cluster state and to the model."""

    def __init__(self):
        self.view, self.model, self.events, self.demands = ClusterState(), Model(), [], "uv"

    def step(self, now, kind, *what):
        if kind == "jobs":
            self.demands = what[0]
        elif kind == "node":
            self.event("node", node(**what[0], revision=now), now=now, deleted=what[1])
        elif kind == "pod":
            made = dict(what[0])
            (name, rest), life = made.pop("who"), made.pop("life")
            self.event("pod", pod(name, uid=f"{name}/{life}", revision=now, **rest, **made), now=now, deleted=what[1])
        elif kind == "again" and what[0] < len(self.events):
            self.event(*self.events[what[0]][:2], now=now, deleted=self.events[what[0]][2])
        elif kind == "listing":
            self.relist(*what)

    def event(self, kind, made, *, now, deleted):
        self.events.append((kind, made, deleted))
        rest = {"now": float(now)} if kind == "pod" else {}
        demands = [DEMANDS[each] for each in self.demands]
        before = self.model.answer(demands, float(now))
        news = getattr(self.view, f"{kind}_changed")(made, deleted=deleted, **rest)
        getattr(self.model, kind)(made, deleted=deleted, **rest)
        assert news or self.model.answer(demands, float(now)) == before, "a plan would be another one"

    def relist(self, kind, lost):
        there = self.model.pods if kind == "Pod" else self.model.nodes
        for each in sorted(there)[lost : lost + 1]:
            self.model.forget(each) if kind == "Pod" else there.pop(each)
        self.view.forget_missing(kind, list(there))


@examples(150)
@given(st.lists(events, max_size=25))
def test_the_state_equals_that_of_all_manifests(events):
    both, before = Both(), None
    for now, event in enumerate(events, 1):
        both.step(now, *event)
        demands = [DEMANDS[each] for each in both.demands]
        shot = both.view.snapshot(demands, now=float(now))
        assert read(shot) == both.model.answer(demands, float(now))
        if before is not None:
            assert read(before[0]) == before[1], "nothing changes in what was handed out"
        before = shot, read(shot)
    both.view.forget_missing("Pod", [])
    assert not both.view._pods | both.view._bound | both.view._unowned | both.view._job_pods | both.view._placed
    both.view.forget_missing("Node", [])
    assert not np.any(both.view.snapshot([], now=99.0).nodes.room)
