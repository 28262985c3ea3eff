"""The pods of a job: what a template may set, what it may not, and what stays the same."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.api import load
from shoal.master.__main__ import settings_of
from shoal.operator.resources import workloads
from shoal.operator.resources.pods import master_pod, pod_hash, server_pod, trainer_pod, trainer_pods
from shoal.operator.resources.template_merge import merged
from tests.operator.jobs import IDENTITY, TEMPLATE, everything, job


def container(pod, name=None):
    found = pod["spec"]["containers"]
    return found[0] if name is None else next(each for each in found if each["name"] == name)


def environment(pod) -> dict[str, str]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container(pod)["env"]}


PODS = {
    "trainer": lambda of: trainer_pod(of, IDENTITY, 1),
    "pserver": lambda of: server_pod(of, IDENTITY),
    "master": lambda of: master_pod(of, IDENTITY),
}


@pytest.mark.parametrize("role", PODS)
@pytest.mark.parametrize("make", [job, everything])
def test_a_pod_is_restricted_and_knows_its_job(role, make):
    pod = PODS[role](make())
    spec = pod["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for each in spec["containers"]:
        assert each["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    own = container(pod)
    assert own["name"] == role
    assert own["command"][:3] == ["shoal", "exec", "--"]
    assert environment(pod)["SHOAL_MASTER"] == "tcp://flights-master:7700"
    assert environment(pod)["SHOAL_ROLE"] == role
    assert "SHOAL_TOKEN_FILE" in environment(pod)
    assert pod["metadata"]["labels"]["shoal.dev/role"] == role, "a user's label of this name gives way"
    assert "team" not in pod["metadata"]["labels"], "a label of the job's in a pod would restart it when it changes"
    mounts = [mount["name"] for mount in own["volumeMounts"]]
    assert len(mounts) == len(set(mounts))
    known = {volume["name"] for volume in spec["volumes"]} | {"shoal-snapshots"}
    assert set(mounts) <= known
    assert not [text for text in json.dumps(pod).split('"') if text.startswith("token:")]


@pytest.mark.parametrize("make", [job, everything])
@pytest.mark.parametrize("classes", [IDENTITY.classes, None])
def test_trainers_made_together_are_as_if_made_one_by_one(make, classes):
    identity = dataclasses.replace(IDENTITY, classes=classes)
    indices = [3, 0, 1, 2, 17]
    assert list(trainer_pods(make(), identity, indices)) == [trainer_pod(make(), identity, index) for index in indices]
    assert list(trainer_pods(make(), identity, [])) == []


def test_a_template_is_laid_upon_the_frame_and_what_we_govern_upon_that():
    pod = trainer_pod(job(trainer={"template": TEMPLATE}), IDENTITY, 0)
    assert pod["metadata"]["labels"]["tier"] == "gold"
    assert pod["metadata"]["annotations"] == {"note": "x"}
    spec = pod["spec"]
    assert spec["nodeSelector"] == {"pool": "spot"}
    assert spec["terminationGracePeriodSeconds"] == 90
    assert spec["securityContext"] | {"runAsUser": 1000, "runAsNonRoot": True} == spec["securityContext"]
    assert [each["name"] for each in spec["containers"]] == ["trainer", "log"]
    assert container(pod)["args"] == ["--fast"]
    assert environment(pod)["A"] == "b"
    assert environment(pod)["SHOAL_UID"] == IDENTITY.uid, "a template cannot forge it"
    assert {mount["mountPath"] for mount in container(pod)["volumeMounts"]} >= {"/data", "/dev/shm", "/shoal/token"}
    assert "data" in {volume["name"] for volume in spec["volumes"]}


def test_the_short_form_of_a_template():
    pod = trainer_pod(everything(), IDENTITY, 0)
    own = container(pod)
    assert own["command"] == ["shoal", "exec", "--", "python", "train.py", "--lr", "0.1"]
    assert own["resources"] == {"requests": {"cpu": "1500m", "memory": "1Gi"}, "limits": {"memory": "2Gi"}}
    found = environment(pod)
    assert (found["OMP_NUM_THREADS"], found["SHOAL_SEED"], found["SHOAL_INDEX"]) == ("1", "7", "0")
    assert (found["LEVEL"], found["KEY"]) == ("debug", {"secretKeyRef": {"name": "s", "key": "k"}})
    assert own["envFrom"] == [{"configMapRef": {"name": "more", "optional": True}}]
    shared = next(volume for volume in pod["spec"]["volumes"] if volume["name"] == "shoal-shm")
    assert shared["emptyDir"] == {"medium": "Memory", "sizeLimit": "256Mi"}
    assert "/shoal/output" in {mount["mountPath"] for mount in own["volumeMounts"]}
    assert workloads.manifest_for_pods(everything())["spec"]["output"]["path"] == "/shoal/output/model.safetensors"


def test_the_first_indices_have_the_class_of_the_minimum():
    classes = [trainer_pod(job(), IDENTITY, index)["spec"]["priorityClassName"] for index in range(4)]
    assert classes == ["shoal-minimum", "shoal-minimum", "shoal-surplus", "shoal-surplus"]


def test_versions_of_a_pod_are_distinguished_whatever_its_index():
    pods = [trainer_pod(everything(), IDENTITY, index) for index in range(3)]
    assert len({pod_hash(pod) for pod in pods}) == 1
    assert {pod["metadata"]["labels"]["shoal.dev/template"] for pod in pods} == {pod_hash(pods[0])}
    wider = job(trainer={"minReplicas": 1, "maxReplicas": 9})
    assert pod_hash(trainer_pod(wider, IDENTITY, 0)) == pod_hash(trainer_pod(job(), IDENTITY, 0)), (
        "a change of the bounds rolls no trainer"
    )
    other = job(env=[{"name": "A", "value": "b"}])
    assert pod_hash(trainer_pod(other, IDENTITY, 0)) != pod_hash(trainer_pod(job(), IDENTITY, 0))


def test_the_master_reads_the_manifest_that_it_is_given(tmp_path):
    config = next(each for each in workloads.permanent(everything(), IDENTITY) if each["kind"] == "ConfigMap")
    (tmp_path / "job.json").write_text(config["data"]["job.json"])
    read = load(tmp_path / "job.json")
    assert (read.metadata.name, read.spec.epochs, read.servers) == ("flights", 3, 3)


def test_the_master_has_the_step_timeout_and_restarts_for_no_other_field_of_the_run_policy(tmp_path):
    made = workloads.manifest_for_pods(job(runPolicy={"stepTimeout": "90s", "backoffLimit": 9}))
    (tmp_path / "job.json").write_text(json.dumps(made))
    settings = settings_of(load(tmp_path / "job.json"), lease_seconds=10.0)
    assert settings.step_seconds == 90.0
    assert made["spec"]["runPolicy"] == {"stepTimeout": "90s"}
    assert workloads.manifest_for_pods(job(runPolicy={"backoffLimit": 9})) == workloads.manifest_for_pods(job())


@pytest.mark.parametrize("role", ["pserver", "master"])
def test_a_kubelet_probes_the_port_of_the_process(role):
    own = container(PODS[role](job()))
    where = own["command"][own["command"].index("--probe") + 1]
    asked = own["livenessProbe"]
    assert where.endswith(f":{asked['httpGet']['port']}")
    assert (asked["periodSeconds"], asked["timeoutSeconds"], asked["failureThreshold"]) == (10, 5, 3)
    assert asked["terminationGracePeriodSeconds"] < PODS[role](job())["spec"]["terminationGracePeriodSeconds"]


def test_servers_have_a_startup_probe_and_a_trainer_has_none():
    for role in ("pserver", "master"):
        started = container(PODS[role](job()))["startupProbe"]
        assert started["periodSeconds"] * started["failureThreshold"] >= 300
    assert not {key for key in container(trainer_pod(job(), IDENTITY, 0)) if key.endswith("Probe")}


def test_a_template_overrides_probes():
    def templated(**probes):
        template = {"spec": {"containers": [{"name": "pserver", **probes}]}}
        return container(server_pod(job(parameterServer={"template": template}), IDENTITY))

    ours = templated()["livenessProbe"]
    assert templated(livenessProbe={"periodSeconds": 60})["livenessProbe"] == ours | {"periodSeconds": 60}
    other = templated(livenessProbe={"exec": {"command": ["true"]}})["livenessProbe"]
    assert [key for key in other if key in {"exec", "httpGet"}] == ["exec"], "a probe asks in one way"


def test_everything_belongs_to_the_job():
    of = everything()
    made = [
        *workloads.permanent(of, IDENTITY),
        workloads.master(of, IDENTITY, replicas=1),
        workloads.servers(of, IDENTITY, replicas=3),
    ]
    assert {each["kind"] for each in made} == {
        "ServiceAccount", "ConfigMap", "Service", "PodDisruptionBudget", "Deployment", "StatefulSet",
    }  # fmt: skip
    for each in made:
        assert each["metadata"]["ownerReferences"][0]["uid"] == IDENTITY.uid
        assert each["metadata"]["namespace"] == "default"
        if "template" in each.get("spec", {}):
            labels = each["spec"]["template"]["metadata"]["labels"]
            assert each["spec"]["selector"]["matchLabels"].items() <= labels.items()


# --- Merging ---

plain = st.recursive(st.integers(0, 3) | st.text("ab", max_size=2), lambda below: st.dictionaries(st.sampled_from("xyz"), below, max_size=3), max_leaves=6)  # fmt: skip


@given(plain, plain)
def test_an_overlay_wins_and_the_other_fields_are_kept(base, over):
    found = merged(base, over)
    if not (isinstance(base, dict) and isinstance(over, dict)):
        assert found == over
        return
    assert set(found) == set(base) | set(over)
    for key in found:
        if key not in over:
            assert found[key] == base[key]
        elif key not in base:
            assert found[key] == over[key]
        else:
            assert found[key] == merged(base[key], over[key])


items = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 9)), unique_by=lambda item: item[0], max_size=4)


@given(items, items)
def test_lists_of_known_items_are_merged_by_name(base, over):
    def as_list(pairs):
        return {"env": [{"name": name, "value": value} for name, value in pairs]}

    found = {each["name"]: each["value"] for each in merged(as_list(base), as_list(over))["env"]}
    assert found == dict(base) | dict(over)
    assert [each["name"] for each in merged(as_list(base), as_list(over))["env"]][: len(base)] == [
        name for name, _ in base
    ]


@given(plain)
def test_merging_is_idempotent(one):
    assert merged(one, one) == one
    assert merged(one, {}) == one or not isinstance(one, dict)


def test_trainers_have_the_node_selectors_of_config_and_job():
    identity = replace(IDENTITY, selector=(("pool", "training"), ("zone", "a")))
    assert trainer_pod(job(), identity, 0)["spec"]["nodeSelector"] == {"pool": "training", "zone": "a"}
    own = job(trainer={"minReplicas": 1, "template": TEMPLATE})
    assert trainer_pod(own, identity, 0)["spec"]["nodeSelector"] == {"pool": "spot", "zone": "a"}
    assert "nodeSelector" not in server_pod(job(), identity)["spec"]


@pytest.mark.parametrize("role", PODS)
def test_a_read_only_root_has_a_writable_tmp(role):
    own = {"name": role, "securityContext": {"readOnlyRootFilesystem": True}}
    part = {"trainer": "trainer", "pserver": "parameterServer", "master": "master"}[role]

    def mounts(**more):
        pod = PODS[role](job(**{part: {"template": {"spec": {"containers": [own | more]}}}}))
        known = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        found = [each for each in container(pod)["volumeMounts"] if each["mountPath"].rstrip("/") == "/tmp"]
        return found, known

    found, known = mounts()
    assert found == [{"name": "shoal-tmp", "mountPath": "/tmp"}]
    assert known["shoal-tmp"] == {"name": "shoal-tmp", "emptyDir": {}}
    own_scratch = {"volumeMounts": [{"name": "shoal-shm", "mountPath": "/tmp/"}]}
    found, known = mounts(**own_scratch)
    assert ([each["name"] for each in found], "shoal-tmp" in known) == (["shoal-shm"], False)
    assert not [each for each in container(PODS[role](job()))["volumeMounts"] if each["mountPath"] == "/tmp"]


def test_a_null_in_a_template_removes_what_shoal_sets_of_itself():
    """A null removes a default of Shoal's, as OpenShift needs: its namespaces have their own user ids and refuse a fixed one."""
    context = {"runAsUser": None, "fsGroup": None}
    of = job(trainer={"minReplicas": 1, "template": {"spec": {"securityContext": context}}})
    assert trainer_pod(of, IDENTITY, 0)["spec"]["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
