"""Another client changes objects of a job on a real control plane, and the operator restores each field that Shoal sets."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from shoal.operator.cache.cache import APPLIED
from shoal.operator.core.field_ownership import fields_of, has_fields
from shoal.operator.resources.manifests import JobManifests
from shoal.operator.resources.pods import JobIdentity
from tests.operator.jobs import everything
from tests.operator.jobs import job as a_job

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def get(job, kind: str, name: str) -> dict[str, Any]:
    found = job.world.api.get(kind, f"{job.name}-{name}", job.world.namespace)
    assert found is not None
    return found


def test_a_controller_that_is_scaled_by_hand_is_scaled_back(shared, job):
    job.apply()
    job.at_work([0, 1])
    before = job.pod_uids("pserver")
    shared.kubectl("scale", "deployment", f"{job.name}-master", "--replicas=0")
    job.until(lambda: get(job, "Deployment", "master")["spec"]["replicas"] == 1, "the master's replicas")
    shared.kubectl("scale", "statefulset", f"{job.name}-pserver", "--replicas=3")
    job.until(lambda: get(job, "StatefulSet", "pserver")["spec"]["replicas"] == 2, "the servers' replicas")
    job.at_work([0, 1])
    assert before == job.pod_uids("pserver")


def test_fields_of_other_clients_are_kept(shared, job):
    """The operator keeps annotations that other clients add, and restores only Shoal's fields."""
    job.apply()
    job.at_work([0, 1])
    shared.kubectl("annotate", "deployment", f"{job.name}-master", "seen=yes")
    shared.kubectl("scale", "deployment", f"{job.name}-master", "--replicas=2")
    job.until(lambda: get(job, "Deployment", "master")["spec"]["replicas"] == 1, "the repair")
    assert get(job, "Deployment", "master")["metadata"]["annotations"]["seen"] == "yes"


def test_a_deleted_or_disowned_object_is_recreated(shared, job):
    job.apply()
    job.at_work([0, 1])
    uid = get(job, "Service", "master")["metadata"]["uid"]
    shared.kubectl("delete", "service", f"{job.name}-master")
    job.until(
        lambda: (
            (found := job.world.api.get("Service", f"{job.name}-master", shared.namespace))
            and found["metadata"]["uid"] != uid
        ),
        "another Service",
    )
    patch = {"metadata": {"ownerReferences": None, "labels": {"shoal.dev/role": "nobody"}}}
    shared.kubectl("patch", "service", f"{job.name}-pserver", "--type=merge", "-p", json.dumps(patch))

    def ours() -> bool:
        metadata = get(job, "Service", "pserver")["metadata"]
        return bool(metadata.get("ownerReferences")) and metadata["labels"]["shoal.dev/role"] == "pserver"

    job.until(ours, "its owner and its label")


def test_a_changed_field_is_missing_in_the_record_of_our_fields(shared, namespace):
    """Every field of every object of a job that Shoal sets leaves Shoal's managed fields when another client changes it.

    A field that the API server refuses to change cannot drift. The objects are in a namespace that the operator does not serve.
    """
    kept = {"replicas": 2, "emptyDir": {"sizeLimit": "1Gi"}}
    checked = 0
    for name, made in (("a", everything(namespace)), ("b", a_job(namespace, parameterServer=kept))):
        of = made.model_copy(update={"metadata": made.metadata.model_copy(update={"name": name})})
        owner = shared.api.create("TrainingJob", namespace, {key: of.to_mapping()[key] for key in ("metadata", "spec")})
        identity = JobIdentity(uid=owner["metadata"]["uid"], etcd="https://etcd.shoal-system:2379", guarded=True)
        rendered = JobManifests(of, identity)
        for each in (*rendered.permanent, rendered.servers(of.servers), rendered.master(0)):
            notes = each.content["metadata"].get("annotations", {}) | {APPLIED: each.hash}
            content = {**each.content, "metadata": {**each.content["metadata"], "annotations": notes}}
            there = shared.api.applied(content, "shoal")
            assert has_fields(content, fields_of(there)), f"{each.key}: it is ours as it was applied"
            for path, value in leaves(content):
                after = shared.api.as_if(content, path, altered(value), "somebody")
                if after is not None and at(after, path) != at(there, path):
                    checked += 1
                    assert not has_fields(content, fields_of(after)), f"{each.key}: {path} is not ours any more"
    assert checked > 150


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """List the paths of all scalar values of a manifest, except those that identify the object."""
    if path in {("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace")}:
        return []
    if isinstance(value, dict):
        return [found for key, below in value.items() for found in leaves(below, (*path, key))]
    if isinstance(value, list):
        return [found for number, below in enumerate(value) for found in leaves(below, (*path, number))]
    return [(path, value)]


def at(value: Any, path: Iterable[Any]) -> Any:
    """Return the value at a path, or None where it is absent, as an API server omits some values that are false."""
    for key in path:
        value = value[key] if isinstance(value, list) else value.get(key)
    return value


def altered(value: Any) -> Any:
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else f"{value}x"
