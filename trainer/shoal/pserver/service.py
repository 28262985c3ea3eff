"""The parameter server's I/O layer: sockets, the link to the master, and the threads that execute orders.

One lock guards protocol state and tensors together, so that both change atomically (the watermark belongs to the slot).
The lock is never held during network or disk I/O. Each server schedules its snapshots independently.

The link's thread never blocks on other threads: it puts orders into a queue and sends keep-alives. One thread executes the
orders, one reads snapshots, one writes them. Reports to the master are sent in the order of the state changes: with a report
that overtakes an older one, the master would conclude that the slot is lost.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import queue
import signal
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shoal.protocol import messages as m
from shoal.protocol.environment import EXIT_REFUSED
from shoal.protocol.epoch_plan import EpochPlan
from shoal.pserver.session import TrainerConnection
from shoal.pserver.snapshots.folder import SnapshotFolder
from shoal.pserver.state.parameters import Parameters
from shoal.pserver.state.server_state import DiskError, ServerState, Snapshot
from shoal.pserver.work_lock import HELD_SECONDS, WorkLock
from shoal.transport import auth, sync
from shoal.transport.acceptor import Acceptor
from shoal.transport.address import listen
from shoal.transport.liveness_probe import ProbeThread
from shoal.transport.master_link import MasterLink

__all__ = ["ServerService"]

RETRY_SECONDS = 2.0
"""Delay before a failed snapshot is retried. Seconds."""
ORDERS_WAITING = 10_000
"""Maximum length of the queue of orders from the master; a master sends a few for each slot."""

log = logging.getLogger("shoal.pserver")


class _Tensors:
    """Adapts ``Parameters`` to the ``Tensors`` interface of the protocol state."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters

    def create(self, slot: int) -> bool:
        return self._parameters.create(slot)

    def load(self, slot: int, state: Any) -> None:
        self._parameters.load(slot, state)

    def state(self, slot: int) -> Any:
        return self._parameters.state(slot)

    def drop(self, slot: int) -> None:
        self._parameters.drop(slot)


class ServerService:
    """Runs one parameter server until ``stop`` is called.

    Args:
        master: Address of the master.
        identity: Identity of this process.
        token: Token of the job.
        uid: UID of the job.
        folder: Directory of the snapshots.
        held_seconds: How long the work lock may be held before the server is considered hung. Seconds.
            Default: ``HELD_SECONDS``.
    """

    def __init__(
        self,
        master: str,
        *,
        identity: auth.Identity,
        token: auth.Token,
        uid: str,
        folder: Path,
        held_seconds: float = HELD_SECONDS,
    ) -> None:
        self.lock = WorkLock()
        self.state: ServerState | None = None
        self.parameters: Parameters | None = None
        self._identity, self._token, self._uid = identity, token, uid
        self._folder = folder
        self._disk: SnapshotFolder | None = None
        self._interval = 30.0
        self._addresses: list[str] = []
        self._wake = threading.Condition()
        self._snapshot_now = False
        self._stopping = False
        self._exit = 0
        self._last_error = ""
        self._callers: dict[int, set[sync.BlockingConnection]] = defaultdict(set)
        """Connections of the trainers, by the ``life`` of the trainer's process."""
        self._callers_lock = threading.Lock()
        self._held_seconds = held_seconds
        self._orders: queue.Queue[Any] = queue.Queue(ORDERS_WAITING)
        self._restores: queue.SimpleQueue[bool] = queue.SimpleQueue()
        """One True for each order that requires a restore; False ends the thread."""
        self._report_lock = threading.Lock()
        """Held, outside of the work lock, from a change of the state until its report was passed to the master link."""
        self._link = MasterLink(
            master,
            identity=identity,
            token=token,
            job=uid,
            greetings=list,  # the server reports its state in reply to the master's first message
            handle=self._receive,
            refused=self._refused,
            is_healthy=lambda: not self.hang_reason(),
        )

    def hang_reason(self) -> str:
        """Return why the server is considered hung, or an empty string while its work advances. Does not block."""
        held = self.lock.held_seconds()
        return f"its work has stood still for {held:.0f} s" if held > self._held_seconds else ""

    # --- The master ---

    def _receive(self, message: Any) -> None:
        """Queue a message from the master; runs on the link's thread."""
        if isinstance(message, m.RegistrationRefused | m.Stop):
            self._refused(message.reason)
            return
        try:
            self._orders.put_nowait(message)
        except queue.Full:
            # After the reconnect the server reports its state, and the master sends the orders that are needed then.
            raise ConnectionAbortedError("orders arrive faster than the server executes them") from None

    def _execute_orders(self) -> None:
        """Execute queued orders; the body of the orders' thread."""
        while (message := self._orders.get()) is not None:
            self._execute(message)

    def _execute(self, message: Any) -> None:
        if isinstance(message, m.JobSettings):
            self._apply_settings(message)
            return
        if isinstance(message, m.TrainersDeparted):
            self._close_trainer(message.life)
            return
        state = self.state
        if state is None:
            return
        with self._report_lock:
            with self.lock:
                replies = state.order(message)
                if isinstance(message, m.RequestState):
                    state.question = message.question
                    replies.append(self._state_report())
                due = state.final_pending or state.first_pending
                restore = state.next_restore() is not None
            self._send_all(replies)
        if due:
            self._wake_snapshots()
        if restore:
            self._restores.put(True)

    def _send_all(self, replies: list[Any]) -> None:
        for reply in replies:
            self._link.send(reply)

    def _state_report(self) -> m.ReportState:
        pid, host = os.getpid(), socket.gethostname()
        if self.state is None:
            return m.ReportState(
                held=[], waiting=[], files=[], question=0, addresses=self._addresses, pid=pid, host=host
            )
        return self.state.state_report(addresses=self._addresses, pid=pid, host=host)

    def _apply_settings(self, message: m.JobSettings) -> None:
        self._link.lease_seconds = message.lease_seconds
        self._interval = message.interval
        if self.state is None and message.shape is not None:
            self._begin(message, message.shape)
        with self._report_lock:
            with self.lock:
                state_report = self._state_report()
            self._link.send(state_report)

    def _begin(self, message: m.JobSettings, shape: m.ModelSpec) -> None:
        """Allocate the state of the model that the job trains, and read the list of snapshots on the disk."""
        plan = EpochPlan(
            samples=shape.samples,
            batch_size=shape.batch_size,
            drop_last=shape.drop_last,
            task_batches=shape.task_batches,
        )
        parameters = Parameters(shape, message.slots, message.seed)
        disk = SnapshotFolder(self._folder, uid=self._uid, shape=shape, keep=message.keep)
        state = ServerState(_Tensors(parameters), disk, plan=plan, epochs=message.epochs)
        with self.lock:
            self.parameters, self._disk, self.state = parameters, disk, state
        for reason in disk.refused:
            self._report_event("warning", f"{reason}; an older one is used")

    def _report_event(self, level: m.Level, text: str) -> None:
        log.log(getattr(logging, level.upper()), "%s", text)
        self._link.send(m.JobEvent(level=level, text=text))

    def _refused(self, reason: str) -> None:
        log.error("%s", reason)
        self._exit = EXIT_REFUSED
        self.stop()

    # --- Snapshots ---

    def initialised(self) -> None:
        """Start the first snapshot of slots that received their initial values."""
        self._wake_snapshots()

    def _wake_snapshots(self) -> None:
        with self._wake:
            self._snapshot_now = True
            self._wake.notify()

    def _keep_snapshots(self) -> None:
        """Write snapshots at the job's interval and on demand; the body of the snapshots' thread."""
        due = time.monotonic() + self._interval
        while True:
            with self._wake:
                while not self._snapshot_now and not self._stopping and time.monotonic() < due:
                    self._wake.wait(timeout=min(self._interval, due - time.monotonic()))
                stopping, self._snapshot_now = self._stopping, False
            written = self._snapshot(always=stopping)
            if stopping:
                return
            due = time.monotonic() + (self._interval if written else min(RETRY_SECONDS, self._interval))

    def _snapshot(self, *, always: bool) -> bool:
        """Write a snapshot if one is due; return False if it could not be written."""
        state, disk = self.state, self._disk
        if state is None or disk is None:
            return True
        with self.lock:
            final = state.final_pending
            if not (final or state.first_pending or state.moved or (always and state.moved)):
                return True
            snapshot = state.begin_snapshot()
        if not snapshot:
            return True
        return self._write(state, disk, snapshot, pin=final)

    def _write(self, state: ServerState, disk: SnapshotFolder, snapshot: Snapshot, *, pin: bool) -> bool:
        try:
            name = disk.write(snapshot, pin=pin)
        except DiskError as error:
            with self.lock:
                state.snapshot_failed()
            if str(error) != self._last_error:
                self._last_error = str(error)
                self._report_event("error", f"{error}; training continues, and the server retries the snapshot")
            return False
        self._last_error = ""
        with self._report_lock:
            with self.lock:
                replies = state.snapshot_written(name, snapshot, pinned=pin)
                again = state.final_pending or state.first_pending
            self._send_all(replies)
        disk.prune()
        if again:
            self._wake_snapshots()
        return True

    def _restore_all(self) -> None:
        """Restore slots from snapshots as ordered; the body of the restores' thread."""
        while self._restores.get():
            while self._restore():
                pass

    def _restore(self) -> bool:
        """Read the next slot from a snapshot; return False if no restore is pending."""
        state, disk = self.state, self._disk
        assert state is not None
        assert disk is not None
        with self.lock:
            order = state.next_restore()
        if order is None:
            return False
        try:
            found, history = disk.load(order.file, order.slot)
            take = functools.partial(state.restored, order, found, history)
        except DiskError as error:
            take = functools.partial(state.not_restored, order, str(error))
        with self._report_lock:
            with self.lock:
                replies = take()
            self._send_all(replies)
        return True

    # --- Start and stop ---

    def run(
        self,
        addresses: list[str],
        *,
        advertise: list[str] | None = None,
        probe: str = "",
        ready: Callable[[list[str]], None] = lambda _: None,
    ) -> int:
        """Listen and serve until ``stop`` is called; return the exit code.

        Args:
            addresses: Addresses to listen at.
            advertise: Addresses at which trainers connect, behind a proxy or NAT. Default: the addresses it listens at.
            probe: Address of the liveness probe for the kubelet. Default: empty, no probe.
            ready: Called with the addresses that it listens at.

        Raises:
            AddressError: An address is in use or invalid.
        """
        listeners = [listen(address) for address in addresses]
        listening = [address for _, address in listeners]
        self._addresses = advertise or listening
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop())
        acceptor = Acceptor(
            [stream for stream, _ in listeners],
            identity=self._identity,
            token=self._token,
            job=self._uid,
            serve=self._serve,
            failed=self._fail,
        )
        acceptor.start()
        probes = (
            [ProbeThread(listen(probe)[0], lambda: self.hang_reason() or acceptor.accept_problem())] if probe else []
        )
        for each in probes:
            each.start()
        snapshots = threading.Thread(target=self._keep_snapshots, name="shoal-snapshots")
        snapshots.start()
        for work in (self._execute_orders, self._restore_all):
            threading.Thread(target=self._guarded, args=(work,), name=f"shoal{work.__name__}", daemon=True).start()
        self._link.start()
        ready(listening)
        snapshots.join()
        self._link.send(m.Leave(leases=[]))
        self._link.close()
        self._restores.put(False)
        with contextlib.suppress(queue.Full):
            self._orders.put_nowait(None)
        acceptor.close()
        for each in probes:
            each.close()
        for _, address in listeners:
            if address.startswith("unix://"):
                with contextlib.suppress(FileNotFoundError):
                    Path(address.removeprefix("unix://")).unlink()
        return self._exit

    def stop(self) -> None:
        """Write a last snapshot of unsaved changes, then exit. May be called from a signal handler."""
        threading.Thread(target=self._stop, daemon=True).start()

    def _stop(self) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify()

    def _serve(self, connection: sync.BlockingConnection) -> None:
        life = connection.peer.life
        with self._callers_lock:
            self._callers[life].add(connection)
        try:
            reason = TrainerConnection(connection, self).run()
        finally:
            with self._callers_lock:
                self._callers[life].discard(connection)
                if not self._callers[life]:
                    del self._callers[life]
        if reason.startswith("refused"):
            log.warning("%s: %s", connection.peer, reason)

    def attached(self, connection: sync.BlockingConnection) -> None:
        """Close earlier connections of the same trainer process.

        A trainer uses one connection at a time: an earlier one is half-open, and still holds a thread and memory here.
        """
        with self._callers_lock:
            earlier = self._callers.get(connection.peer.life, set()) - {connection}
        for each in earlier:
            each.close()

    def _close_trainer(self, life: int) -> None:
        """Close the connections of a trainer that left the job, which frees their threads and memory.

        The node of that trainer may have failed, or its process may be paused, so it need not close them itself.
        """
        with self._callers_lock:
            connections = list(self._callers.get(life, ()))
        for connection in connections:
            connection.close()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # without this thread the server is of no use
            log.exception("internal error")
            self._fail(f"the parameter server cannot continue: {error}")

    def _fail(self, reason: str) -> None:
        """Exit with code 1, so that the process is restarted: it is not reachable, or it has stopped working."""
        log.error("%s", reason)
        self._exit = 1
        self.stop()
