"""What a job's run policy says now: errors of the script, the deadline, how long the job stays after its end. Pure.

What counts as an error of the script's own, and when the count begins anew, is as on one machine: signals, memory kills
and lost nodes are nobody's fault; a task that is committed shows that the script works, unless the last error came soon
after a start, as a script that always fails early commits some. The count stands in the job's status, so it survives.

**Clocks of two machines are not compared.** Whether a task was committed after an error is a matter of when this process saw
the end of the one and the count of the other, by its own clock; an operator that begins sees each of them anew, so it takes
one more commit. Between two nodes only the order of ends matters, and only to an operator that begins: an error that it takes
for one of before is not counted.
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
from shoal.operator.resources.object_fields import moment_of
from shoal.operator.resources.pods import label

__all__ = [
    "REFUSED",
    "ContainerEnd",
    "FailureTally",
    "active_seconds",
    "clocked",
    "end_of",
    "ends_of",
    "is_error",
    "newly_failed",
    "overrun",
    "removal_due",
    "said_end",
    "tallied",
]

REFUSED: Final = 78
"""Exit code of a process of Shoal's that cannot take part in this job: a final word where nothing was trained yet."""
_LONGEST_SECONDS: Final = 100 * 365 * 86400
_NEVER_JOINED: Final = (
    "the script ended without joining the job: it never called trainer.join(), or ended before job.prepare(); a script "
    "that Shoal trains calls both"
)
_STEADY_SECONDS: Final = 30.0
"""A script that failed sooner after its start has not shown that it works."""
_SIGNALLED: Final = frozenset(
    128 + number for number in (signal.SIGABRT, signal.SIGBUS, signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM)
)
_ENDS: Final = (ConditionType.COMPLETE, ConditionType.FAILED)


@dataclass(frozen=True, kw_only=True)
class ContainerEnd:
    """How one life of a job's container ended.

    Attributes:
        pod: Its pod.
        role: The pod's.
        index: A trainer's; -1 for others.
        life: The container's id.
        seconds: How long it lived.
        at: When it ended.
        code: Exit code.
        words: The last that it said.
        asked: Whether it was asked to end, by the operator or by its kubelet.
        container: The init container that it was; empty: the one of its role.
    """

    pod: str
    role: str
    index: int
    life: str
    seconds: float
    at: datetime
    code: int
    words: str = ""
    asked: bool = False
    container: str = ""


@dataclass(frozen=True)
class FailureTally:
    """Errors of the script's own in a row.

    Attributes:
        count: How many.
        last: When the last one was, by its node's clock.
        end: The last one, where it is still known.
        seen: When this process saw the last one first, in seconds that only go forward; None: not yet.
    """

    count: int = 0
    last: datetime | None = None
    end: ContainerEnd | None = None
    seen: float | None = None


def ends_of(pod: Mapping[str, Any], *, asked: bool = False) -> Iterable[ContainerEnd]:
    """The ends that a pod still knows of: of the present life of its role's container and of the one before.

    So of its init containers, where they fail: without them no script starts. Those by memory's end are left out: they are
    nobody's fault.

    Args:
        pod: As the API server has it.
        asked: Whether it was asked to end.
    """
    role, index = label(pod, "role"), label(pod, "index")
    status = pod.get("status") or {}
    # The kubelet gives a reason to a pod that it ends itself: evicted, over its own deadline, with its node shut down.
    asked = asked or bool(status.get("reason"))
    own = [each for each in status.get("containerStatuses") or [] if each.get("name") == role]
    before = status.get("initContainerStatuses") or []
    for container in [*before, *own]:
        for state in ("lastState", "state"):
            ended = (container.get(state) or {}).get("terminated") or {}
            at, started = moment_of(ended.get("finishedAt")), moment_of(ended.get("startedAt"))
            code = int(ended.get("exitCode", 0))
            if at is None or ended.get("reason") == "OOMKilled" or (container in before and code == 0):
                continue
            yield ContainerEnd(
                pod=pod["metadata"]["name"],
                role=role,
                index=int(index) if index.isdigit() else -1,
                life=str(ended.get("containerID", "")),
                seconds=(at - started).total_seconds() if started is not None else 0.0,
                at=at,
                code=code,
                words=str(ended.get("message", "")).strip(),
                asked=asked,
                container="" if container in own else str(container.get("name", "")),
            )


def newly_failed(
    before: FailureTally, ends: Iterable[ContainerEnd], *, known: Collection[str] | None
) -> list[ContainerEnd]:
    """The errors of scripts among some ends that were not counted yet, oldest first.

    Args:
        before: As it was counted up to now.
        ends: All that are known, in any order.
        known: Lives whose ends were looked at before. None: nobody did since this process began, so all that is known is
            until when was counted.
    """
    fresh = [end for end in ends if is_error(end) and end.life not in (known or ())]
    if known is None and before.last is not None:
        fresh = [end for end in fresh if end.at > before.last]
    return sorted(fresh, key=lambda end: end.at)


def tallied(
    before: FailureTally,
    ends: Collection[ContainerEnd],
    *,
    known: Collection[str] | None,
    committed: float | None,
    now: float,
) -> FailureTally:
    """Count on.

    Args:
        before: As it was counted up to now.
        ends: As of `newly_failed`.
        known: Likewise.
        committed: When this process last saw that samples had been committed; None: it has not.
        now: The same clock's time: seconds that only go forward.
    """
    tally = before
    if tally.count and tally.end is None:
        # Counted by an earlier operator; the pod may still know its words.
        tally = replace(tally, end=max(filter(is_error, ends), key=lambda end: end.at, default=None))
    if tally.count and tally.seen is None:
        tally = replace(tally, seen=now)
    tally = _renewed(tally, committed)
    for end in newly_failed(before, ends, known=known):
        tally = FailureTally(tally.count + 1, max(end.at, tally.last or end.at), end, now)
    return tally


def is_error(end: ContainerEnd) -> bool:
    """Whether a script ended by its own doing, though the job is not at its end: with an error, or too early.

    An init container of any role is the user's own program, too.
    """
    return (end.role == "trainer" or bool(end.container)) and not end.asked and end.code not in _SIGNALLED


def _renewed(tally: FailureTally, committed: float | None) -> FailureTally:
    if not tally.count or tally.seen is None or committed is None:
        return tally
    late = tally.end is not None and tally.end.seconds >= _STEADY_SECONDS
    shown = tally.seen if late else tally.seen + _STEADY_SECONDS
    return replace(tally, count=0) if committed > shown else tally


def overrun(
    job: TrainingJob, status: Status, tally: FailureTally, refusals: Iterable[ContainerEnd], now: datetime
) -> Ended | None:
    """The end that the run policy decides; None: the job may go on.

    Args:
        job: As it is now.
        status: As it was said last.
        tally: Of the script's errors.
        refusals: Ends with the code of a final word.
        now: The time.
    """
    refused = next(iter(refusals), None)
    if refused is not None and not (status.progress is not None and status.progress.samples):
        return _failed(Reason.SCRIPT_FAILED, refused.words or f"{refused.pod} refused the job; its log says why")
    policy = job.spec.run_policy
    if tally.end is not None and not tally.end.code and tally.count > 1 and _never_joined(status):
        return _failed(Reason.SCRIPT_FAILED, f"{_NEVER_JOINED}{_last(tally.end)}")
    if tally.end is not None and tally.count > policy.backoff_limit + (0 if tally.end.code else job.spec.trainer.most):
        return _failed(Reason.BACKOFF_LIMIT_EXCEEDED, _in_a_row(tally, tally.end, policy.backoff_limit))
    limit = policy.active_deadline_seconds
    if limit is not None and active_seconds(status, now) >= limit:
        return _failed(Reason.DEADLINE_EXCEEDED, f"runPolicy.activeDeadlineSeconds: {limit} s have passed")
    return None


def _in_a_row(tally: FailureTally, end: ContainerEnd, limit: int) -> str:
    if end.code == 0:
        return f"the script ended {tally.count} times in a row although the job was not complete{_last(end)}"
    times = "once" if tally.count == 1 else f"{tally.count} times"
    what = f"the init container {end.container} of {end.pod}" if end.container else "the script"
    return f"{what} failed {times} in a row (runPolicy.backoffLimit: {limit}){_last(end)}"


def _last(end: ContainerEnd) -> str:
    return f"; the last words of {end.pod} (exit code {end.code}):\n{end.words}" if end.words else ""


def _never_joined(status: Status) -> bool:
    """Whether the master is up, and no trainer has ever told it what is trained."""
    return status.progress is not None and status.progress.epochs is None


def _failed(reason: Reason, words: str) -> Ended:
    return Ended("Failed", f"{reason}: {words}")


def active_seconds(status: Status, now: datetime) -> float:
    """For how long a job has run, without the time that it was suspended."""
    running = (now - status.active_since).total_seconds() if status.active_since is not None else 0.0
    return (status.active_seconds or 0) + max(0.0, running)


def clocked(status: Status, now: datetime, *, runs: bool) -> Status:
    """The same with the deadline's clock going on or stopped.

    As that of a batch Job it counts from when the job was accepted, so that it ends one that never starts, too.

    Args:
        status: Of now.
        now: The time.
        runs: Whether the job should run: it was accepted, and is neither suspended nor queued nor complete.
    """
    failed = any(each.type == ConditionType.FAILED for each in status.conditions)
    if runs and not failed:
        return Status(**dict(status) | {"active_since": status.active_since or now})
    if status.active_since is None:
        return status
    return Status(**dict(status) | {"active_seconds": int(active_seconds(status, now)), "active_since": None})


def said_end(status: Status) -> Ended | None:
    """The end as the status has it: it is never taken back, whatever etcd forgets."""
    found = end_of(status)
    if found is None:
        return None
    return Ended(found.type, f"{found.reason}: {found.message}")


def end_of(status: Status) -> Condition | None:
    """The condition that says that a job has ended."""
    return next((each for of in _ENDS for each in status.conditions if each.type == of and each.status == "True"), None)


def removal_due(job: TrainingJob, status: Status) -> datetime | None:
    """When a job that has ended is to be removed; None: never, or not ended."""
    found, seconds = end_of(status), job.spec.run_policy.ttl_seconds_after_finished
    if found is None or seconds is None:
        return None
    return found.last_transition_time + timedelta(seconds=min(seconds, _LONGEST_SECONDS))
