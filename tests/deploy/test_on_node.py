"""deploy/ in a cluster with a real node: what only containers show."""

from __future__ import annotations

import base64

import pytest

from tests.cluster.fixtures import node_cluster
from tests.deploy.on_node import open_volumes, write_overlay
from tests.deploy.rendered import SYSTEM
from tests.deploy.test_manual import follow

__all__ = ["node_cluster"]
pytestmark = [pytest.mark.cluster, pytest.mark.node, pytest.mark.timeout(300)]


@pytest.fixture
def checkout(node_cluster, tmp_path):
    """Installed; a folder in which the manual's commands can be typed in."""
    tmp_path.chmod(0o755)
    node_cluster.add_volumes(1, size="8Gi")
    open_volumes(node_cluster)
    write_overlay(tmp_path / "deploy" / "mine", "default")
    node_cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(tmp_path / "deploy" / "mine"))
    try:
        runs(node_cluster)
        yield tmp_path
    finally:
        node_cluster.kubectl("delete", "namespace", SYSTEM, "--timeout=100s")


def runs(cluster) -> None:
    wanted = [("statefulset", "shoal-etcd", "readyReplicas", 1), ("deployment", "shoal-operator", "readyReplicas", 2)]
    wanted.append(("job", "shoal-setup", "succeeded", 1))

    def found() -> list[int]:
        return [cluster.get(kind, name, "-n", SYSTEM)["status"].get(field, 0) for kind, name, field, _ in wanted]

    try:
        cluster.until(lambda: found() == [number for *_, number in wanted], "etcd, operators and set-up")
    except BaseException:
        print(cluster.kubectl("get", "pods", "-n", SYSTEM, "-o", "wide"))
        for name in ("shoal-setup", "shoal-etcd", "shoal-operator"):
            print(cluster.kubectl("logs", "-n", SYSTEM, "-l", f"app.kubernetes.io/name={name}", "--tail=30"))
        raise


def test_etcds_certificate_is_renewed_as_the_manual_says(node_cluster, checkout):
    def authority(name: str) -> bytes:
        return base64.b64decode(node_cluster.get("secret", name, "-n", SYSTEM)["data"]["ca.crt"])

    before = authority("shoal-etcd-server")
    follow(node_cluster, checkout, "Etcd's care", after="A new one, with a new")
    follow(node_cluster, checkout, "Upgrade, with jobs running")
    runs(node_cluster)
    assert before != authority("shoal-etcd-server") == authority("shoal-etcd-operator")
