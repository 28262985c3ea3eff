"""A job's run policy and its events on a real control plane."""

from __future__ import annotations

import signal
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from tests.operator import kubelet

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

SECOND = timedelta(seconds=1)


def started(job, **spec):
    job.apply(**spec)
    job.at_work([0, 1])
    job.state("Running")


def fails(
    job, index: int, *, second: int, code: int = 1, reason: str = "Error", message: str = "Traceback\nOSError: no"
):
    """Let the script of one trainer fail and its container be restarted in place.

    The operator distinguishes failures by whole seconds, so a test numbers its failures and each is later than the one before.
    """
    pod = f"{job.name}-trainer-{index}"
    now = datetime.now(UTC).replace(microsecond=0)
    kubelet.ended(job.world, pod, code, at=now + second * SECOND, reason=reason, message=message)


def failures(job, count: int) -> None:
    job.until(lambda: job.status().get("failures") == count, f"{count} failures")


def event_counts(job) -> Counter:
    """Count the occurrences of each event of the job."""
    found = [each for each in job.world.list("Event") if each["regarding"].get("name") == job.name]
    mine = [each for each in found if each.get("reportingController") == "shoal.dev/operator"]
    return Counter({(each["reason"], each["note"]): (each.get("series") or {"count": 1})["count"] for each in mine})


def test_a_script_that_fails_again_and_again_ends_the_job_whoever_counts(world):
    """The failure count is kept in the status, so it survives an operator that is killed."""
    job = world.job("fails")
    started(job, runPolicy={"backoffLimit": 2})
    fails(job, 0, second=1)
    failures(job, 1)
    fails(job, 1, second=2)
    failures(job, 2)
    # The operator creates an event after it has written the status; an event that it had not created before it was killed is lost.
    job.until(lambda: [reason for reason, _ in event_counts(job).elements()].count("ScriptFailed") == 2, "two events")
    world.end(signal.SIGKILL)
    world.start()
    job.scale(3)
    job.at_work([0, 1, 2])
    assert (job.status()["failures"], job.status()["state"]) == (2, "Running"), "what is counted is not counted again"
    fails(job, 0, second=3, message="Traceback\nValueError: the label is missing")
    job.wait("Failed")
    failed = job.condition("Failed")
    assert failed["reason"] == "BackoffLimitExceeded"
    for message in ("failed 3 times in a row", "runPolicy.backoffLimit: 2", "ValueError: the label is missing"):
        assert message in failed["message"]
    job.nobody()
    line = f"{job.name}-trainer-0: the script failed (exit code 1: ValueError: the label is missing)"
    job.until(lambda: event_counts(job)["ScriptFailed", line] == 1, "the event")
    notes = [reason for reason, _ in event_counts(job).elements()]
    assert notes.count("ScriptFailed") == 3, "one for each, though two operators looked"
    assert notes.count("BackoffLimitExceeded") == 1


def test_the_pod_of_a_failed_script_is_kept_with_its_logs(shared, job):
    """The pod of a failed script waits for its restart: the operator lets the kubelet end it and does not delete it."""
    started(job, runPolicy={"backoffLimit": 0})
    pod = f"{job.name}-trainer-0"
    kubelet.ended(
        shared, pod, 3, at=datetime.now(UTC), message="KeyError: 'label'",
        now={"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
    )  # fmt: skip
    job.wait("Failed")
    assert "KeyError: 'label'" in job.condition("Failed")["message"]

    def stopped() -> bool:
        found = shared.api.get("Pod", pod, shared.namespace)
        return found["spec"].get("activeDeadlineSeconds") == 1 and "deletionTimestamp" not in found["metadata"]

    job.until(stopped, "its end")
    over = {"phase": "Failed", "reason": "DeadlineExceeded", "message": "Pod was active on the node longer than 1 s"}
    shared.api.patch("Pod", pod, shared.namespace, {"status": over}, status=True)
    job.nobody_but_trainers()
    assert pod in {each["metadata"]["name"] for each in job.all_pods("trainer")}


def test_an_init_container_that_fails_again_and_again_ends_the_job(shared, job):
    """An init container runs the user's program, and no script starts without it, so its failures count."""
    job.apply(
        runPolicy={"backoffLimit": 0},
        trainer={"minReplicas": 1, "template": {"metadata": kubelet.STAYS_PENDING, "spec": {
            "initContainers": [{"name": "fetch", "image": "fetch:1", "command": ["fetch"]}]}}},
    )  # fmt: skip
    job.until(lambda: job.pods("trainer", ready=False), "its pod")
    kubelet.init_ended(shared, f"{job.name}-trainer-0", "fetch", 4, message="no such bucket")
    job.wait("Failed")
    failed = job.condition("Failed")
    assert failed["reason"] == "BackoffLimitExceeded"
    message = f"the init container fetch of {job.name}-trainer-0 failed once in a row (runPolicy.backoffLimit: 0)"
    assert failed["message"].startswith(message)
    assert "no such bucket" in failed["message"]
    job.has_event("ScriptFailed", "the init container fetch failed (exit code 4: no such bucket)")


def test_a_pod_that_its_kubelet_ends_is_no_failure_of_the_script(shared, job):
    """A pod that the kubelet evicts or ends over its template's deadline counts no failure, whatever the exit code is."""
    started(job, runPolicy={"backoffLimit": 0})
    pod = f"{job.name}-trainer-1"
    before = shared.api.get("Pod", pod, shared.namespace)["metadata"]["uid"]
    kubelet.evicted(shared, pod, code=1)
    job.until(lambda: before not in job.pod_uids("trainer"), "another one")
    job.at_work([0, 1])
    job.state("Running")
    assert job.status().get("failures") is None


def test_failures_of_the_infrastructure_do_not_count(shared, job):
    started(job, runPolicy={"backoffLimit": 0})
    innocent = [(137, "Error"), (143, "Error"), (139, "Error"), (134, "Error"), (137, "OOMKilled"), (1, "OOMKilled")]
    for second, (code, reason) in enumerate(innocent):
        fails(job, second % 2, second=second, code=code, reason=reason)
        # Each failure is observed before the next one replaces it: the pod is Ready again in a later status of the job.
        seen(job)
    assert (job.status().get("failures"), job.status()["state"]) == (None, "Running")
    fails(job, 0, second=10, code=3)
    job.wait("Failed")
    assert "the script failed once in a row (runPolicy.backoffLimit: 0)" in job.condition("Failed")["message"]
    assert job.status()["failures"] == 1


def seen(job) -> None:
    """Wait until the operator has observed everything that has happened so far."""
    generation = job.found["metadata"]["generation"]
    limit = job.found["spec"]["runPolicy"].get("ttlSecondsAfterFinished", 10_000)
    job.patch({"runPolicy": {"ttlSecondsAfterFinished": limit + 1}})
    job.until(lambda: job.status().get("observedGeneration", 0) > generation, "a look")


def test_the_deadline_s_clock_stops_while_a_job_is_suspended(shared, job):
    started(job, runPolicy={"activeDeadlineSeconds": 100_000})
    assert job.status()["activeSince"]
    job.patch({"suspend": True})
    job.state("Suspended")
    stands = job.status()["activeSeconds"]
    assert "activeSince" not in job.status()
    job.patch({"suspend": False})
    job.at_work([0, 1])
    job.until(lambda: job.status().get("activeSince"), "its clock")
    assert job.status()["activeSeconds"] == stands
    job.patch({"runPolicy": {"activeDeadlineSeconds": 1}})
    job.wait("Failed")
    failed = job.condition("Failed")
    assert (failed["reason"], failed["message"]) == (
        "DeadlineExceeded",
        "runPolicy.activeDeadlineSeconds: 1 s have passed",
    )
    job.nobody()
    assert "activeSince" not in job.status()


@pytest.mark.parametrize("end", ["Complete", "Failed"])
def test_a_job_that_has_ended_is_removed_in_time_with_all_that_it_was(shared, job, end):
    started(job)
    job.end(end)
    job.wait(end)
    assert job.all_pods("trainer"), "it and its trainers' logs are kept without a time to live"
    job.patch({"runPolicy": {"ttlSecondsAfterFinished": 0}})
    shared.kubectl("wait", "--for=delete", f"tj/{job.name}", "--timeout=60s")
    job.nothing()


def test_each_event_of_a_job_is_written_once(shared, job):
    started(job, parameterServer=shared.claims())
    job.scale(4)
    job.at_work([0, 1, 2, 3])
    job.patch({"suspend": True})
    job.state("Suspended")
    job.patch({"suspend": False})
    job.at_work([0, 1, 2, 3])
    job.state("Running")
    job.end()
    job.wait("Complete")
    job.until(lambda: any(reason == "Complete" for reason, _ in event_counts(job)), "the last event")
    wanted = {
        ("Scaled", "scaled 2 -> 4: pinned by spec.trainer.replicas"),
        ("Suspended", "the snapshots are written and all pods are deleted"),
        ("Resumed", "the job resumes from its snapshots"),
        ("Complete", "9 of 9 samples counted; lost 0, twice 0"),
    }
    # A server's claim is new, so the scheduler may at first not place its pod.
    life = Counter({key: count for key, count in event_counts(job).items() if key[0] != "Unschedulable"})
    assert wanted <= life.keys()
    assert sum(reason == "Started" for reason, _ in life) == 1
    assert set(life.values()) == {1}, life
    assert len(life) == len(wanted) + 1, "no warning was written"


def test_what_changes_to_and_fro_is_one_event(shared, job):
    started(job)
    for _ in range(3):
        waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no"}}
        kubelet.ended(shared, f"{job.name}-trainer-0", 137, at=datetime.now(UTC), now=waiting)
        job.has_condition("Running", "False", "ImagePullFailed")
        kubelet.runs(shared, f"{job.name}-trainer-0")
        job.has_condition("Running", "True", "TrainersReady")
    life = [reason for reason, _ in event_counts(job)]
    assert life.count("ImagePullFailed") == 1
