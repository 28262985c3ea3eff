from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.control_plane import BrokenError, ControlPlane, KubectlError
from tests.cluster.parts import Part, flags

PARTS = ControlPlane.PARTS
pytestmark = pytest.mark.cluster


def pod(name, *, cpu="100m", priority=None, annotations=None, **spec):
    """Build a hollow pod."""
    container = {"name": "main", "image": "example.org/none", "resources": {"requests": {"cpu": cpu}}}
    named = {"priorityClassName": priority} if priority else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations or {}},
        "spec": {"containers": [container], **named, **spec},
    }


def listening():
    """Return the ports on which any process of this machine listens, and the inodes of their sockets."""
    rows = [row.split() for net in ("tcp", "tcp6") for row in Path(f"/proc/net/{net}").read_text().splitlines()[1:]]
    return {(int(row[1].rpartition(":")[2], 16), row[9]) for row in rows if row[3] == "0A"}


def ports_of(pids):
    """Return the ports on which these processes listen."""
    sockets = set()
    for pid in pids:
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                sockets.add(str(file.readlink()))
    return {port for port, inode in listening() if f"socket:[{inode}]" in sockets}


def test_fifty_pods_are_scheduled_and_become_ready(control_plane, add_nodes, namespace):
    nodes = add_nodes(3, cpu="2")
    control_plane.create(*(pod(f"p{n}") for n in range(50)), namespace=namespace)
    control_plane.wait_ready(namespace)
    pods = control_plane.get("pods", "-n", namespace)["items"]
    assert len({each["status"]["podIP"] for each in pods}) == 50
    assert {each["spec"]["nodeName"] for each in pods} == set(nodes)


def test_hollow_nodes_have_the_requested_resources(control_plane, add_nodes):
    taint = {"key": "gpu", "value": "yes", "effect": "NoSchedule"}
    [name] = add_nodes(1, cpu="3", memory="5Gi", labels={"zone": "a"}, taints=[taint], extended={"nvidia.com/gpu": "8"})
    node = control_plane.get("node", name)
    assert {"cpu": "3", "memory": "5Gi", "nvidia.com/gpu": "8"}.items() <= node["status"]["allocatable"].items()
    assert node["metadata"]["labels"]["zone"] == "a"
    assert node["spec"]["taints"] == [taint]


def test_a_pod_waits_for_its_start_up_time(control_plane, add_nodes, namespace):
    add_nodes(1)
    slow = pod("slow", annotations={"hollow.shoal.dev/start-ms": "3600000"})
    control_plane.create(slow, pod("quick"), namespace=namespace)
    control_plane.kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod/quick", "--timeout=60s")
    control_plane.kubectl("wait", "-n", namespace, "--for=condition=PodScheduled", "pod/slow", "--timeout=60s")
    assert control_plane.get("pod", "slow", "-n", namespace)["status"]["phase"] == "Pending"


@pytest.mark.parametrize(("code", "phase"), [("0", "Succeeded"), ("3", "Failed")])
def test_a_pod_ends_with_its_exit_code(control_plane, add_nodes, namespace, code, phase):
    add_nodes(1)
    annotations = {"hollow.shoal.dev/run-ms": "50", "hollow.shoal.dev/exit-code": code}
    control_plane.create(pod("short", annotations=annotations, restartPolicy="Never"), namespace=namespace)
    control_plane.kubectl(
        "wait", "-n", namespace, f"--for=jsonpath={{.status.phase}}={phase}", "pod/short", "--timeout=60s"
    )
    [container] = control_plane.get("pod", "short", "-n", namespace)["status"]["containerStatuses"]
    assert container["state"]["terminated"]["exitCode"] == int(code)


def test_a_deleted_pod_stays_for_its_grace_and_then_goes(control_plane, add_nodes, namespace):
    add_nodes(1)
    stubborn = pod("stubborn", annotations={"hollow.shoal.dev/grace-ms": "3600000"}, terminationGracePeriodSeconds=7200)
    late = pod("late", annotations={"hollow.shoal.dev/grace-ms": "3600000"}, terminationGracePeriodSeconds=1)
    control_plane.create(stubborn, late, pod("willing"), namespace=namespace)
    control_plane.wait_ready(namespace)
    control_plane.kubectl("delete", "pods", "-n", namespace, "--all", "--wait=false")
    control_plane.kubectl("wait", "-n", namespace, "--for=delete", "pod/willing", "pod/late", "--timeout=60s")
    metadata = control_plane.get("pod", "stubborn", "-n", namespace)["metadata"]
    assert metadata["deletionTimestamp"]
    assert metadata["deletionGracePeriodSeconds"] == 7200


def test_a_higher_priority_evicts_a_lower_one(control_plane, add_nodes, namespace):
    add_nodes(1, cpu="1")
    for name, value in (("low", 1), ("high", 1000)):
        metadata = {"name": f"{namespace}-{name}"}
        priority = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": metadata, "value": value}
        control_plane.create(priority)
    control_plane.create(pod("small", cpu="900m", priority=f"{namespace}-low"), namespace=namespace)
    control_plane.kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod/small", "--timeout=60s")
    control_plane.create(pod("great", cpu="900m", priority=f"{namespace}-high"), namespace=namespace)
    control_plane.kubectl("wait", "-n", namespace, "--for=delete", "pod/small", "--timeout=60s")
    control_plane.kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod/great", "--timeout=60s")


def test_a_deployment_brings_back_its_pod(control_plane, add_nodes, namespace):
    add_nodes(1)
    control_plane.kubectl("create", "deployment", "web", "-n", namespace, "--image=example.org/none")
    control_plane.kubectl("rollout", "status", "deployment/web", "-n", namespace, "--timeout=60s")
    control_plane.kubectl("delete", "pods", "-n", namespace, "-l", "app=web")
    control_plane.kubectl("rollout", "status", "deployment/web", "-n", namespace, "--timeout=60s")


def test_a_claim_of_a_stateful_set_is_bound_to_a_volume(control_plane, add_nodes, namespace):
    add_nodes(1)
    control_plane.add_volumes(2, storage_class=namespace)
    labels = {"app": "ps"}
    claim = {
        "metadata": {"name": "data"},
        "spec": {
            "storageClassName": namespace,
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    spec = {
        "serviceName": "ps",
        "replicas": 2,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod("")["spec"]},
        "volumeClaimTemplates": [claim],
    }
    servers = {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "ps"}, "spec": spec}
    control_plane.create(servers, namespace=namespace)
    control_plane.kubectl("rollout", "status", "statefulset/ps", "-n", namespace, "--timeout=60s")
    claims = control_plane.get("persistentvolumeclaims", "-n", namespace)["items"]
    assert [each["status"]["phase"] for each in claims] == ["Bound", "Bound"]


def test_pods_of_a_lost_node_hang_until_they_are_deleted_by_force(control_plane, add_nodes, namespace):
    name, _ = add_nodes(2)
    briefly = {
        "key": "node.kubernetes.io/unreachable",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": 0,
    }
    control_plane.create(pod("there", nodeName=name, tolerations=[briefly]), namespace=namespace)
    control_plane.wait_ready(namespace)
    control_plane.lose_node(name)

    def there():
        return control_plane.get("pods", "-n", namespace)["items"]

    control_plane.until(lambda: "deletionTimestamp" in there()[0]["metadata"], "the pod to be evicted")
    control_plane.create(pod("elsewhere"), namespace=namespace)
    control_plane.kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod/elsewhere", "--timeout=60s")
    assert [each["metadata"]["name"] for each in there()] == ["elsewhere", "there"]
    control_plane.kubectl("delete", "pod", "there", "-n", namespace, "--force", "--grace-period=0")


def test_rbac_is_enforced(control_plane, namespace):
    account = f"--as=system:serviceaccount:{namespace}:default"
    with pytest.raises(KubectlError, match="Forbidden"):
        control_plane.kubectl("get", "pods", "-n", namespace, account)


def test_a_restarted_part_keeps_its_data(tmp_path):
    with ControlPlane(tmp_path) as cluster:
        cluster.add_nodes(1)
        cluster.create(pod("before"))
        for name in PARTS:
            before = cluster.pids
            cluster.restart(name)
            assert cluster.pids[name] != before[name]
            assert {**cluster.pids, name: 0} == {**before, name: 0}
        cluster.create(pod("after"))
        cluster.wait_ready()
        assert len(cluster.get("pods")["items"]) == 2


def test_a_killed_api_server_answers_nothing_and_the_other_parts_survive(tmp_path):
    with ControlPlane(tmp_path) as cluster:
        cluster.kill("kube-apiserver")
        with pytest.raises(KubectlError, match="refused"):
            cluster.kubectl("get", "nodes")
        assert set(cluster.pids) == set(PARTS) - {"kube-apiserver"}
        cluster.launch("kube-apiserver")
        cluster.add_nodes(1)


def test_stop_leaves_no_process_and_no_listener(tmp_path):
    with ControlPlane(tmp_path) as cluster:
        pids, ports = cluster.pids, ports_of(cluster.pids.values())
        assert set(pids) == set(PARTS)
        assert len(ports) >= len(PARTS)
    assert not cluster.pids
    assert not [pid for pid in pids.values() if Path(f"/proc/{pid}").exists()]
    assert not ports & {port for port, _ in listening()}


def test_a_part_that_cannot_start_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    wrong = Part(lambda layout: flags("kube-scheduler", {"no-such-flag": 1}), PARTS["kube-scheduler"].health)
    monkeypatch.setattr(ControlPlane, "PARTS", {**PARTS, "kube-scheduler": wrong})
    cluster = ControlPlane(tmp_path)
    with pytest.raises(BrokenError, match=r"kube-scheduler ended.*(?s:.)*no-such-flag"):
        cluster.start()
    assert not cluster.pids


def test_a_killed_owner_takes_the_control_plane_with_it(tmp_path):
    script = (
        "import pathlib, sys, time; from tests.cluster.control_plane import ControlPlane;"
        "ControlPlane(pathlib.Path(sys.argv[1])).start(); print('up', flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout.readline() == "up\n"
        cluster = ControlPlane(tmp_path)
        assert set(cluster.pids) == set(PARTS)
        owner.send_signal(signal.SIGKILL)
    cluster.until(lambda: not cluster.pids, "everything to end")


def command_line(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SHOAL_CLUSTER": str(folder)}
    line = [sys.executable, "-m", "tests.cluster", *words]
    return subprocess.run(line, env=environment, check=False, capture_output=True, text=True, timeout=200)


def test_the_command_line_brings_a_cluster_up_and_down(tmp_path):
    folder = tmp_path / "cluster"
    assert command_line(folder, "status").returncode == 1
    try:
        up = command_line(folder, "up", "--hollow", "--nodes", "2")
        assert f"KUBECONFIG={folder / 'kubeconfig'}" in up.stdout, up.stderr
        status = command_line(folder, "status")
        assert status.returncode == 0, status.stdout
        cluster = ControlPlane(folder)
        assert len(cluster.get("nodes")["items"]) == 2
        cluster.kubectl("apply", "-f", "-", input=json.dumps(JOB))
        cluster.until(lambda: len(cluster.get("pods")["items"]) == 3, "the operator to make the job's pods")
        assert "runs in" in command_line(folder, "up").stdout
    finally:
        down = command_line(folder, "down")
    assert f"{len(PARTS) + 2} processes ended" in down.stdout
    assert command_line(folder, "status").returncode == 1
    assert not list(folder.iterdir())


JOB = {
    "apiVersion": "shoal.dev/v1alpha1",
    "kind": "TrainingJob",
    "metadata": {"name": "j"},
    "spec": {
        "image": "example.org/none",
        "command": ["true"],
        "trainer": {"minReplicas": 1},
        "parameterServer": {"replicas": 1},
    },
}


def test_ctrl_c_leaves_nothing_of_a_cluster_that_was_on_its_way(tmp_path):
    folder = tmp_path / "cluster"
    # A test run in the background ignores Ctrl-C, and its child processes inherit that.
    words = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    words += "; from tests.cluster.__main__ import main; sys.exit(main())"
    line = [sys.executable, "-c", words, "up", "--hollow"]
    environment = {**os.environ, "SHOAL_CLUSTER": str(folder)}
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert any("installing Shoal" in said for said in running.stdout)
        running.send_signal(signal.SIGSTOP)
        pids = ControlPlane(folder).pids
        running.send_signal(signal.SIGINT)
        running.send_signal(signal.SIGCONT)
        _, words = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "nothing is left" in words
    assert len(pids) == len(PARTS)
    assert not [pid for pid in pids.values() if Path(f"/proc/{pid}").exists()]
    assert not list(folder.iterdir())
