"""From Kubernetes' objects to the SDK's values. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from shoal.api.status import Condition, ConditionType, Reason, State, Status
from shoal.sdk.backend import Failure
from shoal.sdk.types import Account, Event, JobStatus, Member, Progress, Replicas, SizeChange

__all__ = ["event", "failed_container", "history", "job_status", "member", "process_name", "waiting_reason"]

_DECIDING: Final = {
    State.COMPLETE: ConditionType.COMPLETE,
    State.FAILED: ConditionType.FAILED,
    State.SUSPENDED: ConditionType.SUSPENDED,
    State.SUSPENDING: ConditionType.SUSPENDED,
}
_REFUSALS: Final = frozenset((Reason.INVALID_SPEC, Reason.INVALID_TEMPLATE, Reason.UNKNOWN_PRIORITY, Reason.NAME_TAKEN))
"""Reasons for which a job does not start until it, or the object that is in conflict with it, is changed."""


def job_status(manifest: Mapping[str, Any]) -> JobStatus:
    """Return the state of a job."""
    metadata = manifest["metadata"]
    status = Status.from_mapping(manifest.get("status"))
    state = status.state or State.PENDING
    conditions = {each.type: each for each in status.conditions}
    trainers, servers = status.trainers, status.servers
    return JobStatus(
        name=metadata["name"],
        namespace=metadata.get("namespace", ""),
        state=state,
        reason=status.reason or "",
        message=_message(state, status, conditions),
        progress=_progress(status),
        trainers=Replicas(trainers.ready, trainers.desired, trainers.min, trainers.max) if trainers else Replicas(),
        parameter_servers=Replicas(servers.ready, servers.desired, servers.desired, servers.desired)
        if servers
        else Replicas(),
        account=Account(**status.account.model_dump()) if status.account is not None else None,
        created=_time(metadata.get("creationTimestamp")),
        started=status.start_time,
        ended=status.completion_time or _failed_at(conditions),
        refusal=_refusal(status, conditions),
        uid=metadata.get("uid", ""),
    )


def _message(state: State, status: Status, conditions: Mapping[str, Condition]) -> str:
    """Return the message of the condition that determines the state."""
    if (kind := _DECIDING.get(state)) is not None:
        return conditions[kind].message if kind in conditions else ""
    deciding = next((each for each in status.conditions if each.reason == status.reason and each.message), None)
    if deciding is not None:
        return deciding.message
    if state is State.QUEUED and status.allocation is not None:
        return status.allocation.message or ""
    return ""


def _refusal(status: Status, conditions: Mapping[str, Condition]) -> str:
    accepted = conditions.get(ConditionType.ACCEPTED)
    if accepted is None or accepted.status != "False" or accepted.reason not in _REFUSALS:
        return ""
    # A job that has run keeps its last accepted spec.
    return f"{accepted.reason}: {accepted.message}" if status.start_time is None else ""


def _progress(status: Status) -> Progress:
    found = status.progress
    if found is None:
        return Progress()
    return Progress(
        samples=found.samples,
        expected=found.expected,
        epoch=found.epoch,
        epochs=found.epochs,
        rate=found.rate,
        estimated_end=found.estimated_end,
        message=found.message or "",
    )


def _failed_at(conditions: Mapping[str, Condition]) -> datetime | None:
    failed = conditions.get(ConditionType.FAILED)
    return failed.last_transition_time if failed is not None and failed.status == "True" else None


def history(manifest: Mapping[str, Any]) -> list[SizeChange]:
    """Return the changes of the number of trainers that a job's status has, the oldest first."""
    status = Status.from_mapping(manifest.get("status"))
    return [SizeChange(each.time, each.before, each.after, each.cause, each.by) for each in status.history]


def event(manifest: Mapping[str, Any]) -> Event:
    """Return an event of the core API."""
    series = manifest.get("series") or {}
    times = (
        series.get("lastObservedTime"),
        manifest.get("lastTimestamp"),
        manifest.get("eventTime"),
        manifest["metadata"].get("creationTimestamp"),
    )
    time = next((found for text in times if (found := _time(text)) is not None), datetime.fromtimestamp(0, UTC))
    return Event(
        time=time,
        kind=str(manifest.get("type") or "Normal"),
        reason=str(manifest.get("reason") or ""),
        message=str(manifest.get("message") or ""),
        count=int(series.get("count") or manifest.get("count") or 1),
    )


def process_name(pod: Mapping[str, Any], job: str) -> str:
    """Return the name of a pod's process, such as ``trainer-0``."""
    labels = pod["metadata"].get("labels") or {}
    role = str(labels.get("shoal.dev/role", ""))
    if role == "master":
        return "master-0"
    return str(pod["metadata"]["name"]).removeprefix(f"{job}-")


def member(pod: Mapping[str, Any], job: str) -> Member:
    """Return the process of a pod."""
    status = pod.get("status") or {}
    container = _container(pod)
    state, message = waiting_reason(pod)
    if not state:
        state = str(status.get("phase") or "Pending")
        if pod["metadata"].get("deletionTimestamp"):
            state = "Leaving"
        elif container.get("ready"):
            state = "Ready"
    return Member(
        name=process_name(pod, job),
        state=state,
        node=str((pod.get("spec") or {}).get("nodeName") or ""),
        restarts=int(container.get("restartCount") or 0),
        message=message,
    )


def waiting_reason(pod: Mapping[str, Any]) -> tuple[str, str]:
    """Return the reason and the message why a pod's process does not run; empty texts if it runs or has ended."""
    status = pod.get("status") or {}
    for each in status.get("conditions") or []:
        if each.get("type") == "PodScheduled" and each.get("status") == "False":
            return str(each.get("reason") or "Unschedulable"), str(each.get("message") or "")
    waiting = (_container(pod).get("state") or {}).get("waiting") or {}
    if waiting:
        return str(waiting.get("reason") or "Waiting"), str(waiting.get("message") or "")
    return "", ""


def failed_container(pods: Sequence[Mapping[str, Any]], job: str) -> tuple[Failure, str, bool] | None:
    """Return the process that failed last, the name of its pod, and whether its log is that of the container's last run."""
    found: list[tuple[str, Mapping[str, Any], str, bool]] = []
    for pod in pods:
        container = _container(pod)
        for key, previous in (("state", False), ("lastState", True)):
            ended = (container.get(key) or {}).get("terminated") or {}
            if ended.get("exitCode"):
                found.append((str(ended.get("finishedAt") or ""), pod, str(ended.get("message") or ""), previous))
    if not found:
        return None
    _, pod, message, previous = max(found, key=lambda each: each[0])
    lines = tuple(message.splitlines()[-20:])
    return Failure(process_name(pod, job), lines), str(pod["metadata"]["name"]), previous


def _container(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the status of the role's own container; empty if it has none yet."""
    role = (pod["metadata"].get("labels") or {}).get("shoal.dev/role")
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return next((each for each in statuses if each.get("name") == role), {})


def _time(text: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(text)) if text else None
    except ValueError:
        return None
    return found.astimezone(UTC) if found is not None else None
