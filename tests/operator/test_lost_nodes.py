"""Lost nodes: the operator replaces their pods as soon as the cluster reports the loss, and waits for no pod of a lost node."""

from __future__ import annotations

import pytest

from shoal.api import from_mapping

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]


SOON = [{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}]
"""Servers that hold their snapshots in their pods stay on a silent node for as long as their own tolerations say."""


def on(shared, node: str) -> dict:
    """Return a template of pods that prefer this node and are evicted soon after it has become unreachable."""
    wanted = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    term = {"weight": 100, "preference": {"matchExpressions": [wanted]}}
    affinity = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [term]}}
    return {"template": {"spec": {"affinity": affinity, "tolerations": SOON}}}


@pytest.fixture
def doomed(shared):
    """Add a node that the test will lose."""
    (node,) = shared.cluster.add_nodes(1, prefix="doomed", cpu="64")
    shared.nodes.append(node)
    return node


def where(job, role: str = "") -> dict[str, str]:
    """Return uid -> node of each pod."""
    return {pod["metadata"]["uid"]: pod["spec"].get("nodeName", "") for pod in job.all_pods(role)}


def test_all_that_a_job_had_on_a_lost_node_is_replaced(shared, job, doomed):
    here = on(shared, doomed)
    bounds = {"minReplicas": 2, "maxReplicas": 4}
    job.apply(trainer={**bounds, **here}, parameterServer={"replicas": 2, "emptyDir": {}, **here}, master=here)
    job.at_work([0, 1])
    job.state("Running")
    before = where(job)
    assert list(before.values()).count(doomed) == 5
    shared.cluster.lose_node(doomed)
    job.until(lambda: not before.keys() & where(job).keys(), "ghosts to go")
    job.at_work([0, 1])
    assert doomed not in where(job).values()
    job.has_condition("Running", "True", "TrainersReady")
    ghosts = [f"{job.name}-trainer-0", f"{job.name}-trainer-1", f"{job.name}-pserver-0", f"{job.name}-pserver-1"]
    job.has_event(
        "Lost",
        f"{job.name}-master-",
        *(f"{name} lost: its node is deleted or unreachable; it is replaced" for name in ghosts),
    )
    lost = {note for reason, note in job.events() if reason == "Lost"}
    assert sum(f"{job.name}-master-" in note for note in lost) == 1
    assert len(lost) == 5


@pytest.mark.parametrize("role", ["trainer", "parameterServer", "master"])
def test_objects_of_other_namespaces_are_unchanged(shared, job, doomed, role):
    sections = {
        "trainer": {"minReplicas": 2, "maxReplicas": 4},
        "parameterServer": {"replicas": 2, "emptyDir": {}},
        "master": {},
    }
    sections[role] |= on(shared, doomed)
    # The pods of the other roles avoid the node.
    away = {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": [doomed]}
    required = {"nodeSelectorTerms": [{"matchExpressions": [away]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
    for other in sections.keys() - {role}:
        sections[other] |= {"template": {"spec": {"affinity": affinity}}}
    job.apply(**sections)
    job.at_work([0, 1])
    before = where(job)
    ghosts = {uid for uid, node in before.items() if node == doomed}
    assert len(ghosts) == (1 if role == "master" else 2)
    shared.cluster.lose_node(doomed)
    job.until(lambda: not ghosts & where(job).keys(), "ghosts to go")
    job.at_work([0, 1])
    assert before.keys() - ghosts <= where(job).keys()


def test_a_job_is_suspended_though_its_node_was_lost(shared, job, doomed):
    """A job with a lost node is suspended although no kubelet reports that its pods have ended."""
    here = on(shared, doomed)
    job.apply(trainer={"minReplicas": 2, **here}, parameterServer={"replicas": 2, "emptyDir": {}, **here}, master=here)
    job.at_work([0, 1])
    shared.cluster.lose_node(doomed)
    job.patch({"suspend": True})
    job.state("Suspended")
    assert job.all_pods("trainer") == []
    assert from_mapping(job.found).spec.suspend
    job.patch({"suspend": False})
    job.at_work([0, 1])
