"""The history of a job's size and its logged values, on a real control plane: who asked, and what an operator's restart keeps."""

from __future__ import annotations

import asyncio
import json

import pytest

from shoal.kube import Kube
from shoal.store import ReportedScore
from tests.cluster import binaries
from tests.operator.world import manifest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

APPLY = "kubectl-client-side-apply"
PINNED, AT_LEAST = "pinned by spec.trainer.replicas", "at spec.trainer.minReplicas"


def changes(job) -> list[tuple[int, int, str, str]]:
    """Return the changes. The program kubectl has a longer name in these tests, which is its field manager."""
    name = binaries.path("kubectl").name
    found = job.status().get("history", [])
    return [(each["before"], each["after"], each["cause"], each["by"].replace(name, "kubectl")) for each in found]


def changed(job, *expected) -> None:
    """Wait until the history ends with these changes: before, after, cause, by."""
    try:
        job.until(lambda: changes(job)[-len(expected) :] == list(expected), f"the history {expected}")
    except BaseException:
        print(changes(job), json.dumps(job.found["metadata"].get("managedFields"), indent=1))
        raise


def patch_as(job, manager: str, spec: dict) -> None:
    """Change a job by a merge patch of a client with this field manager, as the SDK does."""

    async def patch():
        async with await Kube.connect(kubeconfig=str(job.world.cluster.kubeconfig), manager=manager) as kube:
            await kube.change("TrainingJob", job.name, {"spec": spec}, namespace=job.world.namespace)

    asyncio.run(patch())


def test_the_history_has_each_change_with_its_cause_and_who_asked(shared, job):
    job.apply()
    job.at_work([0, 1])
    changed(job, (0, 2, AT_LEAST, APPLY))
    job.scale(3)  # the API server does not record who sets a pin by the scale subresource for the first time
    changed(job, (2, 3, PINNED, "scale"))
    patch_as(job, "shoal-sdk", {"trainer": {"replicas": 4}})
    changed(job, (3, 4, PINNED, "shoal-sdk"))
    job.scale(2)
    changed(job, (4, 2, PINNED, "kubectl"))
    job.patch({"suspend": True})
    changed(job, (2, 0, "suspended", "kubectl-patch"))
    job.state("Suspended")
    patch_as(job, "shoal-sdk", {"suspend": False})
    changed(job, (0, 2, "resumed", "shoal-sdk"))
    patch_as(job, "shoal-sdk", {"trainer": {"replicas": None, "minReplicas": 3}})
    changed(job, (2, 3, AT_LEAST, "shoal-sdk"))
    patch_as(job, "shoal-sdk", {"trainer": {"replicas": 4}})
    changed(job, (3, 4, PINNED, "shoal-sdk"))
    patch_as(job, "shoal-sdk", {"trainer": {"replicas": None}})
    changed(job, (4, 3, AT_LEAST, ""))  # nor who only removes a field
    job.at_work([0, 1, 2])
    assert len(changes(job)) == 9
    times = [each["time"] for each in job.status()["history"]]
    assert times == sorted(times)


def test_the_history_is_kept_by_an_operator_that_was_restarted(world):
    job = world.j
    job.apply()
    job.at_work([0, 1])
    patch_as(job, "shoal-sdk", {"trainer": {"replicas": 3}})
    changed(job, (0, 2, AT_LEAST, APPLY), (2, 3, PINNED, "shoal-sdk"))
    before = job.status()["history"]
    world.end()
    job.patch({"trainer": {"replicas": 4}})
    world.start()
    changed(job, (2, 3, PINNED, "shoal-sdk"), (3, 4, PINNED, "kubectl-patch"))
    assert job.status()["history"][: len(before)] == before


# --- Logged values ---


def series(job) -> list[dict]:
    found = job.world.api.get("ConfigMap", f"{job.name}-metrics", job.world.namespace)
    return json.loads(found["data"]["metrics.json"]) if found is not None else []


def test_logged_values_are_kept_over_time_and_by_an_operator_that_was_restarted(world):
    """The values survive a restart of the operator, the last ones are written at the job's end, and all go with the job."""
    job = world.j
    job.apply(epochs=3)
    job.at_work([0, 1])
    world.masters.values[job.uid] = {"loss": 0.5}
    job.until(lambda: series(job), "the first record")
    first = series(job)[0]
    assert (first["epoch"], first["loss"]) == (1, 0.5)
    uid = job.uid
    (owner,) = world.api.get("ConfigMap", "j-metrics", world.namespace)["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("TrainingJob", uid)
    world.end()
    world.masters.values[uid] = {"loss": 0.25}
    world.start()
    job.until(lambda: any(each["loss"] == 0.25 for each in series(job)), "a record of the next operator")
    assert series(job)[0] == first
    world.masters.values[uid] = {"loss": 0.125}
    world.masters.scores[uid] = [ReportedScore(2, {"score": 0.75})]
    job.end()
    job.until(lambda: any(each.get("score") == 0.75 for each in series(job)), "the score at the end")
    job.state("Complete")
    samples = [each["samples"] for each in series(job)]
    assert samples == sorted(samples)
    assert {each["loss"] for each in series(job) if "loss" in each} == {0.5, 0.25, 0.125}
    job.delete()
    job.nothing()
    assert series(job) == []


def test_a_config_map_of_somebody_else_is_left_alone_and_the_job_runs(shared, job):
    name = f"{job.name}-metrics"
    shared.kubectl("create", "configmap", name, "--from-literal=metrics.json=mine")
    shared.apply(manifest(job.name))
    job.at_work([0, 1])
    shared.masters.values[job.uid] = {"loss": 0.5}
    shared.until(lambda: f"{name} exists and is not of this job; remove it" in shared.log(), "the warning")
    job.state("Running")
    job.scale(3)
    job.at_work([0, 1, 2])
    assert shared.cluster.get("configmap", name, "-n", shared.namespace)["data"] == {"metrics.json": "mine"}
    shared.kubectl("delete", "configmap", name)
