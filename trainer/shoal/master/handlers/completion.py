"""The handler of a job's completion: early stops by the script, the last snapshots, the outcome, the account."""

from __future__ import annotations

from shoal.master.handlers.servers import ServerHandler
from shoal.master.state.job import JobState
from shoal.master.state.records import Outcome, StopRecord
from shoal.protocol.messages import (
    Complete,
    FinalSnapshotPinned,
    JobAccount,
    NotComplete,
    Samples,
    Stop,
    StopEarly,
    Stopping,
)
from shoal.protocol.text_limits import clipped
from shoal.transport.auth import Identity

__all__ = ["CompletionHandler"]

REASON_CHARACTERS = 1000
SKIPPED_SHARE = 0.1
"""The share of skipped samples above which a completed job logs a warning: its author hardly intended it."""


class CompletionHandler:
    """Ends a job (rule 9): it is complete when every slot's last snapshot is read back and pinned."""

    def __init__(self, job: JobState) -> None:
        self._job = job
        self._counted: dict[int, tuple[int, int]] = {}

    def check(self, servers: ServerHandler) -> None:
        """If every task is done, request the last snapshots; complete the job once all of them are pinned."""
        job = self._job
        if job.ended or job.queue is None or not job.queue.all_done or not job.slots.complete:
            return
        servers.request_final_snapshots()
        if len(job.slots.final_snapshots) == job.settings.slots:
            self._complete(servers)

    def final_snapshots_pinned(self, identity: Identity, message: FinalSnapshotPinned, servers: ServerHandler) -> None:
        """Handle ``FinalSnapshotPinned``: record the slots whose last snapshot is pinned; complete the job once all are."""
        job = self._job
        if message.tasks != job.final_tasks:
            return  # the tasks to be done have changed since the snapshot was requested
        rows = zip(message.slots, message.grants, message.samples, message.skipped, strict=True)
        for slot, grant, samples, skipped in rows:
            job.slots.final_snapshot_pinned(identity.life, slot, grant, message.file)
            self._counted[slot] = (samples, skipped)
        self.check(servers)

    def _complete(self, servers: ServerHandler) -> None:
        job = self._job
        account = self.account("Complete")
        reason = self._early()
        job.records.outcome = Outcome(
            state="Complete", reason=reason, files=dict(job.slots.final_snapshots), account=account
        )
        job.records.note_changed("outcome", "counters")
        job.event(
            f"complete{f', {reason}' if reason else ''}: every sample is in the model, and the last snapshots are kept"
        )
        self._warn_of_skips(account.samples)
        job.moved()
        for view in job.trainers.values():
            if view.finished:
                job.send(view.connection, Complete())
        servers.send_complete()

    def _early(self) -> str:
        job = self._job
        if job.records.stopped is None or job.queue is None:
            return ""
        return f"stopped by the script after epoch {job.queue.whole_epochs}: {job.records.stopped.reason}"

    def _warn_of_skips(self, samples: Samples) -> None:
        if samples.skipped > SKIPPED_SHARE * samples.counted:
            self._job.event(
                f"{samples.skipped:,} of {samples.counted:,} samples ({samples.skipped / samples.counted:.0%}) were "
                "skipped: the script made no optimizer step for their batches. Likely causes: a check for NaN that "
                "always fires, overflows of a GradScaler, backward() without step(); see docs/scripts.md",
                "warning",
            )

    def stop_early(self, life: int, message: StopEarly) -> None:
        """Handle ``StopEarly``: end the job once all begun tasks are done. The first request counts."""
        job, records = self._job, self._job.records
        if records.stopped is not None or job.ended or job.queue is None:
            reason = records.stopped.reason if records.stopped is not None else message.reason
            job.send(job.trainers[life].connection, Stopping(reason=reason))
            return
        records.stopped = StopRecord(reason=clipped(message.reason, REASON_CHARACTERS), epoch=message.epoch)
        records.note_changed("stopped")
        job.queue.stop()
        job.slots.not_final()
        job.event(f"{job.label(life)}: the script stops the job: {records.stopped.reason}")
        for view in job.trainers.values():
            job.send(view.connection, Stopping(reason=records.stopped.reason))

    def fail(self, reason: str) -> None:
        """Record that the job has failed, and stop all trainers. An ended job stays as it is."""
        job = self._job
        if job.ended:
            return
        reason = clipped(reason)
        job.records.outcome = Outcome(state="Failed", reason=reason, files={}, account=self.account("Failed"))
        job.records.note_changed("outcome", "counters")
        job.event(f"failed: {reason}", "error")
        for view in job.trainers.values():
            job.send(view.connection, Stop(reason=reason))

    def finish(self, life: int) -> None:
        """Handle ``LoopFinished``: reply, or note that the trainer waits for the job's completion."""
        job = self._job
        view = job.trainers[life]
        if job.records.outcome is not None and job.records.outcome.state == "Complete":
            job.send(view.connection, Complete())
        elif job.queue is not None and not job.queue.all_done:
            job.send(view.connection, NotComplete())
        else:
            view.finished = True

    def account(self, state: str) -> JobAccount:
        """Return the account of every sample, from the counts of the slots.

        A slot's count is the sum of the samples of each batch that it applied; it is kept beside its watermarks.
        """
        job, counters, queue = self._job, self._job.records.counters, self._job.queue
        expected = queue.expected if queue is not None else 0
        counts = [samples for samples, _ in self._counted.values()]
        if state == "Complete":
            counted = min(counts, default=0)
            twice = max((max(0, count - expected) for count in counts), default=0)
        else:
            counted = sum(queue.samples_done(epoch) for epoch in range(queue.open + 1)) if queue is not None else 0
            twice = 0
        lost = max(0, expected - counted) if state == "Complete" else 0
        samples = Samples(
            expected=expected,
            counted=min(counted, expected),
            lost=lost,
            twice=twice,
            skipped=max((skipped for _, skipped in self._counted.values()), default=0),
        )
        return JobAccount(
            state=state,
            epochs=queue.whole_epochs if queue is not None else job.epochs,
            samples=samples,
            joins=counters.joins,
            leaves=counters.leaves,
            deaths=counters.deaths,
            replayed=counters.replayed,
            seconds=round(counters.seconds, 3),
        )
