"""A parameter server's shell: sockets, the link to the master, the snapshots' thread.

One lock guards protocol state and tensors together, so that they change together (the watermark belongs to the slot).
It is never held while bytes travel or a disk is written. The clock of snapshots is each server's own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shoal.pserver.disk import SnapshotFolder
from shoal.pserver.parameters import Parameters
from shoal.pserver.server import DiskError, ServerState, Snapshot
from shoal.pserver.session import Session
from shoal.wire import auth, sync
from shoal.wire import messages as m
from shoal.wire.acceptor import Acceptor
from shoal.wire.address import listen
from shoal.wire.environment import EXIT_REFUSED
from shoal.wire.link import Link
from shoal.wire.plan import Plan

__all__ = ["Service"]

RETRY_SECONDS = 2.0
"""After a snapshot that could not be written."""

log = logging.getLogger("shoal.pserver")


class _Tensors:
    """The parameters as the protocol sees them."""

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


class Service:
    """Runs one parameter server until it is told to stop.

    Args:
        master: The master's address.
        identity: Of this process.
        token: The job's.
        uid: The job's.
        folder: Where the snapshots are.
    """

    def __init__(self, master: str, *, identity: auth.Identity, token: auth.Token, uid: str, folder: Path) -> None:
        self.lock = threading.Lock()
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
        self._complaint = ""
        self._callers: dict[int, set[sync.Connection]] = defaultdict(set)
        """Trainers' connections by their lives."""
        self._callers_lock = threading.Lock()
        self._link = Link(
            master,
            identity=identity,
            token=token,
            job=uid,
            greetings=self._offers,
            handle=self._handle,
            refused=self._refused,
        )

    # --- The master ---

    def _offers(self) -> list[Any]:
        with self.lock:
            return [self._offer()]

    def _offer(self) -> m.Offer:
        pid, host = os.getpid(), socket.gethostname()
        if self.state is None:
            return m.Offer(held=[], waiting=[], files=[], question=0, addresses=self._addresses, pid=pid, host=host)
        return self.state.offer(addresses=self._addresses, pid=pid, host=host)

    def _handle(self, message: Any) -> None:
        """A message of the master's, on the link's thread."""
        if isinstance(message, m.Accepted):
            self._accepted(message)
            return
        if isinstance(message, m.Refused | m.Stop):
            self._refused(message.reason)
            return
        if isinstance(message, m.Departed):
            self._departed(message.life)
            return
        state = self.state
        if state is None:
            return
        with self.lock:
            replies = state.order(message)
            if isinstance(message, m.Ask):
                state.question = message.question
                replies.append(self._offer())
            due = state.final_wanted or state.first_wanted
        for reply in replies:
            self._link.send(reply)
        if due:
            self._wake_snapshots()

    def _accepted(self, message: m.Accepted) -> None:
        self._link.lease_seconds = message.lease_seconds
        self._interval = message.interval
        if message.shape is None:
            return
        if self.state is not None:
            with self.lock:
                offer = self._offer()
            self._link.send(offer)
            return
        shape = message.shape
        plan = Plan(
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
            offer = self._offer()
        for complaint in disk.refused:
            self._say("warning", f"{complaint}; an older one is taken")
        self._link.send(offer)

    def _say(self, level: m.Level, text: str) -> None:
        log.log(getattr(logging, level.upper()), "%s", text)
        self._link.send(m.Event(level=level, text=text))

    def _refused(self, reason: str) -> None:
        log.error("%s", reason)
        self._exit = EXIT_REFUSED
        self.stop()

    # --- Snapshots ---

    def initialised(self) -> None:
        """Slots got their initial values: they need their first snapshot."""
        self._wake_snapshots()

    def _wake_snapshots(self) -> None:
        with self._wake:
            self._snapshot_now = True
            self._wake.notify()

    def _keep_snapshots(self) -> None:
        """The snapshots' thread."""
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
        """Write one if there is reason to; False: it could not be written."""
        state, disk = self.state, self._disk
        if state is None or disk is None:
            return True
        with self.lock:
            final = state.final_wanted
            if not (final or state.first_wanted or state.moved or (always and state.moved)):
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
            if str(error) != self._complaint:
                self._complaint = str(error)
                self._say("error", f"{error}; training goes on, and it is tried again")
            return False
        self._complaint = ""
        with self.lock:
            replies = state.snapshot_written(name, snapshot, pinned=pin)
            again = state.final_wanted or state.first_wanted
        for reply in replies:
            self._link.send(reply)
        disk.prune()
        if again:
            self._wake_snapshots()
        return True

    # --- Life ---

    def run(
        self,
        addresses: list[str],
        *,
        advertise: list[str] | None = None,
        ready: Callable[[list[str]], None] = lambda _: None,
    ) -> int:
        """Listen and serve; the exit code.

        Args:
            addresses: Where to listen.
            advertise: Where trainers shall call, behind a proxy or NAT; None: where it listens.
            ready: Called with the addresses that it listens at.

        Raises:
            AddressError: An address is taken, or cannot be.
        """
        listeners = [listen(address) for address in addresses]
        listening = [told for _, told in listeners]
        self._addresses = advertise or listening
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop())
        acceptor = Acceptor(
            [stream for stream, _ in listeners],
            identity=self._identity,
            token=self._token,
            job=self._uid,
            serve=self._serve,
            failed=self._deaf,
        )
        acceptor.start()
        snapshots = threading.Thread(target=self._keep_snapshots, name="shoal-snapshots")
        snapshots.start()
        self._link.start()
        ready(listening)
        snapshots.join()
        self._link.send(m.Leave(leases=[]))
        self._link.close()
        acceptor.close()
        for _, told in listeners:
            if told.startswith("unix://"):
                with contextlib.suppress(FileNotFoundError):
                    Path(told.removeprefix("unix://")).unlink()
        return self._exit

    def stop(self) -> None:
        """Write what is not saved, then end. May be called from a signal handler."""
        threading.Thread(target=self._stop, daemon=True).start()

    def _stop(self) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify()

    def _serve(self, connection: sync.Connection) -> None:
        life = connection.peer.life
        with self._callers_lock:
            self._callers[life].add(connection)
        try:
            reason = Session(connection, self).run()
        finally:
            with self._callers_lock:
                self._callers[life].discard(connection)
                if not self._callers[life]:
                    del self._callers[life]
        if reason.startswith("refused"):
            log.warning("%s: %s", connection.peer, reason)

    def attached(self, connection: sync.Connection) -> None:
        """A trainer asks on one connection at a time: an earlier one is half-open, and keeps a thread and memory here."""
        with self._callers_lock:
            earlier = self._callers.get(connection.peer.life, set()) - {connection}
        for each in earlier:
            each.close()

    def _departed(self, life: int) -> None:
        """A trainer is gone, also one whose machine vanished or that stands still: its threads and memory go, too."""
        with self._callers_lock:
            connections = list(self._callers.get(life, ()))
        for connection in connections:
            connection.close()

    def _deaf(self, reason: str) -> None:
        """Nobody could reach this server: another process must take its place."""
        log.error("%s", reason)
        self._exit = 1
        self.stop()
