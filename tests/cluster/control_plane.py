"""A real Kubernetes control plane with hollow nodes, on this machine's loopback, without root.

    with ControlPlane(tmp_path) as cluster:
        cluster.add_nodes(3, cpu="4")
        cluster.kubectl("apply", "-f", "-", input=manifest)
        cluster.kill("kube-apiserver")

Only the kubelets are simulated: scheduling, preemption, admission, RBAC, garbage collection and watches are Kubernetes'
own. Behaviour that needs real containers belongs to the node tier.
"""

from __future__ import annotations

import itertools
import json
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from tests.cluster import binaries, certificates
from tests.cluster.network import LOOPBACK, NODE_ADDRESS, Network, remove_namespace
from tests.cluster.parts import CONTROL, Layout, Part, write_kubeconfig
from tests.cluster.probes import Probe
from tests.cluster.processes import Process, free_ports
from tests.cluster.stages import HOLLOW_NODE, LOST, Stages

__all__ = ["BrokenError", "ControlPlane", "KubectlError"]

SECONDS_TO_BE_READY = 60.0
FIRST = ("etcd", "kube-apiserver")
FOLLOWERS = tuple(name for name in CONTROL if name not in FIRST)
"""Of the API server."""


class BrokenError(Exception):
    """A part ended, or did not become ready; the message has the end of its log."""


class KubectlError(Exception):
    """kubectl failed; the message is its own."""


class ControlPlane:
    """etcd, API server, controller-manager, scheduler and kwok, with all their state in one folder.

    A second object for the same folder, in another process too, finds the running parts.
    """

    PARTS: ClassVar[Mapping[str, Part]] = CONTROL
    PROGRAMS: ClassVar[tuple[str, ...]] = binaries.HOLLOW

    def __init__(self, folder: Path, *, stages: Stages | None = None, tied: bool = True) -> None:
        """Describe a cluster in a folder; with `tied`, all parts end with this process, also when it is killed."""
        self.folder = folder.resolve()
        self._stages = stages or Stages()
        self._tied = tied
        self._layout = Layout(self.folder)
        self.kubeconfig = self._layout.kubeconfig
        self.parts = {name: Process(name, self.folder) for name in self.PARTS}
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pids(self) -> dict[str, int]:
        """The running parts, and their process ids."""
        return {name: pid for name, part in self.parts.items() if (pid := part.pid)}

    def start(self) -> None:
        """Start everything in an empty folder and wait until it is ready."""
        if self.pids:
            raise BrokenError(f"a control plane runs in {self.folder} already; stop it first")
        binaries.build(self.PROGRAMS)
        try:
            self._prepare()
            self._run()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all parts; without running parts this does nothing."""
        # etcd last, as the other parts still write when they end.
        for name in self.PARTS:
            if name != "etcd":
                self.parts[name].signal(signal.SIGTERM)
        for name in reversed(self.PARTS):
            self.parts[name].end()
        if self._layout.network:
            remove_namespace(self._layout.network)

    def remove(self) -> None:
        """Stop, and delete what the control plane wrote into the folder."""
        self.stop()
        for name in (*Layout.FOLDERS, "processes"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in Layout.FILES:
            (self.folder / name).unlink(missing_ok=True)

    def kill(self, name: str) -> None:
        """Send SIGKILL to one part, and wait until it is gone."""
        self.parts[name].kill()

    def launch(self, name: str, *, wait: bool = True) -> None:
        """Start one part that does not run, and wait until it is ready."""
        if name == "kwok":
            self._free_leases()
        self.parts[name].start([*self._layout.settled.enter, *self.PARTS[name].command(self._layout)], tied=self._tied)
        if wait:
            self._wait(name)

    def restart(self, name: str) -> None:
        """Send SIGKILL to one part and start it again on the same port and data."""
        self.kill(name)
        self.launch(name)

    def awaken(self) -> None:
        """Restart the API server's clients after it was away.

        Their back-off between attempts grows to one minute, and is reset only after two minutes without errors.
        """
        for name in FOLLOWERS:
            self.kill(name)
        self._launch_followers()

    def log(self, name: str) -> Path:
        return self.parts[name].log

    def kubectl(self, *arguments: str, input: str | None = None) -> str:  # noqa: A002 - as subprocess calls it
        """Run kubectl and return its output; raise `KubectlError` if it fails."""
        own = ["--kubeconfig", str(self.kubeconfig), "--cache-dir", str(self.folder / "discovery")]
        done = subprocess.run(
            [str(binaries.path("kubectl")), *own, *arguments],
            input=input,
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def get(self, *arguments: str) -> Any:
        """Run ``kubectl get`` and return the parsed object or list."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def create(self, *objects: Mapping[str, Any], namespace: str = "default") -> None:
        """Create objects in one call."""
        together = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("create", "-n", namespace, "-f", "-", input=json.dumps(together))

    def add_nodes(
        self,
        count: int,
        *,
        cpu: str = "4",
        memory: str = "16Gi",
        labels: Mapping[str, str] | None = None,
        taints: Iterable[Mapping[str, str]] = (),
        extended: Mapping[str, str] | None = None,
        prefix: str = "hollow",
    ) -> list[str]:
        """Add hollow nodes, wait until they are Ready and without the not-ready taint, and return their names.

        Args:
            extended: Further resources, as ``{"nvidia.com/gpu": "8"}``.
        """
        names = [f"{prefix}-{next(self._numbers)}" for _ in range(count)]
        room = {"cpu": cpu, "memory": memory, "pods": "110", **(extended or {})}
        nodes = [
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {
                    "name": name,
                    "annotations": HOLLOW_NODE,
                    "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", **(labels or {})},
                },
                "spec": {"taints": [dict(taint) for taint in taints]},
                "status": {"capacity": room, "allocatable": room},
            }
            for name in names
        ]
        self.create(*nodes)
        self.until(lambda: self._usable() >= set(names), f"nodes {names} to become Ready")
        return names

    def lose_node(self, name: str) -> None:
        """Make a hollow node silent, and wait until the cluster has marked it unreachable.

        Its pods keep their status, as no kubelet ends them; those whose toleration is too short are marked for deletion. At least
        one node has to stay Ready: where all are lost, Kubernetes assumes that its own connection is broken, and evicts nothing.
        """
        there = ["-A", f"--field-selector=spec.nodeName={name}"]
        self.kubectl("annotate", "pods", *there, f"{LOST}=true")
        self.kubectl("annotate", "node", name, *(f"{key}-" for key in HOLLOW_NODE))
        unknown = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "message": "lost by a test"}
        patch = json.dumps({"status": {"conditions": [unknown]}})
        self.kubectl("patch", "node", name, "--subresource=status", "-p", patch)
        gone = ("node.kubernetes.io/unreachable", "NoExecute")
        self.until(
            lambda: (
                gone in [(taint["key"], taint["effect"]) for taint in self.get("node", name)["spec"].get("taints", [])]
            ),
            f"the node {name} to be known as lost",
        )

    def add_volumes(self, count: int, *, size: str = "1Gi", storage_class: str = "") -> None:
        """Add volumes that claims of this storage class are bound to; the class's object need not exist.

        Without a class any claim without one may take them, also one of an earlier test whose namespace is still being deleted.
        """
        self.create(
            *(
                {
                    "apiVersion": "v1",
                    "kind": "PersistentVolume",
                    "metadata": {"name": (name := f"volume-{secrets.token_hex(4)}")},
                    "spec": {
                        "storageClassName": storage_class,
                        "capacity": {"storage": size},
                        "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
                        "hostPath": {"path": str(self.folder / "volumes" / name), "type": "DirectoryOrCreate"},
                    },
                }
                for _ in range(count)
            )
        )

    def wait_ready(self, namespace: str = "default", *, selector: str = "") -> None:
        """Wait until there are pods and all are Ready; ``kubectl wait`` checks them one by one, five a second."""

        def ready() -> bool:
            pods = self.get("pods", "-n", namespace, "-l", selector)["items"]
            return bool(pods) and all(_is(pod, "Ready") for pod in pods)

        self.until(ready, f"all pods of {namespace} to become Ready")

    def until(
        self, true: Callable[[], bool], what: str, *, seconds: float = SECONDS_TO_BE_READY, pause: float = 0.05
    ) -> None:
        """Poll every ``pause`` seconds until the condition is true, for conditions that ``kubectl wait`` cannot express."""
        deadline = time.monotonic() + seconds
        while not true():
            if time.monotonic() > deadline:
                raise BrokenError(f"waited {seconds:.0f} s in vain for {what}")
            time.sleep(pause)

    def _usable(self) -> set[str]:
        nodes = self.get("nodes")["items"]
        return {
            node["metadata"]["name"]
            for node in nodes
            if _is(node, "Ready")
            and not any(t["key"].startswith("node.kubernetes.io/not-ready") for t in node["spec"].get("taints", []))
        }

    def _free_leases(self) -> None:
        """Delete the nodes' leases: a new kwok would wait 40 s until those of the previous one have expired."""
        self.kubectl("delete", "leases", "-n", "kube-node-lease", "--all", "--wait=false")

    def _network(self) -> Network:
        """Create the network that the parts are in."""
        return LOOPBACK

    def _prepare(self) -> None:
        """Write certificates, ports and configuration files, and delete the data of an earlier control plane."""
        self.remove()
        self.folder.mkdir(parents=True, exist_ok=True)
        network = self._network()
        names = [name for part, its in self.PARTS.items() for name in (part, *its.ports)]
        self._layout.settle(network, dict(zip(names, free_ports(len(names)), strict=True)))
        folder = self._layout.certificates
        certificates.make_authority(folder)
        addresses = {network.address, "127.0.0.1", NODE_ADDRESS, "10.96.0.1"}
        certificates.make_server(folder, "server", [*addresses, "localhost", "kubernetes.default.svc"])
        certificates.make_client(folder, "admin", user="admin", group="system:masters")
        certificates.make_key(folder, "accounts")
        self._layout.stages.write_text(self._stages.to_yaml())
        write_kubeconfig(self._layout)
        programs = self.folder / "bin"
        programs.mkdir()
        (programs / "kubectl").symlink_to(binaries.path("kubectl"))

    def _run(self) -> None:
        """Start the control plane's parts, and wait until pods can be created."""
        for name in FIRST:
            self.launch(name)
        self._launch_followers()
        self.kubectl("wait", "--for=create", "serviceaccount/default", "--timeout=60s")

    def _launch_followers(self) -> None:
        for name in FOLLOWERS:
            self.launch(name, wait=False)
        for name in FOLLOWERS:
            self._wait(name)

    def _wait(self, name: str) -> None:
        part, probe = self.parts[name], Probe(self._layout.certificates)
        deadline = time.monotonic() + SECONDS_TO_BE_READY
        while not probe.good(self.PARTS[name].health(self._layout)):
            if part.pid is None:
                raise BrokenError(f"{name} ended while it was starting:\n{part.last_words()}")
            if time.monotonic() > deadline:
                raise BrokenError(f"{name} is not ready after {SECONDS_TO_BE_READY:.0f} s:\n{part.last_words()}")
            time.sleep(0.02)


def _is(what: Mapping[str, Any], condition: str) -> bool:
    """Return whether a condition of an object is True."""
    conditions = what["status"].get("conditions", [])
    return any(each["type"] == condition and each["status"] == "True" for each in conditions)
