"""The parts of a control plane: their command lines, health addresses and files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from tests.cluster import binaries
from tests.cluster.network import NODE_ADDRESS, Network

__all__ = ["CONTROL", "Layout", "Part", "flags", "write_kubeconfig"]


class Layout:
    """Where a cluster keeps its files, and where it listens."""

    FOLDERS: ClassVar = ("certificates", "etcd", "logs", "bin", "discovery", "volumes", "shoal", "flights")
    FILES: ClassVar = ("kubeconfig", "network.json", "ports.json", "stages.yaml")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificates = folder / "certificates"
        self.kubeconfig = folder / "kubeconfig"
        self.stages = folder / "stages.yaml"
        self._network = folder / "network.json"
        self._ports = folder / "ports.json"

    def settle(self, network: Network, ports: dict[str, int]) -> None:
        """Record the network and the ports of this cluster."""
        network.save(self._network)
        self._ports.write_text(json.dumps(ports))

    @property
    def network(self) -> Network | None:
        return Network.load(self._network) if self._network.exists() else None

    @property
    def settled(self) -> Network:
        """The network; it is an error if nothing was started."""
        network = self.network
        assert network, "nothing was started in this folder"
        return network

    @property
    def address(self) -> str:
        return self.settled.address

    @property
    def node(self) -> Path:
        return self.settled.state

    def port(self, name: str) -> int:
        port: int = json.loads(self._ports.read_text())[name]
        return port

    def at(self, name: str, scheme: str = "http") -> str:
        """Return the URL of a part."""
        return f"{scheme}://{self.address}:{self.port(name)}"

    def file(self, name: str) -> str:
        """Return the path of a certificate or a key."""
        return str(self.certificates / name)


@dataclass(frozen=True)
class Part:
    """A part's command line, and the URL of its health check."""

    command: Callable[[Layout], list[str]]
    health: Callable[[Layout], str]
    ports: tuple[str, ...] = ()
    """Those that it needs beside the one with its own name."""


def flags(name: str, values: Mapping[str, Any]) -> list[str]:
    """Build a program's command line."""
    return [str(binaries.path(name)), *(f"--{flag}={value}" for flag, value in values.items())]


def _etcd(layout: Layout) -> list[str]:
    clients, peers = layout.at("etcd"), layout.at("etcd-peers")
    values = {
        "data-dir": layout.folder / "etcd",
        "listen-client-urls": clients,
        "advertise-client-urls": clients,
        "listen-peer-urls": peers,
        "initial-advertise-peer-urls": peers,
        "initial-cluster": f"default={peers}",
        # Kubernetes' own state need not be durable in these tests; Shoal's durability is tested with fsync.
        "unsafe-no-fsync": "true",
    }
    return flags("etcd", values)


def _api_server(layout: Layout) -> list[str]:
    values = {
        **_reachable(layout),
        "etcd-servers": layout.at("etcd"),
        "secure-port": layout.port("kube-apiserver"),
        "tls-cert-file": layout.file("server.crt"),
        "tls-private-key-file": layout.file("server.key"),
        "client-ca-file": layout.file("ca.crt"),
        # No authenticating proxy is in front of the API server; without these two flags the other parts' logs fill with complaints.
        "requestheader-client-ca-file": layout.file("ca.crt"),
        "requestheader-allowed-names": "nobody",
        "authorization-mode": "Node,RBAC",
        "allow-privileged": "true",
        "service-cluster-ip-range": "10.96.0.0/24",
        "service-account-issuer": f"{layout.at('kube-apiserver', 'https')}/",
        "service-account-key-file": layout.file("accounts.pub"),
        "service-account-signing-key-file": layout.file("accounts.key"),
        # With two cores, request queues only make the tests slower.
        "max-requests-inflight": 0,
        "max-mutating-requests-inflight": 0,
        "enable-priority-and-fairness": "false",
    }
    return flags("kube-apiserver", values)


def _reachable(layout: Layout) -> dict[str, Any]:
    if layout.network and layout.network.namespace:
        return {
            "bind-address": "0.0.0.0",
            "advertise-address": NODE_ADDRESS,
            # For logs and exec, the API server reaches the kubelet by the node's address and authenticates with this certificate.
            "kubelet-preferred-address-types": "InternalIP",
            "kubelet-client-certificate": layout.file("admin.crt"),
            "kubelet-client-key": layout.file("admin.key"),
        }
    # A cluster on loopback has no address that pods could use, so no endpoints of `kubernetes` are written.
    return {"bind-address": layout.address, "advertise-address": layout.address, "endpoint-reconciler-type": "none"}


def _client(layout: Layout, name: str) -> dict[str, Any]:
    """Return the flags that controller-manager and scheduler share."""
    return {
        "kubeconfig": layout.kubeconfig,
        "authentication-kubeconfig": layout.kubeconfig,
        "authorization-kubeconfig": layout.kubeconfig,
        "bind-address": layout.address,
        "secure-port": layout.port(name),
        "tls-cert-file": layout.file("server.crt"),
        "tls-private-key-file": layout.file("server.key"),
        "leader-elect": "false",
        "kube-api-qps": 500,
        "kube-api-burst": 1000,
    }


def _controller_manager(layout: Layout) -> list[str]:
    values = {
        **_client(layout, "kube-controller-manager"),
        "root-ca-file": layout.file("ca.crt"),
        "service-account-private-key-file": layout.file("accounts.key"),
        "use-service-account-credentials": "true",
        # In a small cluster one lost node is a large share; these flags keep Kubernetes from slowing evictions down for it.
        "node-eviction-rate": 100,
        "secondary-node-eviction-rate": 100,
        "large-cluster-size-threshold": 0,
        # The default is 15 s, counted from the creation of an autoscaler.
        "horizontal-pod-autoscaler-sync-period": "1s",
    }
    return flags("kube-controller-manager", values)


def _scheduler(layout: Layout) -> list[str]:
    return flags("kube-scheduler", _client(layout, "kube-scheduler"))


def _kwok(layout: Layout) -> list[str]:
    values = {
        "kubeconfig": layout.kubeconfig,
        "config": layout.stages,
        "manage-all-nodes": "false",
        "manage-nodes-with-annotation-selector": "kwok.x-k8s.io/node=fake",
        "node-ip": layout.address,
        "cidr": "10.64.0.1/12",
        "node-lease-duration-seconds": 40,
        "server-address": f"{layout.address}:{layout.port('kwok')}",
    }
    return flags("kwok", values)


# In starting order.
CONTROL = {
    "etcd": Part(_etcd, lambda layout: layout.at("etcd") + "/readyz", ports=("etcd-peers",)),
    "kube-apiserver": Part(_api_server, lambda layout: layout.at("kube-apiserver", "https") + "/readyz"),
    # The controller-manager has no /readyz.
    "kube-controller-manager": Part(
        _controller_manager, lambda layout: layout.at("kube-controller-manager", "https") + "/healthz"
    ),
    "kube-scheduler": Part(_scheduler, lambda layout: layout.at("kube-scheduler", "https") + "/readyz"),
    "kwok": Part(_kwok, lambda layout: layout.at("kwok") + "/readyz"),
}


def write_kubeconfig(layout: Layout) -> None:
    """Write the administrator's kubeconfig, which contains paths of certificates and no secrets."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "shoal-tests",
        "contexts": [{"name": "shoal-tests", "context": {"cluster": "shoal-tests", "user": "admin"}}],
        "clusters": [
            {
                "name": "shoal-tests",
                "cluster": {
                    "server": layout.at("kube-apiserver", "https"),
                    "certificate-authority": layout.file("ca.crt"),
                },
            }
        ],
        "users": [
            {
                "name": "admin",
                "user": {"client-certificate": layout.file("admin.crt"), "client-key": layout.file("admin.key")},
            }
        ],
    }
    layout.kubeconfig.write_text(yaml.safe_dump(config, sort_keys=False))
