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
    """Where a cluster keeps what, and where it listens."""

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
        """Write down where this cluster listens."""
        network.save(self._network)
        self._ports.write_text(json.dumps(ports))

    @property
    def network(self) -> Network | None:
        return Network.load(self._network) if self._network.exists() else None

    @property
    def settled(self) -> Network:
        """The network, once there is one."""
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
        """The address of a part."""
        return f"{scheme}://{self.address}:{self.port(name)}"

    def file(self, name: str) -> str:
        """A certificate or a key."""
        return str(self.certificates / name)


@dataclass(frozen=True)
class Part:
    """How a part is started, and where it says that it is ready."""

    command: Callable[[Layout], list[str]]
    health: Callable[[Layout], str]
    ports: tuple[str, ...] = ()
    """Those that it needs beside the one with its own name."""


def flags(name: str, values: Mapping[str, Any]) -> list[str]:
    """A command line."""
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
        # What is tested here is Kubernetes; Shoal's own durability is tested with it.
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
        # No proxy stands in front; without these two the others' logs fill with complaints that there is none.
        "requestheader-client-ca-file": layout.file("ca.crt"),
        "requestheader-allowed-names": "nobody",
        "authorization-mode": "Node,RBAC",
        "allow-privileged": "true",
        "service-cluster-ip-range": "10.96.0.0/24",
        "service-account-issuer": f"{layout.at('kube-apiserver', 'https')}/",
        "service-account-key-file": layout.file("accounts.pub"),
        "service-account-signing-key-file": layout.file("accounts.key"),
        # Two cores: a queue in front of them only makes tests slower.
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
            # For logs and exec: the kubelet is asked by the node's address, and knows us by our certificate.
            "kubelet-preferred-address-types": "InternalIP",
            "kubelet-client-certificate": layout.file("admin.crt"),
            "kubelet-client-key": layout.file("admin.key"),
        }
    # A cluster on loopback has no address that pods could use: nobody writes the endpoints of `kubernetes`.
    return {"bind-address": layout.address, "advertise-address": layout.address, "endpoint-reconciler-type": "none"}


def _client(layout: Layout, name: str) -> dict[str, Any]:
    """What controller-manager and scheduler share."""
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
        # Of few nodes one that is lost is many: these keep Kubernetes from taking it for a fault of its own.
        "node-eviction-rate": 100,
        "secondary-node-eviction-rate": 100,
        "large-cluster-size-threshold": 0,
        # 15 s otherwise, from the making of an autoscaler on.
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


# In the order in which they start.
CONTROL = {
    "etcd": Part(_etcd, lambda layout: layout.at("etcd") + "/readyz", ports=("etcd-peers",)),
    "kube-apiserver": Part(_api_server, lambda layout: layout.at("kube-apiserver", "https") + "/readyz"),
    # This one has no /readyz.
    "kube-controller-manager": Part(
        _controller_manager, lambda layout: layout.at("kube-controller-manager", "https") + "/healthz"
    ),
    "kube-scheduler": Part(_scheduler, lambda layout: layout.at("kube-scheduler", "https") + "/readyz"),
    "kwok": Part(_kwok, lambda layout: layout.at("kwok") + "/readyz"),
}


def write_kubeconfig(layout: Layout) -> None:
    """The administrator's, with paths of certificates only: nothing secret is in it."""
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
