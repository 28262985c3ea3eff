"""Malicious and oversized jobs and pods on a real control plane."""

from __future__ import annotations

import json

import pytest

from shoal.store import JobKeys, Put, Store
from tests.cluster.control_plane import KubectlError
from tests.operator.world import manifest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]


@pytest.fixture
def restricted(shared):
    """Forbid what PodSecurity `restricted` forbids in the namespace, until the test calls the returned function."""
    level = "pod-security.kubernetes.io/enforce"
    shared.cluster.kubectl("label", "namespace", shared.namespace, f"{level}=restricted")
    yield lambda: shared.cluster.kubectl("label", "namespace", shared.namespace, f"{level}-")
    shared.cluster.kubectl("label", "namespace", shared.namespace, f"{level}-")


HOST = {"template": {"spec": {"hostNetwork": True, "hostPID": True, "hostIPC": True}}}


@pytest.mark.parametrize("role", ["trainer", "parameterServer", "master"])
def test_the_host_s_namespaces_are_the_namespace_s_policy_s_business(shared, job, restricted, role):
    sections = {"trainer": {"minReplicas": 2}, "parameterServer": {"replicas": 2, "emptyDir": {}}, "master": {}}
    sections[role] |= HOST
    job.apply(**sections)
    job.has_condition("Scheduled", "False", "PodsRefused", 'violates PodSecurity "restricted:latest": host namespaces')
    assert "hostNetwork=true, hostPID=true, hostIPC=true" in job.condition("Scheduled")["message"]
    assert job.short("Accepted") == ("True", "Valid")
    restricted()
    job.at_work([0, 1])
    short = {"trainer": "trainer", "parameterServer": "pserver", "master": "master"}[role]
    assert all(pod["spec"]["hostPID"] for pod in job.all_pods(short))


def test_an_ordinary_job_is_at_work_where_pods_are_restricted(shared, job, restricted):
    job.apply()
    job.at_work([0, 1])


COLLIDING = {
    "shoal.dev/job": "other", "shoal.dev/uid": "forged", "shoal.dev/role": "master", "shoal.dev/index": "7",
    "shoal.dev/template": "x", "app.kubernetes.io/component": "mine", "app.kubernetes.io/part-of": "mine",
    "pod-template-hash": "x", "controller-revision-hash": "x", "statefulset.kubernetes.io/pod-name": "x",
    "apps.kubernetes.io/pod-index": "9", "team": "air",
}  # fmt: skip


def test_labels_that_collide_with_ours_give_way(shared, job):
    template = {"template": {"metadata": {"labels": COLLIDING}}}
    sections = {
        "trainer": {"minReplicas": 2, **template},
        "parameterServer": {"replicas": 2, "emptyDir": {}, **template},
    }
    shared.apply(manifest(job.name, {"labels": COLLIDING}, **sections, master=template))
    job.at_work([0, 1])
    job.state("Running")
    for role, count in (("trainer", 2), ("pserver", 2), ("master", 1)):
        pods = job.all_pods(role)
        assert len(pods) == count
        labels = [pod["metadata"]["labels"] for pod in pods]
        assert {each["shoal.dev/uid"] for each in labels} == {job.uid}
        assert {each["team"] for each in labels} == {"air"}
    job.scale(2)
    job.patch({"suspend": True})
    job.state("Suspended")


def forged(job, name: str, role: str, *owners: dict, **labels: str) -> dict:
    known = {"shoal.dev/job": job.name, "shoal.dev/uid": job.uid, "shoal.dev/role": role} | labels
    spec = {"containers": [{"name": role, "image": "evil"}]}
    return {"metadata": {"name": name, "labels": known, "ownerReferences": list(owners)}, "spec": spec}


def owner(shared, kind: str, name: str) -> dict:
    found = shared.api.get(kind, name, shared.namespace)
    return {"apiVersion": found["apiVersion"], "kind": kind, "name": name, "uid": found["metadata"]["uid"],
            "controller": True}  # fmt: skip


def test_pods_with_forged_labels_and_owners_belong_to_no_job(shared, job):
    victim = shared.job(f"{job.name}-victim")
    victim.apply(parameterServer=shared.claims()), job.apply()
    victim.at_work([0, 1]), job.at_work([0, 1])
    strangers = owner(shared, "StatefulSet", f"{job.name}-pserver")
    index = {"shoal.dev/index": "0"}
    for made in (
        forged(victim, "evil-1", "trainer", **index),
        forged(victim, "evil-2", "trainer", owner(shared, "TrainingJob", job.name), **index),
        forged(victim, "evil-3", "pserver", strangers),
        forged(victim, f"{victim.name}-pserver-7", "pserver", strangers),
        forged(victim, "evil-4", "master"),
    ):
        shared.api.create("Pod", shared.namespace, made)
    victim.scale(3)
    wanted = [f"{victim.name}-trainer-{index}" for index in range(3)]
    victim.until(lambda: [name for name in victim.pods("trainer") if "evil" not in name] == wanted, "its trainers")
    assert victim.status()["servers"]["text"] == "2/2"
    victim.patch({"suspend": True})
    victim.state("Suspended")
    # The StatefulSet adopts a pod with a name of its scheme, and that pod is one too many.
    left = {pod["metadata"]["name"] for pod in victim.all_pods()} - {f"{victim.name}-pserver-7"}
    assert left == {f"evil-{number}" for number in (1, 2, 3, 4)}, "they are left alone"
    victim.delete()
    shared.kubectl("delete", "pod", *left, "--grace-period=0", "--force")


# --- Very large jobs ---


def large(name: str, size: int) -> dict:
    env = [{"name": f"A{number}", "value": "x" * (size // 10)} for number in range(10)]
    return manifest(name, env=env)


def test_a_megabyte_of_environment(shared, job):
    """A server-side apply stores an environment that is too large for `kubectl apply`; etcd's request limit is the next bound."""
    with pytest.raises(KubectlError, match=r"metadata\.annotations: Too long: may not be more than 262144 bytes"):
        shared.apply(large(job.name, 1_000_000))
    with pytest.raises(KubectlError, match="etcdserver: request is too large"):
        shared.apply(large(job.name, 1_600_000), how="create")
    shared.kubectl("apply", "--server-side", "-f", "-", input=json.dumps(large(job.name, 1_500_000)))
    job.at_work([0, 1])
    job.state("Running")


def test_records_written_by_a_tenant_are_reported_on_its_own_job(shared, job):
    other = shared.job("bystander")
    job.apply()
    other.apply()
    job.at_work([0, 1])
    other.state("Running")
    keys = JobKeys(shared.namespace, job.name, job.uid)
    with Store.connect(shared.etcd.endpoint, prefix=keys.prefix) as tenant:
        tenant.transact(
            [], [Put(keys.at("mine"), b"x" * 100_000), Put(keys.outcome, b'{"state": "Complete", "account": 7}')]
        )
        tenant.transact([], [Put(keys.at(f"more/{number}"), b"") for number in range(100)])
    job.has_event("ForeignKey", "is none of Shoal's", "nothing reads it")
    job.has_event("ForeignRecord", "etcd's outcome of this job is no record")
    job.scale(3)
    job.at_work([0, 1, 2])
    assert job.status()["state"] == "Running"
    assert not {"ForeignKey", "ForeignRecord"} & {reason for reason, _ in other.events()}
    other.delete()
