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
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from shoal.master.state.records import SEVERAL
from shoal.store import Compare, Delete, JobKeys, Put, Store, in_batches, missing, value_is

__all__ = ["Deposed", "MasterRecord", "RecordLog"]

_ROOM: Final = 1
"""Operations of each transaction that the leader's own key takes."""


class Deposed(Exception):  # noqa: N818 - not an error: somebody else does the work
    """A newer master leads."""


class MasterRecord(msgspec.Struct, frozen=True):
    """The value of the key ``master``."""

    generation: int
    nonce: str
    address: str
    commits: int


class RecordLog:
    """The master's hold on etcd.

    Args:
        store: The client. Its calls wait for an etcd that is away, until it is closed.
        keys: The job's.
        address: Where the master listens, for those who look it up.
    """

    def __init__(self, store: Store, keys: JobKeys, *, address: str) -> None:
        self._store = store
        self._keys = keys
        self._address = address
        self._nonce = secrets.token_hex(8)
        self._value: bytes | None = None
        self._commits = 0
        self.generation = 0

    def close(self) -> None:
        """Make a call that waits for etcd give up."""
        self._store.close()

    def _next(self) -> bytes:
        return msgspec.json.encode(
            MasterRecord(
                generation=self.generation, nonce=self._nonce, address=self._address, commits=self._commits + 1
            )
        )

    def _expected(self) -> Compare:
        return missing(self._keys.master) if self._value is None else value_is(self._keys.master, self._value)

    def lead(self) -> list[tuple[str, bytes]]:
        """Take over; the records that the earlier master left, by key relative to the job.

        Raises:
            StoreError: etcd does not answer, or refused.
        """
        while True:
            found = self._store.get(self._keys.master)
            self._value = found.value if found is not None else None
            before = msgspec.json.decode(self._value, type=MasterRecord).generation if self._value is not None else 0
            self.generation = before + 1
            value = self._next()
            if self._store.transact([self._expected()], [Put(self._keys.master, value)]).succeeded:
                self._value, self._commits = value, self._commits + 1
                break
        pairs = self._store.get_prefix(self._keys.prefix).pairs
        return [(self._keys.relative(pair.key), pair.value) for pair in pairs if pair.key != self._keys.master]

    def commit(
        self,
        changes: list[tuple[str, bytes | None]],
        *,
        everything: Callable[[], Iterable[tuple[str, bytes | None]]],
    ) -> None:
        """Write records; returns when they are durable.

        Where etcd forgot something meanwhile, everything is written instead.

        Args:
            changes: Key (relative to the job) and value, None to delete.
            everything: Gives all records, for an etcd that forgot.

        Raises:
            Deposed: A newer master leads.
            StoreError: Closed while etcd was away, or etcd refused.
        """
        if self._write_all(changes):
            return
        # etcd forgot: what it holds is older than what we know. All is said anew, and nothing of what was to be written
        # before that; then records that are gone since then go again.
        while True:
            known = list(everything())
            if self._write_all(known) and self._write_all(self._others(known)):
                return

    def _others(self, known: list[tuple[str, bytes | None]]) -> list[tuple[str, None]]:
        """Deletions of those records in etcd that are not known; of records of which there is one, all are."""
        there = {key for key, value in known if value is not None}
        found = [self._keys.relative(pair.key) for pair in self._store.get_prefix(self._keys.prefix).pairs]
        return [(key, None) for key in found if key.startswith(SEVERAL) and key not in there]

    def _write_all(self, changes: Iterable[tuple[str, bytes | None]]) -> bool:
        """Write records, in several transactions if need be. False: etcd forgot, and the rest is not written."""
        operations = [self._operation(key, value) for key, value in changes]
        batches = in_batches(operations, room=_ROOM) if operations else [[]]
        return all(self._write(list(batch)) for batch in batches)

    def _operation(self, key: str, value: bytes | None) -> Put | Delete:
        full = self._keys.at(key)
        return Delete(full) if value is None else Put(full, value)

    def _write(self, operations: list[Put | Delete]) -> bool:
        """One transaction. False: it is written, but etcd had forgotten something before it."""
        value = self._next()
        operations.append(Put(self._keys.master, value))
        remembered = True
        while not self._store.transact([self._expected()], operations).succeeded:
            pair = self._store.get(self._keys.master)
            found = pair.value if pair is not None else None
            if found == value:
                break
            self._check(found)
            remembered = False
            self._value = found
        self._value, self._commits = value, self._commits + 1
        return remembered

    def _check(self, found: bytes | None) -> None:
        if found is None:
            return
        leader = msgspec.json.decode(found, type=MasterRecord)
        if leader.nonce != self._nonce and leader.generation >= self.generation:
            raise Deposed(f"a newer master leads (generation {leader.generation}) at {leader.address}")
