"""A process's standing connection to its master: found again after every restart of the master, wherever it is then.

One thread connects, reads and keeps the heartbeat; others send. Nothing is queued while there is no connection: what
the master must know is said anew at each connect (``greetings``), as state and not as events (rule 3), so there is
nothing to lose.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from shoal.protocol.messages import FromMaster, KeepAlive, KeepAliveReply
from shoal.transport import auth, sync
from shoal.transport.address import AddressError

__all__ = ["MasterLink"]

FIRST_WAIT = 0.02
LONGEST_WAIT = 0.5


class MasterLink:
    """A link to the master.

    Args:
        address: Of the master; resolved anew at each connect.
        identity: Who calls.
        token: The job's.
        job: The job's uid.
        greetings: Gives the messages to send at each connect, before anything else.
        handle: Takes every message of the master's, on the link's thread.
        refused: Called when the master will never take us, with the reason; the link has ended then.
        lost: Called when a connection was lost.
        well: Whether this process does its work. While it does not, the master is left, so that it knows; asked every
            quarter of a second, and must not wait.
    """

    def __init__(
        self,
        address: str,
        *,
        identity: auth.Identity,
        token: auth.Token,
        job: str,
        greetings: Callable[[], Iterable[Any]],
        handle: Callable[[Any], None],
        refused: Callable[[str], None],
        lost: Callable[[], None] = lambda: None,
        well: Callable[[], bool] = lambda: True,
    ) -> None:
        self.lease_seconds = 10.0
        self._address = address
        self._identity = identity
        self._token = token
        self._job = job
        self._greetings = greetings
        self._handle = handle
        self._refused = refused
        self._lost = lost
        self._well = well
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(FromMaster)
        self._connection: sync.BlockingConnection | None = None
        self._sending = threading.Lock()
        self._closing = threading.Event()
        self._last_heard = 0.0
        self._last_sent = 0.0
        self._last_ping = 0.0
        self._thread = threading.Thread(target=self._run, name="shoal-link", daemon=True)

    def start(self) -> None:
        """Begin to call."""
        self._thread.start()

    @property
    def connected(self) -> bool:
        """Whether the master is reached now."""
        return self._connection is not None

    def send(self, message: Any) -> bool:
        """Send now, or not at all; False means that there was no connection."""
        with self._sending:
            connection = self._connection
            if connection is None:
                return False
            try:
                connection.send(message)
            except OSError:
                connection.close()  # a part of the message may have gone: nothing can follow it
                return False
            self._last_sent = time.monotonic()
            return True

    def close(self) -> None:
        """End the link. What was sent before is delivered if the master lives."""
        self._closing.set()
        connection = self._connection  # whoever sends to a master that takes nothing has the lock
        if connection is not None:
            connection.close()
        if threading.current_thread() is not self._thread and self._thread.ident is not None:
            self._thread.join(timeout=2.0)

    def _run(self) -> None:
        wait = FIRST_WAIT
        while not self._closing.is_set():
            if not self._well():
                self._closing.wait(LONGEST_WAIT)
                continue
            try:
                connection = sync.connect(
                    self._address, identity=self._identity, token=self._token, job=self._job, timeout=2.0
                )
            except auth.AuthenticationError as error:
                self._refused(str(error))
                return
            except (OSError, AddressError):
                self._closing.wait(wait)
                wait = min(wait * 1.5, LONGEST_WAIT)
                continue
            wait = FIRST_WAIT
            self._serve(connection)

    def _serve(self, connection: sync.BlockingConnection) -> None:
        self._last_heard = self._last_sent = time.monotonic()
        with contextlib.suppress(OSError):
            for message in self._greetings():
                connection.send(message)
            with self._sending:
                self._connection = connection
            while not self._closing.is_set():
                message, _ = connection.receive(self._decoder, idle=self._idle)
                self._last_heard = time.monotonic()
                if not isinstance(message, KeepAliveReply):
                    self._handle(message)
        connection.close()  # first: it wakes a thread that sends to a master that takes nothing
        with self._sending:
            self._connection = None
        if not self._closing.is_set():
            self._lost()

    def _idle(self) -> None:
        now = time.monotonic()
        connection = self._connection
        if connection is not None:  # a large message may take longer than the lease
            self._last_heard = max(self._last_heard, connection.heard)
        if self._closing.is_set() or now - self._last_heard > self.lease_seconds:
            raise ConnectionResetError("the master is silent")
        if not self._well():
            raise ConnectionResetError("this process does not do its work")
        # Also when we send enough by ourselves: only a ping is answered, and silence must mean something.
        quiet = now - min(self._last_heard, self._last_sent)
        if quiet > self.lease_seconds / 4 and now - self._last_ping > self.lease_seconds / 4:
            self._last_ping = now
            if not self._sending.locked():  # who sends to a master that takes nothing must not keep us from looking
                self.send(KeepAlive())
