"""Accepts callers on listening sockets and serves each on a thread, whatever ``accept`` fails with.

``accept`` also fails for reasons that do not concern the listening socket: the caller has closed the connection, or the
process or the machine has no descriptor or memory left (accept(2), "Error handling"). The acceptor retries after a growing
pause; if descriptors are short, it closes the oldest unauthenticated caller. Only a socket that does not listen any more
ends the acceptor, which then calls ``failed``.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
from collections.abc import Callable, Sequence

from shoal.transport import auth, sync
from shoal.transport.file_limits import SHORT
from shoal.transport.logs import Seldom
from shoal.transport.unauthenticated import Unauthenticated

__all__ = ["Acceptor"]

DEAD = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK}
"""Errors of a socket that does not listen; every other error concerns one caller, or is temporary."""
FIRST_PAUSE, LONGEST_PAUSE = 0.001, 1.0
"""The pause after the first error in a row and the limit to which it doubles, in seconds."""

log = logging.getLogger("shoal.transport")


class Acceptor:
    """Accepts callers until it is closed.

    Args:
        listeners: Listening sockets; the acceptor closes them.
        identity: The identity of this process.
        token: The job's token.
        job: The job's uid.
        serve: Called with each authenticated caller's connection, on a thread per caller; returns when it is closed.
        failed: Called with the reason when a socket does not listen any more.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        *,
        identity: auth.Identity,
        token: auth.Token,
        job: str,
        serve: Callable[[sync.BlockingConnection], None],
        failed: Callable[[str], None],
    ) -> None:
        self._listeners = list(listeners)
        self._identity, self._token, self._job = identity, token, job
        self._serve, self._failed = serve, failed
        self._lock = threading.Lock()
        self._unauthenticated: Unauthenticated[socket.socket] = Unauthenticated()
        self._closing = threading.Event()
        self._failing, self._refused_callers = Seldom(), Seldom()
        self._threads = [
            threading.Thread(target=self._accept, args=(each,), name="shoal-accept", daemon=True) for each in listeners
        ]

    def start(self) -> None:
        """Start to accept callers."""
        for thread in self._threads:
            thread.start()

    def accept_problem(self) -> str:
        """Return why no caller can be accepted any more; empty if callers are accepted. Does not block."""
        dead = not self._closing.is_set() and not all(thread.is_alive() for thread in self._threads)
        return "it accepts no callers any more" if dead else ""

    def close(self) -> None:
        """Close the listening sockets, and wait up to 2 s for each accepting thread to end."""
        self._closing.set()
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept
            listener.close()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout=2.0)
        with self._lock:
            while (caller := self._unauthenticated.oldest()) is not None:
                _shut_down(caller)

    def _accept(self, listener: socket.socket) -> None:
        in_a_row = 0
        while not self._closing.is_set():
            try:
                self._take(*listener.accept())
                in_a_row = 0
            except (OSError, RuntimeError, MemoryError) as error:
                number = getattr(error, "errno", None)
                if self._closing.is_set():
                    return
                if number in DEAD:
                    self._failed(f"the process does not listen any more: {error}")
                    return
                self._close_oldest(error, short=number in SHORT or not isinstance(error, OSError))
                self._closing.wait(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(in_a_row, 20)))
                in_a_row += 1

    def _take(self, caller: socket.socket, address: object) -> None:
        host = str(address[0]) if isinstance(address, tuple) else ""
        with self._lock:
            oldest = self._unauthenticated.admit(caller, host)
            if oldest is not None:
                _shut_down(oldest)
        try:
            threading.Thread(target=self._authenticate, args=(caller,), name="shoal-greet", daemon=True).start()
        except BaseException:  # no thread is free: temporary, like a lack of descriptors
            with self._lock:
                self._unauthenticated.remove(caller)
            caller.close()
            raise

    def _close_oldest(self, error: BaseException, *, short: bool) -> None:
        with self._lock:
            if short and (caller := self._unauthenticated.oldest()) is not None:
                _shut_down(caller)
            times = self._failing.count()
        if times:
            log.warning("no caller could be accepted (%d times): %s; it is tried again", times, error)

    def _authenticate(self, caller: socket.socket) -> None:
        try:
            connection = sync.accept(caller, identity=self._identity, token=self._token, job=self._job)
        except OSError as error:
            with self._lock:
                still_open = self._unauthenticated.remove(caller)
                times = self._refused_callers.count()
            if times:
                reason = error if still_open else "too many callers that have not authenticated"
                log.warning("a caller was turned away (%d times): %s", times, reason)
            return
        with self._lock:
            still_open = self._unauthenticated.remove(caller)
        if still_open:
            self._serve(connection)
        else:
            connection.close()


def _shut_down(caller: socket.socket) -> None:
    """Shut a caller's socket down; the thread that waits for the caller wakes and closes it."""
    with contextlib.suppress(OSError):
        caller.shutdown(socket.SHUT_RDWR)
