"""From the local runner's values to the SDK's values. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from shoal.api.status import Reason, State
from shoal.local.state.job_record import RecordedEvent, TrainerChange
from shoal.local.state.jobs import KILLED
from shoal.local.view.formatting import NEVER_JOINED, stall_reason
from shoal.local.view.status import ProcessStatus, RunStatus
from shoal.sdk.types import Account, Event, JobStatus, Member, Progress, Replicas, SizeChange

__all__ = ["RUN_KILLED", "Times", "event", "is_same", "job_status", "member", "size_change"]

RUN_KILLED: Final = "RunKilled"
"""Reason of a suspended job whose `shoal run` was killed: it does not continue by itself."""
_FURTHEST: Final = 10 * 365 * 86400.0
"""Estimates beyond this many seconds are unknown."""

_STATES: Final = {
    "Starting": State.STARTING,
    "Running": State.RUNNING,
    "Saving": State.RUNNING,
    "Complete": State.COMPLETE,
    "Failed": State.FAILED,
    "Stopped": State.SUSPENDED,
}
_BUSY: Final = {"Starting": Reason.PODS_STARTING, "Saving": Reason.SAVING}
_FAILURES: Final = (
    ("runPolicy.activeDeadlineSeconds", Reason.DEADLINE_EXCEEDED),
    ("runPolicy.backoffLimit", Reason.BACKOFF_LIMIT_EXCEEDED),
    ("in a row although the job was not complete", Reason.BACKOFF_LIMIT_EXCEEDED),
    ("no server has a good snapshot", Reason.SNAPSHOTS_LOST),
)
"""Part of a failure's reason -> the documented reason in one word; ScriptFailed for any other."""
_TASK_FAILED: Final = "the script failed "
_OUTPUT: Final = "; its last output:\n"
_READY: Final = frozenset({"serving", "running", "training", "waiting", "evaluating", "saving", "finished"})
"""States of processes that are members of the job."""
_STATES_OF_MEMBERS: Final = {"starting": "Starting", "waits": "Waiting", "leaving": "Leaving", "ending": "Leaving"}


@dataclass(frozen=True, kw_only=True)
class Times:
    """Times of a job.

    Attributes:
        now: The present time.
        created: When the job was created. Default: None, unknown.
        started: When the training began. Default: None, it has not begun.
        ended: When the last run ended. Default: None, it has not.
    """

    now: datetime
    created: datetime | None = None
    started: datetime | None = None
    ended: datetime | None = None


def job_status(found: RunStatus, *, servers: int, uid: str, times: Times) -> JobStatus:
    """Return the state of a job.

    Args:
        found: The runner's status, or the last one.
        servers: Number of the job's parameter servers.
        uid: Uid of the job.
        times: Its times.
    """
    state, reason, message = _state(found)
    ended = state in {State.COMPLETE, State.FAILED}
    ready = [row.role for row in found.members if row.state in _READY]
    return JobStatus(
        name=found.name,
        state=state,
        reason=str(reason),
        message=message,
        progress=_progress(found, times.now),
        trainers=Replicas(ready.count("trainer"), found.trainers, found.least, found.most),
        parameter_servers=Replicas(ready.count("pserver"), servers, servers, servers),
        account=_account(found) if ended else None,
        created=times.created,
        started=times.started,
        ended=times.ended if ended else None,
        uid=uid,
    )


def _state(found: RunStatus) -> tuple[State, str, str]:
    """Return state, reason and message."""
    if found.state == "Stopping":
        if not found.reason:
            return State.SUSPENDING, Reason.PODS_LEAVING, "snapshots are being written and processes end"
        return State.RUNNING, Reason.NOTHING_TO_DO, f"processes end: {_without_output(found.reason)}"
    if found.state == "Complete" and found.runner:
        # The job can still fail: a script may fail after the training.
        return State.RUNNING, Reason.SAVING, "the training is complete; the scripts are ending"
    state = _STATES.get(found.state, State.PENDING)
    if state in _ENDS:
        return state, *_ENDS[state](found.reason)
    stalled = stall_reason(found)
    reason = Reason.STALLED if stalled else Reason.SAMPLES_COMMITTED
    return state, _BUSY.get(found.state, reason), stalled


def _suspended(reason: str) -> tuple[str, str]:
    if reason == KILLED:
        return RUN_KILLED, f"{KILLED}; resume() continues the job from its snapshots"
    return Reason.SUSPEND_REQUESTED, reason or "resume() continues the job from its snapshots"


def _failed(reason: str) -> tuple[str, str]:
    head = _without_output(reason)
    if head.startswith(NEVER_JOINED):
        return Reason.SCRIPT_FAILED, head
    for part, found in _FAILURES:
        if part in head:
            return found, head
    return (Reason.TASK_FAILED if head.startswith(_TASK_FAILED) else Reason.SCRIPT_FAILED), head


def _complete(reason: str) -> tuple[str, str]:
    return Reason.ALL_SAMPLES_COMMITTED, reason


_ENDS: Final = {State.SUSPENDED: _suspended, State.FAILED: _failed, State.COMPLETE: _complete}
"""Reason in one word and message of a job that does not run, from the runner's reason."""


def _without_output(reason: str) -> str:
    return reason.partition(_OUTPUT)[0]


def _progress(found: RunStatus, now: datetime) -> Progress:
    progress = found.progress
    if progress is None:
        return Progress(message=stall_reason(found))
    trains = found.runner != 0 and found.state == "Running"
    left = progress.left_seconds
    known = trains and 0 <= left < _FURTHEST
    rate = progress.rate if trains and math.isfinite(progress.rate) and progress.rate > 0 else None
    return Progress(
        samples=progress.samples_total,
        expected=progress.samples_expected or None,
        epoch=min(progress.epoch + 1, progress.epochs) if progress.samples_expected else None,
        epochs=progress.epochs or None,
        rate=float(f"{rate:.3g}") if rate is not None else None,
        estimated_end=(now + timedelta(seconds=left)).replace(microsecond=0) if known else None,
        message=stall_reason(found),
    )


def _account(status: RunStatus) -> Account | None:
    found = status.account
    if found is None:
        return None
    samples = found.samples
    return Account(
        epochs=found.epochs,
        expected=samples.expected,
        counted=samples.counted,
        lost=samples.lost,
        twice=samples.twice,
        skipped=samples.skipped,
        replayed=found.replayed,
        joins=found.joins,
        leaves=found.leaves,
        deaths=found.deaths,
        seconds=found.seconds,
    )


def member(row: ProcessStatus) -> Member:
    """Return a process."""
    if row.state == "waits":
        message = f"starts again in {row.seconds:g} s"
    elif row.state in _STATES_OF_MEMBERS or row.state == "running":
        message = ""
    else:
        message = " ".join(filter(None, (row.state, row.task)))
    return Member(
        name=row.name,
        state=_STATES_OF_MEMBERS.get(row.state, "Leaving" if row.state == "draining" else "Ready"),
        restarts=row.restarts,
        message=message,
    )


def event(found: RecordedEvent) -> Event:
    """Return an event; its reason is its level."""
    kind = "Normal" if found.level == "info" else "Warning"
    return Event(_time(found.time), kind, found.level.capitalize(), found.text, found.count)


def size_change(found: TrainerChange) -> SizeChange:
    """Return a change of the number of trainers."""
    return SizeChange(_time(found.time), found.before, found.after, found.cause, found.by)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def is_same(status: JobStatus, other: JobStatus) -> bool:
    """Return whether two statuses differ in nothing but the estimated end, which is computed anew each time."""
    return _without_estimate(status) == _without_estimate(other)


def _without_estimate(status: JobStatus) -> JobStatus:
    return replace(status, progress=replace(status.progress, estimated_end=None))
