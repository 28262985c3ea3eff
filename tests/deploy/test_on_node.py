"""deploy/ in a cluster with a real node: behaviour that needs real containers."""

from __future__ import annotations

import base64
import re
import subprocess
from contextlib import contextmanager

import pytest

from shoal.store import Credentials, Put, Store
from tests.cluster.fixtures import node_cluster
from tests.deploy.on_node import write_overlay
from tests.deploy.rendered import SYSTEM, opened
from tests.deploy.test_manual import TEXT, follow

__all__ = ["node_cluster"]
pytestmark = [pytest.mark.cluster, pytest.mark.node, pytest.mark.timeout(600)]


@pytest.fixture
def checkout(node_cluster, tmp_path):
    """Install deploy/ and provide a folder in which the manual's commands can be run."""
    tmp_path.chmod(0o755)
    # One each for etcd, its backup, and the restored etcd.
    node_cluster.add_volumes(3, size="8Gi")
    write_overlay(tmp_path / "deploy" / "mine", "overlays/default", "etcd-backup")
    write_overlay(tmp_path / "deploy" / "restore" / "one", "restore/one")
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


@contextmanager
def forwarded(cluster, service: str, port: int):
    """Forward a port of this machine to a Service."""
    command = [str(cluster.folder / "bin" / "kubectl"), "--kubeconfig", str(cluster.kubeconfig), "port-forward"]
    running = subprocess.Popen(
        [*command, "-n", SYSTEM, f"service/{service}", f":{port}"], stdout=subprocess.PIPE, text=True
    )
    try:
        yield int(running.stdout.readline().split(":")[1].split()[0])
    finally:
        running.kill()
        running.wait(30)
        running.stdout.close()


def test_etcds_certificate_is_renewed_as_in_the_manual(node_cluster, checkout):
    def authority(name: str) -> bytes:
        return base64.b64decode(node_cluster.get("secret", name, "-n", SYSTEM)["data"]["ca.crt"])

    before = authority("shoal-etcd-server")
    follow(node_cluster, checkout, "Etcd's care", after="A new one, with a new")
    follow(node_cluster, checkout, "Upgrade, with jobs running")
    runs(node_cluster)
    assert before != authority("shoal-etcd-server") == authority("shoal-etcd-operator")
    for name in ("shoal-setup", "shoal-operator"):
        said = node_cluster.kubectl("logs", "-n", SYSTEM, "-l", f"app.kubernetes.io/name={name}", "--tail=-1")
        assert "INFO" in said
        assert "UserWarning" not in said


@contextmanager
def etcd(cluster, folder):
    """Connect to etcd with the operator's credentials."""
    opened(cluster.get("secret", "shoal-etcd-operator", "-n", SYSTEM), folder)
    with forwarded(cluster, "shoal-etcd", 2379) as port:
        credentials = Credentials.read(folder)
        with Store.connect(f"https://127.0.0.1:{port}", prefix="/test/", credentials=credentials) as store:
            yield store


def test_etcd_is_defragmented_backed_up_and_restored_as_in_the_manual(node_cluster, checkout):
    with etcd(node_cluster, checkout / "operator") as store:
        store.transact([], [Put("/test/before", b"1")])
    for job in ("defragment", "backup"):
        (line,) = re.findall(rf"`(kubectl -n {SYSTEM} create job {job} [^`]+)`", TEXT)
        node_cluster.kubectl(*line.split()[1:])
        node_cluster.kubectl("wait", "-n", SYSTEM, f"job/{job}", "--for=condition=Complete", "--timeout=60s")
    with etcd(node_cluster, checkout / "operator") as store:
        store.transact([], [Put("/test/after", b"2")])
    follow(node_cluster, checkout, "Etcd's care", after="**Restore**")
    runs(node_cluster)
    with etcd(node_cluster, checkout / "operator") as store:
        assert [pair.key for pair in store.get_prefix("/test/").pairs] == ["/test/before"]
