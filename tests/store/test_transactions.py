from __future__ import annotations

import threading

import pytest

from shoal.store import (
    MAXIMUM_OPERATIONS,
    Credentials,
    Delete,
    Put,
    Store,
    StoreClosedError,
    StoreRefusedError,
    StoreUnreachableError,
    exists,
    in_batches,
    missing,
    revision_is,
    value_is,
)
from tests.etcds import eventually

KEY = "/shoal/key"


def test_a_transaction_is_all_or_nothing(store):
    made = store.transact([missing(KEY)], [Put(KEY, b"one"), Put("/shoal/other", b"")])
    assert made.succeeded
    assert not made.retried
    assert not made.forgot
    assert store.get(KEY) == (KEY, b"one", made.revision)
    assert store.get("/shoal/other").value == b""

    refused = store.transact([value_is(KEY, b"two")], [Put(KEY, b"three"), Delete("/shoal/other")])
    assert not refused.succeeded
    assert refused.revision == made.revision
    assert store.get("/shoal/other") is not None


def test_every_kind_of_compare(store):
    assert not store.transact([exists(KEY)], []).succeeded
    assert store.transact([missing(KEY), revision_is(KEY, 0)], [Put(KEY, b"v")]).succeeded
    revision = store.get(KEY).mod_revision
    assert not store.transact([missing(KEY)], []).succeeded
    assert not store.transact([revision_is(KEY, revision + 1)], []).succeeded
    assert store.transact([exists(KEY), revision_is(KEY, revision), value_is(KEY, b"v")], [Delete(KEY)]).succeeded
    assert store.get(KEY) is None
    assert not store.transact([value_is(KEY, b"")], []).succeeded


def test_deleting_a_prefix_leaves_its_neighbours(store):
    store.transact([], [Put(key, b"") for key in ("/shoal/a", "/shoal/a/1", "/shoal/a/2", "/shoal/a0")])
    store.transact([], [Delete("/shoal/a/", prefix=True)])
    assert [pair.key for pair in store.get_prefix("/shoal/").pairs] == ["/shoal/a", "/shoal/a0"]


def test_too_large_a_transaction_is_refused_and_can_be_cut(store):
    puts = [Put(f"/shoal/{number:04d}", b"x" * 20_000) for number in range(2 * MAXIMUM_OPERATIONS)]
    with pytest.raises(ValueError, match="in_batches"):
        store.transact([], puts)
    batches = list(in_batches(puts))
    assert [put for batch in batches for put in batch] == puts
    for batch in batches:
        assert store.transact([], batch).succeeded
    assert [(pair.key, pair.value) for pair in store.get_prefix("/shoal/").pairs] == [tuple(put) for put in puts]


def test_what_etcd_never_takes_is_refused_at_once(store):
    with pytest.raises(StoreRefusedError, match="duplicate key"):
        store.transact([], [Put(KEY, b"1"), Put(KEY, b"2")])
    with pytest.raises(StoreRefusedError, match="too large"):
        store.transact([], [Put(KEY, b"x" * 1_600_000)])
    with pytest.raises(StoreRefusedError, match="in_batches"):
        store.transact([], [Put(KEY, b"x" * 3_000_000)])


def test_keys_outside_the_prefix_are_refused(store):
    with pytest.raises(ValueError, match="outside the prefix"):
        store.transact([], [Put("/other", b"")])
    with pytest.raises(ValueError, match="outside the prefix"):
        store.get_prefix("/")


def test_pages_hold_everything_at_one_revision(store):
    puts = [Put(f"/shoal/{number:06d}", b"%d" % number) for number in range(2500)]
    for batch in in_batches(puts):
        last = store.transact([], batch)
    listing = store.get_prefix("/shoal/")
    assert [(pair.key, pair.value) for pair in listing.pairs] == [tuple(put) for put in puts]
    assert (listing.revision, listing.cluster_id) == (last.revision, last.cluster_id)
    assert store.get_prefix("/shoal/none/").pairs == []


def test_the_status_identifies_etcd(store, etcd):
    status = store.status()
    assert status.version == etcd.server.binary.version
    assert status.database_bytes > 0
    assert (status.warning is not None) == (status.version in {"3.5.0", "3.5.1", "3.5.2"})


def test_an_unreachable_etcd_is_reported_with_address_and_fix():
    with pytest.raises(StoreUnreachableError, match=r"127\.0\.0\.1:1.*--etcd"):
        Store.connect("127.0.0.1:1", prefix="/", timeout_seconds=0.2)
    with pytest.raises(StoreRefusedError, match="HOST:PORT"):
        Store.connect("nonsense", prefix="/")


def test_a_member_that_is_down_costs_one_try(etcd, reported):
    endpoints = f"127.0.0.1:1,{etcd.endpoint}"
    with Store.connect(endpoints, prefix="/shoal/", on_error=reported["error"]) as store:
        assert store.transact([], [Put(KEY, b"")]).succeeded
    assert len(reported["error"]) == 1
    assert "127.0.0.1:1" in reported["error"][0]


def test_no_password_in_any_repr(etcd):
    with pytest.raises(StoreRefusedError) as refused:
        Store.connect(etcd.endpoint, prefix="/", credentials=Credentials("user", "hidden-word"))
    assert "hidden-word" not in repr(refused.value)
    with Store.connect(etcd.endpoint, prefix="/") as store:
        assert etcd.endpoint in repr(store)


def test_close_ends_a_call_that_waits_for_an_unreachable_etcd(store, etcd, reported):
    etcd.kill()
    ends = _ends_of_a_call(store)
    eventually(lambda: reported["error"], what="an error")
    store.close()
    ends["thread"].join()
    assert isinstance(ends["error"], StoreClosedError)
    assert etcd.endpoint in reported["error"][0]


def test_close_ends_a_call_that_waits_for_a_hanging_etcd(store, etcd):
    etcd.pause()
    try:
        ends = _ends_of_a_call(store)
        store.close()
        ends["thread"].join()
    finally:
        etcd.resume()
    assert isinstance(ends["error"], StoreClosedError)
    with pytest.raises(StoreClosedError):
        store.get(KEY)


def _ends_of_a_call(store):
    ends = {}

    def call():
        try:
            store.transact([], [Put(KEY, b"")])
        except StoreClosedError as error:
            ends["error"] = error

    ends["thread"] = threading.Thread(target=call)
    ends["thread"].start()
    return ends


def test_a_timeout_expires(store, etcd):
    etcd.kill()
    with pytest.raises(StoreUnreachableError, match="waited"):
        store.get(KEY, timeout_seconds=0.2)
