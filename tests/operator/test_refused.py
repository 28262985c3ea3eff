"""Jobs that the API server or the operator refuses: the field and the fix are reported, and nothing is created."""

from __future__ import annotations

import json
import re

import pytest

from tests.api.manifests import BAD, LATE, STRICTER, without
from tests.cluster.control_plane import KubectlError
from tests.operator.world import manifest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]


def renamed(found, name: str):
    """Rename a job, so that many can be applied at once; a test of names keeps its own."""
    if found["metadata"]["name"] != "flights":
        return found
    return {**found, "metadata": {**found["metadata"], "name": name}}


def test_every_bad_manifest_is_refused_by_kubectl_apply(shared, tmp_path):
    """One kubectl applies all manifests, each from its own file, and reports for each what is invalid."""
    before = len(shared.list("TrainingJob"))
    table = BAD + STRICTER
    for number, (_, found, _) in enumerate(table):
        (tmp_path / f"{number:03}.json").write_text(json.dumps(renamed(found, f"bad-{number}")))
    with pytest.raises(KubectlError) as error:
        shared.kubectl("apply", "-f", str(tmp_path))
    said = dict(re.findall(r'/([0-9]{3})\.json": (.*)', str(error.value)))
    assert len(said) == len(table)
    for number, (name, _, words) in enumerate(table):
        assert all(word in said[f"{number:03}"] for word in words), (name, said[f"{number:03}"][:2000])
    assert len(shared.list("TrainingJob")) == before


def test_what_no_schema_sees_is_not_accepted_and_runs_when_it_is_mended(shared):
    late = [(shared.job(f"late-{number}"), found, words) for number, (_, found, words) in enumerate(LATE)]
    shared.apply(*(renamed(found, job.name) for job, found, _ in late))
    for job, _, (field, *fix) in late:
        job.has_condition("Accepted", "False", "InvalidSpec", field)
        assert all(words in job.condition("Accepted")["message"] for words in fix)
        job.state("Pending")
    assert [job.made() for job, _, _ in late] == [[]] * len(late)
    job, found, _ = late[0]
    mended = without(renamed(found, job.name), "spec", "trainer", "template")
    mended["spec"]["parameterServer"] = shared.claims(1)
    shared.apply(mended)
    job.at_work([0], servers=1)
    job.has_condition("Accepted", "True", "Valid")


TAKEN = [
    ("Service", "master", {"spec": {"ports": [{"port": 1}]}}),
    ("Service", "pserver", {"spec": {"ports": [{"port": 1}]}}),
    ("ConfigMap", "job", {}),
    ("ServiceAccount", "shoal", {}),
    ("PodDisruptionBudget", "trainer", {"spec": {"minAvailable": 1, "selector": {"matchLabels": {"a": "b"}}}}),
    ("StatefulSet", "pserver", None),
    ("Deployment", "master", None),
]


def controller(kind: str) -> dict:
    container = {"name": "a", "image": "a"}
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container]}}
    spec = {"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": template}
    return {"spec": spec | ({"serviceName": "a"} if kind == "StatefulSet" else {})}


def test_a_name_of_another_owner_is_not_taken_over(shared):
    jobs = [shared.job(f"taken-{number}") for number in range(len(TAKEN))]
    others = [
        shared.api.create(kind, shared.namespace, {"metadata": {"name": f"{job.name}-{tail}"}, **(more or {})}
                          if more is not None else {"metadata": {"name": f"{job.name}-{tail}"}, **controller(kind)})
        for job, (kind, tail, more) in zip(jobs, TAKEN, strict=True)
    ]  # fmt: skip
    shared.apply(*(manifest(job.name) for job in jobs))
    for job, (kind, tail, _) in zip(jobs, TAKEN, strict=True):
        words = f"{kind} {job.name}-{tail} exists and is not of this job; remove it, or give the job another name"
        job.has_condition("Accepted", "False", "NameTaken", words)
        assert job.made() == []
    for other, (kind, _, _) in zip(others, TAKEN, strict=True):
        now = shared.api.get(kind, other["metadata"]["name"], shared.namespace)
        assert now["metadata"]["uid"] == other["metadata"]["uid"]
        assert "shoal.dev/uid" not in now["metadata"].get("labels", {})
    jobs[0].has_event("NameTaken", f"Service {jobs[0].name}-master exists and is not of this job; "
                  "remove it, or give the job another name")  # fmt: skip


def test_a_trainer_s_name_of_a_foreign_pod(shared, job):
    name = f"{job.name}-trainer-1"
    spec = {"containers": [{"name": "a", "image": "a"}]}
    other = shared.api.create("Pod", shared.namespace, {"metadata": {"name": name}, "spec": spec})
    job.apply()
    job.has_condition(
        "Scheduled", "False", "PodsRefused", f"NameTaken: Pod {name} exists and is not of this job; remove it"
    )
    assert shared.api.get("Pod", name, shared.namespace)["metadata"]["uid"] == other["metadata"]["uid"]
    shared.kubectl("delete", "pod", name, "--grace-period=0", "--force")
    job.at_work([0, 1])


HELD = "shoal.dev/held"


@pytest.mark.parametrize("kind", ["Pod", "PersistentVolumeClaim"])
def test_a_job_waits_for_what_is_left_of_one_of_the_same_name(shared, job, kind):
    claim = {
        "storageClassName": shared.namespace,
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Mi"}},
    }
    servers = (
        {"replicas": 2, "volumeClaimSpec": claim}
        if kind == "PersistentVolumeClaim"
        else {"replicas": 2, "emptyDir": {}}
    )
    shared.cluster.add_volumes(4, storage_class=shared.namespace)
    job.apply(parameterServer=servers)
    job.at_work([0, 1])
    chosen = [each["metadata"]["name"] for each in shared.list(kind) if job.name in each["metadata"]["name"]]
    left = next(name for name in sorted(chosen) if "pserver" in name)
    hold(shared, kind, left, [HELD])
    job.delete()
    job.apply(parameterServer=servers)
    job.has_condition("Accepted", "False", "PredecessorLeaving", f"waits for {kind} {left} to be deleted")
    job.state("Pending")
    assert [each for each in job.made() if each != f"{kind} {left}"] == []
    hold(shared, kind, left, None)
    job.at_work([0, 1])
    job.has_condition("Accepted", "True", "Valid")


def hold(shared, kind: str, name: str, finalizers: list[str] | None) -> None:
    """Block an object's deletion with a finalizer, or unblock it."""
    shared.kubectl("patch", kind, name, "--type=merge", "-p", json.dumps({"metadata": {"finalizers": finalizers}}))
