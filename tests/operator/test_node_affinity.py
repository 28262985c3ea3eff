"""A pod's preferred node: what it adds to the pod's affinity, and what it leaves unchanged."""

from __future__ import annotations

from dataclasses import replace

from shoal.operator.cache.cache import Cache
from shoal.operator.core.reconcile import Apply, CreatePod, Observed, PlannedNodes, reconcile
from shoal.operator.core.scaling import TrainerPod
from shoal.operator.resources import workloads
from shoal.operator.resources.manifests import applied_hash
from shoal.operator.resources.node_affinity import NODES, preferred_node_of, with_preferred_nodes
from shoal.operator.resources.pods import pod_hash, server_pod, trainer_pod
from tests.operator.jobs import IDENTITY, job
from tests.operator.looks import MASTERS, servers

WHOLE = Observed(
    servers=servers(), masters=MASTERS, trainers=tuple(TrainerPod(index=n, uid=str(n), node="c") for n in range(2))
)
"""A job that has the pods that it needs: more trainers may come."""
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def demands(pod) -> list[str]:
    terms = pod["spec"].get("affinity", {}).get("nodeAffinity", {}).get(PREFERRED, [])
    return [value for term in terms for field in term["preference"]["matchFields"] for value in field["values"]]


def made(actions, kind):
    return [each.manifest for each in actions if isinstance(each, Apply) and each.manifest["kind"] == kind]


def test_a_preference_is_one_term_for_each_node():
    pod = with_preferred_nodes(trainer_pod(job(), IDENTITY, 0), ["b", "a", "b"])
    assert demands(pod) == ["b", "a"]
    assert with_preferred_nodes(pod, []) == pod


def test_a_template_keeps_its_affinity_and_its_preference_is_first():
    required = {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": []}}, "podAffinity": {"x": 1}}
    pod = {"spec": {"affinity": required}}
    found = with_preferred_nodes(pod, ["a"])
    assert found["spec"]["affinity"]["podAffinity"] == {"x": 1}
    assert REQUIRED in found["spec"]["affinity"]["nodeAffinity"]
    assert demands(found) == ["a"]
    assert pod == {"spec": {"affinity": required}}, "it is not changed"
    own = {"spec": {"affinity": {"nodeAffinity": {PREFERRED: [{"weight": 1, "preference": {"matchFields": []}}]}}}}
    assert with_preferred_nodes(own, ["a"]) == own


def test_new_trainers_get_their_planned_nodes_and_the_same_template():
    of, plain = job(), trainer_pod(job(), IDENTITY, 0)
    places = PlannedNodes(kept={}, added={"a": 2, "b": 1})
    actions = reconcile(of, IDENTITY, WHOLE, trainers=6, places=places)
    pods = [each.manifest for each in actions if isinstance(each, CreatePod)]
    assert [demands(pod) for pod in pods] == [["a"], ["a"], ["b"], []]
    assert {pod["metadata"]["labels"]["shoal.dev/template"] for pod in pods} == {pod_hash(plain)}


def stored(of, pods, *, at=()):
    """What the cache holds of trainers that the operator has created, as the API server returns them."""
    store = Cache()
    metadata = {"name": of.metadata.name, "namespace": of.metadata.namespace, "uid": IDENTITY.uid}
    store.job_changed({"metadata": metadata})
    for number, pod in enumerate(pods):
        there = {"nodeName": at[number]} if number < len(at) and at[number] else {}
        answer = {
            **pod,
            "metadata": {**pod["metadata"], "uid": f"pod-{number}", "resourceVersion": "7"},
            "spec": {**pod["spec"], **there},
            "status": {"phase": "Running" if there else "Pending"},
        }
        store.object_changed(answer)
    return store.observed(IDENTITY.uid, template=pods[0]["metadata"]["labels"]["shoal.dev/template"])


def test_a_trainer_that_is_nowhere_yet_is_counted_where_the_plan_had_it():
    of = job()
    first = [
        each.manifest
        for each in reconcile(
            of,
            IDENTITY,
            Observed(servers=servers(), masters=MASTERS),
            trainers=2,
            places=PlannedNodes(kept={}, added={"a": 1, "b": 1}),
        )
        if isinstance(each, CreatePod)
    ]
    assert [demands(pod) for pod in first] == [["a"], ["b"]]
    seen = stored(of, first, at=("", "b"))
    assert [(pod.node, pod.preferred_node) for pod in seen.trainers] == [("", "a"), ("b", "")]
    seen = replace(WHOLE, trainers=seen.trainers)
    actions = reconcile(of, IDENTITY, seen, trainers=4, places=PlannedNodes(kept={"b": 1}, added={"a": 2, "b": 1}))
    pods = [each.manifest for each in actions if isinstance(each, CreatePod)]
    assert [demands(pod) for pod in pods] == [["a"], ["b"]]


def test_the_preferred_node_of_a_trainer_is_the_one_it_names():
    plain = trainer_pod(job(), IDENTITY, 0)
    first = with_preferred_nodes(plain, ["a"])
    assert (preferred_node_of(first), preferred_node_of(plain), preferred_node_of(with_preferred_nodes(first, []))) == (
        "a",
        "",
        "a",
    )
    assert preferred_node_of(with_preferred_nodes(plain, ["a", "b"])) == ""


def test_servers_and_master_keep_their_first_preferred_nodes():
    of = job()
    first = reconcile(of, IDENTITY, Observed(), trainers=2, places=PlannedNodes(servers=("a", "b"), master=("c",)))
    (servers,), (master,) = made(first, "StatefulSet"), made(first, "Deployment")
    assert servers["metadata"]["annotations"] == {NODES: "a,b"}
    assert master["metadata"]["annotations"][NODES] == "c"
    template = servers["spec"]["template"]
    assert (demands(template), demands(master["spec"]["template"])) == (["a", "b"], ["c"])
    assert template["spec"]["topologySpreadConstraints"][0]["whenUnsatisfiable"] == "ScheduleAnyway"
    applied = {(each["kind"], each["metadata"]["name"]): applied_hash(each) for each in (servers, master)}
    seen = Observed(applied=applied, preferred={"StatefulSet": ("a", "b"), "Deployment": ("c",)})
    for places in (PlannedNodes(servers=("d",), master=("e",)), PlannedNodes(), None):
        actions = reconcile(of, IDENTITY, seen, trainers=2, places=places)
        assert not made(actions, "StatefulSet") + made(actions, "Deployment")


def test_servers_are_created_when_their_room_is_free_and_kept_when_it_is_not():
    of, waiting = job(), PlannedNodes(servers=("a",), servers_wait=True)
    first = reconcile(of, IDENTITY, Observed(), trainers=2, places=waiting)
    assert (len(made(first, "Deployment")), made(first, "StatefulSet")) == (1, [])
    (servers,) = made(
        reconcile(of, IDENTITY, Observed(), trainers=2, places=PlannedNodes(servers=("a",))), "StatefulSet"
    )
    seen = Observed(
        applied={("StatefulSet", servers["metadata"]["name"]): "another hash"}, preferred={"StatefulSet": ("a",)}
    )
    assert made(reconcile(of, IDENTITY, seen, trainers=2, places=waiting), "StatefulSet") == [servers]


def test_without_a_plan_nothing_is_wished_for():
    of = job()
    plain = workloads.servers(of, IDENTITY, replicas=2)
    assert plain["spec"]["template"] == server_pod(of, IDENTITY)
    for each in (plain, workloads.master(of, IDENTITY, replicas=1)):
        assert NODES not in each["metadata"].get("annotations", {})
        assert "affinity" not in each["spec"]["template"]["spec"]


def test_trainers_are_created_last_with_a_plan_and_without():
    """Trainers are created last, as a quota may have no room for all of them, and later actions would not be carried out."""
    for places in (None, PlannedNodes(kept={})):
        actions = reconcile(job(), IDENTITY, Observed(), trainers=2, places=places)
        made = [each.manifest["kind"] for each in actions if isinstance(each, Apply | CreatePod)]
        assert made[-4:] == ["StatefulSet", "Deployment", "Pod", "Pod"]
        assert made.count("Service") == 2
