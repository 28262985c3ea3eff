"""A Kubernetes with Shoal for trying it out: ``python -m tests.cluster up|down|status``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from tests.cluster import binaries, playground
from tests.cluster.binaries import Missing
from tests.cluster.control_plane import BrokenError, ControlPlane, KubectlError
from tests.cluster.node import NodeCluster
from tests.cluster.node_parts import NODE_NAME
from tests.cluster.parts import Layout

HOLLOW_TAINT = {"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}
"""Where there is a real node, only pods that tolerate this go to the others."""


def folder() -> Path:
    """Return the cluster's folder: the one that SHOAL_CLUSTER names, else one in the user's cache."""
    named = os.environ.get("SHOAL_CLUSTER")
    return Path(named or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shoal" / "cluster")


def say(line: str) -> None:
    print(line, flush=True)


def choose(wanted: argparse.Namespace) -> ControlPlane:
    """Return the existing cluster, or else the best kind that this machine allows."""
    there = Layout(folder()).network
    real = not wanted.hollow if there is None else there.namespace is not None
    if real and there is None and wanted.command == "up":
        try:
            binaries.node_tools()
        except Missing as error:
            if wanted.real:
                raise
            say(f"no real node: {error}; a hollow cluster comes up alone, whose pods only say that they run")
            real = False
    return (NodeCluster if real else ControlPlane)(folder(), tied=False)


def up(cluster: ControlPlane, nodes: int) -> int:
    begun = time.monotonic()
    if cluster.pids:
        say(f"a cluster runs in {cluster.folder} already")
        playground.spare_volumes(cluster)
    else:
        try:
            start(cluster, nodes)
        except BaseException:
            # A second Ctrl-C during the clean-up would leave half of the cluster behind.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            say("ending what was started")
            remove(cluster)
            raise
        say(f"all of it is ready after {time.monotonic() - begun:.0f} s")
    greet(cluster)
    return 0


def start(cluster: ControlPlane, nodes: int) -> None:
    real = isinstance(cluster, NodeCluster)
    (binaries.node if real else binaries.hollow)(say)
    begun = time.monotonic()
    say(f"starting {', '.join(cluster.PARTS)}")
    cluster.start()
    if nodes:
        cluster.add_nodes(nodes, taints=[HOLLOW_TAINT] if real else [])
    hollow = f"{nodes} hollow nodes of 4 cores and 16 GiB"
    say(f"up in {time.monotonic() - begun:.1f} s, with {f'the node {NODE_NAME} and ' if real else ''}{hollow}")
    say("installing Shoal " + ("as deploy/ does, with this machine's Python" if real else "as processes beside it"))
    playground.spare_volumes(cluster)
    playground.install(cluster, say)
    if real:
        playground.write_flights(cluster.folder / "flights")


def greet(cluster: ControlPlane) -> None:
    """Print the next steps."""
    say(f"\n  export KUBECONFIG={cluster.kubeconfig} PATH={cluster.folder / 'bin'}:$PATH")
    if isinstance(cluster, NodeCluster):
        say(f"  kubectl apply -k {cluster.folder / 'flights'}    # trains on 294,629 real flights, in pods")
        say("  kubectl get tj -w\n\nmore: docs/quickstart-kubernetes.md")
    else:
        say("  kubectl get nodes,tj\n")
    say(f"logs: {cluster.folder / 'logs'}; `make cluster-down` ends it")


def remove(cluster: ControlPlane) -> None:
    playground.end_beside(cluster)
    cluster.remove()


def down(cluster: ControlPlane) -> int:
    running = len(cluster.pids) + sum(each.pid is not None for each in playground.beside(cluster))
    if running:
        say(f"ending {running} processes" + (" and all containers" if isinstance(cluster, NodeCluster) else ""))
    remove(cluster)
    say(f"{running} processes ended; nothing is left in {cluster.folder}")
    return 0


def status(cluster: ControlPlane) -> int:
    """Print the processes; return exit code 0 if all of them run."""
    pids = {name: cluster.pids.get(name) for name in cluster.PARTS}
    pids |= {each.name: each.pid for each in playground.beside(cluster)}
    for name, pid in pids.items():
        print(f"{name:24} {f'pid {pid}' if pid else 'does not run'}")
    return int(not all(pids.values()))


def _told_to_end(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m tests.cluster", description="A real Kubernetes with Shoal in it.")
    found.add_argument("command", choices=["up", "down", "status"])
    found.add_argument("--nodes", type=int, default=3, help="hollow nodes to begin with (3)")
    kind = found.add_mutually_exclusive_group()
    kind.add_argument(
        "--real", action="store_true", help="a real node, or an error (default: where root and tools allow)"
    )
    kind.add_argument("--hollow", action="store_true", help="hollow nodes alone")
    return found


def main() -> int:
    wanted = parser().parse_args()
    signal.signal(signal.SIGTERM, _told_to_end)
    try:
        cluster = choose(wanted)
        return {
            "up": lambda: up(cluster, wanted.nodes),
            "down": lambda: down(cluster),
            "status": lambda: status(cluster),
        }[wanted.command]()
    except (Missing, BrokenError, KubectlError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped" + ("; nothing is left" if wanted.command == "up" else ""), file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
