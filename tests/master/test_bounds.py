"""Each record fits into etcd, and the master's memory stays bounded, whatever scripts report."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from shoal.master.handlers.trainers import VALUES
from shoal.master.state.records import VALUE_BYTES, Records
from shoal.protocol import messages as m
from shoal.protocol.text_limits import MOST_CHARACTERS, clipped
from shoal.trainer.logged_values import NAME_CHARACTERS, NAMES, Values, scored
from tests.master.harness import MasterHarness

LONG = "x" * 3_000_000
END = "\nValueError: too large"


@given(st.text(alphabet="ab", max_size=60), st.integers(4, 40))
def test_a_text_is_complete_or_states_how_much_is_left_out(text, most):
    shown = clipped(text, most)
    if len(text) <= most:
        assert shown == text
        return
    before, _, rest = shown.partition(" [... ")
    number, _, after = rest.partition(" characters left out ...] ")
    assert text.startswith(before)
    assert text.endswith(after)
    assert len(before) + len(after) == most
    assert int(number) == len(text) - most


def test_an_error_that_ends_a_job_is_clipped_and_keeps_its_end():
    harness = MasterHarness()
    harness.joins(0)
    while not harness.job.ended:
        lease = harness.gets(0).lease
        harness.deliver(0, m.ScriptFailed(error=LONG + END, leases=[lease]))
        harness.dies(0)
        harness.joins(0)
    outcome = harness.job.records.outcome
    assert outcome is not None
    assert outcome.reason.endswith(END)
    assert len(outcome.reason) < MOST_CHARACTERS + 100
    assert all(len(text) < MOST_CHARACTERS + 100 for text in harness.events("error"))
    assert "outcome" in harness.etcd


@pytest.mark.parametrize(
    "message",
    [m.JobEvent(level="warning", text=LONG), m.StopEarly(reason=LONG, epoch=0), m.Leave(leases=[], reason=LONG)],
    ids=lambda message: type(message).__name__,
)
def test_other_texts_are_clipped_too(message):
    harness = MasterHarness()
    harness.joins(0)
    harness.deliver(0, message)
    assert max(map(len, harness.etcd.values())) < VALUE_BYTES
    assert all(
        len(text) < MOST_CHARACTERS + 100 for level in ("info", "warning", "error") for text in harness.events(level)
    )


def test_a_record_that_etcd_would_not_take_is_left_out_and_noted():
    records = Records()
    records.record_model_file("model", 0, 0)
    records.evaluated(0, 0, LONG)
    assert [key for key, _ in records.flush()] == ["saved"]
    assert list(records.oversized.values()) == [len(LONG) + 2]
    assert not records.changed


def test_paths_of_saved_files_are_bounded_by_their_characters():
    records = Records()
    for number in range(1000):
        records.record_model_file(f"/{number:04}" + "x" * 4000, 0, number)
    ((_, value),) = records.flush()
    assert value is not None
    assert len(value) < VALUE_BYTES
    assert list(records.saved)[-1].startswith("/0999")


def test_names_of_logged_values_are_bounded():
    harness = MasterHarness()
    harness.joins(0)
    for number in range(VALUES + 50):
        harness.deliver(0, m.LogValues(values={f"loss_{number}": 1.0}, batches=1, skipped=0, replayed=0, not_finite=0))
    assert len(harness.job.values) == VALUES
    assert list(harness.job.values)[-1] == f"loss_{VALUES + 49}"


def test_a_script_with_too_many_logged_names_is_refused():
    values = Values()
    for _ in range(3):
        for number in range(NAMES):
            values.add({f"loss_{number}": 1.0})
    with pytest.raises(ValueError, match=r"job.log got 'one more' as its name number 101"):
        values.add({"one more": 1.0})
    with pytest.raises(ValueError, match=r"job\.log got a name of 101 characters"):
        Values().add({"x" * (NAME_CHARACTERS + 1): 1.0})


def test_a_score_that_is_no_score_is_refused_by_its_size():
    with pytest.raises(ValueError, match="gave 300,000 characters of JSON, and a score has 64,000 at most"):
        scored(nn.Linear(1, 1), lambda _: [1] * 100_000)
