"""The history of a job's size: the changes of its desired number of trainers, each with its cause and who asked. Pure.

The history is a part of the status, so it survives a suspension and a restart of the operator, and costs no request of its own:
a status with another desired number is written in any case. Its last entry is the number that was decided last. While the number
is not decided (a plan is awaited, or the job has ended) nothing is added.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from shoal.api import TrainingJob
from shoal.api.status import ConditionType, HistoryEntry, Status
from shoal.operator.status.facts import Facts
from shoal.operator.status.reasons import clipped

__all__ = ["AUTOSCALER", "MOST_ENTRIES", "RESUMED", "SUSPENDED", "allocation_message", "history_after"]

MOST_ENTRIES: Final = 100
AUTOSCALER: Final = "autoscaler"
SUSPENDED: Final = "suspended"
RESUMED: Final = "resumed"
_PINNED: Final = "pinned by spec.trainer.replicas"
_AT_MOST: Final = "at spec.trainer.maxReplicas"
_AT_LEAST: Final = "at spec.trainer.minReplicas"
_LONGEST_CAUSE: Final = 200
_LONGEST_MANAGER: Final = 128
"""In characters; the API server accepts no longer field manager."""


def history_after(before: Status, job: TrainingJob, desired: int, facts: Facts, now: datetime) -> list[HistoryEntry]:
    """Return the history with the present desired number of trainers; the last 100 changes.

    Args:
        before: The status that was written last.
        job: The job in force.
        desired: How many trainers there should be; 0 for a suspended job.
        facts: What is known beside the observed state.
        now: The time, with a time zone.
    """
    if facts.planned is None:
        return before.history
    known = (
        before.history[-1].after if before.history else before.trainers.desired if before.trainers is not None else 0
    )
    if known == desired:
        return before.history
    cause, by = _cause(before, job, desired, facts)
    entry = HistoryEntry(
        time=now,
        before=known,
        after=desired,
        cause=clipped(cause, _LONGEST_CAUSE),
        by=clipped(by, _LONGEST_MANAGER),
    )
    return [*before.history, entry][-MOST_ENTRIES:]


def _cause(before: Status, job: TrainingJob, desired: int, facts: Facts) -> tuple[str, str]:
    """Return why the number has changed, and who asked."""
    if job.spec.suspend:
        return SUSPENDED, facts.requested_by
    if _was_suspended(before):
        return RESUMED, facts.requested_by
    if desired == job.spec.trainer.replicas:
        return _PINNED, facts.requested_by
    message = allocation_message(job, desired, facts.reason) or _AT_LEAST
    return message, AUTOSCALER if facts.planned else facts.requested_by


def _was_suspended(before: Status) -> bool:
    """Return whether the number was 0 last because the job was suspended."""
    if before.history:
        return before.history[-1].cause == SUSPENDED
    return any(each.type == ConditionType.SUSPENDED for each in before.conditions)


def allocation_message(job: TrainingJob, desired: int, reason: str) -> str:
    """Return why a job has no more trainers than desired; empty: there is no particular reason.

    Args:
        job: The job in force.
        desired: How many trainers there should be.
        reason: The autoscaler's reason; empty: it gave none.
    """
    if reason:
        return reason
    if job.spec.trainer.replicas is not None:
        return _PINNED
    return _AT_MOST if desired >= job.spec.trainer.most else ""
