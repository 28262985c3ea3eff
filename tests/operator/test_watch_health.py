"""When a watch counts as blind: after writes whose events have not arrived."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.operator.cache.watch_health import ECHO_SECONDS, FAILING_SECONDS, WatchHealth


def test_a_write_without_its_event_shows_that_the_watch_is_blind():
    health = WatchHealth()
    health.written("a", 7, 100.0)
    assert health.problem(100.0 + ECHO_SECONDS - 1) == ""
    health.written("a", 9, 110.0)
    health.event_received("a", 8)
    assert health.problem(100.0 + ECHO_SECONDS) == "the watch of TrainingJobs delivers no events", "of the first one"
    assert health.restart_due(100.0 + ECHO_SECONDS)
    assert not health.restart_due(101.0 + ECHO_SECONDS), "not again at once: each lists all jobs"
    health.event_received("a", 9)
    assert health.problem(1000.0) == ""
    assert not health.restart_due(1000.0)


def test_no_event_is_expected_of_a_deleted_job():
    health = WatchHealth()
    health.written("a", 7, 0.0)
    health.job_deleted("a")
    assert health.problem(1e6) == ""


def test_a_failing_stream_is_reported_until_it_continues():
    health = WatchHealth()
    for second in range(100):
        health.failing("Pod", f"refused {second}", float(second))
        assert health.problem(float(second)) == (f"refused {second}" if second >= FAILING_SECONDS else "")
    health.failing("Pod", "", 100.0)
    assert health.problem(100.0) == ""


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.integers(0, 20)), max_size=30))
def test_an_event_received_in_time_is_never_missed(steps):
    """An event of a write or of a later one answers it; only an unanswered write is a problem in the end."""
    health, last, lacking = WatchHealth(), {"a": 0, "b": 0}, set()
    for uid, comes, more in steps:
        last[uid] += 1 + more
        health.written(uid, last[uid], 0.0)
        lacking.add(uid)
        if comes:
            health.event_received(uid, last[uid])
            lacking.discard(uid)
    assert bool(health.problem(ECHO_SECONDS)) == bool(lacking)
