"""The Kubernetes events of a job, from two successive statuses. Pure.

An event reports a change, never a state that lasts. A change that repeats is one event with a count.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from shoal.api.status import Condition, ConditionType, Reason, State, Status
from shoal.operator.core.run_policy import ContainerEnd
from shoal.operator.status.reasons import clipped

__all__ = ["EventNote", "failed", "lost", "notes", "record_problems", "restarted"]

_LONGEST: Final = 1000
"""Characters; the API server accepts 1024."""
_BAD: Final = {
    ConditionType.ACCEPTED: None,
    ConditionType.SCHEDULED: {
        Reason.UNSCHEDULABLE, Reason.QUOTA_EXCEEDED, Reason.PODS_REFUSED, Reason.QUEUED,
    },
    ConditionType.RUNNING: {
        Reason.IMAGE_PULL_FAILED, Reason.CONTAINER_CANNOT_START, Reason.CRASH_LOOP, Reason.OUT_OF_MEMORY,
        Reason.SERVERS_AWAY, Reason.MASTER_AWAY,
    },
    ConditionType.PROGRESSING: {Reason.STALLED, Reason.NO_NEWS, Reason.ETCD_UNREACHABLE},
}  # fmt: skip
"""Reasons for which a condition that is not True is reported as a warning; None: all."""
_LOST: Final = {Reason.SERVERS_AWAY, Reason.MASTER_AWAY, Reason.NO_NEWS}
"""Reasons that are reported only if the condition was True before: every job starts, and is resumed, without these processes."""


@dataclass(frozen=True)
class EventNote:
    """An event to write.

    Attributes:
        kind: Type of the event: Normal or Warning.
        reason: Reason of the event, in CamelCase.
        text: Message of the event.
    """

    kind: Literal["Normal", "Warning"]
    reason: str
    text: str


def notes(before: Status, after: Status) -> Iterable[EventNote]:
    """Yield the events for the changes between two statuses of a job."""
    if before.start_time is None and after.start_time is not None:
        assert after.trainers is not None
        yield EventNote("Normal", "Started", f"the training begins with {after.trainers.ready} trainers")
    yield from _scaled(before, after)
    if after.state != before.state:
        yield from _state(before, after)
    old = {each.type: each for each in before.conditions}
    for condition in after.conditions:
        if _newly_bad(old.get(condition.type), condition):
            text = condition.message or f"{condition.type} is {condition.status}"
            yield EventNote("Warning", condition.reason, clipped(text, _LONGEST))


def _scaled(before: Status, after: Status) -> Iterable[EventNote]:
    old, new = before.trainers, after.trainers
    if old is None or new is None or not old.desired or not new.desired or old.desired == new.desired:
        return
    reason = after.allocation.message if after.allocation is not None else None
    yield EventNote("Normal", "Scaled", f"scaled {old.desired} -> {new.desired}{': ' + reason if reason else ''}")


def _state(before: Status, after: Status) -> Iterable[EventNote]:
    if after.state is State.SUSPENDED:
        yield EventNote("Normal", "Suspended", _suspended(before, after))
    elif before.state in {State.SUSPENDING, State.SUSPENDED} and after.state not in {State.COMPLETE, State.FAILED}:
        started = before.start_time is not None
        yield EventNote("Normal", "Resumed", "the job resumes from its snapshots" if started else "the job starts")
    elif after.state is State.COMPLETE:
        account = after.account
        text = "all samples are committed"
        if account is not None:
            text = f"{account.counted:,} of {account.expected:,} samples counted; lost {account.lost}, twice {account.twice}"
        yield EventNote("Normal", "Complete", text)
    elif after.state is State.FAILED:
        failed = next(each for each in after.conditions if each.type == ConditionType.FAILED)
        yield EventNote("Warning", failed.reason, clipped(failed.message or "the job has failed", _LONGEST))


def _suspended(before: Status, after: Status) -> str:
    if before.start_time is None:
        return "the job has not started; it has no pods"
    message = next((each.message for each in after.conditions if each.type == ConditionType.SUSPENDED), "")
    if message:
        return clipped(f"all trainers have left; {message}", _LONGEST)
    return "the snapshots are written and all pods are deleted"


def _newly_bad(old: Condition | None, new: Condition) -> bool:
    of = next((each for each in ConditionType if each == new.type), None)
    if (
        new.status == "True"
        or of not in _BAD
        or (old is not None and (old.status, old.reason) == (new.status, new.reason))
    ):
        return False
    if new.reason in _LOST and (old is None or old.status != "True"):
        return False
    bad = _BAD[of]
    return bad is None or new.reason in bad


def record_problems(before: Collection[str], now: Mapping[str, str]) -> Iterable[EventNote]:
    """Yield the new problems of a job's keys in etcd: see `Usage.record_problems`."""
    for what, text in now.items():
        if what not in before:
            yield EventNote("Warning", what.partition(" ")[0], clipped(text, _LONGEST))


def restarted(count: int, limit: int) -> EventNote:
    """Return the event of a job that is restarted from the beginning, as its model was lost with its servers' pods."""
    return EventNote(
        "Warning",
        "Restarted",
        f"no server has a good snapshot left, as they were in the pods (spec.parameterServer.emptyDir): the job begins again "
        f"({count} of {limit} times, runPolicy.backoffLimit)",
    )


def retried(request: str, *, has_claims: bool) -> EventNote:
    """Return the event of a failed job that runs again.

    Args:
        request: Value of the annotation.
        has_claims: Whether the job's servers have claims.
    """
    consequence = (
        "it resumes from its last snapshots"
        if has_claims
        else "it starts from the beginning, as its snapshots were in the pods (spec.parameterServer.emptyDir)"
    )
    return EventNote("Normal", "Retried", f"the failed job runs again (shoal.dev/retry: {request}); {consequence}")


def etcd_lost(*, has_claims: bool) -> EventNote:
    """Return the event of a job whose etcd was replaced, as after its claim or the operator's namespace was deleted.

    Args:
        has_claims: Whether the job's servers have claims.
    """
    consequence = (
        "its servers read their snapshots and the committed tasks from their claims: the job resumes from there"
        if has_claims
        else "its snapshots were in the servers' pods (spec.parameterServer.emptyDir): the job begins again"
    )
    return EventNote(
        "Warning",
        "EtcdLost",
        f"etcd has lost its records and the job's token: all processes are replaced; {consequence}",
    )


def lost(pod: str) -> EventNote:
    """Return the event of a pod whose node is deleted or unreachable."""
    return EventNote("Warning", "Lost", f"{pod} lost: its node is deleted or unreachable; it is replaced")


def failed(end: ContainerEnd) -> EventNote:
    """Return the event of a script that ended by its own error."""
    if end.code == 0:
        return EventNote(
            "Warning", "ScriptEnded", f"{end.pod}: the script ended before the job was complete; it starts again"
        )
    last = end.message.rstrip().rpartition("\n")[2]
    what = f"the init container {end.container}" if end.container else "the script"
    text = f"{end.pod}: {what} failed (exit code {end.code}{': ' + last if last else ''})"
    return EventNote("Warning", "ScriptFailed", clipped(text, _LONGEST))
