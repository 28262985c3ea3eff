"""The parts of a real node: containerd, kubelet, kube-proxy and CoreDNS, with all their files below one folder."""

from __future__ import annotations

import json
from typing import Any

import yaml

from tests.cluster import binaries
from tests.cluster.image import IMAGE
from tests.cluster.network import BRIDGE, NODE_ADDRESS, PODS
from tests.cluster.parts import CONTROL, Layout, Part, flags

__all__ = ["DNS_ADDRESS", "NODE", "NODE_NAME", "write_configuration"]

NODE_NAME = "node"
DNS_ADDRESS = "10.96.0.10"


def write_configuration(layout: Layout, plugins: str) -> None:
    """Write the configuration files of all parts of the node."""
    (layout.node / "cni").mkdir(parents=True)
    (layout.node / "cni" / "10-bridge.conflist").write_text(json.dumps(_cni(layout)))
    (layout.node / "containerd.toml").write_text(_containerd_configuration(layout, plugins))
    (layout.node / "kubelet.yaml").write_text(yaml.safe_dump(_kubelet_configuration(layout)))
    (layout.node / "kube-proxy.yaml").write_text(yaml.safe_dump(_proxy_configuration(layout)))
    (layout.node / "resolv.conf").write_text(f"nameserver {NODE_ADDRESS}\n")
    (layout.node / "Corefile").write_text(
        f""".:53 {{
            bind {NODE_ADDRESS}
            errors
            ready {layout.address}:{layout.port("coredns")}
            kubernetes cluster.local in-addr.arpa {{
                kubeconfig {layout.kubeconfig} shoal-tests
            }}
        }}
        """
    )


def _cni(layout: Layout) -> dict[str, Any]:
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": PODS}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(layout.node / "addresses"),
        },
    }
    # The network's name identifies this cluster's results among those that CNI keeps in /var/lib/cni.
    return {"cniVersion": "0.4.0", "name": layout.settled.run.name, "plugins": [bridge]}


def _containerd_configuration(layout: Layout, plugins: str) -> str:
    socket = layout.settled.run / "containerd.sock"
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""
version = 2
root = "{layout.node / "containerd"}"
state = "{layout.settled.run / "state"}"
[grpc]
address = "{socket}"
[metrics]
address = "{layout.address}:{layout.port("containerd")}"
[plugins."io.containerd.internal.v1.opt"]
path = "{layout.node / "opt"}"
[{cri}]
sandbox_image = "{IMAGE}"
# Without the right to lower it (CAP_SYS_RESOURCE), as in most containers, no pod could start.
restrict_oom_score_adj = true
[{cri}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[{cri}.containerd.runtimes.runc.options]
Root = "{layout.settled.run / "runc"}"
[{cri}.cni]
bin_dir = "{plugins}"
conf_dir = "{layout.node / "cni"}"
"""


def _kubelet_configuration(layout: Layout) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS,
        "healthzBindAddress": layout.address,
        "healthzPort": layout.port("kubelet"),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": layout.file("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": layout.file("server.crt"),
        "tlsPrivateKeyFile": layout.file("server.key"),
        "containerRuntimeEndpoint": f"unix://{layout.settled.run / 'containerd.sock'}",
        "cgroupDriver": "cgroupfs",
        # The kubelet needs a root of its own, as it ends every group below its root that it does not know.
        "cgroupRoot": f"/{layout.settled.run.name}",
        "failSwapOn": False,
        "failCgroupV1": False,
        "enforceNodeAllocatable": [],
        # A full disk of this machine must not evict a test's pods.
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "clusterDNS": [DNS_ADDRESS],
        "clusterDomain": "cluster.local",
        "resolvConf": str(layout.node / "resolv.conf"),
        "podLogsDir": str(layout.node / "pods"),
        "volumePluginDir": str(layout.node / "plugins"),
    }


def _proxy_configuration(layout: Layout) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(layout.kubeconfig)},
        "mode": "iptables",
        "clusterCIDR": PODS,
        "hostnameOverride": NODE_NAME,
        "conntrack": {"maxPerCore": 0},
        "healthzBindAddress": f"{layout.address}:{layout.port('kube-proxy')}",
    }


def _containerd(layout: Layout) -> list[str]:
    return ["containerd", "--config", str(layout.node / "containerd.toml")]


def _kubelet(layout: Layout) -> list[str]:
    values = {
        "config": layout.node / "kubelet.yaml",
        "kubeconfig": layout.kubeconfig,
        "hostname-override": NODE_NAME,
        "node-ip": NODE_ADDRESS,
        "root-dir": layout.node / "kubelet",
        "cert-dir": layout.node / "kubelet" / "pki",
    }
    return flags("kubelet", values)


def _proxy(layout: Layout) -> list[str]:
    return flags("kube-proxy", {"config": layout.node / "kube-proxy.yaml"})


def _coredns(layout: Layout) -> list[str]:
    return [str(binaries.path("coredns")), "-conf", str(layout.node / "Corefile")]


NODE = {
    **CONTROL,
    "containerd": Part(_containerd, lambda layout: layout.at("containerd") + "/v1/metrics"),
    "kubelet": Part(_kubelet, lambda layout: layout.at("kubelet") + "/healthz"),
    "kube-proxy": Part(_proxy, lambda layout: layout.at("kube-proxy") + "/livez"),
    "coredns": Part(_coredns, lambda layout: layout.at("coredns") + "/ready"),
}
