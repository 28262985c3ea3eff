"""Conditions report problems in a job's pods, and a deleted job leaves only its user's objects."""

from __future__ import annotations

import contextlib

import pytest

from tests.cluster.control_plane import KubectlError
from tests.node.jobs import template
from tests.node.test_faults import CLAIM

pytestmark = [pytest.mark.cluster, pytest.mark.node, pytest.mark.timeout(180)]


def test_a_missing_image_is_reported(world):
    never = {role: {"template": template(name, imagePullPolicy="Never")} for role, name in
             (("trainer", "trainer"), ("parameterServer", "pserver"), ("master", "master"))}  # fmt: skip
    never["parameterServer"]["emptyDir"] = {}
    world.apply("nowhere", **world.counting() | never | {"image": "shoal.test/nowhere:1"})
    world.until(lambda: world.condition("nowhere", "Running").get("reason") == "ImagePullFailed", "the word of it")
    assert "ErrImageNeverPull" in world.condition("nowhere", "Running")["message"]


def test_deleted_while_it_runs_nothing_is_left_but_the_users_claim(world):
    world.pace(0.2)
    world.claim("model")
    world.volume()
    output = {"path": "m.safetensors", "volumeClaimName": "model"}
    spec = world.counting(epochs=30, output=output, parameterServer={"volumeClaimSpec": CLAIM})
    spec["trainer"] |= {"minReplicas": 1}
    world.apply("gone", **spec)
    world.progresses("gone", trainers=[0])
    assert len(world.get("pvc")["items"]) == 2
    kinds = "pods,services,endpointslices,statefulsets,deployments,replicasets,secrets,configmaps,serviceaccounts,pdb"

    def left():
        return [name for each in world.get(f"{kinds},pvc")["items"] if "gone" in (name := each["metadata"]["name"])]

    assert len(left()) > 10
    world.kubectl("delete", "tj/gone")
    world.until(lambda: not left(), "everything to go")
    assert [each["metadata"]["name"] for each in world.get("pvc")["items"]] == ["model"]


def test_an_unwritable_output_is_reported_before_anything_is_trained(world):
    world.pace(0.2)
    world.apply("unwritable", **world.counting(epochs=30, output={"path": "/etc/models/m.safetensors"}))
    words = "spec.output.path /etc/models/m.safetensors: the model cannot be written there: user 65532 may not write"

    def message():
        if any(words in each["message"] for each in world.status("unwritable").get("conditions", [])):
            return True
        return "unwritable-trainer-0" in world.pods("unwritable") and words in logs()

    def logs() -> str:
        with contextlib.suppress(KubectlError):  # it has not started
            return world.kubectl("logs", "unwritable-trainer-0")
        return ""

    world.until(message, "the trainer's words")
    reported = world.reported_state("unwritable")
    assert reported is None or not reported.samples
