"""A Kubernetes to play with: ``python -m tests.cluster up|down|status``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from tests.cluster import binaries
from tests.cluster.binaries import Missing
from tests.cluster.control_plane import BrokenError, ControlPlane
from tests.cluster.node import NodeCluster
from tests.cluster.node_parts import NODE_NAME
from tests.cluster.parts import Layout


def folder() -> Path:
    """Where the cluster keeps everything: what SHOAL_CLUSTER names, else a folder in the user's cache."""
    named = os.environ.get("SHOAL_CLUSTER")
    return Path(named or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shoal" / "cluster")


def up(cluster: ControlPlane, nodes: int) -> int:
    if cluster.pids:
        print(f"a cluster runs in {cluster.folder} already")
    else:
        if isinstance(cluster, NodeCluster):
            binaries.node()
        begun = time.monotonic()
        cluster.start()
        cluster.add_nodes(nodes)
        real = f"the node {NODE_NAME} and " if isinstance(cluster, NodeCluster) else ""
        print(f"up in {time.monotonic() - begun:.1f} s, with {real}{nodes} hollow nodes of 4 cores and 16 GiB")
    print(f"\n  export KUBECONFIG={cluster.kubeconfig} PATH={cluster.folder / 'bin'}:$PATH\n  kubectl get nodes\n")
    print(f"logs: {cluster.folder / 'logs'}; end it with `make cluster-down`")
    return 0


def down(cluster: ControlPlane) -> int:
    ended = len(cluster.pids)
    cluster.remove()
    print(f"{ended} processes ended; nothing is left in {cluster.folder}")
    return 0


def status(cluster: ControlPlane) -> int:
    """Exit code 0 if all of it runs."""
    pids = cluster.pids
    for name in cluster.PARTS:
        print(f"{name:24} {f'pid {pids[name]}' if name in pids else 'does not run'}")
    return int(len(pids) < len(cluster.PARTS))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description="A real Kubernetes with hollow nodes.")
    parser.add_argument("command", choices=["up", "down", "status"])
    parser.add_argument("--nodes", type=int, default=3, help="hollow nodes to begin with (3)")
    parser.add_argument("--real", action="store_true", help="a real node too, which runs containers; needs root")
    wanted = parser.parse_args()
    there = Layout(folder()).network
    real = wanted.real if there is None else there.namespace is not None
    cluster = (NodeCluster if real else ControlPlane)(folder(), tied=False)
    try:
        return {
            "up": lambda: up(cluster, wanted.nodes),
            "down": lambda: down(cluster),
            "status": lambda: status(cluster),
        }[wanted.command]()
    except (Missing, BrokenError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
