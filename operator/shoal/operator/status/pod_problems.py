"""Reads problems from a pod's status. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shoal.operator.resources.pods import GROUP
from shoal.operator.status.reasons import PodProblem

__all__ = ["problems_of_pod"]

_CRASH_LOOP = "CrashLoopBackOff"
_NO_PROBLEM = {"", "ContainerCreating", "PodInitializing"}


def problems_of_pod(pod: Mapping[str, Any]) -> Iterable[PodProblem]:
    """Yield why a pod has no node, and why its containers do not run."""
    name = pod["metadata"]["name"]
    role = str((pod["metadata"].get("labels") or {}).get(f"{GROUP}/role", ""))
    status = pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            yield PodProblem(role, name, condition.get("reason", "Unschedulable"), condition.get("message", ""))
    if status.get("phase") == "Failed" and status.get("reason"):
        # The kubelet refused the pod, or evicted it.
        yield PodProblem(role, name, str(status["reason"]), str(status.get("message", "")))
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = (container.get("state") or {}).get("waiting") or {}
        ended = (container.get("lastState") or {}).get("terminated") or {}
        reason = waiting.get("reason", "")
        if ended.get("reason") == "OOMKilled" and not container.get("ready"):
            yield PodProblem(
                role, name, "OOMKilled", f"container {container.get('name')} used more memory than its limit"
            )
            # CrashLoopBackOff is only a consequence of that.
            if reason == _CRASH_LOOP:
                continue
        if reason not in _NO_PROBLEM:
            yield PodProblem(role, name, reason, _message(reason, waiting, ended))


def _message(reason: str, waiting: Mapping[str, Any], ended: Mapping[str, Any]) -> str:
    """Return the kubelet's message; in a crash loop the last exit code and output are before it, as it has only the delay."""
    message = str(waiting.get("message", ""))
    if reason != _CRASH_LOOP or "exitCode" not in ended:
        return message
    last = str(ended.get("message", "")).rstrip().rpartition("\n")[2].strip()
    return "; ".join(filter(None, (f"exit code {ended['exitCode']}{': ' if last else ''}{last}", message)))
