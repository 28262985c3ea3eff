"""The record of events and changes of size, and when it is written."""

import math

import msgspec

from shoal.local.state.job_record import MOST_CHANGES, MOST_EVENTS, JobRecord
from shoal.local.state.recorder import Recorder
from shoal.local.state.state_folder import StateFolder
from shoal.protocol.messages import Evaluation
from tests.local.test_formatting import PROGRESS


def test_changes_of_size_are_chained_and_repetitions_are_none():
    record = JobRecord()
    for time, trainers in enumerate((2, 2, 4, 1)):
        record.resize(float(time), trainers, "pinned by a user" if trainers == 4 else "other", "someone")
    assert [(each.before, each.after) for each in record.changes] == [(0, 2), (2, 4), (4, 1)]
    assert record.pinned is None


def test_a_pinned_number_is_known_until_it_changes_otherwise():
    record = JobRecord()
    assert record.pinned is None
    record.resize(1.0, 2, "the job's processes are started")
    record.resize(2.0, 3, "pinned by a user", "shoal-sdk")
    again = JobRecord(record.encode())
    assert again.pinned.after == 3
    again.resize(3.0, 2, "un-pinned: the number at the start")
    assert again.pinned is None


def test_the_record_is_bounded_and_keeps_the_latest():
    record = JobRecord()
    for number in range(300):
        record.resize(number, number + 1, "x", "y" * 1000)
        record.add_event(number, "info", f"{number} " + "z" * 100_000)
    assert len(record.changes) == MOST_CHANGES
    assert record.changes[-1].after == 300
    assert len(record.events) == MOST_EVENTS
    assert record.events[-1].text.startswith("299 ")
    assert len(record.encode()) < 1 << 20


def test_a_repeated_event_is_counted():
    record = JobRecord()
    for time, text in enumerate(("one", "two", "two", "two")):
        record.add_event(float(time), "info", text)
    assert [(each.time, each.text, each.count) for each in record.events] == [(0.0, "one", 1), (3.0, "two", 3)]


def test_a_damaged_record_is_an_empty_one():
    for content in (b"\xff", b"[]", b'{"events": 3}', b"{"):
        assert JobRecord(content).events == ()


def recorder(tmp_path):
    state = StateFolder(tmp_path, "train")
    state.path.mkdir(exist_ok=True)
    return state, Recorder(state, clock=lambda: 1_000_000.0)


def test_what_a_run_recorded_is_continued_by_the_next_one(tmp_path):
    state, first = recorder(tmp_path)
    first.resize(2, "the job's processes are started")
    first.progressed(PROGRESS)
    first.write(at_once=True)
    _, second = recorder(tmp_path)
    second.add_event("info", "trainer-0 joined")
    second.progressed(msgspec.structs.replace(PROGRESS, samples_total=500, values={"loss": 0.2, "bad": math.nan}))
    second.write(at_once=True)
    record = JobRecord(state.record())
    assert (record.began, record.changes[0].after, record.events[0].text) == (1_000_000.0, 2, "trainer-0 joined")
    assert msgspec.json.decode(state.metrics()) == [
        {"time": "1970-01-12T13:46:40.000Z", "epoch": 1, "samples": 410, "loss": 0.41},
        {"time": "1970-01-12T13:46:40.000Z", "epoch": 1, "samples": 500, "loss": 0.2},
    ]


def test_scores_are_among_the_logged_values(tmp_path):
    state, made = recorder(tmp_path)
    scores = [Evaluation(epoch=0, number=0, score='{"auc": 0.9}')]
    made.progressed(msgspec.structs.replace(PROGRESS, values={}, evaluations=scores))
    made.write(at_once=True)
    (only,) = msgspec.json.decode(state.metrics())
    assert (only["epoch"], only["score.auc"]) == (1, 0.9)


def test_a_folder_that_cannot_be_written_does_not_end_the_job(tmp_path):
    state, made = recorder(tmp_path)
    made.add_event("info", "x")
    state.path.rmdir()
    made.write(at_once=True)
