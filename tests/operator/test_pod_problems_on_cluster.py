"""Conditions report problems of a job's pods in the original text, and no longer do so once they are fixed."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from tests.operator import kubelet

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]


def well(job) -> None:
    """Check that the job works and no condition reports a problem."""
    job.at_work([0, 1])
    job.has_condition("Scheduled", "True", "PodsPlaced")
    job.has_condition("Running", "True", "TrainersReady")
    job.until(lambda: not any(job.condition(of).get("message") for of in ("Scheduled", "Running")), "good words")


def test_pods_for_which_no_node_is_large_enough(shared, job):
    job.apply(trainer={"minReplicas": 2, "resources": {"requests": {"cpu": "9000"}}})
    job.has_condition("Scheduled", "False", "Unschedulable", "(and 1 more)")
    message = job.condition("Scheduled")["message"]
    assert message.startswith(f"{job.name}-trainer-0: Unschedulable: 0/")
    assert "Insufficient cpu" in message
    job.state("Pending")
    job.apply(trainer={"minReplicas": 2, "resources": {"requests": {"cpu": "1"}}})
    well(job)


def test_a_new_node_fixes_it_without_an_edit(shared, job):
    template = {"spec": {"nodeSelector": {"pool": "later"}}}
    job.apply(trainer={"minReplicas": 2, "template": template})
    job.has_condition("Scheduled", "False", "Unschedulable", "didn't match Pod's node affinity/selector")
    shared.nodes += shared.cluster.add_nodes(1, labels={"pool": "later"})
    well(job)


QUOTAS = {"trainer": "shoal-minimum", "pserver": "shoal-servers"}
"""Which class a quota leaves no room for; servers and master have the same."""


@pytest.mark.parametrize("role", QUOTAS)
def test_a_quota_without_room(shared, job, role):
    scope = {"scopeName": "PriorityClass", "operator": "In", "values": [QUOTAS[role]]}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "full"},
             "spec": {"hard": {"pods": "0"}, "scopeSelector": {"matchExpressions": [scope]}}}  # fmt: skip
    shared.kubectl("create", "-f", "-", input=json.dumps(quota))
    try:
        shared.until(lambda: "0" in shared.kubectl("get", "quota", "full", "-o", "jsonpath={.status.hard.pods}"), "it")
        job.apply()
        job.has_condition("Scheduled", "False", "QuotaExceeded", "exceeded quota: full, requested: pods=1")
        reported = job.condition("Scheduled")["message"]
        names = {"trainer": ["trainer-0", "trainer-1"], "pserver": ["pserver-0", "pserver-1", "master"]}[role]
        assert any(f'pods "{job.name}-{name}" is forbidden' in reported for name in names), reported
        assert job.pods(role, ready=False) == []
    finally:
        shared.kubectl("delete", "quota", "full")
    well(job)


def test_a_quota_for_some_of_the_trainers_leaves_a_job_at_work(shared, job):
    """A quota with room for only one of three surplus trainers leaves the job at work; all other pods are created."""
    scope = {"scopeName": "PriorityClass", "operator": "In", "values": ["shoal-surplus"]}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "some"},
             "spec": {"hard": {"pods": "1"}, "scopeSelector": {"matchExpressions": [scope]}}}  # fmt: skip
    shared.kubectl("create", "-f", "-", input=json.dumps(quota))
    try:
        shared.until(lambda: "1" in shared.kubectl("get", "quota", "some", "-o", "jsonpath={.status.hard.pods}"), "it")
        job.apply(trainer={"minReplicas": 2, "maxReplicas": 5, "replicas": 5})
        job.state("Running")
        job.until(lambda: sum(each.startswith("Service ") for each in job.made()) == 2, "its Services")
        job.until(lambda: len(job.pods("trainer")) == 3, "the one of the surplus that the quota lets in")
    finally:
        shared.kubectl("delete", "quota", "some")


@pytest.mark.parametrize(
    ("words", "reason"),
    [("ErrImagePull", "ImagePullFailed"), ("ImagePullBackOff", "ImagePullFailed"),
     ("CreateContainerConfigError", "ContainerCannotStart")],
)  # fmt: skip
def test_a_container_that_does_not_start(shared, job, words, reason):
    job.apply(trainer={"minReplicas": 2, "template": {"metadata": kubelet.STAYS_PENDING}})
    job.until(lambda: all(pod["spec"].get("nodeName") for pod in job.all_pods("trainer")), "nodes")
    job.until(lambda: len(job.all_pods("trainer")) == 2, "its trainers")
    job.has_condition("Running", "False", "PodsStarting")
    for index in (0, 1):
        kubelet.waits(shared, f"{job.name}-trainer-{index}", words, 'Back-off pulling image "example.org/train:1"')
    said = f'{job.name}-trainer-0: {words}: Back-off pulling image "example.org/train:1" (and 1 more)'
    job.has_condition("Running", "False", reason, said)
    assert job.short("Scheduled") == ("True", "PodsPlaced")
    job.state("Starting")
    for index in (0, 1):
        kubelet.runs(shared, f"{job.name}-trainer-{index}")
    well(job)


# Without a master, trainers finish what they hold; whether they make progress is unknown.
@pytest.mark.parametrize(("role", "status"), [("trainer", "False"), ("pserver", "False"), ("master", "Unknown")])
def test_a_crash_loop(shared, job, role, status):
    job.apply(runPolicy={"backoffLimit": 100})
    job.at_work([0, 1])
    job.state("Running")
    (pod, *_) = job.pods(role)
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}}
    kubelet.ended(shared, pod, 1, at=datetime.now(UTC), message="Traceback\nValueError: no", now=waiting)
    words = "exit code 1: ValueError: no; back-off 10s restarting failed container"
    job.has_condition("Running", status, "CrashLoop", f"{pod}: CrashLoopBackOff: {words}")
    assert job.short("Accepted") == ("True", "Valid")
    kubelet.runs(shared, pod)
    well(job)


def test_too_little_memory(shared, job):
    job.apply()
    job.at_work([0, 1])
    pod = f"{job.name}-trainer-1"
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
    kubelet.ended(shared, pod, 137, at=datetime.now(UTC), reason="OOMKilled", now=waiting)
    job.has_condition(
        "Running", "False", "OutOfMemory", f"{pod}: OOMKilled: container trainer used more memory than its limit"
    )
    kubelet.runs(shared, pod)
    well(job)


def test_a_failed_mount_is_reported_with_its_name(shared, job):
    """A failed mount is reported with the volume's name; the test creates the kubelet's event, as hollow pods mount nothing."""
    template = {"metadata": kubelet.STAYS_PENDING}
    job.apply(trainer={"minReplicas": 1, "template": template})
    job.until(lambda: any(pod["spec"].get("nodeName") for pod in job.all_pods("trainer")), "its node")
    (pod,) = job.all_pods("trainer")
    about = {
        "kind": "Pod",
        "namespace": shared.namespace,
        "name": pod["metadata"]["name"],
        "uid": pod["metadata"]["uid"],
    }
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    words = 'MountVolume.SetUp failed for volume "data" : secret "bucket" not found'
    event = {"kind": "Event", "metadata": {"name": f"{pod['metadata']['name']}.1"}, "involvedObject": about, "reason": "FailedMount", "type": "Warning",
             "message": words, "firstTimestamp": now, "lastTimestamp": now, "count": 1, "source": {"component": "kubelet"}}  # fmt: skip
    shared.api.create("CoreEvent", shared.namespace, event)
    job.has_condition("Running", "False", "ContainerCannotStart", f"{pod['metadata']['name']}: FailedMount: {words}")
