"""The handler of trainers: registration, tasks, the ends of epochs."""

from __future__ import annotations

from collections.abc import Callable

from shoal.master.handlers.fatal_batches import FAILURES_ALLOWED, FatalBatches
from shoal.master.state.job import JobState, TrainerView
from shoal.master.state.records import JobSchedule, MemberRecord
from shoal.protocol.messages import (
    BatchBegan,
    Drain,
    EpochDone,
    Lease,
    LogValues,
    NotComplete,
    Register,
    Registered,
    RegistrationRefused,
    RequestTask,
    ScriptFailed,
    ScriptHung,
    Stop,
    TaskCommitted,
    TaskDone,
    TaskLeased,
    TaskReopened,
)
from shoal.protocol.model_spec import differences, impossible
from shoal.protocol.text_limits import clipped
from shoal.transport.auth import Identity

__all__ = ["TrainerHandler"]

REASON_CHARACTERS = 2000
NO_TASK = (-1, -1)
"""Stands for the script's activities outside of batches: evaluations, saving, the time before its first batch."""
MOST_REQUESTS = 10_000
"""The limit of unanswered task requests of one trainer; the workers of a DataLoader need far fewer."""
VALUES = 1000
"""The limit of names of logged values, over all trainers; the names that were logged last are kept."""


class TrainerHandler:
    """Registers trainers and leases tasks to them.

    Args:
        job: The job's state.
        shape_known: Called when a trainer has registered, so that the model is known.
        all_done: Called when every task of every epoch is done.
        fail: Called to end the job with a reason.
    """

    def __init__(
        self,
        job: JobState,
        *,
        shape_known: Callable[[], None],
        all_done: Callable[[], None],
        fail: Callable[[str], None],
    ) -> None:
        self._job = job
        self._shape_known = shape_known
        self._all_done = all_done
        self._fail = fail
        self._fatal_batches = FatalBatches()

    # --- Joining and leaving ---

    def register(self, connection: int, identity: Identity, message: Register, now: float) -> None:
        """Handle ``Register``: the first trainer defines what the job trains; the others must match it."""
        job = self._job
        refusal = self._refusal(message)
        if refusal:
            job.event(f"{identity} was refused: {refusal}", "error")
            job.send(connection, RegistrationRefused(reason=refusal))
            return
        if job.records.shape is None:
            job.records.shape = message.shape
            job.records.schedule = JobSchedule(epochs=message.epochs, seed=message.seed)
            job.records.note_changed("shape", "schedule", "epoch")
            job.adopt_shape(message.shape)
            job.records.open_epoch = 0
        view = TrainerView(
            identity=identity, connection=connection, pid=message.pid, host=message.host, since=now, working_since=now
        )
        returned = job.expected_back.pop(identity.life, None) is not None or identity.life in job.records.members
        job.trainers[identity.life] = view
        self._fatal_batches.reconnected(identity.life)
        if not returned:
            job.records.counters.joins += 1
            job.records.note_changed("counters")
            job.event(f"{identity} joined")
        self._take_leases(identity, message.leases)
        job.send(connection, self._registered(identity.life))
        if job.records.outcome is not None and job.records.outcome.state == "Failed":
            job.send(connection, Stop(reason=job.records.outcome.reason))
        if job.slots.complete:
            job.send(connection, job.slots.message())
        self.drain()
        self._shape_known()

    def _refusal(self, message: Register) -> str:
        job = self._job
        problem = impossible(message.shape)
        if problem:
            return problem
        if job.records.shape is not None:
            found = differences(message.shape, job.records.shape)
            if found:
                return "this script does not train what the job trains: " + "; ".join(found)
        return ""

    def _registered(self, life: int) -> Registered:
        job, records = self._job, self._job.records
        assert job.queue is not None
        assert records.shape is not None
        return Registered(
            epochs=job.epochs,
            seed=job.seed,
            epoch=max(job.queue.open, 0),
            slots=job.settings.slots,
            output=job.settings.output,
            lease_seconds=job.settings.lease_seconds,
            step_seconds=job.settings.step_seconds,
            trainers=len(job.trainers),
            joins=records.members[life].joined,
            groups=records.shape.groups,
            evaluations=records.evaluation_list(),
            metrics=records.metric_list(),
            stopping=records.stopped.reason if records.stopped is not None else "",
        )

    def _take_leases(self, identity: Identity, claimed: list[Lease]) -> None:
        """Renew the leases that a trainer claims; it never received those that it does not claim."""
        queue = self._job.queue
        assert queue is not None
        for lease in claimed:
            queue.renew(identity.life, lease)
        self._note_reached()
        keep = {(lease.epoch, lease.task) for lease in claimed}
        for lease in queue.held_by(identity.life):
            if (lease.epoch, lease.task) not in keep:
                queue.release((lease.epoch, lease.task), identity.life)
        self._note(identity.life, identity)

    def _note(self, life: int, identity: Identity) -> None:
        job = self._job
        assert job.queue is not None
        before = job.records.members.get(life)
        job.records.members[life] = MemberRecord(
            role=identity.role,
            index=identity.index,
            leases=job.queue.held_by(life),
            joined=before.joined if before is not None else job.records.counters.joins,
        )
        job.records.note_member_changed(life)

    def died(self, life: int, leases: list[Lease]) -> None:
        """Record that a trainer died with these leases; fail the job if one batch has killed too many trainers."""
        job = self._job
        fatal = self._fatal_batches.died(life, [(lease.epoch, lease.task) for lease in leases])
        if fatal is not None:
            self._fail(_fatal_batch_reason(fatal))
        for lease in leases:
            if job.queue is not None and job.queue.done((lease.epoch, lease.task)):
                self._fatal_batches.forget((lease.epoch, lease.task))

    def began(self, life: int, message: BatchBegan) -> None:
        """Handle ``BatchBegan``: the script starts a batch of a watched task."""
        queue = self._job.queue
        if queue is not None and message.lease in queue.held_by(life):
            self._fatal_batches.began(life, message)

    def removed(self, life: int, leases: list[Lease] | None = None) -> None:
        """Remove a trainer that has left or died, and break its leases; its tasks wait for a new lease.

        A death is detected in `MasterCore`: ``closed`` (the connection has closed), ``tick`` (nothing was received for the
        lease time) or ``_expire`` (a trainer of an earlier master has not connected to this one).

        Args:
            life: The trainer's life.
            leases: Leases that the trainer or the records name, beside those in the task queue. Default: None.
        """
        job = self._job
        view = job.trainers.pop(life, None)
        if job.queue is not None:
            for lease in [*job.queue.held_by(life), *(leases or [])]:
                job.queue.release((lease.epoch, lease.task), life)
        self._fatal_batches.removed(life)
        if view is not None or leases is not None:
            self.serve()

    def drain(self) -> None:
        """Send ``Drain`` to trainers that the operator drains; also called when a trainer registers."""
        for view in self._job.trainers.values():
            if not view.draining and self._job.desired.leaves(view.identity.index):
                view.draining = True
                self._job.send(view.connection, Drain())

    def return_tasks(self, life: int, leases: list[Lease]) -> None:
        """Handle ``ReturnTasks``: end these leases; their tasks wait for a new lease."""
        job = self._job
        if job.queue is None or life not in job.trainers:
            return
        for lease in leases:
            if lease in job.queue.held_by(life):  # not a newer lease of the same task
                job.queue.release((lease.epoch, lease.task), life)
        self._note(life, job.trainers[life].identity)
        self.serve()

    # --- Tasks ---

    def request_task(self, life: int, message: RequestTask) -> None:
        """Handle ``RequestTask``."""
        job = self._job
        view = job.trainers[life]
        if len(view.requests) < MOST_REQUESTS:
            view.requests.append(message.epoch)
        if job.evaluates is None and message.epoch >= 1:
            job.evaluates = bool(job.records.evaluations)
        self.serve()

    def serve(self) -> None:
        """Reply to waiting trainers with a task or the end of their epoch, in the order of their registration."""
        job = self._job
        if job.queue is None or not job.slots.complete or job.ended:
            self._serve_ended()
            return
        for life, view in job.trainers.items():
            while view.requests and not view.draining and self._serve_one(life, view):
                view.requests.popleft()

    def _serve_ended(self) -> None:
        job = self._job
        if job.records.outcome is None or job.records.outcome.state != "Complete":
            return
        for view in job.trainers.values():
            while view.requests:
                view.requests.popleft()
                job.send(view.connection, EpochDone(epoch=job.epochs - 1))

    def _serve_one(self, life: int, view: TrainerView) -> bool:
        job, queue = self._job, self._job.queue
        assert queue is not None
        opened = queue.open
        lease = queue.lease(life, early=job.evaluates is False)
        if lease is None and queue.epoch_done(queue.open):
            ended = queue.epochs - 1 if queue.stopped else queue.open
            if view.requests[0] <= ended:
                job.send(view.connection, EpochDone(epoch=ended))
                return True
            if queue.open_next():
                lease = queue.lease(life, early=False)
        if queue.open != opened:
            job.records.open_epoch = queue.open
            job.records.note_changed("epoch")
            job.event(f"epoch {queue.open + 1} of {queue.epochs} begins")
        if lease is None:
            return False
        job.note_reached()
        left = queue.batches_left(lease.epoch)
        watched = self._fatal_batches.watches((lease.epoch, lease.task))
        job.send(view.connection, TaskLeased(lease=lease, left=left, trainers=len(job.trainers), watched=watched))
        self._note(life, view.identity)
        return True

    def done(self, life: int, message: TaskDone) -> None:
        """Handle ``TaskDone``: count the acknowledgements of slots whose grant is the current one (rule 1)."""
        job, queue = self._job, self._job.queue
        view = job.trainers[life]
        lease = message.lease
        if queue is None or len(message.grants) != job.settings.slots:
            return
        task = (lease.epoch, lease.task)
        before = queue.leases.get(task)
        was_open = queue.open >= lease.epoch >= 0 and not queue.done(task)
        acknowledged = [slot for slot, grant in enumerate(message.grants) if job.slots.current(slot, grant)]
        if queue.acknowledge(lease, acknowledged):
            if was_open:
                job.records.record_task(*task, done=True)
                job.failures.pop(task, None)
                job.failures.pop(NO_TASK, None)
                self._fatal_batches.forget(task)
                job.moved()
            if before is not None and before[0] in job.trainers:
                self._note(before[0], job.trainers[before[0]].identity)
            job.send(view.connection, TaskCommitted(lease=lease))
        elif before is not None and before[0] != life:
            job.send(view.connection, TaskCommitted(lease=lease))  # another trainer has the lease
        else:
            queue.renew(life, lease)
            job.records.counters.retries += 1
            if job.slots.complete:
                job.send(view.connection, job.slots.message())
            job.send(view.connection, TaskReopened(lease=lease))
        self._note_reached()
        self.serve()
        if queue.all_done:
            self._all_done()

    def script_failed(self, life: int, message: ScriptFailed) -> None:
        """Handle ``ScriptFailed``: after `FAILURES_ALLOWED` failures on one task, the job fails."""
        self._job.event(f"{self._job.label(life)}: the script failed:\n{message.error}", "error")
        for lease in message.leases[:1]:
            self._failed_on((lease.epoch, lease.task), message.error)

    def hung(self, life: int, message: ScriptHung) -> None:
        """Handle ``ScriptHung``: it counts as a failure on the task; the trainer's process exits."""
        where = f"come no further for {message.seconds:.0f} s {clipped(message.activity, REASON_CHARACTERS)}"
        text = f"{where} (spec.runPolicy.stepTimeout); it stood here:\n{message.stack}"
        self._job.event(f"{self._job.label(life)}: the script has {text}\nIt is ended and started again.", "error")
        lease = message.lease
        self._failed_on(NO_TASK if lease is None else (lease.epoch, lease.task), f"it has {text}")

    def _failed_on(self, task: tuple[int, int], error: str) -> None:
        job = self._job
        job.failures[task] = job.failures.get(task, 0) + 1
        if job.failures[task] < FAILURES_ALLOWED:
            return
        if task == NO_TASK:
            self._fail(f"the script failed {FAILURES_ALLOWED} times before any task was done:\n{error}")
            return
        assert job.plan is not None
        first = task[1] * job.plan.task_batches * job.plan.batch_size
        last = first + job.plan.samples_in_task(task[1]) - 1
        self._fail(
            f"the script failed {FAILURES_ALLOWED} times on task {task[1]} of epoch {task[0] + 1} "
            f"(positions {first} to {last} of that epoch's order):\n{error}"
        )

    def log(self, message: LogValues) -> None:
        """Handle ``LogValues``: keep the logged values and add up the counts."""
        job, counters = self._job, self._job.records.counters
        job.values.update(message.values)
        while len(job.values) > VALUES:
            del job.values[next(iter(job.values))]
        counters.replayed += message.replayed
        if message.not_finite and not counters.not_finite:
            job.event("a logged value is not a number or infinite; training goes on, as plain PyTorch would", "warning")
        counters.not_finite += message.not_finite
        if message.skipped and not counters.skipped:
            job.event("a batch made no step (skipped); it counts as skipped", "warning")
        counters.skipped += message.skipped

    def _note_reached(self) -> None:
        if self._job.note_reached():
            self.tasks_reopened()

    def tasks_reopened(self) -> None:
        """Send ``NotComplete`` to trainers that have finished their loop."""
        if self._job.ended:
            return
        for view in self._job.trainers.values():
            if view.finished:
                view.finished = False
                self._job.send(view.connection, NotComplete())


def _fatal_batch_reason(began: BatchBegan) -> str:
    """Return the reason of a job that failed as one batch killed too many trainers."""
    samples = ", ".join(map(str, began.samples))
    return (
        f"a trainer was killed {FAILURES_ALLOWED} times (SIGKILL, out of memory or a crash) while it worked on the same "
        f"batch: batch {began.batch} of task {began.lease.task} in epoch {began.lease.epoch + 1}, samples {samples}; "
        "look at these samples: if one needs more memory than the others, give the trainers more "
        "(spec.trainer.resources) or cut it; if one crashes a library, repair it or leave it out"
    )
