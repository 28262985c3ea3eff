"""A cluster with Shoal for trying it out, and the example with real data prepared for it.

With a real node, Shoal is installed in the cluster as deploy/ does it. Hollow nodes run no containers, so there the operator
and its etcd are processes of this machine, and the cluster has the definition of TrainingJobs.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from shoal.api.crd import crd
from tests.cluster import binaries
from tests.cluster.control_plane import BrokenError, ControlPlane
from tests.cluster.image import IMAGE
from tests.cluster.node import NodeCluster
from tests.cluster.node_parts import NODE_NAME
from tests.cluster.processes import Process, free_ports
from tests.deploy.on_node import write_overlay
from tests.deploy.rendered import SYSTEM
from tests.node.jobs import ROOT, template

__all__ = ["FLIGHTS", "beside", "end_beside", "install", "installed", "spare_volumes", "write_flights"]

FLIGHTS = ROOT / "examples" / "flights"
SPARE = 24
"""Volumes without a claim; a job's are its own for good, and `make cluster` makes more."""
TIMEOUT_SECONDS = 180.0
"""Seconds; Python and Kubernetes' client are imported three times on the way."""


def install(cluster: ControlPlane, say: Callable[[str], None]) -> None:
    """Install everything that a TrainingJob needs, and return when it is ready.

    Args:
        cluster: A running cluster.
        say: Receives a line about each thing that is waited for.
    """
    if isinstance(cluster, NodeCluster):
        _install_in_pods(cluster, say)
    else:
        _install_beside(cluster, say)


def spare_volumes(cluster: ControlPlane) -> None:
    """Add volumes until claims without a storage class have enough of them to choose from."""
    volumes = cluster.get("persistentvolumes")["items"]
    missing = SPARE - sum(each["status"].get("phase", "Pending") in {"Available", "Pending"} for each in volumes)
    if missing > 0:
        cluster.add_volumes(missing, size="10Gi")


def installed(cluster: ControlPlane) -> bool:
    """Return whether the operator that `install` has started is running."""
    if isinstance(cluster, NodeCluster):
        return bool(_ready(cluster, "deployment", "shoal-operator", "readyReplicas"))
    return all(each.pid for each in beside(cluster))


# --- In the cluster ---


def _install_in_pods(cluster: NodeCluster, say: Callable[[str], None]) -> None:
    overlay = write_overlay(cluster.folder / "shoal", "overlays/default")
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(overlay))
    said = ""

    def ready() -> bool:
        nonlocal said
        etcd = _ready(cluster, "statefulset", "shoal-etcd", "readyReplicas")
        operators = _ready(cluster, "deployment", "shoal-operator", "readyReplicas")
        done = _ready(cluster, "job", "shoal-setup", "succeeded")
        text = f"set-up {'done' if done else 'runs'}, etcd {etcd}/1, operators {operators}/2"
        if text != said:
            say(f"  {text}")
        said = text
        return bool(done) and etcd == 1 and operators == 2

    try:
        cluster.until(ready, f"Shoal; `kubectl -n {SYSTEM} get pods` came to: {said}", seconds=TIMEOUT_SECONDS)
    except BrokenError as error:
        pods = cluster.kubectl("get", "pods", "-n", SYSTEM)
        logs = [
            cluster.kubectl("logs", "-n", SYSTEM, f"--selector=app.kubernetes.io/name=shoal-{name}", "--tail=5")
            for name in ("setup", "etcd", "operator")
        ]
        raise BrokenError("\n".join([str(error), pods, *logs])) from None


def _ready(cluster: ControlPlane, kind: str, name: str, field: str) -> int:
    found = cluster.kubectl(
        "get", kind, name, "-n", SYSTEM, "--ignore-not-found", "-o", f"jsonpath={{.status.{field}}}"
    )
    return int(found or 0)


# --- Beside a hollow cluster ---


def beside(cluster: ControlPlane) -> list[Process]:
    """Return the processes of this machine that belong to a hollow cluster, in starting order."""
    if isinstance(cluster, NodeCluster):
        return []
    return [Process(name, cluster.folder) for name in ("shoal-etcd", "shoal-operator")]


def end_beside(cluster: ControlPlane) -> None:
    for process in reversed(beside(cluster)):
        process.end()


def _install_beside(cluster: ControlPlane, say: Callable[[str], None]) -> None:
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=json.dumps(crd()))
    cluster.kubectl("wait", "--for=condition=Established", "crd/trainingjobs.shoal.dev", "--timeout=60s")
    etcd, operator = beside(cluster)
    clients, peers, probes = (f"127.0.0.1:{port}" for port in free_ports(3))
    urls = {
        "listen-client-urls": clients,
        "advertise-client-urls": clients,
        "listen-peer-urls": peers,
        "initial-advertise-peer-urls": peers,
    }
    words = [f"--{name}=http://{address}" for name, address in urls.items()]
    data = cluster.folder / "shoal" / "etcd"
    data.mkdir(parents=True, mode=0o700)
    members = f"--initial-cluster=default=http://{peers}"
    etcd.start([str(binaries.path("etcd")), f"--data-dir={data}", *words, members], tied=False)
    command = [sys.executable, "-m", "shoal.operator", "--etcd", clients, "--serve", probes]
    operator.start(["env", f"KUBECONFIG={cluster.kubeconfig}", *command], tied=False)
    say("  the operator starts")

    def ready() -> bool:
        for process in (etcd, operator):
            if process.pid is None:
                raise BrokenError(f"{process.name} ended while it was starting:\n{process.last_words()}")
        return _answers(f"http://{probes}/readyz")

    cluster.until(ready, f"the operator, whose log is {operator.log}", seconds=TIMEOUT_SECONDS)


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        error.close()
        return False
    except OSError:
        return False


# --- The example ---


def write_flights(folder: Path, *, namespace: str = "", **spec: Any) -> Path:
    """Write a folder for ``kubectl apply -k``: examples/flights, with this machine's Python in place of an image.

    Args:
        folder: Is created.
        namespace: Namespace of the job. Default: the one in the caller's kubeconfig.
        spec: Further fields of the job.
    """
    roles = {"trainer": "trainer", "parameterServer": "pserver", "master": "master"}
    parts: dict[str, Any] = {part: {"template": template(role)} for part, role in roles.items()}
    for part in parts.values():
        # Hollow nodes of the same cluster run no containers.
        part["template"]["spec"]["nodeSelector"] = {"kubernetes.io/hostname": NODE_NAME}
    # A real image has the files of the example in its working directory.
    trainer = parts["trainer"]["template"]["spec"]["containers"][0]
    trainer["workingDir"] = str(FLIGHTS)
    # The job sets the script's variables already, and a variable that is set in two places is an error.
    variables = [*trainer.pop("env"), {"name": "XDG_CACHE_HOME", "value": "/tmp"}]
    patch = {
        "apiVersion": "shoal.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "flights"},
        "spec": {"image": IMAGE, "env": variables, **parts, **spec},
    }
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(FLIGHTS, folder.resolve())],
        "patches": [{"path": "patch.yaml"}],
        **({"namespace": namespace} if namespace else {}),
    }
    folder.mkdir()
    (folder / "patch.yaml").write_text(yaml.safe_dump(patch, sort_keys=False))
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization, sort_keys=False))
    return folder
