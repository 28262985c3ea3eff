"""A real node beside the hollow ones, in a network namespace of its own; needs root.

    with NodeCluster(tmp_path) as cluster:
        cluster.create(pod_of([sys.executable, "-c", "print('hello')"]))

Pods for it carry ``nodeName: node`` or a node selector when there are hollow nodes too. See `image` for what runs in them.
"""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from tests.cluster import binaries
from tests.cluster.control_groups import make_control_groups
from tests.cluster.control_plane import BrokenError, ControlPlane
from tests.cluster.debris import end_containers, leave_note, remove, sweep
from tests.cluster.image import write_image
from tests.cluster.network import NODE_ADDRESS, Network, make_namespace
from tests.cluster.node_parts import DNS_ADDRESS, NODE, NODE_NAME, write_configuration
from tests.cluster.parts import CONTROL, Part

__all__ = ["NodeCluster"]


class NodeCluster(ControlPlane):
    """A control plane, hollow nodes, and one node that runs containers."""

    PARTS: ClassVar[Mapping[str, Part]] = NODE
    PROGRAMS: ClassVar[tuple[str, ...]] = (*binaries.HOLLOW, *binaries.NODE)

    @property
    def outside(self) -> str:
        """The address at which pods reach what listens on this machine."""
        return self._layout.settled.outside

    def add_volumes(
        self, count: int, *, size: str = "1Gi", storage_class: str = "", claim: Mapping[str, str] | None = None
    ) -> list[Path]:
        """Volumes of the real node that claims of this storage class are bound to; their folders.

        Of the kind ``local``, as the kubelet gives these to a pod's fsGroup, which it does not for hostPath.

        Args:
            count: How many.
            size: Of each.
            storage_class: Need not be there; none: claims without one are bound to them.
            claim: Namespace and name of the one that gets it; None: any.
        """
        # Not in the cluster's own folder: pytest clears that in its own way, and it is its owner's alone.
        above = self._layout.settled.state / "volumes"
        folders = [above / f"volume-{secrets.token_hex(4)}" for _ in range(count)]
        for folder in folders:
            folder.mkdir(parents=True)
        place = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE_NAME]}
        spec = {
            **({"claimRef": dict(claim)} if claim else {}),
            "storageClassName": storage_class,
            "capacity": {"storage": size},
            "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [place]}]}},
        }
        volumes = [
            {"metadata": {"name": each.name}, "spec": {**spec, "local": {"path": str(each)}}} for each in folders
        ]
        self.create(*({"apiVersion": "v1", "kind": "PersistentVolume", **each} for each in volumes))
        return folders

    def stop(self) -> None:
        """End everything that runs here, the containers too; nothing stays mounted."""
        network = self._layout.network
        if network is None:
            return
        # First who would restart a container, then who would report its end.
        self.parts["kubelet"].kill()
        end_containers(network.run)
        super().stop()
        remove(network)

    def _network(self) -> Network:
        sweep()
        return make_namespace()

    def _prepare(self) -> None:
        super()._prepare()
        network = self._layout.settled
        leave_note(network)
        make_control_groups(network.run.name)
        write_configuration(self._layout, binaries.cni_plugins())

    def _run(self) -> None:
        self.launch("containerd", wait=False)
        super()._run()
        self._wait("containerd")
        self._import_image()
        others = [name for name in self.PARTS if name not in CONTROL and name != "containerd"]
        for name in others:
            self.launch(name, wait=False)
        self.create(*_dns(), namespace="kube-system")
        for name in others:
            self._wait(name)
        self.until(lambda: NODE_NAME in self._usable(), "the node to become Ready")

    def _import_image(self) -> None:
        archive = self._layout.node / "image.tar"
        write_image(archive)
        socket = self._layout.settled.run / "containerd.sock"
        command = ["ctr", "--address", str(socket), "--namespace", "k8s.io", "images", "import", str(archive)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise BrokenError(f"the image could not be imported: {done.stderr.strip()}")


def _dns() -> list[dict[str, Any]]:
    """The Service by which pods find CoreDNS, which is no pod."""
    ports = [("dns", "UDP"), ("dns-tcp", "TCP")]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns"},
        "spec": {
            "clusterIP": DNS_ADDRESS,
            "ports": [{"name": name, "protocol": protocol, "port": 53} for name, protocol in ports],
        },
    }
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "kube-dns", "labels": {"kubernetes.io/service-name": "kube-dns"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [NODE_ADDRESS]}],
        "ports": [{"name": name, "protocol": protocol, "port": 53} for name, protocol in ports],
    }
    return [service, endpoints]
