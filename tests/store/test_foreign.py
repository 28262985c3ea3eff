"""The watch that serves all jobs survives what one tenant writes to etcd: foreign keys, many keys, large values."""

from __future__ import annotations

import os

import pytest

from shoal.store import Put, Store
from shoal.store._stubs import grpc, rpc
from tests.etcds import eventually
from tests.store.test_forgetting import Follower, put

NOT_TEXT = b"/shoal/jobs/\xff\xfe/\x00\n"


def put_bytes(etcd, key, value):
    """Put a key and a value of bytes with the plain etcd API, without the store."""
    with grpc.insecure_channel(etcd.endpoint) as channel:
        rpc.KVStub(channel).Put(rpc.PutRequest(key=key, value=value))


def test_a_key_that_is_no_text_passes_through_a_watch_and_a_listing(store, etcd):
    follower = Follower(store)
    eventually(lambda: follower.resets, what="the beginning")
    put_bytes(etcd, NOT_TEXT, b"1")
    put(store, "after", b"2")
    eventually(lambda: "/shoal/after" in follower.values, what="what comes behind it")
    anew = Follower(store)
    eventually(lambda: anew.resets, what="another beginning")
    assert follower.values == anew.values
    (key,) = set(anew.values) - {"/shoal/after"}
    found = store.get(key)
    assert found is not None
    assert (found.value, key.encode(errors="surrogateescape")) == (b"1", NOT_TEXT)
    etcd.restart()  # the store identifies its witness, the last known write, by its key
    put_bytes(etcd, NOT_TEXT, b"3")
    eventually(lambda: follower.values.get(key) == b"3", what="its next value")
    assert len(follower.resets) == 1


@pytest.mark.parametrize(("count", "size"), [(10_000, 8), (60, 1_000_000)], ids=["many keys", "large values"])
def test_much_of_one_tenant_passes_through_a_watch_and_a_listing(store, etcd, count, size):
    follower = Follower(store)
    eventually(lambda: follower.resets, what="the beginning")
    value = os.urandom(size)
    for begin in range(0, count, 1 if size > 1000 else 100):
        puts = [
            Put(f"/shoal/of one/{n:06}", value) for n in range(begin, min(count, begin + (1 if size > 1000 else 100)))
        ]
        assert store.transact([], puts).succeeded
    put(store, "after", b"2")
    eventually(lambda: "/shoal/after" in follower.values, what="what comes behind it")
    assert len(follower.values) == count + 1
    with Store.connect(etcd.endpoint, prefix="/shoal/") as another:
        anew = Follower(another)
        eventually(lambda: anew.resets, what="another beginning")
        assert anew.values == follower.values
        assert len(another.get_prefix("/shoal/").pairs) == count + 1
