from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.debris import remove_debris
from tests.cluster.image import IMAGE, python_container
from tests.cluster.node import NodeCluster

pytestmark = [pytest.mark.cluster, pytest.mark.node]

SERVE = "import http.server as h; h.test(HandlerClass=h.SimpleHTTPRequestHandler, port=8000)"


def pod(name, *arguments, restart="Never", **more):
    spec = {**python_container(*arguments, **more), "restartPolicy": restart, "nodeName": "node"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec}


def ended(cluster, namespace, name):
    """Wait for a pod's container to exit; return its terminated state and its logs."""
    until = "--for=jsonpath={.status.containerStatuses[0].state.terminated.exitCode}"
    cluster.kubectl("wait", "-n", namespace, until, f"pod/{name}", "--timeout=60s")
    [container] = cluster.get("pod", name, "-n", namespace)["status"]["containerStatuses"]
    return container["state"]["terminated"], cluster.kubectl("logs", "-n", namespace, name)


def test_a_pod_runs_this_python_and_its_output_can_be_read(node_cluster, node_namespace):
    node_cluster.create(pod("speaker", "-c", "import shoal.api; print('hello'); exit(3)"), namespace=node_namespace)
    how, said = ended(node_cluster, node_namespace, "speaker")
    assert (how["exitCode"], said) == (3, "hello\n")


def test_a_command_runs_in_a_pod(node_cluster, node_namespace):
    node_cluster.create(pod("host", "-c", "import time; time.sleep(3600)"), namespace=node_namespace)
    node_cluster.wait_ready(node_namespace)
    assert node_cluster.kubectl("exec", "-n", node_namespace, "host", "--", "/busybox/cat", "/etc/hostname") == "host\n"


def processes_with(words):
    """Return the processes of this machine, also those in containers, with this text in their command line."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if words.encode() in file.read_bytes():
                found.append(int(file.parent.name))
    return found


def test_a_killed_container_is_started_again_in_place(node_cluster, node_namespace):
    script = f"import time; time.sleep(3600)  # {node_namespace}"
    node_cluster.create(pod("phoenix", "-c", script, restart="Always"), namespace=node_namespace)
    node_cluster.wait_ready(node_namespace)
    [first] = processes_with(node_namespace)
    os.kill(first, signal.SIGKILL)

    def container():
        [one] = node_cluster.get("pod", "phoenix", "-n", node_namespace)["status"]["containerStatuses"]
        return one

    node_cluster.until(lambda: container()["restartCount"] == 1 and container()["ready"], "a second life")
    assert container()["lastState"]["terminated"]["exitCode"] == 128 + signal.SIGKILL
    assert processes_with(node_namespace) != [first]


def test_a_service_is_reached_by_its_name(node_cluster, node_namespace):
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": 8000}]},
    }
    node_cluster.create(service, pod("server", "-c", SERVE), namespace=node_namespace)
    ask = (
        "import time, urllib.request\n"
        "while True:\n"
        "    try: print(urllib.request.urlopen('http://web/', timeout=1).status); break\n"
        "    except OSError as error: time.sleep(0.1)"
    )
    node_cluster.create(pod("client", "-c", ask), namespace=node_namespace)
    assert ended(node_cluster, node_namespace, "client")[1] == "200\n"


def test_a_pod_reaches_the_api_server_with_the_rights_of_its_account(node_cluster, node_namespace):
    ask = (
        "import pathlib, ssl, urllib.request, urllib.error\n"
        "own = pathlib.Path('/var/run/secrets/kubernetes.io/serviceaccount')\n"
        "context = ssl.create_default_context(cafile=own / 'ca.crt')\n"
        "url = 'https://kubernetes.default.svc/api/v1/namespaces/' + (own / 'namespace').read_text() + '/pods'\n"
        "head = {'Authorization': 'Bearer ' + (own / 'token').read_text()}\n"
        "try: print(urllib.request.urlopen(urllib.request.Request(url, headers=head), context=context).status)\n"
        "except urllib.error.HTTPError as error: print(error.code)\n"
    )
    node_cluster.create(pod("before", "-c", ask), namespace=node_namespace)
    assert ended(node_cluster, node_namespace, "before")[1] == "403\n"
    account = f"--serviceaccount={node_namespace}:default"
    node_cluster.kubectl("create", "rolebinding", "look", "-n", node_namespace, "--clusterrole=view", account)
    node_cluster.create(pod("after", "-c", ask), namespace=node_namespace)
    assert ended(node_cluster, node_namespace, "after")[1] == "200\n"


def test_a_pod_over_its_memory_limit_is_killed(node_cluster, node_namespace):
    limits = {"limits": {"memory": "64Mi"}}
    greedy = pod("greedy", "-c", "x = bytearray(500_000_000); x[::4096] = b'1' * len(x[::4096])", resources=limits)
    node_cluster.create(greedy, namespace=node_namespace)
    assert ended(node_cluster, node_namespace, "greedy")[0]["reason"] == "OOMKilled"


def test_a_pod_reaches_what_the_test_listens_on(node_cluster, node_namespace):
    with socket.create_server((node_cluster.outside, 0)) as server:
        server.settimeout(60)
        say = f"import socket; socket.create_connection({server.getsockname()}).sendall(b'here')"
        node_cluster.create(pod("caller", "-c", say), namespace=node_namespace)
        with server.accept()[0] as connection:
            assert connection.recv(4) == b"here"


def test_hollow_and_real_nodes_in_one_cluster(node_cluster, node_namespace):
    [name] = node_cluster.add_nodes(1)
    hollow = {"containers": [{"name": "main", "image": IMAGE}], "nodeName": name}
    node_cluster.create(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "hollow"}, "spec": hollow}, namespace=node_namespace
    )
    node_cluster.wait_ready(node_namespace)
    assert {node["metadata"]["name"] for node in node_cluster.get("nodes")["items"]} == {"node", name}
    node_cluster.kubectl("delete", "node", name)


def test_what_a_killed_owner_left_is_removed_by_the_next(tmp_path):
    script = (
        "import pathlib, sys, time; from tests.cluster.node import NodeCluster; from tests.cluster.test_node import pod;"
        "cluster = NodeCluster(pathlib.Path(sys.argv[1])); cluster.start();"
        "cluster.create(pod('orphan', '-c', 'import time; time.sleep(3600)  # orphan of ' + sys.argv[1]));"
        "cluster.wait_ready(); print('up', flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout.readline() == "up\n"
        owner.send_signal(signal.SIGKILL)
    cluster = NodeCluster(tmp_path)
    cluster.until(lambda: not cluster.pids, "its parts to end")
    assert processes_with(f"# orphan of {tmp_path}")
    left, name = traces(), json.loads((tmp_path / "network.json").read_text())["namespace"]
    remove_debris()
    assert not processes_with(f"# orphan of {tmp_path}")
    assert len(left - traces()) > 5
    assert not [trace for trace in traces() if name in trace]


def traces():
    """List the resources of this machine that clusters may leave behind."""
    links = {link["ifname"] for link in json.loads(subprocess.check_output(["ip", "-json", "link"]))}
    places = [
        "/run",
        "/run/containerd/runc/k8s.io",
        "/run/containerd/s",
        "/run/netns",
        "/var/lib/cni/results",
        "/var/log/containers",
        "/var/tmp",
    ]
    folders = [*map(Path, places), *Path("/sys/fs").glob("cgroup"), *Path("/sys/fs/cgroup").iterdir()]
    names = {str(entry) for folder in folders if folder.is_dir() for entry in folder.iterdir()}
    return links | names | set(Path("/proc/self/mounts").read_text().splitlines())


def test_stop_leaves_nothing_of_the_node(tmp_path):
    before = traces()
    cluster = NodeCluster(tmp_path)
    with cluster:
        cluster.create(pod("one", "-c", f"import time; time.sleep(3600)  # {tmp_path}"))
        cluster.wait_ready()
        assert len(traces() - before) > 5
        assert set(cluster.pids) == set(NodeCluster.PARTS)
        assert processes_with(f"# {tmp_path}")
    assert traces() - before <= {"/run/containerd", "/run/containerd/s", "/run/netns"}
    assert not cluster.pids
    assert not processes_with(str(tmp_path))
