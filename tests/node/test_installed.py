"""Shoal as `deploy/` installs it, in the cluster itself: two operators with their own rights alone, and an etcd that asks who is there."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.cluster import binaries
from tests.cluster.image import IMAGE, mounts
from tests.node.jobs import PATH, ROOT, Jobs, processes_with

pytestmark = [pytest.mark.cluster, pytest.mark.node, pytest.mark.timeout(300)]

SYSTEM = "shoal-system"
ENFORCE = "pod-security.kubernetes.io/enforce"


def patched(kind: str, version: str, name: str, container: dict[str, Any], volumes: list[dict[str, Any]]) -> dict:
    """What makes one of the overlay's objects run on the node: the image, and what an image would have in it."""
    container = {"image": IMAGE, "imagePullPolicy": "Never", **container}
    template = {"spec": {"containers": [container], "volumes": volumes}}
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": SYSTEM},
            "spec": {"template": template}}  # fmt: skip


def overlay(folder) -> None:
    volumes, inside = mounts()
    python = {"env": [{"name": "PATH", "value": PATH}], "volumeMounts": inside}
    etcd = {"name": "etcd", "hostPath": {"path": str(binaries.path("etcd")), "type": "File"}}
    at = {"name": "etcd", "mountPath": "/usr/local/bin/etcd", "readOnly": True}
    # What stands for an image's files is of this machine, which `restricted` forbids.
    open_to_all = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": SYSTEM, "labels": {ENFORCE: "privileged"}},
    }
    patches = [
        open_to_all,
        patched("Deployment", "apps/v1", "shoal-operator", {"name": "operator", **python}, volumes),
        patched("Job", "batch/v1", "shoal-setup", {"name": "setup", **python}, volumes),
        patched("StatefulSet", "apps/v1", "shoal-etcd", {"name": "etcd", "volumeMounts": [at]}, [etcd]),
    ]
    folder.mkdir()
    base = os.path.relpath(ROOT / "deploy" / "overlays" / "default", folder)
    kustomization = {"resources": [base], "patches": [{"patch": json.dumps(each)} for each in patches]}
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization))


class Installed(Jobs):
    """What a test has in its hands."""

    def system(self, *arguments: str) -> str:
        return self.cluster.kubectl(*arguments, "-n", SYSTEM)

    def leader(self) -> str:
        """Who holds the Lease: its pod's name, and something behind a line."""
        lease = self.cluster.get("lease", "shoal-operator", "-n", SYSTEM)
        return lease["spec"].get("holderIdentity", "")

    def last_words(self) -> str:
        said = [super().last_words(), self.system("get", "pods,pvc,jobs", "-o", "wide")]
        said += [self.system("get", "events", "--sort-by=.lastTimestamp")[-5000:]]
        for app in ("setup", "etcd", "operator"):
            said.append(self.system("logs", f"--selector=app.kubernetes.io/name=shoal-{app}", "--prefix", "--tail=30"))
        return "\n".join(said)


@pytest.fixture
def installed(node_cluster, node_namespace, tmp_path):
    made = Installed(node_cluster, node_namespace, tmp_path)
    made.volume("data-shoal-etcd-0", namespace=SYSTEM, size="8Gi")
    overlay(tmp_path / "mine")
    node_cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(tmp_path / "mine"))
    try:
        made.until(lambda: _available(made) == 2, "two operators to be ready")
        yield made
    finally:
        # Nobody else's jobs are theirs.
        node_cluster.kubectl("delete", "namespace", SYSTEM, "--wait=false")
        node_cluster.kubectl("delete", "pods", "-n", SYSTEM, "--all", "--force", "--grace-period=0", "--wait=false")
        node_cluster.until(lambda: not node_cluster.get("pods", "-n", SYSTEM)["items"], "the operators to go")
        node_cluster.kubectl("delete", "clusterrolebinding", "shoal-operator")


def _available(world: Installed) -> int:
    found = world.cluster.get("deployment", "shoal-operator", "-n", SYSTEM)
    return found.get("status", {}).get("readyReplicas", 0)


def test_a_job_outlives_the_leader_of_the_operators_and_is_complete(installed):
    folder = installed.claim("model")
    installed.pace(0.2)
    spec = installed.counting(epochs=10, output={"path": "m.safetensors", "volumeClaimName": "model"})
    spec["trainer"] |= {"minReplicas": 1, "maxReplicas": 2}
    installed.apply("job", **spec)
    samples = lambda: (installed.status("job").get("progress") or {}).get("samples", 0)  # noqa: E731
    installed.until(lambda: samples() > 0, "the first samples")
    first = installed.leader()
    [process] = processes_with(HOSTNAME=first.partition("_")[0])
    os.kill(process, signal.SIGKILL)
    before = samples()
    installed.kubectl("scale", "tj/job", "--replicas=2")
    installed.until(lambda: installed.leader() not in {"", first}, "the other one to lead")
    installed.until(lambda: installed.status("job")["trainers"]["text"] == "2/2", "the second trainer")
    installed.until(lambda: samples() > before, "further samples")
    installed.pace(0)
    installed.kubectl("wait", "tj/job", "--for=condition=Complete", "--timeout=120s")
    said = installed.system("logs", "--selector=app.kubernetes.io/name=shoal-operator", "--tail=-1")
    assert "forbidden" not in said.lower(), said
    account = installed.status("job")["account"]
    assert (account["expected"], account["counted"], account["lost"], account["twice"]) == (6000, 6000, 0, 0)
    counts = load_file(folder / "m.safetensors")["dense"]
    assert torch.equal(counts, torch.full_like(counts, 10))
