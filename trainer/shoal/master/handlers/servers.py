"""The handler of parameter servers: state reports, grants, snapshots.

A server's report is its whole state (rule 3), so the same code handles a restart of the server and of the master.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from shoal.master.state.job import JobState
from shoal.master.state.slot_map import ServerOrder, SlotsLost
from shoal.protocol.messages import (
    AwaitingInitialValues,
    Complete,
    GrantFailed,
    GrantReport,
    Holder,
    InitialValuesGiven,
    JobSettings,
    MissingTasks,
    ProvideInitialValues,
    ReportState,
    SlotReport,
    SnapshotWritten,
)
from shoal.protocol.task_set import TaskSet
from shoal.transport.auth import Identity

__all__ = ["ServerHandler"]

PROVIDE_AGAIN_SECONDS = 1.0
"""The time that a server has to report initial values which a trainer has sent, before they are requested again."""


class ServerHandler:
    """Keeps every slot served.

    Args:
        job: The job's state.
        moved: Called with the number of reopened batches when the slot map or the set of open tasks has changed.
        fail: Called to end the job with a reason.
    """

    def __init__(self, job: JobState, *, moved: Callable[[int], None], fail: Callable[[str], None]) -> None:
        self._job = job
        self._moved = moved
        self._fail = fail
        self._provider: int | None = None
        self._provide_after = 0.0
        self._confirmed = 0
        self.confirm_requested = False
        """Whether the service must confirm in etcd that this master leads, and then call ``confirmed``."""
        self._was_complete = False

    def connected(self, connection: int, identity: Identity, now: float) -> None:
        """Register a server that has connected and send it the job's settings; it then reports its state."""
        job = self._job
        job.servers[identity.life] = connection
        job.server_details[identity.life] = (identity, 0, "", "", now)
        self._accept(connection)

    def _accept(self, connection: int) -> None:
        job, settings = self._job, self._job.settings
        accepted = JobSettings(
            shape=job.records.shape,
            slots=settings.slots,
            seed=job.seed,
            epochs=job.epochs,
            interval=settings.checkpoint_seconds,
            keep=settings.checkpoint_keep,
            lease_seconds=settings.lease_seconds,
        )
        job.send(connection, accepted)

    def shape_known(self) -> None:
        """Send the settings to all servers: the model is registered, so that they can create slots."""
        for connection in self._job.servers.values():
            self._accept(connection)
        self.assign()

    def state_reported(self, identity: Identity, state: ReportState) -> None:
        """Handle ``ReportState``: replace what is recorded of the server."""
        job = self._job
        _, _, _, _, since = job.server_details[identity.life]
        address = state.addresses[0] if state.addresses else ""
        job.server_details[identity.life] = (identity, state.pid, state.host, address, since)
        orders = job.slots.state_reported(identity.life, identity.index, state)
        # Before the model is registered a server has no slots that could be granted.
        if job.queue is None:
            return
        for report in state.held:
            self._take(identity.life, report, only_live=True)
        self._carry_out(orders)
        self.assign()

    def lost(self, life: int) -> None:
        """Release the slots of a server whose connection has closed, and grant them again."""
        self._job.servers.pop(life, None)
        self._job.server_details.pop(life, None)
        self._job.slots.lost(life)
        self._was_complete = self._job.slots.complete
        self.assign()

    def grants_reported(self, identity: Identity, message: GrantReport) -> None:
        """Handle ``GrantReport``: slots are served under a grant, with these tasks."""
        if self._job.queue is None:
            return  # meant for an earlier master; the server's state report to this master follows
        for report in message.reports:
            self._take(identity.life, report, only_live=False)
        self.assign()

    def _take(self, life: int, report: SlotReport, *, only_live: bool) -> None:
        """Replace the evidence about the slots whose grant is the current one (rule 2)."""
        job = self._job
        assert job.queue is not None
        slots = job.slots
        current = [
            slot
            for slot, grant in zip(report.slots, report.grants, strict=True)
            if (slots.live.get(slot) == (life, grant) if only_live else slots.grant_reported(life, slot, grant))
        ]
        if current:
            self.replace_evidence(current, report)

    def replace_evidence(self, slots: list[int], report: SlotReport) -> None:
        """Replace the evidence about these slots by a report, and reopen the tasks that they lack."""
        job = self._job
        assert job.queue is not None
        back = job.queue.replace(slots, TaskSet.decode(report.tasks), reached=report.reached)
        if job.note_reached():
            job.event("tasks were begun that were not known when the script stopped the job: they are finished too")
        elif back:
            job.records.counters.replayed += back
            job.records.note_changed("counters")
            job.slots.not_final()
            job.event(f"{back} batches come back: slots {_ranges(slots)} were restored without them", "warning")
            if job.evaluations_stale():
                job.event("the last evaluation is made again: the model changed after it")
        self._moved(back)

    def awaiting_initial_values(self, identity: Identity, message: AwaitingInitialValues) -> None:
        """Handle ``AwaitingInitialValues``: fresh slots wait for their initial values."""
        pending = self._job.slots.pending
        pairs = zip(message.slots, message.grants, strict=True)
        current = [slot for slot, grant in pairs if slot in pending and pending[slot].grant == grant]
        self._job.slots.awaiting_initial_values(identity.life, current)
        self.provide()

    def grant_failed(self, identity: Identity, message: GrantFailed) -> None:
        """Handle ``GrantFailed``: discard the pending grant and grant the slot again."""
        if message.reason:
            self._job.event(f"{identity}: {message.reason}", "warning")
        self._job.slots.grant_failed(identity.life, message.slot, message.grant, message.file)
        self.assign()

    def snapshot_written(self, identity: Identity, message: SnapshotWritten) -> None:
        """Handle ``SnapshotWritten``: record the file, and release older ones of other servers (rule 10)."""
        self._carry_out(self._job.slots.snapshot_written(identity.life, message))

    def missing_tasks(self, identity: Identity, message: MissingTasks) -> None:
        """Handle ``MissingTasks``: replace the evidence about the slots that cannot be final."""
        if self._job.queue is None:
            return
        for report in message.reports:
            self._take(identity.life, report, only_live=True)

    def confirmed(self, question: int) -> None:
        """Record that this master led after all servers had answered the question (rule 11)."""
        self.confirm_requested = False
        self._confirmed = question
        self.assign()

    def assign(self) -> None:
        """Grant the slots that no server serves; send trainers the slot map once all slots are served."""
        job = self._job
        if job.queue is None:
            return
        try:
            orders, confirm = job.slots.assign(leads=self._confirmed == job.slots.question)
        except SlotsLost as error:
            self._fail(str(error))
            return
        self.confirm_requested = self.confirm_requested or confirm
        self._carry_out(orders)
        self.provide()
        if job.slots.complete and not self._was_complete:
            self._became_complete()
        self._was_complete = job.slots.complete

    def _became_complete(self) -> None:
        job = self._job
        if not job.records.begun:
            job.records.begun = True
            job.records.note_changed("begun")
        slot_map = job.slots.message()
        for trainer in job.trainers.values():
            job.send(trainer.connection, slot_map)
        self._moved(0)

    def provide(self) -> None:
        """Request that one connected trainer sends the initial values of all fresh slots in one go."""
        job = self._job
        uninitialised = job.slots.to_initialise()
        fresh = sum(pending.source == "fresh" for pending in job.slots.pending.values())
        if (
            not uninitialised
            or len(uninitialised) < fresh
            or (self._provider is not None and self._provider in job.trainers)
        ):
            return
        if job.clock() < self._provide_after:
            return
        self._provider = next(iter(job.trainers), None)
        if self._provider is None:
            return
        lives = sorted({job.slots.pending[slot].server for slot in uninitialised})
        views = [job.slots.views[life] for life in lives]
        message = ProvideInitialValues(
            slots=list(uninitialised),
            grants=list(uninitialised.values()),
            holders=[Holder(index=view.index, life=view.life, addresses=view.addresses) for view in views],
            owner=[lives.index(job.slots.pending[slot].server) for slot in uninitialised],
        )
        job.send(job.trainers[self._provider].connection, message)

    def provider_removed(self, life: int) -> None:
        """Select another trainer for the initial values if this trainer has left or died."""
        if self._provider == life:
            self._provider = None
        self.provide()

    def initial_values_sent(self, life: int, message: InitialValuesGiven) -> None:
        """Handle ``InitialValuesGiven``: the trainer has sent the initial values, or has failed to."""
        del message
        if life == self._provider:
            # Only the servers' reports end the waiting; a server writes a snapshot before its report.
            self._provider = None
            self._provide_after = self._job.clock() + PROVIDE_AGAIN_SECONDS

    def _carry_out(self, orders: Iterable[ServerOrder]) -> None:
        job = self._job
        for order in orders:
            if order.server in job.servers:
                job.send(job.servers[order.server], order.message)

    def request_final_snapshots(self) -> None:
        """Request the last snapshots of all slots."""
        self._carry_out(self._job.slots.final_snapshot_orders(self._job.final_tasks))

    def send_complete(self) -> None:
        """Send ``Complete`` to all servers."""
        for connection in self._job.servers.values():
            self._job.send(connection, Complete())


def _ranges(slots: list[int]) -> str:
    """Return slots as ranges, such as ``0-3, 7``."""
    parts: list[list[int]] = []
    for slot in sorted(slots):
        if parts and parts[-1][1] == slot - 1:
            parts[-1][1] = slot
        else:
            parts.append([slot, slot])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
