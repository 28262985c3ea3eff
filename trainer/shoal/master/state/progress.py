"""The job's progress for observers and the operator, with the reason when there is none."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from shoal.api.metric_series import REPORTED_SCORES, finite_values, score_values
from shoal.master.state.job import JobState, TrainerView
from shoal.protocol.messages import Evaluation, JobProgress, Member
from shoal.store import ReportedScore, ReportedState

__all__ = ["ProgressReporter", "reported_scores"]

STALL_SECONDS = 2.0
"""The time without a committed task after which the progress contains a reason."""
RATE_SECONDS = 10.0
"""The window over which the rate of samples is averaged."""
NEWLINE = "\n"


class ProgressReporter:
    """Reports the progress of a job.

    Args:
        job: The job's state.
        etcd: Name and version of the etcd, for people.
    """

    def __init__(self, job: JobState, *, etcd: str) -> None:
        self._job = job
        self._etcd = etcd
        self._window: deque[tuple[float, int]] = deque()
        self._servers_reported = False

    def progress(self, now: float) -> JobProgress:
        """Return the progress at the time ``now`` (seconds, monotonic)."""
        job, counters, queue = self._job, self._job.records.counters, self._job.queue
        per_epoch = job.plan.samples_per_epoch if job.plan is not None else 0
        total = sum(queue.samples_done(epoch) for epoch in range(queue.open + 1)) if queue is not None else 0
        epoch = max(queue.open, 0) if queue is not None else 0
        rate = self._rate(now, total)
        expected = queue.expected if queue is not None else 0
        return JobProgress(
            state=self._state(),
            reason=job.records.outcome.reason if job.records.outcome is not None else "",
            generation=job.generation,
            etcd=self._etcd,
            epoch=epoch,
            epochs=job.epochs,
            samples_done=queue.samples_done(epoch) if queue is not None else 0,
            samples_epoch=per_epoch,
            samples_total=total,
            samples_expected=expected,
            rate=rate,
            left_seconds=(expected - total) / rate if rate > 0 else -1.0,
            values=dict(job.values),
            members=[*self._servers(now), *self._trainers(now)],
            evaluations=job.records.evaluation_list(),
            retries=counters.retries,
            skipped=counters.skipped,
            replayed=counters.replayed,
            not_finite=counters.not_finite,
            joins=counters.joins,
            leaves=counters.leaves,
            deaths=counters.deaths,
            saved=list(job.records.saved),
            stall_reason=self._stall_reason(now, timed=True),
            events=list(job.events),
            account=job.records.outcome.account if job.records.outcome is not None else None,
        )

    def published(self, now: float) -> ReportedState:
        """Return the part of the progress that is written to etcd for the operator."""
        job, found = self._job, self.progress(now)
        return ReportedState(
            generation=job.generation,
            state=found.state,
            epoch=found.epoch,
            epochs=job.epochs if job.plan is not None else 0,
            samples=self._samples(found.samples_total),
            expected=found.samples_expected,
            rate=float(f"{found.rate:.3g}"),
            moved=round(job.moved_at, 1) if found.samples_total else 0.0,
            trainers=sorted(view.identity.index for view in job.trainers.values()),
            servers=sorted(details[0].index for details in job.server_details.values()),
            served=job.slots.complete,
            stall_reason=self._stall_reason(now, timed=False),
            values=finite_values(job.values),
            scores=reported_scores(found.evaluations),
        )

    def _samples(self, total: int) -> int:
        """Return the samples done: the previous master's number until all slots are served once."""
        self._servers_reported = self._servers_reported or self._job.slots.complete
        before = self._job.records.progress
        return total if self._servers_reported or before is None else max(total, before.samples)

    def _rate(self, now: float, total: int) -> float:
        window = self._window
        if not self._job.slots.complete:
            # No task can be committed, or the servers' reports are still being read: there is no rate.
            window.clear()
            return 0.0
        window.append((now, total))
        while len(window) > 2 and window[1][0] < now - RATE_SECONDS:
            window.popleft()
        seconds, samples = now - window[0][0], total - window[0][1]
        return max(0.0, samples / seconds) if seconds > 0 else 0.0

    def _state(self) -> str:
        job = self._job
        if job.records.outcome is not None:
            return job.records.outcome.state
        if job.queue is None or not job.records.begun:
            return "Starting"
        return "Saving" if job.queue.all_done else "Running"

    def _servers(self, now: float) -> list[Member]:
        job = self._job
        members = []
        for life, (identity, pid, host, address, since) in job.server_details.items():
            slots = sum(holder == life for holder, _ in job.slots.live.values())
            members.append(
                Member(
                    role=identity.role,
                    index=identity.index,
                    life=life,
                    pid=pid,
                    host=host,
                    address=address,
                    state="serving" if slots else "starting",
                    task=f"{slots} slots",
                    since=now - since,
                )
            )
        return sorted(members, key=lambda member: member.index)

    def _trainers(self, now: float) -> list[Member]:
        members = []
        for life, view in self._job.trainers.items():
            state, task = self._activity(life, view)
            members.append(
                Member(
                    role=view.identity.role,
                    index=view.identity.index,
                    life=life,
                    pid=view.pid,
                    host=view.host,
                    address="",
                    state=state,
                    task=task,
                    since=now - view.since,
                )
            )
        return sorted(members, key=lambda member: member.index)

    def _activity(self, life: int, view: TrainerView) -> tuple[str, str]:  # noqa: PLR0911 - a list, the first that holds
        job = self._job
        if view.draining:
            return "draining", ""
        if life in job.evaluators.values():
            return "evaluating", f"epoch {view.evaluating[0] + 1}" if view.evaluating is not None else ""
        if job.saver == life:
            return "saving", ""
        if view.finished:
            return "finished", ""
        if view.saving is not None or view.evaluating is not None:
            return "waiting", "for another trainer's " + ("file" if view.saving is not None else "score")
        leases = job.queue.held_by(life) if job.queue is not None else []
        if leases:
            first = min(leases, key=lambda lease: lease.attempt)
            return "training", f"task {first.task} of epoch {first.epoch + 1}"
        return ("waiting" if view.requests else "starting"), ""

    def _stall_reason(self, now: float, *, timed: bool) -> str:  # noqa: PLR0911 - a list of reasons, the first that holds
        job = self._job
        if job.etcd_problem:
            return job.etcd_problem
        if job.ended or now - job.last_progress < STALL_SECONDS:
            return ""
        if job.slots.absent():
            return "waiting for " + ", ".join(f"pserver-{index}" for index in job.slots.absent())
        if job.queue is None:
            return "waiting for the first trainer to register its model (the scripts are starting)"
        if not job.slots.complete:
            return self._unserved_reason()
        if job.desired.suspend:
            return "the job is suspended"
        if not job.trainers:
            last = f"; the last one left: {job.last_reason.partition(NEWLINE)[0]}" if job.last_reason else ""
            return f"no trainer is connected{last}"
        if job.evaluators:
            return f"{job.label(next(iter(job.evaluators.values())))} evaluates"
        if job.queue.all_done:
            return "the last snapshots are being written"
        return self._no_task_reason(now, timed=timed)

    def _unserved_reason(self) -> str:
        job = self._job
        waiting = job.slots.to_initialise()
        if waiting:
            return f"{len(waiting)} slots wait for their initial values from a trainer"
        lacking = job.settings.slots - len(job.slots.live)
        return f"{lacking} slots are being restored"

    def _no_task_reason(self, now: float, *, timed: bool) -> str:
        job = self._job
        assert job.queue is not None
        held = sorted((lease.attempt, life, lease) for life, lease in job.queue.leases.values())
        still = f"for {now - job.last_progress:.0f} s no task was finished" if timed else "no task is being finished"
        if not held:
            return still
        _, life, lease = held[0]
        return f"{still}; {job.label(life)} has task {lease.task} of epoch {lease.epoch + 1}"


def reported_scores(evaluations: Sequence[Evaluation]) -> list[ReportedScore]:
    """Return the scores of the last evaluations; those without any number are left out."""
    found = ((each.epoch, score_values(each.score)) for each in evaluations[-REPORTED_SCORES:])
    return [ReportedScore(epoch, values) for epoch, values in found if values]
