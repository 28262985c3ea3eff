"""A real node beside the hollow ones, in a network namespace of its own; needs root.

    with NodeCluster(tmp_path) as cluster:
        cluster.create(pod_of([sys.executable, "-c", "print('hello')"]))

Where there are hollow nodes too, pods for the real one carry ``nodeName: node`` or a node selector. `image` describes what
runs in them.
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
from tests.cluster.debris import end_containers, leave_note, remove, remove_debris
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
        """The address at which pods reach servers on this machine."""
        return self._layout.settled.outside

    def add_volumes(
        self, count: int, *, size: str = "1Gi", storage_class: str = "", claim: Mapping[str, str] | None = None
    ) -> list[Path]:
        """Add volumes of the real node that claims of this storage class are bound to, and return their folders.

        They are ``local`` volumes, for which the kubelet applies a pod's fsGroup, which it does not for hostPath.

        Args:
            count: Number of volumes.
            size: Size of each.
            storage_class: Its object need not exist. Default: claims without a class are bound to the volumes.
            claim: Namespace and name of the claim that gets the volume. Default: any claim.
        """
        # Not in the cluster's own folder, which pytest cleans up itself and which only its owner may enter.
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
        """End everything that runs in the cluster, also the containers, and unmount everything."""
        network = self._layout.network
        if network is None:
            return
        # The kubelet first, which would restart containers; then the shims, which would report their exit.
        self.parts["kubelet"].kill()
        end_containers(network.run)
        super().stop()
        remove(network)

    def _network(self) -> Network:
        remove_debris()
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
    """Return the Service and its endpoints by which pods find CoreDNS, which runs outside pods."""
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
