"""etcd is set back to an older state while records are written, and still ends with the master's latest records."""

from __future__ import annotations

import pytest

from shoal.master.record_log import RecordLog
from shoal.store import JobKeys, Put, Store
from tests.etcds import run_etcd

KEYS = JobKeys("default", "j", "uid")
COUNT = 400
"""Records that change: several transactions."""


class Forgetful:
    """A store whose etcd is set back, right before one transaction, to older values of the leader's key and these records."""

    def __init__(self, store, *, before, older):
        self._store, self._before, self._older, self._calls = store, before, older, 0

    def __getattr__(self, name):
        return getattr(self._store, name)

    def transact(self, compares, operations, **options):
        self._calls += 1
        if self._calls == self._before:
            puts = [Put(key, value) for key, value in self._older.items()]
            for begin in range(0, len(puts), 100):
                assert self._store.transact([], puts[begin : begin + 100]).succeeded
        return self._store.transact(compares, operations, **options)


@pytest.fixture
def store(tmp_path):
    with run_etcd(tmp_path) as etcd, Store.connect(etcd.endpoint, prefix=KEYS.prefix) as made:
        yield made


def records(prefix):
    return [(f"metrics/00000000/{number:08d}", f"{prefix} {number}".encode()) for number in range(COUNT)]


@pytest.mark.parametrize("before", range(1, 5))
def test_older_changes_do_not_replace_what_was_written_anew(store, before):
    first = RecordLog(store, KEYS, address="")
    first.lead()
    first.commit([*records("first"), ("members/0000000000000001", b"gone since")], everything=list)
    older = {pair.key: pair.value for pair in store.get_prefix(KEYS.prefix).pairs}
    first.commit([("members/0000000000000001", None)], everything=list)
    first._store = Forgetful(store, before=before, older=older)
    # The records change again while the older changes are being written.
    first.commit(
        [*records("older"), ("epoch", b"1")], everything=lambda: [*records("newest"), ("epoch", b"2"), ("begun", None)]
    )
    first.commit([("reached", b"3")], everything=lambda: pytest.fail("it did not forget again"))
    found = {
        KEYS.relative(pair.key): pair.value for pair in store.get_prefix(KEYS.prefix).pairs if pair.key != KEYS.master
    }
    assert found == {**dict(records("newest")), "epoch": b"2", "reached": b"3"}


def test_what_the_operator_wrote_is_not_the_masters_to_remove(store):
    keeper = RecordLog(store, KEYS, address="")
    keeper.lead()
    older = {pair.key: pair.value for pair in store.get_prefix(KEYS.prefix).pairs}
    assert store.transact([], [Put(KEYS.desired, b"{}")]).succeeded
    keeper.commit(records("first"), everything=list)
    keeper._store = Forgetful(store, before=1, older=older)
    keeper.commit([("epoch", b"1")], everything=lambda: [("epoch", b"1")])
    assert {pair.key for pair in store.get_prefix(KEYS.prefix).pairs} == {KEYS.master, KEYS.desired, KEYS.epoch}
