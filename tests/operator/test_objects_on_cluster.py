"""The real API server accepts all objects of a job, under PodSecurity `restricted`."""

from __future__ import annotations

import json

import pytest

from shoal.operator.resources import workloads
from shoal.operator.resources.pods import trainer_pod
from tests.operator.jobs import IDENTITY, everything, job
from tests.operator.world import PRIORITIES

pytestmark = pytest.mark.cluster


def ownerless(manifest):
    """Remove the owner, which does not exist: the garbage collector would delete the object."""
    metadata = {key: value for key, value in manifest["metadata"].items() if key != "ownerReferences"}
    return manifest | {"metadata": metadata}


def manifests(of):
    yield from workloads.permanent(of, IDENTITY)
    yield workloads.master(of, IDENTITY, replicas=1)
    yield workloads.servers(of, IDENTITY, replicas=2)
    yield trainer_pod(of, IDENTITY, 0)


@pytest.fixture
def restricted(control_plane, namespace):
    for level in ("enforce", "warn"):
        control_plane.kubectl("label", "namespace", namespace, f"pod-security.kubernetes.io/{level}=restricted")
    control_plane.kubectl("apply", "-f", str(PRIORITIES))
    return namespace


@pytest.mark.parametrize("make", [job, everything])
def test_every_object_is_taken_as_it_is(control_plane, restricted, make):
    account = next(each for each in manifests(make(restricted)) if each["kind"] == "ServiceAccount")
    control_plane.kubectl("apply", "-f", "-", input=json.dumps(ownerless(account)))
    listed = {"apiVersion": "v1", "kind": "List", "items": list(manifests(make(restricted)))}
    reported = control_plane.kubectl(
        "apply", "--server-side", "--validate=strict", "--dry-run=server", "-f", "-", input=json.dumps(listed)
    )
    assert reported.count("serverside-applied") == len(listed["items"])
    assert "violate" not in reported


def test_applied_twice_nothing_changes(control_plane, restricted):
    of = job(restricted)
    listed = json.dumps(
        {"apiVersion": "v1", "kind": "List", "items": [ownerless(each) for each in workloads.permanent(of, IDENTITY)]}
    )

    def versions():
        control_plane.kubectl("apply", "--server-side", "--field-manager=shoal", "-f", "-", input=listed)
        found = control_plane.get("serviceaccounts,services,configmaps,poddisruptionbudgets", "-n", restricted)
        return {
            (each["kind"], each["metadata"]["name"]): each["metadata"]["resourceVersion"] for each in found["items"]
            if each["kind"] != "PodDisruptionBudget"
        }  # fmt: skip

    assert versions() == versions()
