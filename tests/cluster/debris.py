"""What a node leaves behind after its processes have ended, and its removal: containers, mounts, networks, control groups.

A cluster's processes end with the test run that started them, also when it is killed; these resources do not. Each cluster
therefore leaves a note in /run, and the next cluster removes the resources that have no owner any more.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import psutil

from tests.cluster.control_groups import remove_control_groups
from tests.cluster.network import Network, remove_namespace
from tests.cluster.processes import born

__all__ = ["end_containers", "leave_note", "remove", "remove_debris"]

CONTAINER_LOGS = Path("/var/log/containers")
CNI_RESULTS = Path("/var/lib/cni/results")


def leave_note(network: Network) -> None:
    """Record the owner of a network."""
    network.run.mkdir()
    note = {"network": asdict(network), "owner": os.getpid(), "born": born(os.getpid())}
    part = network.run / "note.part"
    part.write_text(json.dumps(note))
    part.rename(network.run / "note.json")


def remove_debris() -> None:
    """Remove the debris of clusters whose owner and processes have ended."""
    for file in Path("/run").glob("shoal-*/note.json"):
        note = json.loads(file.read_text())
        network = Network(**note["network"])
        lives = born(note["owner"]) == note["born"]
        if not lives and not _inside(network):
            end_containers(network.run)
            remove(network)


def _inside(network: Network) -> bool:
    """Return whether a part runs in the namespace; pods have their own namespaces, and their shims outlive the parts."""
    assert network.namespace
    try:
        inode = (Path("/run/netns") / network.namespace).stat().st_ino
    except FileNotFoundError:
        return False
    for namespace in Path("/proc").glob("[0-9]*/ns/net"):
        with contextlib.suppress(OSError):
            shim = b"containerd-shim" in (namespace.parent.parent / "cmdline").read_bytes()
            if namespace.stat().st_ino == inode and not shim:
                return True
    return False


def remove(network: Network) -> None:
    """Remove everything of a cluster except its processes."""
    run, state = network.run, network.state
    for place in (run, state):
        unmount(place)
        if left := _mounts(place):
            raise RuntimeError(f"{left} could not be unmounted; nothing below {place} is deleted")
    remove_namespace(network)
    remove_pod_networks(run.name)
    remove_control_groups(run.name)
    for link in CONTAINER_LOGS.glob("*.log"):
        if state in link.readlink().parents:
            link.unlink()
    for place in (run, state):
        shutil.rmtree(place, ignore_errors=True)


def end_containers(run: Path) -> None:
    """Kill the shims of one containerd, and the containers below them."""
    doomed: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            if str(run / "containerd.sock") in process.cmdline() and "shim" in process.name():
                # A killed shim's children are reparented, so they have to be listed before it is killed.
                doomed += [*process.children(recursive=True), process]
                _socket_of(process.cmdline()).unlink(missing_ok=True)
    for process in doomed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(doomed, timeout=10)


def _socket_of(shim: list[str]) -> Path:
    """Return the path of a shim's socket, which only containerd would remove."""
    said = dict(itertools.pairwise(shim))
    name = f"{said['-address']}/{said['-namespace']}/{said['-id']}"
    return Path("/run/containerd/s") / hashlib.sha256(name.encode()).hexdigest()


def unmount(folder: Path) -> None:
    """Unmount everything below a folder, the innermost first."""
    for point in reversed(_mounts(folder)):
        subprocess.run(["umount", "--lazy", str(point)], check=False, capture_output=True)


def _mounts(folder: Path) -> list[Path]:
    rows = [row.split() for row in Path("/proc/self/mounts").read_text().splitlines()]
    points = [Path(row[1].encode().decode("unicode_escape")) for row in rows]
    return [point for point in points if folder in point.parents]


def remove_pod_networks(network: str) -> None:
    """Delete the namespaces of pods in a CNI network, which are recorded in CNI's own result files."""
    for note in list(CNI_RESULTS.glob(f"{network}-*")):
        said = json.loads(note.read_text())
        for interface in said["result"]["interfaces"]:
            if interface.get("sandbox"):
                namespace = Path(interface["sandbox"]).name
                subprocess.run(["ip", "netns", "delete", namespace], check=False, capture_output=True)
        for of_pod in CNI_RESULTS.glob(f"*-{said['containerId']}-*"):
            of_pod.unlink()
