"""Shoal as `deploy/` installs it, in the cluster: two operators with their own rights only, and an etcd with authentication."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from tests.deploy.on_node import write_overlay
from tests.deploy.rendered import SYSTEM
from tests.node.jobs import Jobs, processes_with

pytestmark = [pytest.mark.cluster, pytest.mark.node, pytest.mark.timeout(300)]


class Installed(Jobs):
    """A namespace of a cluster in which deploy/ is installed, and its jobs."""

    def system(self, *arguments: str) -> str:
        return self.cluster.kubectl(*arguments, "-n", SYSTEM)

    def leader(self) -> str:
        """Return the Lease's holder: its pod's name, an underscore and a suffix."""
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
    overlay = write_overlay(tmp_path / "mine", "overlays/default")
    node_cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(overlay))
    try:
        made.until(lambda: _available(made) == 2, "two operators to be ready")
        yield made
    finally:
        # These operators must not serve other tests' jobs.
        node_cluster.kubectl("delete", "namespace", SYSTEM, "--wait=false")
        node_cluster.kubectl("delete", "pods", "-n", SYSTEM, "--all", "--force", "--grace-period=0", "--wait=false")
        node_cluster.until(lambda: not node_cluster.get("pods", "-n", SYSTEM)["items"], "the operators to go")
        node_cluster.kubectl("delete", "clusterrolebinding", "shoal-operator")


def _available(world: Installed) -> int:
    found = world.cluster.get("deployment", "shoal-operator", "-n", SYSTEM)
    return found.get("status", {}).get("readyReplicas", 0)


def test_a_job_outlives_the_leader_of_the_operators_and_is_complete(installed):
    folder = installed.claim("model")
    installed.pace(0.4)
    spec = installed.counting(epochs=6, output={"path": "m.safetensors", "volumeClaimName": "model"})
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
    assert (account["expected"], account["counted"], account["lost"], account["twice"]) == (3600, 3600, 0, 0)
    counts = load_file(folder / "m.safetensors")["dense"]
    assert torch.equal(counts, torch.full_like(counts, 6))
