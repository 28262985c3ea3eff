"""Hysteresis of the queue: when a job that has pods loses them, and when a job that has lost them is admitted again. Pure.

Without it a job whose minimum has no room in a single plan would lose all its pods, and a job that is short of room would be
admitted and queued again in every cycle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from shoal.autoscaler.planner.model import AllocationReason, JobAllocation, PlannerJob, QueueState

__all__ = ["QUEUED_AFTER_SECONDS", "held_back"]

QUEUED_AFTER_SECONDS: Final = 10.0
"""Time for which a minimum has no room before a job that has pods is queued and loses them."""
_FIRST_PAUSE_SECONDS: Final = 30.0
_LONGEST_PAUSE_SECONDS: Final = 600.0
_STABLE_SECONDS: Final = 600.0
"""A job that has had room and pods for this time starts again with the first back-off."""
_BACKING_OFF: Final = "its minimum found no room; in back-off before it is admitted again"
"""No countdown: each change of the message would be a write of the job's status."""
_WITH_PODS: Final = QueueState(pods=True)


class HeldBack(NamedTuple):
    """The allocations after the hysteresis, and the state for the next plan, by job's uid."""

    allocations: dict[str, JobAllocation]
    queue: dict[str, QueueState]


def held_back(
    jobs: Iterable[PlannerJob],
    allocations: Mapping[str, JobAllocation],
    before: Mapping[str, QueueState],
    *,
    now: float,
) -> HeldBack:
    """Apply the hysteresis to the result of a plan.

    Args:
        jobs: The jobs of the plan.
        allocations: Job's uid -> its allocation by the room that there is.
        before: Job's uid -> its state after the last plan.
        now: The snapshot's time, in seconds.
    """
    after = dict(allocations)
    queue: dict[str, QueueState] = {}
    for job in jobs:
        given, last = allocations[job.uid], before.get(job.uid)
        # Most jobs have room and were never in back-off: they share one state.
        if given.reason is not AllocationReason.QUEUED and (last is None or not last.pause):
            if given.trainers:
                queue[job.uid] = _WITH_PODS
            continue
        after[job.uid], queue[job.uid] = _one(job, given, last or QueueState(), now)
    return HeldBack(after, queue)


def _one(job: PlannerJob, given: JobAllocation, last: QueueState, now: float) -> tuple[JobAllocation, QueueState]:
    pods = bool(job.held) or last.pods
    if given.reason is AllocationReason.QUEUED:
        since = last.since if last.since is not None else now
        if pods and now - since < QUEUED_AFTER_SECONDS:
            return given._replace(keeps_pods=True), last._replace(since=since, stable=None, pods=pods)
        until, pause = last.until, last.pause or _FIRST_PAUSE_SECONDS
        if pods and now >= until:
            until, pause = now + pause, min(2 * pause, _LONGEST_PAUSE_SECONDS)
        return given, QueueState(since=since, until=until, pause=pause, pods=False)
    stable = (last.stable if last.stable is not None else now) if pods else None
    pause = 0.0 if stable is not None and now - stable >= _STABLE_SECONDS else last.pause
    state = QueueState(until=last.until, pause=pause, stable=stable, pods=pods)
    if now < last.until and not pods:
        queued = given._replace(
            trainers=0, kept={}, added={}, now={}, others=(), reason=AllocationReason.QUEUED, message=_BACKING_OFF
        )
        return queued, state
    return given, state._replace(pods=given.trainers > 0)
