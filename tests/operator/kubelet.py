"""Pod statuses as a kubelet writes them, for hollow pods, which run no containers."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.operator.world import World

__all__ = ["STAYS_PENDING", "ended", "evicted", "init_ended", "runs", "waits"]

STAYS_PENDING = {"annotations": {"hollow.shoal.dev/start-ms": "3600000"}}
"""Metadata of a template whose hollow pods get a node and do nothing more."""


def waits(world: World, pod: str, reason: str, message: str) -> None:
    """Report a container that does not start."""
    state = {"waiting": {"reason": reason, "message": message}}
    _write(world, pod, {"state": state, "ready": False, "restartCount": 0}, phase="Pending", ready=False)


def runs(world: World, pod: str) -> None:
    """Report a container that runs and is ready."""
    state = {"running": {"startedAt": _time(datetime.now(UTC))}}
    _write(world, pod, {"state": state, "ready": True, "restartCount": 0}, phase="Running", ready=True)


def ended(
    world: World,
    pod: str,
    code: int,
    *,
    at: datetime,
    reason: str = "Error",
    message: str = "",
    now: dict[str, Any] | None = None,
) -> None:
    """Report a container that exited one second after its start and was restarted in place.

    Args:
        world: The test's world.
        pod: Name of the pod.
        code: Exit code.
        at: When the container exited.
        reason: The reason, as the kubelet writes it.
        message: The termination message.
        now: The container's current state. Default: it runs again.
    """
    last = {
        "exitCode": code, "reason": reason, "message": message, "containerID": f"containerd://{secrets.token_hex(8)}",
        "startedAt": _time(at - timedelta(seconds=1)), "finishedAt": _time(at),
    }  # fmt: skip
    state = now or {"running": {"startedAt": _time(at)}}
    status = {"state": state, "ready": now is None, "restartCount": 1, "lastState": {"terminated": last}}
    _write(world, pod, status, phase="Running", ready=now is None)


def init_ended(world: World, pod: str, name: str, code: int, *, message: str = "") -> None:
    """Report an init container that exited and waits for its restart."""
    now = datetime.now(UTC)
    last = {
        "exitCode": code, "reason": "Error", "message": message, "containerID": f"containerd://{secrets.token_hex(8)}",
        "startedAt": _time(now - timedelta(seconds=1)), "finishedAt": _time(now),
    }  # fmt: skip
    container = {
        "name": name, "image": "i", "imageID": "", "ready": False, "restartCount": 1, "lastState": {"terminated": last},
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
    }  # fmt: skip
    status = {"phase": "Pending", "initContainerStatuses": [container]}
    world.api.patch("Pod", pod, world.namespace, {"status": status}, status=True)


def evicted(world: World, pod: str, *, code: int) -> None:
    """Report a pod that the kubelet evicted and whose process exited with this code."""
    now = _time(datetime.now(UTC))
    role = world.api.get("Pod", pod, world.namespace)["metadata"]["labels"]["shoal.dev/role"]
    last = {"exitCode": code, "reason": "Error", "containerID": f"containerd://{secrets.token_hex(8)}",
            "startedAt": now, "finishedAt": now}  # fmt: skip
    container = {
        "name": role,
        "image": "i",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": {"terminated": last},
    }
    status = {
        "phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory.",
        "conditions": [{"type": kind, "status": "False"} for kind in ("ContainersReady", "Ready")],
        "containerStatuses": [container],
    }  # fmt: skip
    world.api.patch("Pod", pod, world.namespace, {"status": status}, status=True)


def _write(world: World, pod: str, container: dict[str, Any], *, phase: str, ready: bool) -> None:
    found = world.api.get("Pod", pod, world.namespace)
    role = found["metadata"]["labels"]["shoal.dev/role"]
    status = {
        "phase": phase,
        "conditions": [{"type": kind, "status": str(ready)} for kind in ("ContainersReady", "Ready")],
        "containerStatuses": [{"name": role, "image": "train", "imageID": "", **container}],
    }
    world.api.patch("Pod", pod, world.namespace, {"status": status}, status=True)


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
