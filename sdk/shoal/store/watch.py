"""A watch of a prefix that continues across restarts of etcd.

Each watch has its own thread and connection: a stream ends with the etcd process that serves it, so a replacement of
etcd always ends the stream. The order at each start ensures that no lost write is missed: the stream is opened and
confirmed first, then the witness is checked (a watch on a revision in the future stays silent, without an error), and
only then are events delivered. If etcd is replaced in between, the stream ends and the watch starts again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from shoal.retry import BackOff
from shoal.store._stubs import rpc
from shoal.store.connection import Connector, EtcdConnection, Lapsed, Oversized, RetryReason, prefix_end
from shoal.store.errors import StoreRefusedError
from shoal.store.history import Header, KnownWrite
from shoal.store.operations import Event, Listing, key_bytes
from shoal.store.requests import current_header, events_of, has_write, newest, read_prefix

__all__ = ["Watch"]

_FIRST_PAUSE_SECONDS: Final = 0.02
_LONGEST_PAUSE_SECONDS: Final = 0.5
_REMIND_SECONDS: Final = 10.0

_log = logging.getLogger(__name__)


class Watch:
    """A running watch, created by `Store.watch` and ended by `close`."""

    def __init__(
        self,
        connector: Connector,
        *,
        prefix: str,
        from_revision: int | None,
        known_write: KnownWrite | None,
        on_events: Callable[[list[Event]], None],
        on_reset: Callable[[Listing, str], None],
        on_error: Callable[[str], None],
        on_gap: Callable[[], None],
        on_end: Callable[[Watch], None],
    ) -> None:
        self._connector = connector
        self._prefix = prefix
        self._next = from_revision
        self._on_events = on_events
        self._on_reset = on_reset
        self._on_error = on_error
        self._on_gap = on_gap
        self._on_end = on_end
        self._reason = "the watch starts"
        self._cluster_id: int | None = None
        self._term: int | None = None
        self._known_write = known_write
        self._closed = threading.Event()
        self._connection: EtcdConnection | None = None
        self._back_off = BackOff(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
        self._thread = threading.Thread(target=self._run, name=f"watch {prefix}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the watch and wait for its last callback (unless called by that callback). Thread-safe."""
        self._closed.set()
        connection = self._connection
        if connection is not None:
            connection.close()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._on_end(self)

    def _run(self) -> None:
        reminder = 0.0
        while not self._closed.is_set():
            connection = self._connection = self._connector.make()
            try:
                # close() may have read self._connection just before it was set.
                if not self._closed.is_set():
                    self._follow(connection)
            except Oversized as answer:
                self._reset(f"the events exceed the message limit ({answer})")
            except (RetryReason, StoreRefusedError) as cause:
                self._on_gap()
                now = time.monotonic()
                if not self._closed.is_set() and now >= reminder:
                    self._on_error(f"watch of {self._prefix!r}: {cause}")
                    reminder = now + _REMIND_SECONDS
            except Lapsed as lapse:
                self._reset(f"etcd compacted revisions that were not delivered yet ({lapse})")
            finally:
                connection.close()
            self._closed.wait(self._back_off.next())

    def _reset(self, reason: str) -> None:
        _log.info("watch of %r starts again with a listing: %s", self._prefix, reason)
        self._reason, self._next = reason, None
        self._cluster_id = self._term = self._known_write = None

    def _follow(self, connection: EtcdConnection) -> None:
        """Run one stream from its opening to its end.

        Raises:
            RetryReason: The stream ended or the check of the history failed; start again.
            Lapsed: The next revision is compacted.
        """
        if self._next is None:
            self._list(connection)
        assert self._next is not None
        finished = threading.Event()
        request = self._request(self._next)

        def requests() -> Iterator[Any]:
            yield request
            # The stream ends with its iterator of requests; gRPC waits here in a thread of its own.
            finished.wait()

        call = connection.watch(requests())
        try:
            self._expect(connection.next_of(call))
            self._verify(connection, self._next)
            self._back_off.reset()
            self._deliver(connection, call)
        finally:
            finished.set()
            call.cancel()

    def _list(self, connection: EtcdConnection) -> None:
        header, listing = read_prefix(connection, self._prefix)
        if self._closed.is_set():
            raise RetryReason("closed")
        self._on_reset(listing, self._reason)
        self._cluster_id, self._term = header.cluster_id, header.term
        self._known_write, self._next = newest(listing.pairs), header.revision + 1

    def _request(self, revision: int) -> Any:
        key = key_bytes(self._prefix)
        # Progress notifications advance the revision of an idle watch; otherwise compaction would overtake it.
        create = rpc.WatchCreateRequest(
            key=key or b"\0", range_end=prefix_end(key), start_revision=revision, progress_notify=True
        )
        return rpc.WatchRequest(create_request=create)

    def _expect(self, answer: Any) -> None:
        if answer.compact_revision:
            raise Lapsed(f"its first revision is {answer.compact_revision}")
        if answer.canceled:
            raise RetryReason(answer.cancel_reason or "etcd cancelled the watch")

    def _verify(self, connection: EtcdConnection, revision: int) -> None:
        if self._known_write is not None:
            header, has_it = has_write(connection, self._known_write, self._prefix)
        else:
            header = current_header(connection, self._prefix)
            # Without a witness a restart cannot be distinguished from an older copy; a new listing is cheap (no keys).
            has_it = self._term in (None, header.term)
        same = self._cluster_id in (None, header.cluster_id)
        if has_it and same and header.revision >= revision - 1:
            self._cluster_id, self._term = header.cluster_id, header.term
            return
        reason = self._history_problem(header, revision, same=same)
        self._reset(reason)
        raise RetryReason(reason)

    def _history_problem(self, header: Header, revision: int, *, same: bool) -> str:
        if not same:
            return "another cluster answers at etcd's address"
        if self._known_write is None and header.revision >= revision - 1:
            return "etcd was restarted, and there is no known write to check its history with"
        return f"etcd lost writes: it is at revision {header.revision}, {revision - 1} was seen before"

    def _deliver(self, connection: EtcdConnection, call: Any) -> None:
        while True:
            answer = connection.next_of(call)
            self._expect(answer)
            if self._closed.is_set():
                raise RetryReason("closed")
            events = events_of(answer)
            # The header's revision may be that of events that only the next response carries.
            after = events[-1].mod_revision if events else answer.header.revision
            if events:
                self._on_events(events)
                last = events[-1]
                self._known_write = KnownWrite(key_bytes(last.key), last.value, last.mod_revision)
            assert self._next is not None
            self._next = max(self._next, after + 1)
