"""A job's run policy: errors of the script, the deadline, and removal after the job's end. Pure.

The rules for errors are those of ``shoal run`` on one machine. Signals, kills by the memory limit and lost nodes are not errors
of the script. A committed task shows that the script works and resets the count, unless the last error came within
``_STEADY_SECONDS`` of a start: a script that always fails early commits some tasks too. The job's status stores the count, so
it survives a restart of the operator.

**An evicted trainer is distinguished from a failed one here.** The kubelet sets a reason in the status of a pod that it terminates;
`ends_of` marks the end of such a pod, or of one that the caller names as terminated, with `asked`, and `is_error` does not count it.

**Clocks of two machines are not compared.** Whether a task was committed after an error is decided by when this process
observed the two, by its own clock. An operator that starts observes both anew, so one more commit is necessary. Between two
nodes only the order of ends matters, and only to an operator that starts: an error that is not later than the last counted
one is not counted.
"""

from __future__ import annotations

import signal
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from shoal.api import TrainingJob
from shoal.api.status import Condition, ConditionType, Reason, Status
from shoal.operator.core.reconcile import Ended
from shoal.operator.resources.object_fields import parse_time
from shoal.operator.resources.pods import GROUP, label

__all__ = [
    "REFUSED",
    "RETRY",
    "ConsecutiveFailures",
    "ContainerEnd",
    "active_seconds",
    "clocked",
    "count_failures",
    "end_of",
    "ends_of",
    "is_error",
    "newly_failed",
    "overrun",
    "recorded_end",
    "removal_due",
    "retried",
    "retry_requested",
]

REFUSED: Final = 78
"""Exit code of a Shoal process that cannot take part in this job. The job fails with it if no sample was committed yet."""
RETRY: Final = f"{GROUP}/retry"
"""Annotation of a job: any new value makes the operator run a failed job again."""
_LONGEST_RETRY: Final = 100
"""Characters of its value that count."""
_LONGEST_SECONDS: Final = 100 * 365 * 86400
_NEVER_JOINED: Final = (
    "the script ended without joining the job: it never called trainer.join(), or ended before job.prepare(); a script "
    "that Shoal trains calls both"
)
_STEADY_SECONDS: Final = 30.0
"""A script that failed sooner after its start than this has not shown that it works."""
_SIGNALLED: Final = frozenset(
    128 + number for number in (signal.SIGABRT, signal.SIGBUS, signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM)
)
_ENDS: Final = (ConditionType.COMPLETE, ConditionType.FAILED)


@dataclass(frozen=True, kw_only=True)
class ContainerEnd:
    """How one run of a job's container ended.

    Attributes:
        pod: Name of the pod.
        role: Role of the pod.
        index: Index of a trainer; -1 for other roles.
        container_id: ID of the container.
        seconds: How long the container ran.
        at: When it ended, by its node's clock.
        code: Exit code.
        message: Its termination message: the last lines of its output.
        terminated: Whether the operator or the kubelet terminated it.
        container: Name of the init container; empty: it is the container of the role.
    """

    pod: str
    role: str
    index: int
    container_id: str
    seconds: float
    at: datetime
    code: int
    message: str = ""
    terminated: bool = False
    container: str = ""


@dataclass(frozen=True)
class ConsecutiveFailures:
    """Consecutive errors of the script.

    Attributes:
        count: How many.
        last: When the last one happened, by its node's clock.
        end: The last one; None: its pod no longer has it.
        seen: When this process first observed the last one, in seconds of a monotonic clock. None: not yet.
    """

    count: int = 0
    last: datetime | None = None
    end: ContainerEnd | None = None
    seen: float | None = None


def ends_of(pod: Mapping[str, Any], *, terminated: bool = False) -> Iterable[ContainerEnd]:
    """Yield the ends that a pod's status has: of the present run of its role's container, and of the run before.

    Ends of init containers are included where they failed: without them no script starts. Kills by the memory limit are left
    out, as they are not errors of the script.

    Args:
        pod: Manifest of the pod.
        terminated: Whether the pod was terminated.
    """
    role, index = label(pod, "role"), label(pod, "index")
    status = pod.get("status") or {}
    # The kubelet sets a reason on a pod that it terminates: eviction, the pod's own deadline, shutdown of the node.
    terminated = terminated or bool(status.get("reason"))
    own = [each for each in status.get("containerStatuses") or [] if each.get("name") == role]
    before = status.get("initContainerStatuses") or []
    for container in [*before, *own]:
        for state in ("lastState", "state"):
            ended = (container.get(state) or {}).get("terminated") or {}
            at, started = parse_time(ended.get("finishedAt")), parse_time(ended.get("startedAt"))
            code = int(ended.get("exitCode", 0))
            if at is None or ended.get("reason") == "OOMKilled" or (container in before and code == 0):
                continue
            yield ContainerEnd(
                pod=pod["metadata"]["name"],
                role=role,
                index=int(index) if index.isdigit() else -1,
                container_id=str(ended.get("containerID", "")),
                seconds=(at - started).total_seconds() if started is not None else 0.0,
                at=at,
                code=code,
                message=str(ended.get("message", "")).strip(),
                terminated=terminated,
                container="" if container in own else str(container.get("name", "")),
            )


def newly_failed(
    before: ConsecutiveFailures, ends: Iterable[ContainerEnd], *, known: Collection[str] | None
) -> list[ContainerEnd]:
    """Return the script errors that were not counted yet, oldest first.

    Args:
        before: The tally so far.
        ends: All known ends, in any order.
        known: Container IDs of the ends that were counted before. None: this process has counted none; then the time of the
            last counted error decides.
    """
    fresh = [end for end in ends if is_error(end) and end.container_id not in (known or ())]
    if known is None and before.last is not None:
        fresh = [end for end in fresh if end.at > before.last]
    return sorted(fresh, key=lambda end: end.at)


def count_failures(
    before: ConsecutiveFailures,
    ends: Collection[ContainerEnd],
    *,
    known: Collection[str] | None,
    committed: float | None,
    now: float,
) -> ConsecutiveFailures:
    """Return the tally with the new errors.

    Args:
        before: The tally so far.
        ends: All known ends, in any order.
        known: Container IDs of the ends that were counted before; None: this process has counted none.
        committed: When this process last observed a commit of samples, on the clock of `now`. None: it has observed none.
        now: Seconds of a monotonic clock.
    """
    failures = before
    if failures.count and failures.end is None:
        # An earlier operator process counted it; the pod may still have its termination message.
        failures = replace(failures, end=max(filter(is_error, ends), key=lambda end: end.at, default=None))
    if failures.count and failures.seen is None:
        failures = replace(failures, seen=now)
    failures = _reset_if_committed(failures, committed)
    for end in newly_failed(before, ends, known=known):
        failures = ConsecutiveFailures(failures.count + 1, max(end.at, failures.last or end.at), end, now)
    return failures


def is_error(end: ContainerEnd) -> bool:
    """Return whether the user's program ended by itself before the job was complete: with an error, or too early.

    An init container of any role is the user's program too.
    """
    return (end.role == "trainer" or bool(end.container)) and not end.terminated and end.code not in _SIGNALLED


def _reset_if_committed(failures: ConsecutiveFailures, committed: float | None) -> ConsecutiveFailures:
    if not failures.count or failures.seen is None or committed is None:
        return failures
    late = failures.end is not None and failures.end.seconds >= _STEADY_SECONDS
    shown = failures.seen if late else failures.seen + _STEADY_SECONDS
    return replace(failures, count=0) if committed > shown else failures


def overrun(
    job: TrainingJob, status: Status, failures: ConsecutiveFailures, refusals: Iterable[ContainerEnd], now: datetime
) -> Ended | None:
    """Return the end that the run policy decides; None: the job goes on.

    Args:
        job: The job in force.
        status: The status that was written last.
        failures: The script's consecutive errors.
        refusals: Ends with exit code `REFUSED`.
        now: The time.
    """
    refused = next(iter(refusals), None)
    if refused is not None and not (status.progress is not None and status.progress.samples):
        return _failed(Reason.SCRIPT_FAILED, refused.message or f"{refused.pod} refused the job; its log says why")
    policy = job.spec.run_policy
    if failures.end is not None and not failures.end.code and failures.count > 1 and _never_joined(status):
        return _failed(Reason.SCRIPT_FAILED, f"{_NEVER_JOINED}{_last(failures.end)}")
    if failures.end is not None and failures.count > policy.backoff_limit + (
        0 if failures.end.code else job.spec.trainer.most
    ):
        return _failed(Reason.BACKOFF_LIMIT_EXCEEDED, _in_a_row(failures, failures.end, policy.backoff_limit))
    limit = policy.active_deadline_seconds
    if limit is not None and active_seconds(status, now) >= limit:
        return _failed(Reason.DEADLINE_EXCEEDED, f"runPolicy.activeDeadlineSeconds: {limit} s have passed")
    return None


def _in_a_row(failures: ConsecutiveFailures, end: ContainerEnd, limit: int) -> str:
    if end.code == 0:
        return f"the script ended {failures.count} times in a row although the job was not complete{_last(end)}"
    times = "once" if failures.count == 1 else f"{failures.count} times"
    what = f"the init container {end.container} of {end.pod}" if end.container else "the script"
    return f"{what} failed {times} in a row (runPolicy.backoffLimit: {limit}){_last(end)}"


def _last(end: ContainerEnd) -> str:
    return f"; the last output of {end.pod} (exit code {end.code}):\n{end.message}" if end.message else ""


def _never_joined(status: Status) -> bool:
    """Return whether the master runs, but no trainer has ever sent it the description of the training."""
    return status.progress is not None and status.progress.epochs is None


def _failed(reason: Reason, message: str) -> Ended:
    return Ended("Failed", f"{reason}: {message}")


def active_seconds(status: Status, now: datetime) -> float:
    """Return for how many seconds a job has been active, without the time that it was suspended or queued."""
    running = (now - status.active_since).total_seconds() if status.active_since is not None else 0.0
    return (status.active_seconds or 0) + max(0.0, running)


def clocked(status: Status, now: datetime, *, runs: bool) -> Status:
    """Return the status with the clock of the active deadline started or stopped.

    As in a batch Job, the clock starts when the job is accepted, so the deadline also ends a job that never starts.

    Args:
        status: The status.
        now: The time.
        runs: Whether the job should run: it is accepted, and neither suspended nor queued nor complete.
    """
    failed = any(each.type == ConditionType.FAILED for each in status.conditions)
    if runs and not failed:
        return Status(**dict(status) | {"active_since": status.active_since or now})
    if status.active_since is None:
        return status
    return Status(**dict(status) | {"active_seconds": int(active_seconds(status, now)), "active_since": None})


def recorded_end(status: Status) -> Ended | None:
    """Return the end that the status has: it is never revoked, whatever etcd loses."""
    found = end_of(status)
    if found is None:
        return None
    return Ended(found.type, f"{found.reason}: {found.message}")


def end_of(status: Status) -> Condition | None:
    """Return the condition of type Complete or Failed that is True; None: the job has not ended."""
    return next((each for of in _ENDS for each in status.conditions if each.type == of and each.status == "True"), None)


def retry_requested(manifest: Mapping[str, Any], status: Status) -> str:
    """Return the value of the annotation that asks for a retry of a failed job; empty: none that was not handled yet."""
    value = str((manifest["metadata"].get("annotations") or {}).get(RETRY) or "")[:_LONGEST_RETRY]
    return value if value != (status.retried or "") else ""


def retried(status: Status) -> Status:
    """Return the status without the job's end, its failures and the time that it ran."""
    conditions = [each for each in status.conditions if each.type != ConditionType.FAILED]
    cleared = dict.fromkeys(
        ("failures", "last_failure_time", "active_seconds", "active_since", "account", "completion_time")
    )
    return Status(**dict(status) | {"conditions": conditions, **cleared})


def removal_due(job: TrainingJob, status: Status) -> datetime | None:
    """Return when an ended job is to be deleted; None: never, or the job has not ended."""
    found, seconds = end_of(status), job.spec.run_policy.ttl_seconds_after_finished
    if found is None or seconds is None:
        return None
    return found.last_transition_time + timedelta(seconds=min(seconds, _LONGEST_SECONDS))
