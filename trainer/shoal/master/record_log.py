"""The record log: keeps the master's records in etcd, with group commits, fencing, and recovery from lost writes.

One key, ``master``, holds the leader's generation, its nonce, and the number of its last commit. Every commit compares
it with the value that the last commit wrote, and writes the next value. The value that is found decides:

- the expected value: the commit succeeds;
- the value of this commit: an earlier attempt of it has succeeded;
- this master's nonce with an older number, an older master's value, or none: etcd has lost its last writes, or all; all
  records are written again;
- a newer master's value: this master is deposed.

While one transaction is in flight, changes are collected for the next one, so that many acknowledgements share one
transaction and its sync to disk.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from shoal.master.state.records import SEVERAL
from shoal.store import Compare, Delete, JobKeys, MasterRecord, Put, Store, in_batches, missing, value_is

__all__ = ["Deposed", "RecordLog"]

_RESERVED: Final = 1
"""The number of operations in each transaction that are reserved for the key ``master``."""


class Deposed(Exception):  # noqa: N818 - not an error: a newer master does the work
    """A newer master leads."""


class RecordLog:
    """The master's records in etcd, and its lead.

    Args:
        store: The etcd client. While etcd is unreachable its calls wait, until the client is closed.
        keys: The job's keys.
        address: The address at which the master listens; it is published in the key ``master``.
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
        """Close the client; a call that waits for etcd raises StoreClosedError."""
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
        """Become the leader; return the records of the earlier master, by key relative to the job.

        Raises:
            StoreError: etcd does not respond, or refused.
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
        """Write records; return when they are durable. If etcd has lost writes, write all records instead.

        Args:
            changes: Keys (relative to the job) and values; None deletes the key.
            everything: Returns all records, for an etcd that has lost writes.

        Raises:
            Deposed: A newer master leads.
            StoreError: The client was closed while etcd was unreachable, or etcd refused.
        """
        if self._write_all(changes):
            return
        # etcd has lost writes, so its records are older than ours. All records are written again, in place of the changes;
        # then the records that were deleted in the meantime are deleted again.
        while True:
            records = list(everything())
            if self._write_all(records) and self._write_all(self._others(records)):
                return

    def _others(self, records: list[tuple[str, bytes | None]]) -> list[tuple[str, None]]:
        """Return deletions of the records in etcd that are not in ``records``; records with one key each always are."""
        there = {key for key, value in records if value is not None}
        found = [self._keys.relative(pair.key) for pair in self._store.get_prefix(self._keys.prefix).pairs]
        return [(key, None) for key in found if key.startswith(SEVERAL) and key not in there]

    def _write_all(self, changes: Iterable[tuple[str, bytes | None]]) -> bool:
        """Write records, in several transactions if required. False: etcd has lost writes; the rest is not written."""
        operations = [self._operation(key, value) for key, value in changes]
        batches = in_batches(operations, room=_RESERVED) if operations else [[]]
        return all(self._write(list(batch)) for batch in batches)

    def _operation(self, key: str, value: bytes | None) -> Put | Delete:
        full = self._keys.at(key)
        return Delete(full) if value is None else Put(full, value)

    def _write(self, operations: list[Put | Delete]) -> bool:
        """Commit one transaction. False: it is written, but etcd had lost writes before it."""
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
