"""Where the model is kept, and that no use of kubectl loses it, on a real control plane."""

from __future__ import annotations

import json

import pytest

from tests.cluster.control_plane import KubectlError

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]


def claims(job) -> dict[str, str]:
    """Return name -> uid of the claims of the job's servers."""
    found = [each["metadata"] for each in job.world.list("PersistentVolumeClaim")]
    return {each["name"]: each["uid"] for each in found if f"{job.name}-pserver" in each["name"]}


def test_servers_have_claims_by_default(shared, job):
    """Without a default storage class, the job reports that its claim cannot be bound, and which field to set."""
    job.apply(parameterServer={"replicas": 1})
    job.until(lambda: len(claims(job)) == 1, "its claim")
    (claim,) = (each for each in shared.list("PersistentVolumeClaim") if each["metadata"]["name"] in claims(job))
    assert claim["spec"]["resources"]["requests"]["storage"] == "10Gi"
    assert claim["metadata"]["ownerReferences"][0]["uid"] == job.uid
    fix = "the cluster has no default StorageClass; name one in spec.parameterServer.volumeClaimSpec.storageClassName"
    job.has_condition("Scheduled", "False", "Unschedulable", fix)
    assert "emptyDir" in job.condition("Scheduled")["message"]


def test_claims_go_with_the_job_alone(shared, job):
    job.apply(parameterServer=shared.claims())
    job.at_work([0, 1])
    before = claims(job)
    assert len(before) == 2
    shared.kubectl("delete", "statefulset", f"{job.name}-pserver")
    job.until(lambda: not job.world.api.get("StatefulSet", f"{job.name}-pserver", shared.namespace) or True, "it")
    job.at_work([0, 1])
    assert claims(job) == before
    job.patch({"suspend": True})
    job.nobody()
    job.state("Suspended")
    job.has_event("Suspended", "the snapshots are written and all pods are deleted")
    assert claims(job) == before
    job.delete()
    job.nothing()
    job.until(lambda: not claims(job), "its claims to go")


def test_servers_that_store_the_model_are_kept_while_the_job_is_suspended(shared, job):
    job.apply()
    job.at_work([0, 1])
    job.state("Running")
    before = job.pod_uids("pserver")
    job.patch({"suspend": True})
    job.state("Suspended")
    assert "it is lost with a pod or its node" in job.condition("Accepted")["message"]
    kept = "kept, as the model is stored in the servers' pods (spec.parameterServer.emptyDir): 2 parameter servers, 1 master"
    job.has_condition("Suspended", "True", "SuspendRequested", kept)
    job.has_event("Suspended", "all trainers have left", "the model is stored in the servers' pods")
    assert job.pods("trainer", ready=False) == []
    job.patch({"suspend": False})
    job.at_work([0, 1])
    assert job.pod_uids("pserver") == before


def test_a_job_whose_model_was_lost_with_its_servers_restarts_with_an_event(shared, job):
    """A job that lost its model starts again as often as runPolicy.backoffLimit allows; the stand-in reports the loss."""
    job.apply(runPolicy={"backoffLimit": 1})
    job.at_work([0, 1])
    job.state("Running")
    before = job.pod_uids()
    shared.masters.lost.add(job.uid)
    job.until(lambda: not before & job.pod_uids(), "other pods, all of them")
    job.has_event("Restarted", "no server has a good snapshot left", "the job begins again (1 of 1 times")
    job.at_work([0, 1])
    job.state("Running")
    assert job.status()["restarts"] == 1
    shared.masters.lost.add(job.uid)
    job.wait("Failed")
    assert job.condition("Failed")["reason"] == "SnapshotsLost"


def test_a_job_that_is_created_suspended_has_written_no_snapshot(shared, job):
    job.apply(suspend=True)
    job.state("Suspended")
    job.has_event("Suspended", "the job has not started; it has no pods")
    assert job.made() == []


def evicted(shared, pod: str) -> bool:
    """Check whether the API server evicts this pod."""
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": shared.namespace}}
    return shared.api.evicts(shared.namespace, pod, body)


def test_a_drain_spares_servers_that_store_the_model(shared, job):
    job.apply()
    job.at_work([0, 1])
    job.until(
        lambda: (
            (found := shared.api.get("PodDisruptionBudget", f"{job.name}-pserver", shared.namespace))
            and found.get("status", {}).get("expectedPods") == 2
        ),
        "their budget",
    )
    assert not evicted(shared, f"{job.name}-pserver-0")
    job.patch({"runPolicy": {"disruptionBudget": "None"}})
    job.until(
        lambda: not [each for each in shared.list("PodDisruptionBudget") if job.name in each["metadata"]["name"]],
        "no budget",
    )
    assert evicted(shared, f"{job.name}-pserver-0")


def test_a_drained_node_s_trainers_are_replaced_elsewhere_first(shared, job):
    """The job keeps its minimum while its trainers are replaced, as a budget at the minimum would block the drain for ever."""
    (node,) = shared.cluster.add_nodes(1, prefix="drained", cpu="64")
    shared.nodes.append(node)
    wanted = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    affinity = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 100, "preference": {"matchExpressions": [wanted]}}]}}  # fmt: skip
    here = {"template": {"spec": {"affinity": affinity}}}
    job.apply(trainer={"minReplicas": 2, **here}, parameterServer=shared.claims() | here, master=here)
    job.at_work([0, 1])
    job.state("Running")
    assert {pod["spec"]["nodeName"] for pod in job.all_pods()} == {node}
    fewest: list[int] = []

    def deleted() -> bool:
        fewest.append(len(job.pods("trainer")))
        return node not in {pod["spec"].get("nodeName") for pod in job.all_pods("trainer")}

    shared.kubectl("cordon", node)
    job.until(deleted, "trainers elsewhere")
    assert min(fewest) >= 2, "the job kept its minimum"
    shared.kubectl("drain", node, "--force", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s")
    job.until(lambda: len(job.pods("trainer")) == len(job.pods("pserver")) == 2, "all of it elsewhere")
    job.state("Running")


def _denied(world):
    """Check whether the API server denies budgets; it enforces a policy only after it has compiled it."""
    budget = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "any"}, "spec": {}}
    try:
        world.cluster.kubectl("create", "-n", world.namespace, "--dry-run=server", "-f", "-", input=json.dumps(budget))
    except KubectlError as error:
        return "no budgets here" in str(error)
    return False


def test_a_policy_that_denies_budgets_stops_nothing_else(shared, job):
    """A denied budget is reported and blocks nothing else: optional objects are created last."""
    rule = {"expression": "false", "message": "no budgets here"}
    match = {"resourceRules": [{"apiGroups": ["policy"], "apiVersions": ["v1"], "operations": ["CREATE"],
                                "resources": ["poddisruptionbudgets"]}],
             "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": shared.namespace}}}  # fmt: skip
    name = f"deny-{shared.namespace}"
    kind = "admissionregistration.k8s.io/v1"
    policy = {"apiVersion": kind, "kind": "ValidatingAdmissionPolicy", "metadata": {"name": name},
              "spec": {"failurePolicy": "Fail", "matchConstraints": match, "validations": [rule]}}  # fmt: skip
    binding = {"apiVersion": kind, "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": name},
               "spec": {"policyName": name, "validationActions": ["Deny"]}}  # fmt: skip
    shared.cluster.create(policy, binding)
    try:
        shared.until(lambda: _denied(shared), "the policy to be enforced")
        job.apply()
        job.at_work([0, 1])
        job.until(lambda: "no budgets here" in job.condition("Scheduled").get("message", ""), "the policy's words")
        job.scale(4)
        job.at_work([0, 1, 2, 3])
        assert job.condition("Scheduled")["status"] == "True"
    finally:
        for of in ("validatingadmissionpolicy", "validatingadmissionpolicybinding"):
            shared.cluster.kubectl("delete", of, name, "--ignore-not-found")


def test_an_unreachable_webhook_is_reported_within_seconds(shared, job):
    """A webhook that cannot be called is reported in seconds, for a new job and for a running one that needs a trainer."""
    old = shared.job(f"{job.name}-old")
    old.apply()
    old.at_work([0, 1])
    hook = {"name": "pods.example.org", "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Fail",
            "timeoutSeconds": 1,
            "clientConfig": {"url": "https://127.0.0.1:9/deny"},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": shared.namespace}}}  # fmt: skip
    name = f"away-{shared.namespace}"
    shared.cluster.create({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
                           "metadata": {"name": name}, "webhooks": [hook]})  # fmt: skip
    try:
        job.apply()
        job.has_condition("Accepted", "Unknown", "NotChecked", "failed calling webhook")
        job.has_event("NotChecked", "failed calling webhook")
        old.scale(3)
        old.has_condition("Scheduled", "True", "PodsPlaced", "failed calling webhook")
    finally:
        shared.cluster.kubectl("delete", "validatingwebhookconfiguration", name)
    job.at_work([0, 1])
    old.at_work([0, 1, 2])
    job.has_condition("Accepted", "True", "Valid")


def test_a_refused_edit_leaves_the_last_accepted_spec_in_force(shared, job):
    """With a refused edit, suspend, scale and delete work, deleted trainers are replaced, and the status is updated."""
    job.apply(parameterServer=shared.claims())
    job.at_work([0, 1])
    job.state("Running")
    job.patch({"trainer": {"template": {"spec": {"dnsPolicy": "Sometimes"}}}})
    job.has_condition("Accepted", "False", "InvalidTemplate", "spec.dnsPolicy")
    assert job.status()["state"] == "Running"
    (deleted, *_) = job.pod_uids("trainer")
    name = next(pod["metadata"]["name"] for pod in job.all_pods("trainer") if pod["metadata"]["uid"] == deleted)
    shared.kubectl("delete", "pod", name)
    job.until(lambda: deleted not in job.pod_uids("trainer"), "the end of one")
    job.at_work([0, 1])
    job.scale(3)
    job.at_work([0, 1, 2])
    shared.end()
    shared.start()
    job.patch({"trainer": {"replicas": 2}})
    job.at_work([0, 1])
    job.has_condition("Accepted", "False", "InvalidTemplate", "spec.dnsPolicy")
    job.patch({"suspend": True})
    job.state("Suspended")
    job.nobody()
    job.patch({"suspend": False, "trainer": {"template": None}})
    job.at_work([0, 1])
    job.has_condition("Accepted", "True", "Valid")


def test_a_kubelet_that_refuses_each_pod_meets_a_growing_pause(shared, job):
    """The operator backs off where a kubelet rejects each pod: the template names a full node, so no scheduler is involved."""
    made: set[str] = set()
    template = {
        "metadata": {"annotations": {"hollow.shoal.dev/start-ms": "3600000"}},
        "spec": {"nodeName": shared.nodes[0]},
    }
    job.apply(trainer={"minReplicas": 1, "template": template})

    def rejected() -> bool:
        """Reject all trainer pods as a kubelet does, and report whether there were four."""
        for pod in job.all_pods("trainer"):
            made.add(pod["metadata"]["uid"])
            status = {
                "phase": "Failed",
                "reason": "OutOfcpu",
                "message": "Pod was rejected: Node didn't have enough resource: cpu",
            }
            if pod["status"].get("phase") != "Failed":
                shared.api.patch("Pod", pod["metadata"]["name"], shared.namespace, {"status": status}, status=True)
        return len(made) >= 4

    job.until(rejected, "four of its pods")
    job.has_condition("Scheduled", "False", "PodsRefused", f"{job.name}-trainer-0: OutOfcpu: Pod was rejected")
    (pod,) = job.all_pods("trainer")
    assert pod["status"]["phase"] == "Failed", "it is kept, with its reason, until the next one is due"
    assert len(made) <= 5


def test_a_sidecar_decides_nothing(shared, job):
    """Only the role's container decides: a sidecar that crashes or never exits does not."""
    containers = [{"name": "log", "image": "log:1"}]
    job.apply(trainer={"minReplicas": 2, "template": {"spec": {"containers": containers}}})
    job.at_work([0, 1])
    job.state("Running")
    names = [pod["metadata"]["name"] for pod in job.all_pods("trainer")]

    def said(name: str, trainer: dict, *, ready: bool) -> None:
        each = [
            {"name": "trainer", "image": "i", "imageID": "", "restartCount": 0, "ready": ready, **trainer},
            {"name": "log", "image": "i", "imageID": "", "restartCount": 9, "ready": False,
             "state": {"waiting": {"reason": "CrashLoopBackOff"}}},
        ]  # fmt: skip
        condition = {"type": "Ready", "status": "False", "reason": "ContainersNotReady"}
        shared.api.patch("Pod", name, shared.namespace, {"status": {"conditions": [condition], "containerStatuses": each}},
                         status=True)  # fmt: skip

    now = {"state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
    for name in names:
        said(name, now, ready=True)
    job.has_condition("Running", "True", "TrainersReady", "CrashLoopBackOff")
    assert job.status()["trainers"]["ready"] == 2
    job.end("Complete")
    job.wait("Complete")
    job.until(lambda: not job.pods("trainer", ready=False), "pods whose sidecars would run for ever")


def test_a_quota_is_used_first_for_the_pods_that_a_job_needs(shared, job):
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": f"four-{job.name}"},
             "spec": {"hard": {}, "scopeSelector": {"matchExpressions": [
                 {"scopeName": "PriorityClass", "operator": "Exists"}]}}}  # fmt: skip
    # Pods of earlier tests may still be terminating, which frees more room afterwards.
    quota["spec"]["hard"]["pods"] = str(len(shared.list("Pod")) + 5)
    shared.kubectl("create", "-f", "-", input=json.dumps(quota))
    try:
        job.apply(trainer={"minReplicas": 1, "maxReplicas": 8, "replicas": 8})
        job.until(lambda: "exceeded quota" in job.condition("Scheduled").get("message", ""), "the quota's words")
        job.until(lambda: len(job.pods("master")) == 1 and len(job.pods("pserver")) == 2, "those that all need")
        assert 1 <= len(job.pods("trainer")) < 8
        assert job.status()["allocation"]["message"].startswith("the namespace's quota is full")
        job.state("Running")
    finally:
        shared.kubectl("delete", "quota", f"four-{job.name}")
    job.at_work(list(range(8)))


@pytest.mark.parametrize("claims", [True, False])
def test_a_failed_job_runs_again_on_request(shared, job, claims):
    """A retry resumes from the snapshots, or starts anew where they were in the pods, once for each value of the annotation."""
    servers = shared.claims() if claims else {"replicas": 2, "emptyDir": {}}
    job.apply(parameterServer=servers)
    job.at_work([0, 1])
    shared.kubectl("annotate", "tj", job.name, "shoal.dev/retry=before")
    job.until(lambda: job.status().get("retried") == "before", "the annotation to be seen")
    uid, before = job.uid, job.pod_uids()
    shared.masters.ended[uid] = "Failed"
    job.state("Failed")
    # At once: its master and its servers still run.
    shared.kubectl("annotate", "--overwrite", "tj", job.name, "shoal.dev/retry=1")
    assert job.status()["retried"] == "before", "an annotation of a job that runs asks for nothing later"
    del shared.masters.ended[uid]
    job.has_event("Retried", "shoal.dev/retry: 1", "from its last snapshots" if claims else "from the beginning")
    job.at_work([0, 1])
    job.until(lambda: not job.pod_uids() & before, "new pods")
    job.state("Running")
    status = job.status()
    assert "Failed" not in [each["type"] for each in status["conditions"]]
    assert status["retried"] == "1"
    assert status.get("failures") in {None, 0}
    shared.masters.ended[uid] = "Failed"
    job.state("Failed")
    assert [reason for reason, _ in job.events()].count("Retried") == 1
    del shared.masters.ended[uid]
