"""Conversion between the types of this package and etcd's messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from shoal.store._stubs import rpc
from shoal.store.connection import EtcdConnection, Lapsed, Oversized, header_of, prefix_end
from shoal.store.history import Header, KnownWrite
from shoal.store.operations import (
    MAXIMUM_OPERATIONS,
    Compare,
    Delete,
    Event,
    KeyValue,
    Listing,
    Put,
    key_bytes,
    key_text,
)

__all__ = ["events_of", "has_write", "newest", "pair_of", "read_groups", "read_prefix", "transaction_request"]

_PAGE_KEYS: Final = 1000
_EQUAL: Final = rpc.Compare.EQUAL
_NOT_EQUAL: Final = rpc.Compare.NOT_EQUAL


def _compare(compare: Compare) -> Any:
    result = _NOT_EQUAL if compare.negated else _EQUAL
    key = key_bytes(compare.key)
    if compare.value is not None:
        return rpc.Compare(key=key, result=result, target=rpc.Compare.VALUE, value=compare.value)
    if compare.mod_revision is not None:
        return rpc.Compare(key=key, result=result, target=rpc.Compare.MOD, mod_revision=compare.mod_revision)
    return rpc.Compare(key=key, result=result, target=rpc.Compare.CREATE, create_revision=compare.create_revision)


def _operation(operation: Put | Delete) -> Any:
    key = key_bytes(operation.key)
    if isinstance(operation, Put):
        return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=operation.value))
    range_end = prefix_end(key) if operation.prefix else b""
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key, range_end=range_end))


def transaction_request(compares: Sequence[Compare], operations: Sequence[Put | Delete]) -> Any:
    """Return the ``TxnRequest`` of a transaction.

    Raises:
        ValueError: It has more compares or operations than etcd accepts.
    """
    if max(len(compares), len(operations)) > MAXIMUM_OPERATIONS:
        raise ValueError(
            f"a transaction has {len(compares)} compares and {len(operations)} operations, etcd takes "
            f"{MAXIMUM_OPERATIONS} of each: cut it with shoal.store.in_batches"
        )
    return rpc.TxnRequest(compare=map(_compare, compares), success=map(_operation, operations))


def pair_of(pair: Any) -> KeyValue:
    """Convert etcd's key-value message."""
    return KeyValue(key_text(pair.key), pair.value, pair.mod_revision)


def read_prefix(connection: EtcdConnection, prefix: str) -> tuple[Header, Listing]:
    """Read all keys under a prefix, in pages of 1000 keys at the revision of the first page.

    Raises:
        Lapsed: The revision was compacted between two pages; the caller must start again.
        RetryReason: Etcd is unreachable.
    """
    key = key_bytes(prefix)
    request = rpc.RangeRequest(key=key or b"\0", range_end=prefix_end(key), limit=_PAGE_KEYS)
    answer = _page(connection, request)
    header = header_of(answer)
    request.revision = header.revision
    pairs = [pair_of(pair) for pair in answer.kvs]
    while answer.more:
        request.key = answer.kvs[-1].key + b"\0"
        answer = _page(connection, request)
        page = header_of(answer)
        if page.cluster_id != header.cluster_id or page.revision < header.revision:
            raise Lapsed("etcd was replaced between two pages")
        pairs.extend(pair_of(pair) for pair in answer.kvs)
    return header, Listing(pairs, header.revision, header.cluster_id)


def _page(connection: EtcdConnection, request: Any) -> Any:
    """Read one page; the limit is reduced where the values are too large for one response."""
    while True:
        try:
            return connection.range(request)
        except Oversized:
            if request.limit == 1:
                raise
            request.limit = max(1, request.limit // 8)


def read_groups(connection: EtcdConnection, prefix: str, parts: int) -> tuple[Header, list[str]]:
    """Return the distinct prefixes of keys with ``parts`` path elements after a prefix; one read for each.

    Each read starts after the last key of the group that was found before.

    Raises:
        RetryReason: Etcd is unreachable.
    """
    key = key_bytes(prefix)
    request = rpc.RangeRequest(key=key or b"\0", range_end=prefix_end(key), limit=1, keys_only=True)
    groups: list[str] = []
    while True:
        answer = connection.range(request)
        if not answer.kvs:
            return header_of(answer), groups
        found = answer.kvs[0].key
        below = found[len(key) :].split(b"/", parts)
        if len(below) > parts:
            group = key + b"/".join(below[:parts]) + b"/"
            groups.append(key_text(group))
            request.key = prefix_end(group)
        else:
            request.key = found + b"\0"


def newest(pairs: Sequence[KeyValue]) -> KnownWrite | None:
    """Return the latest write of a listing as the witness of its history; None if it is empty."""
    if not pairs:
        return None
    pair = max(pairs, key=lambda pair: pair.mod_revision)
    return KnownWrite(key_bytes(pair.key), pair.value, pair.mod_revision)


def events_of(answer: Any) -> list[Event]:
    """Convert a message of a watch into events."""
    return [
        Event(key_text(event.kv.key), None, event.kv.mod_revision)
        if event.type == event.DELETE
        else Event(key_text(event.kv.key), event.kv.value, event.kv.mod_revision, event.kv.version == 1)
        for event in answer.events
    ]


def has_write(connection: EtcdConnection, known_write: KnownWrite, prefix: str) -> tuple[Header, bool]:
    """Return whether etcd still has a write at its revision; False also if the revision is compacted.

    Raises:
        RetryReason: Etcd is unreachable.
    """
    try:
        answer = connection.range(rpc.RangeRequest(key=known_write.key, revision=known_write.revision))
    except Lapsed:
        return current_header(connection, prefix), False
    found = answer.kvs[0] if answer.kvs else None
    if known_write.value is None:
        return header_of(answer), found is None
    same = found is not None and found.mod_revision == known_write.revision and found.value == known_write.value
    return header_of(answer), same


def current_header(connection: EtcdConnection, prefix: str) -> Header:
    """Read the present header from the cluster (a linearizable read: one member alone may lag).

    Raises:
        RetryReason: Etcd is unreachable.
    """
    key = key_bytes(prefix)
    request = rpc.RangeRequest(key=key or b"\0", range_end=prefix_end(key), limit=1, keys_only=True)
    return header_of(connection.range(request))
