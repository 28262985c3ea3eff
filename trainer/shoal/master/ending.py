"""The desk for the job's end: the last snapshots, the outcome, the model file, the account."""

from __future__ import annotations

from shoal.master.job import Job
from shoal.master.records import Outcome
from shoal.master.serving import Serving
from shoal.wire.auth import Identity
from shoal.wire.messages import Account, Complete, More, Safe, Samples, Save, Saved, SaveTurn, Stop

__all__ = ["Ending"]


class Ending:
    """Brings a job to its end (rule 9): complete when every slot's last snapshot is read back and pinned."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._counted: dict[int, tuple[int, int]] = {}

    def check(self, serving: Serving) -> None:
        """Every task may be done: ask for the last snapshots; complete when all of them stand."""
        job = self._job
        if job.ended or job.queue is None or not job.queue.all_done or not job.slots.complete:
            return
        serving.finals()
        if len(job.slots.safe) == job.settings.slots:
            self._complete(serving)

    def safe(self, identity: Identity, message: Safe, serving: Serving) -> None:
        """Slots are safe; when all are, the job is complete."""
        job = self._job
        rows = zip(message.slots, message.grants, message.samples, message.skipped, strict=True)
        for slot, grant, samples, skipped in rows:
            job.slots.is_safe(identity.life, slot, grant, message.file)
            self._counted[slot] = (samples, skipped)
        self.check(serving)

    def _complete(self, serving: Serving) -> None:
        job = self._job
        account = self.account("Complete")
        job.records.outcome = Outcome(state="Complete", reason="", files=dict(job.slots.safe), account=account)
        job.records.touch("outcome", "counters")
        job.event("complete: every sample is in the model, and the last snapshots are kept")
        job.moved()
        for view in job.trainers.values():
            if view.finished:
                job.send(view.connection, Complete())
        serving.let_go()

    def fail(self, reason: str) -> None:
        """End the job without a model."""
        job = self._job
        if job.ended:
            return
        job.records.outcome = Outcome(state="Failed", reason=reason, files={}, account=self.account("Failed"))
        job.records.touch("outcome", "counters")
        job.event(f"failed: {reason}", "error")
        for view in job.trainers.values():
            job.send(view.connection, Stop(reason=reason))

    def finish(self, life: int) -> None:
        """A trainer's loop went through all epochs."""
        job = self._job
        view = job.trainers[life]
        if job.records.outcome is not None and job.records.outcome.state == "Complete":
            job.send(view.connection, Complete())
        elif job.queue is not None and not job.queue.all_done:
            job.send(view.connection, More())
        else:
            view.finished = True

    def save(self, life: int, message: Save) -> None:
        """The script wants the model written: one trainer does it, the others wait."""
        job = self._job
        view = job.trainers[life]
        if message.path in job.records.saved:
            job.send(view.connection, Saved(path=message.path))
            return
        view.saving = message.path
        if job.saver is None or job.saver not in job.trainers:
            job.saver = life
            job.send(view.connection, SaveTurn(path=message.path))

    def saved(self, life: int, message: Saved) -> None:
        """The model is written."""
        job = self._job
        if message.path not in job.records.saved:
            job.records.saved.append(message.path)
            job.records.touch("saved")
            job.event(f"model written to {message.path}")
        if job.saver == life:
            job.saver = None
        for view in job.trainers.values():
            # Who wrote it waits, too: it may have got its turn from an earlier master.
            if view.saving == message.path or view.identity.life == life:
                view.saving = None
                job.send(view.connection, Saved(path=message.path))
        self.next_saver()

    def next_saver(self) -> None:
        """Somebody waits for a model that nobody writes: the saver died, or another path is next."""
        job = self._job
        if job.saver is not None and job.saver in job.trainers:
            return
        job.saver = None
        for life, view in job.trainers.items():
            if view.saving is not None:
                job.saver = life
                job.send(view.connection, SaveTurn(path=view.saving))
                return

    def account(self, state: str) -> Account:
        """The account of every sample, from what the slots counted themselves.

        A slot's count is kept by adding up the samples of each batch that it applied, beside its watermarks.
        """
        job, counters = self._job, self._job.records.counters
        per_epoch = job.plan.samples_per_epoch if job.plan is not None else 0
        expected = per_epoch * job.epochs
        counts = [samples for samples, _ in self._counted.values()]
        if state == "Complete":
            counted = min(counts, default=0)
            twice = max((max(0, count - expected) for count in counts), default=0)
        else:
            queue = job.queue
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
        return Account(
            state=state,
            epochs=job.epochs,
            samples=samples,
            joins=counters.joins,
            leaves=counters.leaves,
            deaths=counters.deaths,
            replayed=counters.replayed,
            seconds=round(counters.seconds, 3),
        )
