"""Types of transactions, listings and events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

__all__ = [
    "MAXIMUM_BYTES",
    "MAXIMUM_OPERATIONS",
    "Compare",
    "Delete",
    "EtcdStatus",
    "Event",
    "KeyValue",
    "Listing",
    "Put",
    "Transaction",
    "exists",
    "in_batches",
    "key_bytes",
    "key_text",
    "missing",
    "revision_is",
    "value_is",
]

MAXIMUM_OPERATIONS: Final = 128
"""Most compares, and most puts and deletes, of one transaction with etcd's default settings."""

MAXIMUM_BYTES: Final = 1024 * 1024
"""Most bytes of keys and values in one transaction; etcd's default limit for a request is 1.5 MiB."""


def key_bytes(key: str) -> bytes:
    """Return a key as bytes, as etcd stores it."""
    return key.encode(errors="surrogateescape")


def key_text(key: bytes) -> str:
    """Return a key of etcd as text; bytes that are not UTF-8 become surrogate escapes, which `key_bytes` reverses."""
    return key.decode(errors="surrogateescape")


class Put(NamedTuple):
    """Write a key."""

    key: str
    value: bytes


class Delete(NamedTuple):
    """Delete a key; with ``prefix``, delete every key that begins with it."""

    key: str
    prefix: bool = False


class Compare(NamedTuple):
    """A condition of a transaction, created by one of the four functions below."""

    key: str
    value: bytes | None = None
    create_revision: int | None = None
    mod_revision: int | None = None
    negated: bool = False


def value_is(key: str, value: bytes) -> Compare:
    """Require that the key exists and has this value."""
    return Compare(key, value=value)


def missing(key: str) -> Compare:
    """Require that the key does not exist."""
    return Compare(key, create_revision=0)


def exists(key: str) -> Compare:
    """Require that the key exists."""
    return Compare(key, create_revision=0, negated=True)


def revision_is(key: str, mod_revision: int) -> Compare:
    """Require that the key was last written at this revision of etcd (0: it does not exist)."""
    return Compare(key, mod_revision=mod_revision)


class Transaction(NamedTuple):
    """Result of a transaction.

    Attributes:
        succeeded: Whether the compares held and the operations were applied.
        revision: Etcd's revision after the operations (or when a compare failed).
        cluster_id: Id of the cluster that answered.
        retried: Whether an earlier attempt was interrupted and may have been applied as well. Then ``succeeded`` may be
            false because the first attempt of this transaction made the compare fail: read the key to find out.
        forgot: Whether etcd has lost acknowledged writes since the last call. The operations of this transaction are in
            the new history; earlier writes may not be.
    """

    succeeded: bool
    revision: int
    cluster_id: int
    retried: bool
    forgot: bool


class KeyValue(NamedTuple):
    """A key with its value; ``mod_revision`` is the revision of its last write."""

    key: str
    value: bytes
    mod_revision: int


class Listing(NamedTuple):
    """All keys under a prefix at one revision, sorted by key. A watch continues from ``revision + 1``."""

    pairs: list[KeyValue]
    revision: int
    cluster_id: int


class Event(NamedTuple):
    """A write or deletion (``value`` is None) of a key at ``mod_revision``; ``created``: the key did not exist before."""

    key: str
    value: bytes | None
    mod_revision: int
    created: bool = False


class EtcdStatus(NamedTuple):
    """Status of a member of etcd.

    Attributes:
        version: Version, such as ``3.5.1``.
        cluster_id: Id that is derived from etcd's first address; a wiped etcd may have the same id again.
        revision: Revision, which grows by one with every change.
        database_bytes: Size of the database file on disk. Bytes.
    """

    version: str
    cluster_id: int
    revision: int
    database_bytes: int

    @property
    def warning(self) -> str | None:
        """Warning about a known defect of this version; None if there is none."""
        if self.version in {"3.5.0", "3.5.1", "3.5.2"}:
            return (
                f"etcd {self.version} can lose acknowledged writes when it is killed under load "
                "(costs work, never counts); 3.5.3 and later do not"
            )
        return None


def in_batches(operations: Iterable[Put | Delete], *, room: int = 0) -> Iterator[list[Put | Delete]]:
    """Split operations into batches within etcd's limits, in order; each batch is atomic, all together are not.

    Args:
        operations: Puts and deletes.
        room: Number of operations that the caller adds to each batch. Default: 0.
    """
    batch: list[Put | Delete] = []
    size = 0
    for operation in operations:
        weight = len(key_bytes(operation.key)) + (len(operation.value) if isinstance(operation, Put) else 0)
        if batch and (len(batch) == MAXIMUM_OPERATIONS - room or size + weight > MAXIMUM_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(operation)
        size += weight
    if batch:
        yield batch
