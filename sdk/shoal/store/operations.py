"""What a transaction is made of."""

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
"""Compares, and likewise puts and deletes, that an etcd with its default settings takes in one transaction."""

MAXIMUM_BYTES: Final = 1024 * 1024
"""Keys and values in one transaction; etcd's default limit for a whole request is 1.5 MiB."""


def key_bytes(key: str) -> bytes:
    """A key as etcd has it."""
    return key.encode(errors="surrogateescape")


def key_text(key: bytes) -> str:
    """A key of etcd as text. Bytes that are not UTF-8 become surrogate escapes, which `key_bytes` turns back."""
    return key.decode(errors="surrogateescape")


class Put(NamedTuple):
    """Write a key."""

    key: str
    value: bytes


class Delete(NamedTuple):
    """Remove a key, or with ``prefix`` every key that begins with it."""

    key: str
    prefix: bool = False


class Compare(NamedTuple):
    """A condition of a transaction: make it with one of the four functions below."""

    key: str
    value: bytes | None = None
    create_revision: int | None = None
    mod_revision: int | None = None
    negated: bool = False


def value_is(key: str, value: bytes) -> Compare:
    """The key exists and has this value."""
    return Compare(key, value=value)


def missing(key: str) -> Compare:
    """The key does not exist."""
    return Compare(key, create_revision=0)


def exists(key: str) -> Compare:
    """The key exists."""
    return Compare(key, create_revision=0, negated=True)


def revision_is(key: str, mod_revision: int) -> Compare:
    """The key was last written at this revision of etcd (0: it does not exist)."""
    return Compare(key, mod_revision=mod_revision)


class Transaction(NamedTuple):
    """What became of a transaction.

    Attributes:
        succeeded: Whether the compares held and the operations were carried out.
        revision: Etcd's revision with the operations (or at the refusal).
        cluster_id: The cluster that answered.
        retried: An earlier try broke off and may have been applied as well. Then ``succeeded`` being false may mean
            that this very transaction made the compare fail: read the key to know.
        forgot: Etcd was found to have lost writes since it was last asked. The operations of this transaction are in
            the new history; what was written before it is perhaps not.
    """

    succeeded: bool
    revision: int
    cluster_id: int
    retried: bool
    forgot: bool


class KeyValue(NamedTuple):
    """A key as etcd has it; ``mod_revision`` is the revision of its last write."""

    key: str
    value: bytes
    mod_revision: int


class Listing(NamedTuple):
    """All keys under a prefix at one revision, by key. Watching goes on from ``revision + 1``."""

    pairs: list[KeyValue]
    revision: int
    cluster_id: int


class Event(NamedTuple):
    """A key was written, or removed (``value`` is None), at ``mod_revision``; ``created``: it was not there before."""

    key: str
    value: bytes | None
    mod_revision: int
    created: bool = False


class EtcdStatus(NamedTuple):
    """Which etcd answers.

    Attributes:
        version: Such as ``3.5.1``.
        cluster_id: Follows from the address etcd was first started with: a wiped one may have the same again.
        revision: Grows by one with every change.
        database_bytes: Size of the file on etcd's disk.
    """

    version: str
    cluster_id: int
    revision: int
    database_bytes: int

    @property
    def warning(self) -> str | None:
        """What its user should know about this version."""
        if self.version in {"3.5.0", "3.5.1", "3.5.2"}:
            return (
                f"etcd {self.version} can lose acknowledged writes when it is killed under load "
                "(costs work, never counts); 3.5.3 and later do not"
            )
        return None


def in_batches(operations: Iterable[Put | Delete], *, room: int = 0) -> Iterator[list[Put | Delete]]:
    """Cut many operations into transactions that etcd takes, in order; each is atomic, all together are not.

    Args:
        operations: What to do.
        room: Operations that the caller will add to each transaction.
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
