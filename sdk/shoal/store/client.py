"""A durable map with transactions that stays usable across restarts of etcd.

Calls block and are meant for worker threads; every method is thread-safe. A call that etcd does not answer is repeated
on a new connection until etcd answers, the timeout expires, or another thread calls `Store.close`.

**A repeated transaction may be applied twice**, because a lost request and a lost response look alike. This is harmless
for Shoal's writes: puts of whole values, guarded by a compare on a key that the transaction does not write (the master's
election record). The second application writes the same values again, or its compare fails because another master has
taken over. A caller that guards a write by the key that it writes must check `Transaction.retried`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Self, TypeVar

from shoal.retry import BackOff
from shoal.store._stubs import rpc
from shoal.store.accounts import NOT_ON, ROOT, Accounts
from shoal.store.connection import Connector, EtcdConnection, Lapsed, RetryReason, Tls, header_of
from shoal.store.credentials import Credentials
from shoal.store.errors import StoreClosedError, StoreRefusedError, StoreUnreachableError
from shoal.store.history import Header, HistoryVerdict, KnownWrite, Seen, compare_history
from shoal.store.operations import Compare, Delete, EtcdStatus, Event, KeyValue, Listing, Put, Transaction, key_bytes
from shoal.store.requests import (
    current_header,
    has_write,
    newest,
    pair_of,
    read_groups,
    read_prefix,
    transaction_request,
)
from shoal.store.watch import Watch

__all__ = ["Store"]

_FIRST_PAUSE_SECONDS: Final = 0.02
_LONGEST_PAUSE_SECONDS: Final = 0.5
_REMIND_SECONDS: Final = 10.0

Answer = TypeVar("Answer")


def _ignore(_: str) -> None:
    pass


class Store:
    """A connection to etcd, created by `connect`."""

    def __init__(
        self,
        connector: Connector,
        *,
        prefix: str,
        on_error: Callable[[str], None],
        on_history_lost: Callable[[str], None],
    ) -> None:
        self._connector = connector
        self._prefix = prefix
        self._on_error = on_error
        self._on_history_lost = on_history_lost
        self._lock = threading.Lock()
        self._history_lock = threading.Lock()
        self._closed = threading.Event()
        self._connection: EtcdConnection | None = None
        self._seen = Seen()
        self._check_history = False
        self._watches: set[Watch] = set()

    @classmethod
    def connect(
        cls,
        endpoints: str | Sequence[str],
        *,
        prefix: str,
        credentials: Credentials | None = None,
        tls: Tls | None = None,
        timeout_seconds: float = 10.0,
        on_error: Callable[[str], None] = _ignore,
        on_history_lost: Callable[[str], None] = _ignore,
    ) -> Self:
        """Connect to etcd.

        Args:
            endpoints: ``HOST:PORT``, ``https://HOST:PORT`` or ``unix:///PATH``; several (a sequence, or separated by
                commas) are members of one cluster.
            prefix: Prefix of every key used with this store; other keys raise ValueError.
            credentials: An etcd user with permission for the prefix. Default: None, etcd has no authentication.
            tls: Certificates, used if the credentials have none. Default: None, ``https://`` uses the system's
                certificate authorities.
            timeout_seconds: Timeout of this first connection. Seconds. Default: 10. Later calls have their own.
            on_error: Called with one line of text when etcd is unreachable, and again every 10 s, by the waiting
                thread.
            on_history_lost: Called with one line of text when etcd has lost acknowledged writes, by the thread that detected
                it, before its call returns. It must not wait for other calls of this store.

        Raises:
            StoreUnreachableError: No etcd answers; the message names the address and the fix.
            StoreRefusedError: An endpoint has a wrong form, or etcd rejects the user.
        """
        if isinstance(endpoints, str):
            endpoints = [endpoint.strip() for endpoint in endpoints.split(",") if endpoint.strip()]
        user = credentials
        known = (user.username, user.password, user.tls or tls) if user is not None else (None, None, tls)
        connector = Connector(tuple(endpoints), *known)
        store = cls(connector, prefix=prefix, on_error=on_error, on_history_lost=on_history_lost)
        try:
            store._ask(lambda connection: (current_header(connection, prefix), None), timeout_seconds=timeout_seconds)
        except StoreUnreachableError as error:
            store.close()
            raise StoreUnreachableError(
                f"no etcd answers at {', '.join(endpoints)}: start one there, or name the right address with --etcd "
                f"({error})"
            ) from None
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def protect(
        cls, endpoints: str | Sequence[str], *, password: str, tls: Tls | None = None, timeout_seconds: float = 10.0
    ) -> None:
        """Enable etcd's authentication with user and role ``root``; no error if it is enabled with this password.

        Raises:
            StoreUnreachableError: No etcd answers.
            StoreRefusedError: Authentication is already enabled, with another password.
        """
        root = Credentials(ROOT, password, tls)
        try:
            cls.connect(endpoints, prefix="", credentials=root, timeout_seconds=timeout_seconds).close()
        except StoreRefusedError as error:
            if NOT_ON not in str(error):
                raise
            with cls.connect(endpoints, prefix="", tls=tls, timeout_seconds=timeout_seconds) as store:
                store.accounts.enable(password)

    @property
    def accounts(self) -> Accounts:
        """Administration of etcd's users; requires the role ``root``."""
        return Accounts(self._persist)

    def transact(
        self,
        compares: Sequence[Compare],
        operations: Sequence[Put | Delete],
        *,
        timeout_seconds: float | None = None,
    ) -> Transaction:
        """Apply all operations if all compares hold, otherwise none; durable on return.

        Args:
            compares: Conditions. At most 128.
            operations: Puts and deletes. At most 128, each key once; see `in_batches`.
            timeout_seconds: Timeout for an unreachable etcd. Seconds. Default: None, no limit.

        Raises:
            ValueError: Too many compares or operations, or a key outside the prefix.
            StoreUnreachableError: The timeout expired. The transaction may or may not have been applied.
            StoreClosedError: The store was closed meanwhile. The transaction may or may not have been applied.
            StoreRefusedError: Etcd rejects the request permanently (too large, no permission, a key twice).
        """
        for part in (*compares, *operations):
            self._check(part.key)
        request = transaction_request(compares, operations)
        last = next((part for part in reversed(operations) if isinstance(part, Put)), None)
        tries = 0

        def call(connection: EtcdConnection) -> tuple[Any, KnownWrite | None]:
            nonlocal tries
            tries += 1
            answer = connection.transact(request)
            if not answer.succeeded or last is None:
                return answer, None
            return answer, KnownWrite(key_bytes(last.key), last.value, answer.header.revision)

        answer, forgot = self._ask(call, timeout_seconds=timeout_seconds)
        header = answer.header
        return Transaction(answer.succeeded, header.revision, header.cluster_id, tries > 1, forgot)

    def get(self, key: str, *, timeout_seconds: float | None = None) -> KeyValue | None:
        """Read a key; None if it does not exist.

        Raises:
            StoreError: Etcd is unreachable, the store is closed, or etcd rejects the request.
        """
        self._check(key)
        request = rpc.RangeRequest(key=key_bytes(key))
        answer, _ = self._ask(lambda connection: (connection.range(request), None), timeout_seconds=timeout_seconds)
        return pair_of(answer.kvs[0]) if answer.kvs else None

    def get_prefix(self, prefix: str, *, timeout_seconds: float | None = None) -> Listing:
        """Read all keys under a prefix at one revision.

        Raises:
            StoreError: Etcd is unreachable, the store is closed, or etcd rejects the request.
        """
        self._check(prefix)

        def call(connection: EtcdConnection) -> tuple[tuple[Header, Listing], KnownWrite | None]:
            try:
                header, listing = read_prefix(connection, prefix)
            except Lapsed as error:
                raise RetryReason(f"etcd changed while {prefix!r} was read: {error}") from error
            return (header, listing), newest(listing.pairs)

        answer, _ = self._ask(call, timeout_seconds=timeout_seconds)
        listing: Listing = answer[1]
        return listing

    def get_groups(self, prefix: str, *, parts: int, timeout_seconds: float | None = None) -> list[str]:
        """Return the distinct key prefixes with ``parts`` path elements below a prefix, each with a slash at its end.

        Costs one read per prefix found, regardless of the number of keys below it. The reads are not one snapshot: a
        prefix that is written or deleted meanwhile may or may not be in the result.

        Raises:
            StoreError: Etcd is unreachable, the store is closed, or etcd rejects the request.
        """
        self._check(prefix)

        def call(connection: EtcdConnection) -> tuple[tuple[Header, list[str]], KnownWrite | None]:
            return read_groups(connection, prefix, parts), None

        answer, _ = self._ask(call, timeout_seconds=timeout_seconds)
        groups: list[str] = answer[1]
        return groups

    def watch(
        self,
        prefix: str,
        *,
        from_revision: int | None,
        on_events: Callable[[list[Event]], None],
        on_reset: Callable[[Listing, str], None],
    ) -> Watch:
        """Watch all changes under a prefix, in a dedicated thread.

        Args:
            prefix: Prefix of the watched keys.
            from_revision: First revision to deliver (a listing's ``revision + 1``); None: start with ``on_reset``.
            on_events: Called with the changes, each once, in order, whole revisions at a time.
            on_reset: Called with a complete listing and the reason when the events are not available: etcd has lost
                writes, or has compacted the revisions. Keys that are not in the listing do not exist any more.

        Returns:
            The running watch; it ends with its own ``close`` or that of the store. The callbacks run in its thread; an
            exception from a callback ends the watch.

        Raises:
            ValueError: The prefix is outside the prefix of the store.
            StoreClosedError: The store is closed.
        """
        self._check(prefix)
        known = self._seen.known_write
        watch = Watch(
            self._connector,
            prefix=prefix,
            from_revision=from_revision,
            known_write=known if known and from_revision and known.revision < from_revision else None,
            on_events=on_events,
            on_reset=on_reset,
            on_error=self._on_error,
            on_gap=self._require_history_check,
            on_end=self._watches.discard,
        )
        with self._lock:
            if self._closed.is_set():
                raise StoreClosedError("the store is closed")
            self._watches.add(watch)
            watch.start()
        return watch

    def status(self, *, timeout_seconds: float | None = None) -> EtcdStatus:
        """Return version and revision of one member, which may lag behind the cluster.

        Raises:
            StoreRefusedError: Etcd with authentication (3.6, and later 3.5) reports this to ``root`` only; the caller
                continues without it.
            StoreError: Etcd is unreachable, or the store is closed.
        """
        # This answer is not used to detect lost writes: the lower revision of a lagging member is no loss.
        answer = self._persist(lambda connection: connection.status(), timeout_seconds)
        return EtcdStatus(answer.version, answer.header.cluster_id, answer.header.revision, answer.dbSize)

    def close(self) -> None:
        """End all calls (they raise `StoreClosedError`) and watches. Thread-safe and idempotent."""
        with self._lock:
            self._closed.set()
            connection, watches = self._connection, list(self._watches)
        if connection is not None:
            connection.close()
        for watch in watches:
            watch.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({', '.join(self._connector.endpoints)}, prefix={self._prefix!r})"

    def _require_history_check(self) -> None:
        """Require a check of the history: a watch lost its stream, and gRPC hides a restart from an idle channel."""
        self._check_history = True

    def _check(self, key: str) -> None:
        if not key.startswith(self._prefix):
            raise ValueError(f"key {key!r} lies outside the prefix {self._prefix!r} of this store")

    def _ask(
        self,
        call: Callable[[EtcdConnection], tuple[Any, KnownWrite | None]],
        *,
        timeout_seconds: float | None,
    ) -> tuple[Any, bool]:
        """Repeat a call until etcd answers; return the answer and whether etcd has lost acknowledged writes."""
        before = self._seen

        def ask(connection: EtcdConnection) -> tuple[Any, Header, KnownWrite | None, EtcdConnection]:
            answer, known_write = call(connection)
            first = answer[0] if isinstance(answer, tuple) else answer
            header = first if isinstance(first, Header) else header_of(first)
            return answer, header, known_write, connection

        answer, header, known_write, connection = self._persist(ask, timeout_seconds)
        return answer, self._update_history(before, header, known_write, connection)

    def _persist(self, call: Callable[[EtcdConnection], Answer], timeout_seconds: float | None) -> Answer:
        started = time.monotonic()
        back_off, reminder = BackOff(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS), 0.0
        while True:
            connection = self._current()
            try:
                return call(connection)
            except RetryReason as reason:
                text = str(reason)
            self._abandon(connection)
            waited = time.monotonic() - started
            if self._closed.is_set():
                raise StoreClosedError("the store was closed during a call to etcd")
            if timeout_seconds is not None and waited + back_off.pause > timeout_seconds:
                raise StoreUnreachableError(f"{text}; waited {waited:.1f} s")
            if waited >= reminder:
                self._on_error(text)
                reminder = waited + _REMIND_SECONDS
            self._closed.wait(back_off.next())

    def _current(self) -> EtcdConnection:
        with self._lock:
            if self._closed.is_set():
                raise StoreClosedError("the store is closed")
            if self._connection is None:
                self._connection = self._connector.make()
            return self._connection

    def _abandon(self, connection: EtcdConnection) -> None:
        with self._lock:
            self._check_history = True
            if self._connection is connection:
                self._connection = None
        connection.close()

    def _update_history(
        self, before: Seen, header: Header, known_write: KnownWrite | None, connection: EtcdConnection
    ) -> bool:
        with self._history_lock:
            if before.losses != self._seen.losses:
                # Another thread detected the loss while this one waited, and has called on_history_lost.
                return True
            verdict = compare_history(before, header)
            if verdict is HistoryVerdict.SAME and not self._check_history:
                self._seen = self._seen.with_answer(header, known_write)
                return False
            if verdict is not HistoryVerdict.FORGOT:
                verdict = self._check_known_write(connection)
            if verdict is HistoryVerdict.DOUBT:
                self._check_history = True
                return False
            self._check_history = False
            if verdict is HistoryVerdict.SAME:
                self._seen = self._seen.with_answer(header, known_write)
                return False
            known, self._seen = self._seen.header, self._seen.forgotten(header, known_write)
        self._on_history_lost(
            f"etcd at {connection.endpoint} has lost writes that it had acknowledged: it is at revision "
            f"{header.revision}, {known.revision if known else 0} was seen before"
        )
        return True

    def _check_known_write(self, connection: EtcdConnection) -> HistoryVerdict:
        """Check the witness. If etcd becomes unreachable meanwhile, the doubt and the old witness remain."""
        if self._seen.known_write is None:
            return HistoryVerdict.SAME
        try:
            _, has_it = has_write(connection, self._seen.known_write, self._prefix)
        except RetryReason:
            return HistoryVerdict.DOUBT
        return HistoryVerdict.SAME if has_it else HistoryVerdict.FORGOT
