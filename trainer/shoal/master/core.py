"""The master without I/O: connections and messages in, messages and records out.

The core registers connections, dispatches each message to its handler, and enforces leases. When a call returns, its
decisions are in the job's outbox and records; ``service`` carries them out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shoal.master.handlers.completion import CompletionHandler
from shoal.master.handlers.evaluations import EvaluationHandler
from shoal.master.handlers.fatal_batches import FAILURES_ALLOWED
from shoal.master.handlers.message_checks import member_problem, message_problem
from shoal.master.handlers.model_files import ModelFileHandler
from shoal.master.handlers.servers import ServerHandler
from shoal.master.handlers.trainers import TrainerHandler
from shoal.master.state.job import Close, JobState, Send
from shoal.master.state.progress import ProgressReporter
from shoal.master.state.records import MemberRecord
from shoal.protocol import messages as m
from shoal.protocol.text_limits import clipped
from shoal.store import DesiredState
from shoal.transport.auth import Identity

__all__ = ["MasterCore"]

PROGRESS_SECONDS = 0.2
PUBLISH_SECONDS = 1.0
REASON_CHARACTERS = 2000


class MasterCore:
    """The master of one job.

    Args:
        job: The job's state, with the records from etcd.
        etcd: Name and version of the etcd, for people.
    """

    def __init__(self, job: JobState, *, etcd: str = "") -> None:
        self.job = job
        self.completion = CompletionHandler(job)
        self.servers = ServerHandler(job, moved=self._moved, fail=self.completion.fail)
        self.trainers = TrainerHandler(
            job, shape_known=self._shape_known, all_done=self._all_done, fail=self.completion.fail
        )
        self.evaluations = EvaluationHandler(job)
        self.model_files = ModelFileHandler(job)
        self.reporter = ProgressReporter(job, etcd=etcd)
        self._connections: dict[int, tuple[Identity, float]] = {}
        self._observers: set[int] = set()
        self._next_report = 0.0
        self._next_publication = 0.0
        self._last_tick = job.now
        self._next_commit = job.now
        for life in job.records.members:
            job.expected_back[life] = job.now + job.settings.lease_seconds
        self._restore_leases()
        self._trainer_handlers: dict[type, Callable[[Identity, Any], None]] = {
            m.RequestTask: lambda peer, x: self.trainers.request_task(peer.life, x),
            m.TaskDone: lambda peer, x: self.trainers.done(peer.life, x),
            m.ReturnTasks: lambda peer, x: self.trainers.return_tasks(peer.life, x.leases),
            m.LogValues: lambda _, x: self.trainers.log(x),
            m.BatchBegan: lambda peer, x: self.trainers.began(peer.life, x),
            m.Evaluate: lambda peer, x: self.evaluations.evaluate(peer.life, x),
            m.Evaluated: lambda peer, x: self.evaluations.evaluated(peer.life, x),
            m.Metric: lambda _, x: self.evaluations.measured(x),
            m.LoopFinished: lambda peer, _: self.completion.finish(peer.life),
            m.StopEarly: self._stop_early,
            m.Save: lambda peer, x: self.model_files.save(peer.life, x),
            m.Saved: lambda peer, x: self.model_files.saved(peer.life, x),
            m.InitialValuesGiven: lambda peer, x: self.servers.initial_values_sent(peer.life, x),
            m.ScriptFailed: lambda peer, x: self.trainers.script_failed(peer.life, x),
            m.ScriptHung: lambda peer, x: self.trainers.hung(peer.life, x),
            m.GetSlotMap: self._send_slot_map,
        }
        self._server_handlers: dict[type, Callable[[Identity, Any], None]] = {
            m.ReportState: self.servers.state_reported,
            m.GrantReport: self.servers.grants_reported,
            m.GrantFailed: self.servers.grant_failed,
            m.AwaitingInitialValues: self.servers.awaiting_initial_values,
            m.SnapshotWritten: self.servers.snapshot_written,
            m.MissingTasks: self.servers.missing_tasks,
            m.FinalSnapshotPinned: lambda peer, x: self.completion.final_snapshots_pinned(peer, x, self.servers),
        }

    def _restore_leases(self) -> None:
        """Adopt the leases of an earlier master, so that no task is leased twice while its holder may reconnect."""
        if self.job.queue is None:
            return
        for life, member in self.job.records.members.items():
            for lease in member.leases:
                self.job.queue.renew(life, lease)
        self.job.note_reached()

    # --- Events ---

    def connected(self, connection: int, identity: Identity, now: float) -> None:
        """Register a connection whose peer has authenticated; it replaces an earlier one of the same role and index."""
        problem = member_problem(identity, servers=self.job.settings.servers)
        if problem:
            self.job.outbox.append(Close(connection, problem))
            return
        for other, (peer, _) in list(self._connections.items()):
            same_place = (peer.role, peer.index) == (identity.role, identity.index) and identity.role != "observer"
            if other != connection and same_place:
                self.job.outbox.append(Close(other, f"{identity} has a new connection"))
                self.closed(other, now, returns=peer.life == identity.life)
        self._connections[connection] = (identity, now)
        if identity.role == "pserver":
            known = identity.life in self.job.records.members
            if not known:
                self._note_server(identity)
            self.job.expected_back.pop(identity.life, None)
            self.servers.connected(connection, identity, now)

    def _note_server(self, identity: Identity) -> None:
        records = self.job.records
        records.members[identity.life] = MemberRecord(role=identity.role, index=identity.index, leases=[], joined=0)
        records.note_member_changed(identity.life)
        self.job.event(f"{identity} is here")

    def message(self, connection: int, message: Any, now: float) -> None:
        """Handle a message.

        A message that does not fit its sender's state is outdated and is ignored. An invalid message closes its
        connection.
        """
        known = self._connections.get(connection)
        if known is None:
            return
        identity = known[0]
        problem = message_problem(message, self.job.queue, slots=self.job.settings.slots)
        if problem:
            self.job.event(f"{identity} is cut off: {problem}", "warning")
            self.job.outbox.append(Close(connection, problem))
            self.closed(connection, now)
            return
        kind = type(message)
        if kind is m.KeepAlive:
            self.job.send(connection, m.KeepAliveReply())
        elif kind is m.JobEvent:
            self.job.event(f"{identity}: {message.text}", message.level)
        elif kind is m.Observe:
            self._observers.add(connection)
            self.job.send(connection, self.reporter.progress(now))
        elif kind is m.Leave:
            self._leave(identity, message)
        elif identity.role == "trainer":
            self._from_trainer(connection, identity, message, now)
        elif identity.life in self.job.servers and kind in self._server_handlers:
            self._server_handlers[kind](identity, message)
            self.completion.check(self.servers)

    def _from_trainer(self, connection: int, identity: Identity, message: Any, now: float) -> None:
        if type(message) is m.Register:
            self.trainers.register(connection, identity, message, now)
            self.servers.provide()
            self.trainers.serve()
        elif type(message) in self._trainer_handlers and identity.life in self.job.trainers:
            self._trainer_handlers[type(message)](identity, message)

    def _send_slot_map(self, identity: Identity, _: m.GetSlotMap) -> None:
        self.job.send(self.job.trainers[identity.life].connection, self.job.slots.message())

    def _stop_early(self, identity: Identity, message: m.StopEarly) -> None:
        self.completion.stop_early(identity.life, message)
        self.trainers.serve()
        self.completion.check(self.servers)

    def _leave(self, identity: Identity, message: m.Leave) -> None:
        records = self.job.records
        if records.members.pop(identity.life, None) is None:
            return
        records.note_member_changed(identity.life)
        if identity.role == "trainer":
            records.counters.leaves += 1
            records.note_changed("counters")
        reason = clipped(message.reason, REASON_CHARACTERS)
        if reason and not self.job.ended:
            self.job.last_reason = reason
            self.job.event(f"{identity} left before the job was complete: {reason}", "warning")
            self.job.early_ends += 1
        else:
            self.job.event(f"{identity} left")
        self._remove(identity, message.leases)
        if self.job.early_ends >= FAILURES_ALLOWED:
            # A restarted script would train some batches and end again, without limit.
            self.completion.fail(f"the script ended {self.job.early_ends} times before the job was complete: {reason}")

    def closed(self, connection: int, now: float, *, returns: bool = False) -> None:
        """Handle a closed connection. A process that has not sent ``Leave`` counts as dead; its leases end.

        Args:
            connection: The number of the connection.
            now: The time, in seconds, monotonic.
            returns: Whether the same process has a new connection.
        """
        del now
        self._observers.discard(connection)
        known = self._connections.pop(connection, None)
        if known is None or known[0].role == "observer":
            return
        identity = known[0]
        records = self.job.records
        if records.members.pop(identity.life, None) is not None:
            records.note_member_changed(identity.life)
            records.counters.deaths += 1
            records.note_changed("counters")
            self.job.event(f"{identity} disconnected without leaving", "warning")
            if identity.role == "trainer" and self.job.queue is not None and not returns:
                self.trainers.died(identity.life, self.job.queue.held_by(identity.life))
        self._remove(identity, returns=returns)

    def _remove(self, identity: Identity, leases: list[m.Lease] | None = None, *, returns: bool = False) -> None:
        if identity.role == "pserver":
            self.servers.lost(identity.life)
            return
        if not returns:
            self._departed(identity.life)
        self.trainers.removed(identity.life, leases)
        self.evaluations.removed(identity.life)
        self.servers.provider_removed(identity.life)
        self.model_files.next_saver()

    def _departed(self, life: int) -> None:
        for connection in self.job.servers.values():
            self.job.send(connection, m.TrainersDeparted(life=life))

    def heard(self, connection: int, at: float) -> None:
        """Record the time at which data was last received on a connection."""
        known = self._connections.get(connection)
        if known is not None:
            self._connections[connection] = (known[0], at)

    def apply_desired(self, desired: DesiredState) -> None:
        """Apply a new desired state of the operator."""
        if desired.suspend != self.job.desired.suspend:
            self.job.event("the job is suspended: its trainers leave" if desired.suspend else "the job is resumed")
        self.job.desired = desired
        self.trainers.drain()

    def tick(self, now: float) -> None:
        """Close connections whose lease has expired, and send the progress to observers and the operator."""
        job = self.job
        job.records.counters.seconds += max(0.0, now - self._last_tick) if not job.ended else 0.0
        self._last_tick = now
        if now >= self._next_commit:
            # An idle master writes too: a failed write is how it detects that a newer master leads.
            self._next_commit = now + job.settings.lease_seconds / 4
            job.records.note_changed("counters")
        for connection, (identity, heard) in list(self._connections.items()):
            if identity.role != "observer" and now - heard > job.settings.lease_seconds:
                job.event(f"{identity} was silent for {now - heard:.1f} s", "warning")
                job.outbox.append(Close(connection, "silent for too long"))
                self.closed(connection, now)
        for life, deadline in list(job.expected_back.items()):
            if now > deadline:
                self._expire(life)
        self.servers.provide()
        self.completion.check(self.servers)
        if self._observers and now >= self._next_report:
            self._next_report = now + PROGRESS_SECONDS
            progress = self.reporter.progress(now)
            job.outbox.extend(Send(connection, progress) for connection in sorted(self._observers))
        if now >= self._next_publication:
            self._next_publication = now + PUBLISH_SECONDS
            published = self.reporter.published(now)
            if published != job.records.progress:
                job.records.progress = published
                job.records.note_changed("progress")

    def _expire(self, life: int) -> None:
        """Remove a member of an earlier master that has not connected to this one within its lease."""
        job = self.job
        del job.expected_back[life]
        member = job.records.members.pop(life, None)
        if member is None:
            return
        self._departed(life)
        job.records.note_member_changed(life)
        job.records.counters.deaths += 1
        job.records.note_changed("counters")
        place = (member.role, member.index)
        if all((other.role, other.index) != place for other in job.records.members.values()):
            job.event(f"{member.role}-{member.index} did not reconnect", "warning")
        if member.role == "trainer":
            self.trainers.died(life, member.leases)
            self.trainers.removed(life, member.leases)

    # --- Between the handlers ---

    def _moved(self, back: int) -> None:
        self.job.moved()
        if back:
            self.trainers.tasks_reopened()
        self.trainers.serve()

    def _shape_known(self) -> None:
        self.servers.shape_known()

    def _all_done(self) -> None:
        self.completion.check(self.servers)
