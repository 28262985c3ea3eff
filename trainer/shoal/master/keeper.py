"""Keeps the master's records in etcd: group commits, fencing, and an etcd that forgets.

One key, ``master``, holds the leader's generation, its nonce, and the number of its last commit. Every commit expects
the value that the last one wrote, and writes the next. So one comparison tells four things apart:

- the expected value: commit;
- the value we were about to write: an earlier try went through after all;
- our nonce with an older number, an older master's, or none: etcd lost its last writes, or all; write everything again;
- a newer master's: we are deposed.

While one transaction is under way the next one gathers, so many acknowledgements share one (and its sync to disk).
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable

import msgspec

from shoal.store import MAX_OPERATIONS, JobKeys, Store, StoreError, Unavailable

__all__ = ["Deposed", "Keeper", "Leader"]

RETRY_SECONDS = 0.05


class Deposed(Exception):
    """A newer master leads."""


class Leader(msgspec.Struct, frozen=True):
    """The value of the key ``master``."""

    generation: int
    nonce: str
    address: str
    commits: int


class Keeper:
    """The master's hold on etcd.

    Args:
        store: The client; used by one thread at a time.
        keys: The job's.
        address: Where the master listens, for those who look it up.
    """

    def __init__(self, store: Store, keys: JobKeys, *, address: str) -> None:
        self._store = store
        self._keys = keys
        self._address = address
        self._nonce = secrets.token_hex(8)
        self._value = b""
        self.generation = 0
        self._commits = 0
        self._closing = threading.Event()

    def close(self) -> None:
        """Make a call that waits for etcd give up."""
        self._closing.set()

    def _next(self) -> bytes:
        leader = Leader(
            generation=self.generation, nonce=self._nonce, address=self._address, commits=self._commits + 1
        )
        return msgspec.json.encode(leader)

    def lead(self) -> list[tuple[str, bytes]]:
        """Take over; the records that the earlier master left.

        Raises:
            StoreError: etcd does not answer, or refused.
        """
        while True:
            before = self._store.get(self._keys.master)
            self.generation = (msgspec.json.decode(before, type=Leader).generation if before else 0) + 1
            value = self._next()
            if self._store.transact({self._keys.master: before}, {self._keys.master: value}):
                self._value, self._commits = value, self._commits + 1
                return self._store.read(self._keys.records)

    def commit(
        self,
        changes: list[tuple[str, bytes | None]],
        *,
        everything: Callable[[], Iterable[tuple[str, bytes | None]]],
        trouble: Callable[[str], None],
    ) -> None:
        """Write records; returns when they are durable.

        Args:
            changes: Key (relative to the records' prefix) and value, None to delete.
            everything: Gives all records, for an etcd that forgot.
            trouble: Told what keeps etcd from answering; told ``''`` when it answers again.

        Raises:
            Deposed: A newer master leads.
            Unavailable: Closed while etcd did not answer.
        """
        for start in range(0, max(len(changes), 1), MAX_OPERATIONS - 1):
            part = changes[start : start + MAX_OPERATIONS - 1]
            if not self._write(part, trouble=trouble):
                # etcd forgot: what it holds is older than what we know, so all of it is said again.
                self.commit(list(everything()), everything=everything, trouble=trouble)

    def _write(self, changes: list[tuple[str, bytes | None]], *, trouble: Callable[[str], None]) -> bool:
        """One transaction. False: it is written, but etcd had forgotten something before it."""
        value = self._next()
        writes: dict[str, bytes | None] = {self._keys.records + key: data for key, data in changes}
        writes[self._keys.master] = value
        remembered = True
        troubled = False
        while True:
            try:
                if self._store.transact({self._keys.master: self._value or None}, writes):
                    break
                found = self._store.get(self._keys.master)
            except StoreError as error:
                troubled = True
                trouble(str(error))
                if self._closing.wait(RETRY_SECONDS):
                    raise Unavailable("closed while etcd did not answer") from None
                continue
            if found == value:
                break
            self._check(found)
            remembered = False
            self._value = found or b""
        if troubled:
            trouble("")
        self._value, self._commits = value, self._commits + 1
        return remembered

    def _check(self, found: bytes | None) -> None:
        if found is None:
            return
        leader = msgspec.json.decode(found, type=Leader)
        if leader.nonce != self._nonce and leader.generation >= self.generation:
            raise Deposed(f"a newer master leads (generation {leader.generation}) at {leader.address}")


def wait_for_store(store: Store, *, seconds: float) -> str:
    """Wait until etcd answers; its version.

    Raises:
        StoreError: It did not in that time.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            return store.status().version
        except Unavailable:
            if time.monotonic() > end:
                raise
            time.sleep(RETRY_SECONDS)  # nothing announces that it listens
