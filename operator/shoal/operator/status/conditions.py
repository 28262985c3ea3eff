"""A TrainingJob's status, from its observed state. Pure; its only memory is the status that was written before.

The status never reports anything that is not known to be true:

- What is not known is absent or Unknown. A trainer counts as ready when its kubelet reports that its process runs and the
  master reports that it is a member.
- A job that is not accepted has Accepted False or Unknown; its history (times, failures, account, end) stays.
- A spec of an older generation than the last status is a stale read, and changes nothing.
- A master with nothing to report reports why within seconds. A record without a reason that was not written for
  ``SILENT_AFTER`` is of a master that does not report. So is a record of an earlier master, or of one whose pod is not ready,
  and every record while etcd is unreachable. Then Progressing is Unknown, the counts stay as they were last reported, and the
  values of the present (rate, estimated end) are absent.
- The estimated end counts from the last commit. An estimate in the past was wrong, and is absent.
- A task may take longer than the master's timeout: Progressing is False when nothing was committed for ``STALLED_AFTER``.
- Complete needs the master's report and a script that exited with code 0. Complete and Failed are never revoked.
- A state follows from all conditions together. A reason is one of the documented ones; a pod's own reason is in the message.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from shoal.api import TrainingJob
from shoal.api.status import (
    Allocation,
    Condition,
    ConditionType,
    HistoryEntry,
    MasterStatus,
    ProgressStatus,
    Reason,
    ServersStatus,
    State,
    Status,
    TrainersStatus,
)
from shoal.operator.core.reconcile import Observed, ServerPod, in_pods
from shoal.operator.core.run_policy import clocked, end_of
from shoal.operator.resources.pods import GROUP, names
from shoal.operator.status.facts import Facts
from shoal.operator.status.reasons import PodProblem, clipped, in_order, listed, message_of, reason_of
from shoal.operator.status.size_history import allocation_message, history_after

__all__ = ["SILENT_AFTER", "STALLED_AFTER", "PodProblem", "status_of"]

SILENT_AFTER: Final = timedelta(seconds=15)
"""A master with nothing to report reports why after 2 s, and writes its record once a second."""
STALLED_AFTER: Final = timedelta(seconds=30)
_MOST_REMAINING: Final = timedelta(days=3650)
"""A later estimated end is omitted."""
_LONGEST: Final = 1000
"""Longest text of another component, in characters."""
_MOST: Final = 2**63 - 1
_IN_PODS: Final = (
    "the model is stored in the servers' pods (spec.parameterServer.emptyDir): it is lost with a pod or its node"
)


@dataclass(frozen=True)
class _UntimedCondition:
    """A condition without its times."""

    status: Literal["True", "False", "Unknown"]
    reason: Reason
    message: str = ""


_NO_FACTS: Final = Facts()


def status_of(
    job: TrainingJob | None,
    *,
    generation: int,
    seen: Observed,
    desired: int,
    problems: Sequence[PodProblem],
    refused: str,
    now: datetime,
    before: Status,
    facts: Facts = _NO_FACTS,
) -> Status:
    """Return the status of a job.

    Args:
        job: The job in force. None: no spec was ever accepted.
        generation: Generation of the newest spec.
        seen: The observed state. The reason of an end that the operator decided starts with a documented reason and a colon,
            as in ``Ended("Failed", "DeadlineExceeded: 3600 s are over")``.
        desired: How many trainers there should be. Fewer than the minimum: the job is queued.
        problems: The present problems of its pods.
        refused: Why the newest spec is not accepted: a documented reason and a colon, or else InvalidSpec applies. Empty: it
            is accepted. If it is not, `job` is the last accepted one.
        now: The time, with a time zone.
        before: The status that was written last.
        facts: Further facts.
    """
    if before.observed_generation is not None and generation < before.observed_generation:
        return before
    final = end_of(before)
    history = Status(
        observed_generation=generation,
        account=before.account,
        start_time=before.start_time,
        completion_time=before.completion_time,
        last_scale_time=before.last_scale_time,
        history=before.history,
        restarts=facts.restarts if facts.restarts is not None else before.restarts,
        failures=facts.failures if facts.failures is not None else before.failures,
        last_failure_time=facts.last_failure or before.last_failure_time,
        retried=facts.retried or before.retried,
        active_seconds=before.active_seconds,
        active_since=before.active_since,
    )
    if job is None:
        untimed = {ConditionType.ACCEPTED: _accepted(refused)}
        base = Status(**dict(history) | {"progress": before.progress if final is not None else None})
        is_new = not (seen.trainers or seen.servers or seen.masters or seen.applied or before.start_time)
        state, decides = State.PENDING if is_new else None, ConditionType.ACCEPTED
    else:
        status = _JobStatus(job, seen, desired, problems, facts, now, before, final)
        untimed, base = status.untimed() | {ConditionType.ACCEPTED: _accepted(refused, job)}, status.filled(history)
        state, decides = status.state(untimed)
    conditions = _with_times(untimed, before, final, generation, now)
    after = _with_state(base, conditions, state, decides, now)
    queued = after.state is State.QUEUED
    runs = job is not None and not job.spec.suspend and not queued and after.completion_time is None
    return clocked(after, now, runs=runs)


def _accepted(refused: str, job: TrainingJob | None = None) -> _UntimedCondition:
    if not refused:
        return _UntimedCondition("True", Reason.VALID, _IN_PODS if job is not None and in_pods(job) else "")
    reason, message = reason_of(ConditionType.ACCEPTED, refused)
    return _UntimedCondition("Unknown" if reason is Reason.NOT_CHECKED else "False", reason, message)


def _with_times(
    untimed: Mapping[ConditionType, _UntimedCondition],
    before: Status,
    final: Condition | None,
    generation: int,
    now: datetime,
) -> list[Condition]:
    """Return one condition per type. A clock that is set back moves no transition back; an end stays as it was reported."""
    old = {each.type: each for each in before.conditions}
    conditions = []
    for of in ConditionType:
        if final is not None and of == final.type:
            conditions.append(final)
        elif of in untimed:
            here, earlier = untimed[of], old.get(of)
            since = now
            if earlier is not None:
                same = earlier.status == here.status
                since = earlier.last_transition_time if same else max(now, earlier.last_transition_time)
            made = Condition(type=of, last_transition_time=since, observed_generation=generation, **vars(here))
            conditions.append(made)
    return conditions


def _with_state(
    base: Status, conditions: list[Condition], state: State | None, decides: ConditionType, now: datetime
) -> Status:
    """Add the state and the times that follow from the conditions."""
    by_type = {each.type: each for each in conditions}
    running = by_type.get(ConditionType.RUNNING)
    complete = by_type.get(ConditionType.COMPLETE)
    for of, end in ((ConditionType.COMPLETE, State.COMPLETE), (ConditionType.FAILED, State.FAILED)):
        if of in by_type:
            state, decides = end, of
    started = now if running is not None and running.status == "True" else None
    completed = complete.last_transition_time if complete is not None else None
    return Status(
        **dict(base)
        | {
            "state": state,
            "reason": by_type[decides].reason,
            "conditions": conditions,
            "start_time": base.start_time or started,
            "completion_time": base.completion_time or completed,
        }
    )


def _alive(pods: Sequence[ServerPod]) -> list[ServerPod]:
    return [pod for pod in pods if not (pod.lost or pod.deleting)]


class _JobStatus:
    """The status of one job with a spec in force."""

    def __init__(
        self,
        job: TrainingJob,
        seen: Observed,
        desired: int,
        problems: Sequence[PodProblem],
        facts: Facts,
        now: datetime,
        before: Status,
        final: Condition | None,
    ) -> None:
        self._job, self._seen, self._facts, self._now, self._before = job, seen, facts, now, before
        self._final = final
        failed = seen.ended is not None and seen.ended.state != "Complete"
        self._saving = seen.ended is not None and not failed
        self._ended = final is not None or failed or (self._saving and seen.saved)
        self._stopped = self._ended or job.spec.suspend
        self._desired = 0 if self._stopped else desired
        self._keeps_servers = not self._ended and in_pods(job)
        """Whether a suspended job keeps its servers and its master."""
        # Trainers exit by themselves when all samples are committed; one of them has to write the model.
        self._need = 1 if self._saving else job.spec.trainer.min_replicas
        found = in_order(problems)
        self._unplaced = [each for each in found if each.before_node]
        self._not_running = [each for each in found if not each.before_node]
        self._trainers = [pod for pod in seen.trainers if not (pod.ended or pod.deleting or pod.lost)]
        self._runs = sum(pod.ready for pod in self._trainers)
        # A trainer that writes the model is no longer a member.
        self._works = sum(pod.ready and (pod.works or self._saving) for pod in self._trainers)
        # A StatefulSet adopts any pod with one of its names, and then deletes it as a surplus one.
        due = {f"{job.metadata.name}-pserver-{index}" for index in range(job.servers)}
        self._servers = [pod for pod in _alive(seen.servers) if pod.name in due]
        self._serving = [self._serves(pod) for pod in self._servers]
        self._master = self._master_ready()
        samples = seen.published.samples if seen.published is not None else None
        self._moved = facts.last_step(samples, before.progress)
        self._stall_reason = clipped(seen.published.stall_reason, _LONGEST) if seen.published is not None else ""
        self._stale = self._stale_condition()

    # --- Processes ---

    def _serves(self, pod: ServerPod) -> bool | None:
        """Return whether a server is ready, by its kubelet and by the master; None: neither has reported."""
        known = []
        if self._facts.ready is not None:
            known.append(pod.name in self._facts.ready)
        if self._seen.published is not None and not self._saving:
            known.append(pod.name.rpartition("-")[2] in map(str, self._seen.published.servers))
        return all(known) if known else None

    def _master_ready(self) -> bool | None:
        alive = _alive(self._seen.masters)
        if self._facts.ready is None:
            return None if alive else False
        return any(pod.name in self._facts.ready for pod in alive)

    def _stale_condition(self) -> _UntimedCondition | None:
        """Return the condition to report when the master's record is not about the present; None: it is."""
        published, facts = self._seen.published, self._facts
        if not facts.etcd:
            return _UntimedCondition("Unknown", Reason.ETCD_UNREACHABLE, "progress and members are as last reported")
        if published is None:
            return _UntimedCondition("Unknown", Reason.NO_NEWS, "no master has reported yet")
        if facts.generation is not None and published.generation < facts.generation:
            return _UntimedCondition("Unknown", Reason.NO_NEWS, "a new master has started, and has not reported yet")
        if self._master is False:
            return _UntimedCondition("Unknown", Reason.NO_NEWS, "the master is not ready")
        silent_for = self._now - facts.reported_at if facts.reported_at is not None else timedelta(0)
        if not (published.stall_reason or self._saving) and silent_for > SILENT_AFTER:
            return _UntimedCondition(
                "Unknown", Reason.NO_NEWS, "the master reports neither progress nor why there is none"
            )
        return None

    # --- Conditions ---

    def untimed(self) -> dict[ConditionType, _UntimedCondition]:
        """Return all conditions but Accepted, without their times."""
        untimed = {
            ConditionType.SCHEDULED: self._scheduled(),
            ConditionType.RUNNING: self._running(),
            ConditionType.PROGRESSING: self._progressing(),
        }
        if self._facts.autoscaled is not None and not self._stopped:
            reason, message = self._facts.autoscaled
            follows = reason is Reason.FOLLOWING
            untimed[ConditionType.AUTOSCALED] = _UntimedCondition(
                "True" if follows else "False", reason, clipped(message, _LONGEST)
            )
        suspended = self._suspended()
        if suspended is not None:
            untimed[ConditionType.SUSPENDED] = suspended
        ended = self._seen.ended
        if ended is not None and self._ended and self._final is None:
            if ended.state == "Complete":
                message = clipped(ended.reason, _LONGEST)
                untimed[ConditionType.COMPLETE] = _UntimedCondition("True", Reason.ALL_SAMPLES_COMMITTED, message)
            else:
                failure = reason_of(ConditionType.FAILED, ended.reason)
                untimed[ConditionType.FAILED] = _UntimedCondition("True", *failure)
        return untimed

    def _scheduled(self) -> _UntimedCondition:
        if self._stopped:
            return _UntimedCondition("False", Reason.NO_PODS_WANTED)
        if self._desired < self._need and not self._saving:
            return _UntimedCondition("False", Reason.QUEUED, self._facts.reason)
        message = message_of(self._unplaced)
        if self._all_placed():
            return _UntimedCondition("True", Reason.PODS_PLACED, message)
        known = next((each.known for each in self._unplaced if each.known is not None), None)
        if known is not None:
            return _UntimedCondition("False", known, message)
        lacking = self._lacking()
        if lacking:
            return _UntimedCondition("False", Reason.PODS_PENDING, f"not created yet: {lacking}")
        return _UntimedCondition("Unknown", Reason.PODS_PENDING, "the scheduler has not placed all pods yet")

    def _all_placed(self) -> bool:
        """Return whether all pods have a node; a pod that works, or of which a kubelet reports a problem, has one."""
        placed = {each.pod for each in self._not_running if each.known is not None} | (
            self._facts.placed or frozenset()
        )
        name = names(self._job)["trainer"]
        trainers = sum(pod.ready or pod.works or f"{name}-{pod.index}" in placed for pod in self._trainers)
        servers = sum(
            bool(serves) or pod.name in placed for pod, serves in zip(self._servers, self._serving, strict=True)
        )
        master_answers = self._master if self._master is not None else self._seen.published is not None
        master = master_answers or any(pod.name in placed for pod in _alive(self._seen.masters))
        return master and servers >= self._job.servers and trainers >= self._need

    def _lacking(self) -> str:
        """Return the pods that the job needs and that do not exist."""
        trainers, servers = self._need - len(self._trainers), self._job.servers - len(self._servers)
        return listed(trainers=trainers, servers=servers, masters=1 - len(_alive(self._seen.masters)))

    def _running(self) -> _UntimedCondition:
        if self._stopped:
            return _UntimedCondition("False", Reason.NO_TRAINERS_WANTED)
        message = message_of(self._not_running)
        serving = sum(serves is True for serves in self._serving) >= self._job.servers
        if self._works >= self._need and serving and self._master is not False:
            return _UntimedCondition("True", Reason.TRAINERS_READY, message)
        away = sum(serves is not False for serves in self._serving) < self._job.servers
        status: Literal["False", "Unknown"] = "Unknown" if self._unobserved() and not away else "False"
        known = next((each.known for each in self._not_running if each.known is not None), None)
        if known is not None:
            return _UntimedCondition(status, known, message)
        reason, detail = self._not_running_reason(away=away, blind=status == "Unknown")
        return _UntimedCondition(status, reason, "; ".join(filter(None, (detail, message))))

    def _unobserved(self) -> bool:
        """Return whether a job that ran has the processes it needs, but no master reports whether they work."""
        reported = self._master is not False and self._facts.etcd and self._seen.published is not None
        return self._before.start_time is not None and self._runs >= self._need and not reported

    def _not_running_reason(self, *, away: bool, blind: bool) -> tuple[Reason, str]:
        name = names(self._job)["trainer"]
        lost = [pod.name for pod in (*self._seen.masters, *self._seen.servers) if pod.lost]
        lost += [f"{name}-{pod.index}" for pod in self._seen.trainers if pod.lost]
        if lost:
            return Reason.NODE_LOST, f"pods on lost nodes: {', '.join(sorted(lost)[:3])}" + (" ..." * (len(lost) > 3))
        if blind:
            return Reason.MASTER_AWAY, "" if self._facts.etcd else "etcd cannot be reached"
        if self._before.start_time is not None and away:
            return Reason.SERVERS_AWAY, self._unready()
        if self._before.start_time is not None and self._works >= self._need:
            return Reason.MASTER_AWAY, ""
        return Reason.PODS_STARTING if self._all_placed() else Reason.NO_TRAINERS, self._unready()

    def _unready(self) -> str:
        """Return the processes that the job needs and that are not known to be ready."""
        servers = self._job.servers - sum(serves is True for serves in self._serving)
        trainers = self._need - self._works
        return f"not ready: {listed(trainers=trainers, servers=servers, masters=int(self._master is False))}"

    def _progressing(self) -> _UntimedCondition:
        if self._stopped:
            return _UntimedCondition("False", Reason.NOTHING_TO_DO)
        if self._saving:
            message = "" if self._runs else "there is no trainer to write the model"
            return _UntimedCondition("True" if self._runs else "False", Reason.SAVING, message)
        if self._stale is not None:
            return self._stale
        return self._by_record()

    def _by_record(self) -> _UntimedCondition:
        published = self._seen.published
        assert published is not None
        if published.state in {"Saving", "Complete"}:
            return _UntimedCondition("True", Reason.SAVING)
        if self._moved is None:
            return _UntimedCondition("False", Reason.NOT_BEGUN, self._stall_reason)
        if self._now - self._moved > STALLED_AFTER:
            return _UntimedCondition("False", Reason.STALLED, self._stall_reason)
        return _UntimedCondition("True", Reason.SAMPLES_COMMITTED)

    def _suspended(self) -> _UntimedCondition | None:
        """Return the condition Suspended; None: the job was never suspended, or has ended."""
        if self._ended:
            return None
        if not self._job.spec.suspend:
            ever = any(each.type == ConditionType.SUSPENDED for each in self._before.conditions)
            return _UntimedCondition("False", Reason.RESUMED) if ever else None
        trainers = len(self._seen.trainers)
        others = (0, 0) if self._keeps_servers else (len(self._seen.servers), len(self._seen.masters))
        left = listed(trainers=trainers, servers=others[0], masters=others[1])
        if left:
            return _UntimedCondition("False", Reason.PODS_LEAVING, f"remaining: {left}")
        kept = listed(trainers=0, servers=len(self._seen.servers), masters=len(self._seen.masters))
        message = (
            f"kept, as the model is stored in the servers' pods (spec.parameterServer.emptyDir): {kept}" if kept else ""
        )
        return _UntimedCondition("True", Reason.SUSPEND_REQUESTED, message)

    def state(self, untimed: Mapping[ConditionType, _UntimedCondition]) -> tuple[State, ConditionType]:
        """Return the state of a job that has not ended, and the condition that decides it."""
        running, scheduled = untimed[ConditionType.RUNNING], untimed[ConditionType.SCHEDULED]
        if self._job.spec.suspend and not self._ended:
            is_suspended = untimed[ConditionType.SUSPENDED].status == "True"
            return State.SUSPENDED if is_suspended else State.SUSPENDING, ConditionType.SUSPENDED
        if running.status == "True" or (running.status == "Unknown" and self._before.state is State.RUNNING):
            return State.RUNNING, ConditionType.RUNNING
        if scheduled.status == "True":
            return State.STARTING, ConditionType.RUNNING
        return State.QUEUED if scheduled.reason is Reason.QUEUED else State.PENDING, ConditionType.SCHEDULED

    # --- Other fields ---

    def filled(self, history: Status) -> Status:
        """Add all fields that do not follow from the conditions."""
        job, earlier = self._job, self._before.trainers
        bounds = {"min": job.spec.trainer.min_replicas, "max": job.spec.trainer.most}
        scaled = earlier is not None and earlier.desired != self._desired and not self._ended
        leaving = self._stopped and not _alive(self._seen.masters)
        idle = self._stopped and not (self._keeps_servers and self._seen.servers)
        return Status(
            **dict(history)
            | {
                "trainers": TrainersStatus(desired=self._desired, ready=self._works, **bounds),
                "servers": ServersStatus(
                    desired=0 if idle else job.servers, ready=sum(serves is True for serves in self._serving)
                ),
                "master": None if self._master is None or leaving else MasterStatus(ready=self._master),
                "progress": self._progress(),
                "allocation": self._allocation(),
                "account": history.account or (self._facts.account if self._ended else None),
                "last_scale_time": self._now if scaled else history.last_scale_time,
                "history": self._history(),
                "selector": f"{GROUP}/job={job.metadata.name},{GROUP}/role=trainer",
            }
        )

    def _history(self) -> list[HistoryEntry]:
        if self._ended or self._seen.ended is not None:
            return self._before.history
        return history_after(self._before, self._job, self._desired, self._facts, self._now)

    def _allocation(self) -> Allocation | None:
        if self._stopped:
            return None
        why = allocation_message(self._job, self._desired, self._facts.reason)
        return Allocation(desired=self._desired, ready=min(self._works, self._desired), message=why or None)

    def _progress(self) -> ProgressStatus | None:
        published = self._seen.published
        if published is None:
            # Progress that was reported stays, whether the job has ended or etcd is unreachable.
            earlier = self._before.progress if self._ended or not self._facts.etcd else None
            now_only = {"rate": None, "estimated_end": None, "message": None}
            return earlier.model_copy(update=now_only) if earlier is not None else None
        live = self._stale is None and not self._stopped
        known = 0 < published.epochs <= _MOST
        return ProgressStatus(
            epoch=min(max(published.epoch, 0) + 1, published.epochs) if known else None,
            epochs=published.epochs if known else None,
            samples=min(max(published.samples, 0), _MOST),
            expected=min(published.expected, _MOST) if published.expected > 0 else None,
            rate=published.rate if live and published.rate > 0 else None,
            estimated_end=self._estimated_end() if live else None,
            last_step_time=self._moved,
            message=self._stall_reason or None if live else None,
        )

    def _estimated_end(self) -> datetime | None:
        """Return the estimated end, counted from the last commit so that it changes only when the master reports."""
        published = self._seen.published
        assert published is not None
        left = published.expected - published.samples
        if self._moved is None or left <= 0 or not (0 < published.rate < math.inf):
            return None
        seconds = left / published.rate
        if seconds > _MOST_REMAINING.total_seconds():
            return None
        end = self._moved + timedelta(seconds=seconds)
        return end if end > self._now else None
