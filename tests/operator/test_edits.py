"""Edits of a running job on a real control plane: priorities follow the minimum, and impossible edits are reported."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

MINIMUM, SURPLUS, SERVERS = "shoal-minimum", "shoal-surplus", "shoal-servers"


def classes(job) -> list[str]:
    """Return the priority classes of the trainers, by index."""
    pods = sorted(job.all_pods("trainer"), key=lambda pod: pod["metadata"]["name"])
    return [pod["spec"]["priorityClassName"] for pod in pods]


def test_the_fewest_have_the_higher_priority_and_a_raised_minimum_is_made_true_one_by_one(shared, job):
    job.apply()
    job.scale(4)
    job.at_work([0, 1, 2, 3])
    assert classes(job) == [MINIMUM, MINIMUM, SURPLUS, SURPLUS]
    assert {pod["spec"]["priorityClassName"] for pod in job.all_pods("pserver") + job.all_pods("master")} == {SERVERS}
    first, other = (uids(job, 0, 1), uids(job, 2, 3))
    seen: list[int] = []

    def raised() -> bool:
        seen.append(len(job.pods("trainer")))
        return classes(job) == [MINIMUM] * 4

    job.patch({"trainer": {"minReplicas": 4}})
    job.until(raised, "priorities")
    job.at_work([0, 1, 2, 3])
    assert first == uids(job, 0, 1), "a pod that has it already is kept"
    assert not other & uids(job, 2, 3)
    assert min(seen) >= 3, "one at a time"
    job.patch({"trainer": {"minReplicas": 1}})
    job.until(lambda: job.status()["trainers"]["range"] == "1-4", "the new minimum")
    assert classes(job) == [MINIMUM] * 4, "no pod is restarted only for a lower priority"


def uids(job, *indices: int) -> set[str]:
    names = {f"{job.name}-trainer-{index}" for index in indices}
    return {pod["metadata"]["uid"] for pod in job.all_pods("trainer") if pod["metadata"]["name"] in names}


def test_an_impossible_change_of_the_servers_is_refused_and_the_job_continues(shared, job):
    """A claim's size is fixed with the StatefulSet, which no schema can express, so the job's status refuses the edit."""
    claim = {
        "storageClassName": shared.namespace,
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Mi"}},
    }
    shared.cluster.add_volumes(2, storage_class=shared.namespace)
    job.apply(parameterServer={"replicas": 2, "volumeClaimSpec": claim})
    job.at_work([0, 1])
    before = job.pod_uids()
    job.patch({"parameterServer": {"volumeClaimSpec": {"resources": {"requests": {"storage": "2Mi"}}}}})
    job.has_condition("Accepted", "False", "CannotChange", "spec.parameterServer: StatefulSet")
    assert before == job.pod_uids()
    job.patch({"parameterServer": {"volumeClaimSpec": {"resources": {"requests": {"storage": "1Mi"}}}}})
    job.has_condition("Accepted", "True", "Valid")
    assert before == job.pod_uids()


def test_a_bad_edit_leaves_everybody_at_work_until_it_is_mended(shared, job):
    job.apply()
    job.at_work([0, 1])
    before = job.pod_uids()
    job.apply(trainer={"minReplicas": 2, "maxReplicas": 4, "template": {"spec": {"dnsPolicy": "Sometimes"}}})
    job.has_condition("Accepted", "False", "InvalidTemplate", "a pod made from spec.trainer is refused: spec.dnsPolicy")
    assert before == job.pod_uids()
    job.apply(image="example.org/train:2")
    job.until(
        lambda: {pod["spec"]["containers"][0]["image"] for pod in job.all_pods()} == {"example.org/train:2"}, "it"
    )
    job.at_work([0, 1])


def test_a_label_or_an_annotation_of_the_job_restarts_nothing(shared, job):
    """An edit of labels or annotations restarts nothing; the objects take the label, which shows that the operator synced it."""
    job.apply()
    job.at_work([0, 1])
    before = job.pod_uids()
    revisions = [
        each["status"]["updateRevision"] for each in shared.list("StatefulSet", labels=f"shoal.dev/job={job.name}")
    ]
    shared.kubectl("annotate", f"tj/{job.name}", "note=changed")
    shared.kubectl("label", f"tj/{job.name}", "team=search")
    chosen = f"shoal.dev/job={job.name},team=search"
    job.until(
        lambda: shared.list("StatefulSet", labels=chosen) and shared.list("Deployment", labels=chosen), "its label"
    )
    (servers,) = shared.list("StatefulSet", labels=chosen)
    job.until(
        lambda: (
            shared.list("StatefulSet", labels=chosen)[0]["status"]["observedGeneration"]
            >= servers["metadata"]["generation"]
        ),
        "its controller",
    )
    assert [each["status"]["updateRevision"] for each in shared.list("StatefulSet", labels=chosen)] == revisions
    job.at_work([0, 1])
    assert job.pod_uids() == before
