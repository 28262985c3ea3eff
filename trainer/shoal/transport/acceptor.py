"""Accepts callers on listening sockets and serves each on a thread, whatever ``accept`` fails with.

``accept`` fails for reasons that have nothing to do with the listening socket: the caller has gone, the process or the
machine has no descriptor or memory left (accept(2), "Error handling"). It is tried again after a pause that grows; where
descriptors are short, a caller that has not proved itself makes room. Only a socket that does not listen any more ends
the acceptor, and ``failed`` is told.
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
"""The socket does not listen; each other error is one caller's, or passes."""
FIRST_PAUSE, LONGEST_PAUSE = 0.001, 1.0

log = logging.getLogger("shoal.wire")


class Acceptor:
    """Accepts callers until it is closed.

    Args:
        listeners: Sockets that listen; they are the acceptor's from now on.
        identity: Of this process.
        token: The job's.
        job: The job's uid.
        serve: Serves a caller that has proved itself, on a thread of its own, until it goes.
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
        self._unproved: Unauthenticated[socket.socket] = Unauthenticated()
        self._closing = threading.Event()
        self._failing, self._turned_away = Seldom(), Seldom()
        self._threads = [
            threading.Thread(target=self._accept, args=(each,), name="shoal-accept", daemon=True) for each in listeners
        ]

    def start(self) -> None:
        """Begin to accept."""
        for thread in self._threads:
            thread.start()

    def why_deaf(self) -> str:
        """Why no caller can come any more; empty: one can. Never waits."""
        dead = not self._closing.is_set() and not all(thread.is_alive() for thread in self._threads)
        return "it accepts no callers any more" if dead else ""

    def close(self) -> None:
        """End; the listening sockets are closed, and no thread accepts any more."""
        self._closing.set()
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept
            listener.close()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout=2.0)
        with self._lock:
            while (caller := self._unproved.oldest()) is not None:
                _hang_up(caller)

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
                self._make_room(error, short=number in SHORT or not isinstance(error, OSError))
                self._closing.wait(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(in_a_row, 20)))
                in_a_row += 1

    def _take(self, caller: socket.socket, address: object) -> None:
        whence = str(address[0]) if isinstance(address, tuple) else ""
        with self._lock:
            oldest = self._unproved.admit(caller, whence)
            if oldest is not None:
                _hang_up(oldest)
        try:
            threading.Thread(target=self._greet, args=(caller,), name="shoal-greet", daemon=True).start()
        except BaseException:  # no thread: as with a descriptor, one is free again later
            with self._lock:
                self._unproved.remove(caller)
            caller.close()
            raise

    def _make_room(self, error: BaseException, *, short: bool) -> None:
        with self._lock:
            if short and (caller := self._unproved.oldest()) is not None:
                _hang_up(caller)
            times = self._failing.count()
        if times:
            log.warning("no caller could be accepted (%d times): %s; it is tried again", times, error)

    def _greet(self, caller: socket.socket) -> None:
        try:
            connection = sync.accept(caller, identity=self._identity, token=self._token, job=self._job)
        except OSError as error:
            with self._lock:
                ours = self._unproved.remove(caller)
                times = self._turned_away.count()
            if times:
                why = error if ours else "too many callers that say nothing"
                log.warning("a caller was turned away (%d times): %s", times, why)
            return
        with self._lock:
            ours = self._unproved.remove(caller)
        if ours:
            self._serve(connection)
        else:
            connection.close()


def _hang_up(caller: socket.socket) -> None:
    """Wake the thread that waits for the caller; it closes the socket."""
    with contextlib.suppress(OSError):
        caller.shutdown(socket.SHUT_RDWR)
