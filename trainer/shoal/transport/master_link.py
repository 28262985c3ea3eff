"""A process's connection to its master, which is restored after every restart of the master.

One thread connects, reads and sends keep-alives; other threads send. Nothing is queued while there is no connection: the
process reports its state at each connect (``greetings``), as state and not as events (rule 3), so that nothing is lost.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from shoal.protocol.messages import FromMaster, KeepAlive, KeepAliveReply
from shoal.retry import BackOff
from shoal.transport import auth, sync
from shoal.transport.address import AddressError

__all__ = ["MasterLink"]

FIRST_WAIT = 0.02
LONGEST_WAIT = 0.5


class MasterLink:
    """A link to the master.

    Args:
        address: The master's address; it is resolved at each connect.
        identity: The identity of this process.
        token: The job's token.
        job: The job's uid.
        greetings: Returns the messages to send first on each connection.
        handle: Called with every message of the master, on the link's thread.
        refused: Called with the reason when the master refuses this process for good; the link has ended then.
        lost: Called when a connection was lost. Default: nothing.
        is_healthy: Returns whether this process works. While it does not, the link stays disconnected, so that the master
            detects it. Called every 0.25 s; must not block. Default: it works.
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
        is_healthy: Callable[[], bool] = lambda: True,
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
        self._is_healthy = is_healthy
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(FromMaster)
        self._connection: sync.BlockingConnection | None = None
        self._sending = threading.Lock()
        self._closing = threading.Event()
        self._last_heard = 0.0
        self._last_sent = 0.0
        self._last_keep_alive = 0.0
        self._thread = threading.Thread(target=self._run, name="shoal-link", daemon=True)

    def start(self) -> None:
        """Start to connect."""
        self._thread.start()

    @property
    def connected(self) -> bool:
        """Whether there is a connection to the master."""
        return self._connection is not None

    def send(self, message: Any) -> bool:
        """Send a message at once, without a queue; return False if it was not sent, as there is no connection."""
        with self._sending:
            connection = self._connection
            if connection is None:
                return False
            try:
                connection.send(message)
            except OSError:
                connection.close()  # a part of the message may be sent: no other message can follow it
                return False
            self._last_sent = time.monotonic()
            return True

    def close(self) -> None:
        """End the link. Messages that were sent before are delivered if the master is reachable."""
        self._closing.set()
        connection = self._connection  # without the lock: a thread that sends to a master that does not read holds it
        if connection is not None:
            connection.close()
        if threading.current_thread() is not self._thread and self._thread.ident is not None:
            self._thread.join(timeout=2.0)

    def _run(self) -> None:
        back_off = BackOff(FIRST_WAIT, LONGEST_WAIT, factor=1.5, jitter=0.5)
        while not self._closing.is_set():
            if not self._is_healthy():
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
                self._closing.wait(back_off.next())
                continue
            back_off.reset()
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
        connection.close()  # first: it wakes a thread that sends to a master that does not read
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
        if not self._is_healthy():
            raise ConnectionResetError("this process does not do its work")
        # Also when this process sends other messages: only a keep-alive has a reply, which shows that the master is alive.
        idle_seconds = now - min(self._last_heard, self._last_sent)
        if idle_seconds > self.lease_seconds / 4 and now - self._last_keep_alive > self.lease_seconds / 4:
            self._last_keep_alive = now
            if (
                not self._sending.locked()
            ):  # a thread that sends to a master that does not read must not block this check
                self.send(KeepAlive())
