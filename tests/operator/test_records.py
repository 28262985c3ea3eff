"""Records in etcd under a job's prefix: whatever they contain is read with bounds, counted, and reported on their own job only."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.api.status import Status
from shoal.master.state.records import Outcome, Records
from shoal.operator.cache.cache import Cache
from shoal.operator.core.run_policy import ConsecutiveFailures, count_failures, overrun
from shoal.operator.etcd import records as module
from shoal.operator.etcd.records import MOST_BYTES, MOST_FOREIGN_KEYS, READERS, Usage
from shoal.operator.status.conditions import status_of
from shoal.operator.status.events import record_problems
from shoal.protocol.messages import JobAccount, Samples
from shoal.store import ALL_JOBS, Delete, DesiredState, JobKeys, MasterRecord, Put, Store
from tests.etcds import eventually, run_etcd
from tests.operator.jobs import job
from tests.operator.strange import pods
from tests.operator.test_cache import KEYS, pod, published
from tests.soak import examples

OTHER = JobKeys("default", "other", "v")
JOB = job()
NOW = datetime(2026, 1, 1, tzinfo=UTC)
COUNTED = JobAccount(
    state="Complete", epochs=1, samples=Samples(expected=9, counted=9, lost=0, twice=0, skipped=0), joins=1, leaves=0,
    deaths=0, replayed=0, seconds=1.5,
)  # fmt: skip
WRITTEN = {
    "desired": msgspec.json.encode(DesiredState(drain=[1])),
    "progress": published(),
    "outcome": msgspec.json.encode(Outcome(state="Complete", reason="", files={0: "a"}, account=COUNTED)),
    "master": msgspec.json.encode(MasterRecord(generation=1, nonce="n", address="tcp://a:1", commits=3)),
}
"""Each record as it is written in reality."""
RECORDS = {record: json.loads(value) for record, value in WRITTEN.items()}
ACCOUNT = RECORDS["outcome"]["account"]


def cluster():
    store = Cache()
    for keys in (KEYS, OTHER):
        metadata = {"uid": keys.uid, "name": keys.name, "namespace": keys.namespace, "resourceVersion": "1"}
        store.job_changed({"metadata": metadata})
    return store


def asked(store):
    """Run every query that a sync makes for a job, check that complaints are reported, and return the observation."""
    seen = store.observed("u", template="t")
    facts = store.facts("u")
    assert [each.text for each in record_problems((), store.record_problems("u"))]
    for each in record_problems((), store.record_problems("u")):
        each.text.encode()
    failures = count_failures(
        ConsecutiveFailures(), store.ends("u"), known=None, committed=store.committed("u"), now=1.0
    )
    overrun(JOB, Status(), failures, [], NOW)
    reported = status_of(
        JOB, generation=1, seen=seen, desired=2, problems=store.problems("u"), refused="", now=NOW,
        before=Status(), facts=facts,
    )  # fmt: skip
    reported.model_dump_json()
    store.starting("u")
    return seen


# --- Reading ---

numbers = st.one_of(
    st.integers(), st.sampled_from([2**63, -(2**64), 10**400]), st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([1e300, 253_402_300_799.9, 32_503_680_000.0, -1.0]),
)  # fmt: skip
leaves = st.one_of(
    st.none(), st.booleans(), numbers, st.text(max_size=5), st.sampled_from(["9999999-01-01", "Complete"])
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def changed(valid, with_):
    """A record with some of its fields replaced."""
    names = sorted(valid)
    return st.dictionaries(st.sampled_from(names), with_, max_size=3).map(lambda more: valid | more)


typed = st.one_of(values, numbers, st.lists(numbers, max_size=3))


@examples(100)
@given(st.data())
def test_no_record_of_any_kind_stops_a_sync(data):
    store = cluster()
    store.record_changed(KEYS.at("extra"), b"", created=True)
    for record in data.draw(st.lists(st.sampled_from(sorted(READERS)), max_size=5)):
        value = data.draw(
            st.one_of(values, changed(RECORDS[record], typed)).map(lambda made: json.dumps(made).encode())
            | st.binary(max_size=20)
        )
        store.record_changed(KEYS.at(record), value)
    nested = data.draw(st.dictionaries(st.sampled_from(sorted(ACCOUNT["samples"])), typed, max_size=2))
    account = ACCOUNT | {"samples": ACCOUNT["samples"] | nested}
    if data.draw(st.booleans()):
        store.record_changed(KEYS.outcome, json.dumps(RECORDS["outcome"] | {"account": account}).encode())
    asked(store)
    assert store.observed("v", template="t") == cluster().observed("v", template="t")
    assert not store.record_problems("v")


@pytest.mark.parametrize("record", sorted(READERS))
@pytest.mark.parametrize(
    "value",
    [b"", b"\xff", b'"\xff"', b"[" * 100_000, b'{"x":' * 100_000, b"NaN", b'{"moved": 1e999}', b'{"generation": 1e300}',
     b'{"drain": [' + b"1," * 200_000 + b"1]}", b'{"state": "Done"}', b'{"state": "Complete", "account": {}}',
     b'{"state": "Complete", "account": {"samples": {"lost": "x"}}}'],
)  # fmt: skip
def test_an_invalid_record_is_reported_on_its_job_and_changes_nothing(record, value):
    store = cluster()
    store.record_changed(KEYS.at(record), WRITTEN[record], created=True)
    before = store.observed("u", template="t")
    try:
        msgspec.json.decode(value, type=READERS[record][1])
    except (msgspec.MsgspecError, RecursionError, ValueError):
        pass
    else:
        # A record of another kind; this one may have all of its fields at their defaults.
        if record in {"desired", "master"} and len(value) < 1000:
            return
    assert store.record_changed(KEYS.at(record), value) == {"u": 0.0}
    assert store.observed("u", template="t") == before
    (reported,) = record_problems((), store.record_problems("u"))
    assert (reported.kind, reported.reason) == ("Warning", "ForeignRecord")
    assert record in reported.text
    assert not store.record_problems("v")
    store.record_changed(KEYS.at(record), WRITTEN[record])
    assert not store.record_problems("u")


@pytest.mark.parametrize("moved", [1e300, -1.0, 253_402_300_799.0])
def test_a_time_that_is_none_is_no_record(moved):
    store = cluster()
    store.record_changed(KEYS.progress, published(moved=moved))
    assert store.observed("u", template="t").published is None
    assert "moved is no time" in store.record_problems("u")["ForeignRecord progress"]


def test_logged_values_and_scores_are_bounded():
    store = cluster()
    many = {f"v{number:03}": number for number in range(500)}
    scores = [{"epoch": epoch, "values": {"score": epoch / 10, "x" * 999: 1, **many}} for epoch in range(50)]
    record = RECORDS["progress"] | {"values": {"loss": 0.5, **many}, "scores": scores}
    store.record_changed(KEYS.progress, json.dumps(record).encode())
    found = store.observed("u", template="t").published
    assert found.values == {"loss": 0.5} | {f"v{number:03}": number for number in range(19)}
    assert [each.epoch for each in found.scores] == [46, 47, 48, 49]
    assert all(len(each.values) == 20 and max(map(len, each.values)) == 100 for each in found.scores)
    assert not store.record_problems("u")


def test_a_record_of_an_older_master_has_no_values():
    store = cluster()
    older = {key: value for key, value in RECORDS["progress"].items() if key not in {"values", "scores"}}
    store.record_changed(KEYS.progress, json.dumps(older).encode())
    found = store.observed("u", template="t").published
    assert (found.values, found.scores) == ({}, [])


def test_the_account_of_a_master_is_read():
    store = cluster()
    store.record_changed(KEYS.outcome, WRITTEN["outcome"])
    found = store.facts("u").account
    assert (found.counted, found.expected, found.joins, found.seconds) == (9, 9, 1, 1.5)


@examples(100)
@given(pods(), pods())
def test_no_pod_stops_a_sync(first, second):
    store = cluster()
    store.record_changed(KEYS.at("extra"), b"", created=True)
    for each in (first, second):
        store.object_changed(each)
        asked(store)


@pytest.mark.parametrize(
    ("started", "finished"),
    [("2026-01-01", "2026-01-01T00:00:00Z"), ("2026-01-01T00:00:00Z", "2026-01-01"), ("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"),
     ("9999999-01-01T00:00:00Z", "2026-01-01T00:00:00Z"), (1e300, "NaN"), ("2026-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
     ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z")],
)  # fmt: skip
def test_no_time_of_a_container_stops_a_sync(started, finished):
    store = cluster()
    store.record_changed(KEYS.at("extra"), b"", created=True)
    ended = {"startedAt": started, "finishedAt": finished, "exitCode": 1, "containerID": "x"}
    store.object_changed(
        pod()
        | {"status": {"phase": "Running", "containerStatuses": [{"name": "trainer", "state": {"terminated": ended}}]}}
    )
    asked(store)


# --- Counting ---


def test_a_foreign_key_is_reported_on_its_job_until_it_is_removed():
    store = cluster()
    assert store.record_changed(KEYS.at("\udcff evil\n" + "x" * 9999), b"1", created=True) == {"u": 0.0}
    (reported,) = record_problems((), store.record_problems("u"))
    assert reported.reason == "ForeignKey"
    assert "'\\udcff evil\\nxx" in reported.text
    assert len(reported.text) < 500
    assert not store.record_problems("v")
    assert store.record_changed(KEYS.at("another"), b"2", created=True) == {}, "it is reported once"
    store.record_changed(KEYS.at("another"), None)
    assert store.record_changed(KEYS.at("\udcff evil\n" + "x" * 9999), None) == {"u": 0.0}
    assert not store.record_problems("u")


def test_too_many_keys_and_too_many_bytes_are_reported_with_their_bound(monkeypatch):
    store = cluster()
    for number in range(MOST_FOREIGN_KEYS + 1):
        due = store.record_changed(KEYS.at(f"x{number}"), b"", created=True)
    assert due == {"u": 0.0}
    assert "1,001 keys that are none of Shoal's (bound: 1,000)" in store.record_problems("u")["TooMuchInEtcd"]
    for number in range(MOST_FOREIGN_KEYS + 1):
        store.record_changed(KEYS.at(f"x{number}"), None)
    assert not store.record_problems("u")
    for number in range(17):
        store.record_changed(KEYS.tasks_of(0, number), b"x" * 2**20, created=True)
    assert "17.0 MiB (bound: 16 MiB)" in store.record_problems("u")["TooMuchInEtcd"]
    store.record_changed(KEYS.tasks_of(0, 0), b"")
    store.record_changed(KEYS.tasks_of(0, 1), b"")
    assert not store.record_problems("u")
    monkeypatch.setattr(module, "MOST_KEYS", 18)
    for number in range(17, 19):
        store.record_changed(KEYS.tasks_of(0, number), b"", created=True)
    assert "19 keys (bound: 18)" in store.record_problems("u")["TooMuchInEtcd"]


def test_nothing_is_kept_of_what_a_tenant_writes():
    store = cluster()
    value = os.urandom(2**20)
    before = sys.getrefcount(value)
    for number in range(5000):
        store.record_changed(KEYS.at(f"{number}/" + "x" * 10_000), value, created=True)
    assert sys.getrefcount(value) == before
    assert len(msgspec.json.encode(store.record_problems("u"))) < 2000


@examples(100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "epoch", "tasks/00000000/00000001"]), st.sampled_from([None, 0, 256, 257, 9999])
        )
    )
)
def test_what_is_counted_is_what_is_there(events):
    there, usage = {}, Usage()
    for record, size in events:
        if size is not None:
            usage.written(record, size, created=record not in there)
            there[record] = size
        elif record in there:
            usage.removed(record)
            del there[record]
        assert usage.keys == len(there)
        assert usage.foreign == len(there.keys() & {"a", "b"})
        assert usage.bytes == sum(each for each in there.values() if each > 256)


def test_a_listing_resets_the_counts():
    store = cluster()
    store.record_changed(KEYS.at("x"), b"1", created=True)
    assert store.records_replaced({KEYS.at("x"): b"1", KEYS.progress: published()}) == {"u": 0.0}
    assert set(store.record_problems("u")) == {"ForeignKey"}
    assert store.records_replaced({KEYS.progress: published()}) == {"u": 0.0}
    assert not store.record_problems("u")


def test_nothing_is_kept_of_a_deleted_job():
    store = Cache()
    for record in ("x", "progress", "tasks/00000000/00000000"):
        store.record_changed(KEYS.at(record), published(), created=True)
    for record in ("x", "progress", "tasks/00000000/00000000"):
        store.record_changed(KEYS.at(record), None)
    assert not store._known


def test_every_key_that_a_master_writes_is_one_of_shoal_s():
    records = Records()
    records.members[255] = None  # only its key matters
    records.note_member_changed(255)
    records.evaluations[3] = {7: "0.5"}
    records.measured(10**9, 123_456_789, 0.5)
    records.record_task(123, 10**6, done=True)
    records.note_all_changed()
    keys = {key for key, _ in records._all()} | records._dirty
    assert len(keys) >= 14
    assert {key for key in keys if not JobKeys.knows(key)} == set()
    assert all(JobKeys.knows(KEYS.relative(key)) for key in (KEYS.master, KEYS.desired, KEYS.evaluation(3, 12_345)))
    strange = ["", "x", "master/", "masters", "tasks/0/0", "members/xyz", "tasks/00000000/00000000\n", "epoch/x"]
    assert not any(JobKeys.knows(each) for each in strange)


def test_etcd_s_watch_reports_changes_to_their_own_job_only(tmp_path):
    """With a real etcd, complaints follow records that are written, rewritten, removed and listed anew, and affect no other job."""
    store, marked = cluster(), []

    def news(events):
        for event in events:
            marked.extend(store.record_changed(event.key, event.value, created=event.created))

    with run_etcd(tmp_path) as etcd, Store.connect(etcd.endpoint, prefix="/shoal/") as client:
        ready = []
        client.watch(ALL_JOBS, from_revision=None, on_events=news, on_reset=lambda *_: ready.append(True))
        eventually(lambda: ready)
        for value in (b"1", b"2", b"3"):
            client.transact([], [Put(KEYS.at("x"), value), Put(OTHER.progress, published(samples=int(value)))])
        client.transact([], [Put(KEYS.progress, b"[")])
        eventually(lambda: len(store.record_problems("u")) == 2, what="both complaints")
        assert store._known["u"].usage.keys == 2
        assert not store.record_problems("v")
        assert store.observed("v", template="t").published.samples == 3
        client.transact([], [Delete(KEYS.at("x")), Put(KEYS.progress, published())])
        eventually(lambda: not store.record_problems("u"), what="none")
        assert store._known["u"].usage.keys == 1


def test_bounds_are_above_what_a_large_job_writes():
    """The bounds exceed what a large job writes: a hundred epochs of 250,000 tasks, and 200 members."""
    usage = Usage()
    for number in range(100 * 250_000 // 512):
        usage.written(f"tasks/{number // 489:08d}/{number % 489:08d}", 64, created=True)
    for number in range(200):
        usage.written(f"members/{number:016x}", 300, created=True)
    assert not usage.record_problems()
    assert usage.bytes < MOST_BYTES
