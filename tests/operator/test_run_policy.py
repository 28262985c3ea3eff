"""Which failures of a script count, when the count is reset, and what the run policy decides."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.api.status import Condition, ProgressStatus, Status
from shoal.operator.cache.cache import Cache
from shoal.operator.core.run_policy import (
    REFUSED,
    RETRY,
    ConsecutiveFailures,
    ContainerEnd,
    active_seconds,
    clocked,
    count_failures,
    end_of,
    ends_of,
    newly_failed,
    overrun,
    recorded_end,
    removal_due,
    retried,
    retry_requested,
)
from shoal.store import JobKeys, ReportedState
from tests.operator.jobs import job
from tests.operator.test_cache import pod as trainer_pod

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def end(seconds: float, container_id: str = "", *, code: int = 1, lived: float = 5.0, **more) -> ContainerEnd:
    made = ContainerEnd(pod="flights-trainer-0", role="trainer", index=0, container_id=container_id or f"l{seconds}", seconds=lived,
               at=at(seconds), code=code, message="Traceback\nValueError: no")  # fmt: skip
    return replace(made, **more)


def count(ends, *, committed=None, before=ConsecutiveFailures(), known=(), now=10.0) -> int:  # noqa: B008 - it is frozen
    """Count failures where all of them are observed at one time, and the commit at a later one."""
    first = count_failures(before, ends, known=known, committed=None, now=now)
    return count_failures(first, ends, known={each.container_id for each in ends}, committed=committed, now=100.0).count


# --- What a pod reports ---


def terminated(started: int, finished: int, code: int, reason: str = "Error") -> dict:
    moments = {"startedAt": at(started).isoformat(), "finishedAt": at(finished).isoformat()}
    return {
        "terminated": {**moments, "exitCode": code, "reason": reason, "containerID": f"c{finished}", "message": " no\n"}
    }


def pod(*states, role: str = "trainer", container: str = "trainer") -> dict:
    kinds = dict(zip(("lastState", "state"), states, strict=False))
    labels = {"shoal.dev/role": role, "shoal.dev/index": "3"}
    return {
        "metadata": {"name": "flights-trainer-3", "labels": labels},
        "status": {"containerStatuses": [{"name": "log"}, {"name": container, **kinds}]},
    }


def test_a_pod_has_the_ends_of_its_present_and_previous_container():
    first, second = ends_of(pod(terminated(0, 5, 1), terminated(15, 80, 2)))
    assert (first.container_id, first.code, first.seconds, first.message) == ("c5", 1, 5.0, "no")
    assert (second.container_id, second.code, second.at, second.index) == ("c80", 2, at(80), 3)


def test_ends_that_a_pod_does_not_report():
    assert list(ends_of(pod({"running": {}}, {"waiting": {"reason": "CrashLoopBackOff"}}))) == []
    assert list(ends_of(pod(terminated(0, 5, 137, "OOMKilled")))) == []
    assert list(ends_of(pod(terminated(0, 5, 1), container="other"))) == []
    assert list(ends_of({"metadata": {"name": "x"}})) == []
    assert list(ends_of(pod({"terminated": {"finishedAt": "yesterday"}}))) == []


# --- What counts ---


@pytest.mark.parametrize("code", [134, 135, 137, 139, 143])
def test_signals_do_not_count(code):
    assert count([end(1, code=code)]) == 0


def test_errors_count_and_so_does_an_end_too_early():
    assert count([end(1), end(2, code=0), end(3, code=78)]) == 3


def test_terminated_pods_and_pods_without_a_script_do_not_count():
    assert count([end(1, terminated=True), end(2, role="pserver"), end(3, role="master")]) == 0


def test_each_life_counts_once():
    first = count_failures(ConsecutiveFailures(), [end(1)], known=(), committed=None, now=0.0)
    assert first.count == 1
    assert count_failures(first, [end(1)], known={"l1"}, committed=None, now=0.0).count == 1
    assert count_failures(first, [end(1), end(2)], known={"l1"}, committed=None, now=0.0).count == 2


def test_the_next_operator_continues_the_count_and_has_the_message():
    counted = ConsecutiveFailures(2, at(10))
    found = count_failures(counted, [end(10), end(9)], known=None, committed=None, now=0.0)
    assert (found.count, found.end) == (2, end(10))
    assert count_failures(counted, [end(10), end(11)], known=None, committed=None, now=0.0).count == 3


@pytest.mark.parametrize(("lived", "committed", "left"), [(5, 11, 1), (5, 39, 1), (5, 41, 0), (31, 11, 0), (31, 9, 1)])
def test_a_committed_task_resets_the_count_but_not_soon_after_an_early_error(lived, committed, left):
    assert count([end(10, lived=lived)], committed=committed) == left


def test_what_was_committed_before_changes_nothing():
    assert count([end(10), end(20)], committed=5) == 2


class Seen:
    """Failures and commits as the cache receives them: from a kubelet's pods and a master's records, each with its own clock."""

    def __init__(self, *, kubelet=0.0, master=0.0):
        self.now, self._kubelet, self._master = 0.0, kubelet, master
        self.store = Cache(clock=lambda: self.now)
        self.store.job_changed({"metadata": {"uid": "u", "name": "j", "namespace": "default"}})
        self.failures, self.known = ConsecutiveFailures(), None

    def failed(self, started, finished):
        state = terminated(self._kubelet + started, self._kubelet + finished, 1)
        there = {"containerStatuses": [{"name": "trainer", "state": state}]}
        self.store.object_changed(trainer_pod() | {"status": {"phase": "Running", **there}})

    def progress(self, samples, moved):
        made = ReportedState(generation=1, state="Running", epoch=0, epochs=3, samples=samples, expected=90, rate=0.0,
                         moved=at(self._master + moved).timestamp(), trainers=[0], servers=[0], served=True, stall_reason="")  # fmt: skip
        self.store.record_changed(JobKeys("default", "j", "u").progress, msgspec.json.encode(made))

    def looked(self, now):
        self.now = now
        ends = self.store.ends("u")
        self.failures = count_failures(
            self.failures, ends, known=self.known, committed=self.store.committed("u"), now=now
        )
        self.known = {each.container_id for each in ends}
        return self.failures.count


@pytest.mark.parametrize("skew", [-86_400, 0, 86_400])
def test_clocks_of_master_and_kubelet_may_be_a_day_apart(skew):
    seen = Seen(kubelet=skew, master=-skew)
    seen.progress(5, 1)
    seen.failed(-50, 10)
    assert seen.looked(11) == 1
    seen.progress(5, 12)
    assert seen.looked(12) == 1, "nothing was committed since then"
    seen.now = 13
    seen.progress(6, 13)
    assert seen.looked(14) == 0


@pytest.mark.parametrize("skew", [-86_400, 0, 86_400])
def test_soon_after_an_early_error_is_by_our_own_clock(skew):
    seen = Seen(kubelet=skew, master=-skew)
    seen.progress(5, 1)
    seen.failed(5, 10)
    assert seen.looked(11) == 1
    for seen.now in (13, 40):
        seen.progress(int(seen.now), seen.now)
    assert seen.looked(40) == 1
    seen.now = 42
    seen.progress(42, 42)
    assert seen.looked(42) == 0


def test_an_operator_that_begins_takes_one_commit_more():
    """A commit that the operator finds at start-up may precede the error, so only the next commit resets the count."""
    seen = Seen()
    seen.failed(-50, 10)
    seen.progress(5, 20)
    seen.failures = ConsecutiveFailures(2, at(10))
    assert seen.looked(100) == 2
    seen.now = 101
    seen.progress(6, 101)
    assert seen.looked(102) == 0


def test_replayed_samples_are_no_commit_and_their_next_commit_is():
    seen = Seen()
    seen.progress(50, 1)
    seen.failed(-50, 10)
    assert seen.looked(11) == 1
    seen.now = 12
    seen.progress(30, 1)
    assert seen.looked(12) == 1
    seen.now = 13
    seen.progress(31, 13)
    assert seen.looked(13) == 0


@given(
    st.lists(st.tuples(st.integers(0, 200), st.sampled_from([0, 1, 137]), st.booleans()), max_size=8, unique_by=lambda x: x[0]),
    st.lists(st.integers(0, 8), max_size=4),
)  # fmt: skip
def test_syncs_in_between_change_nothing(spans, cuts):
    """Failures that are observed one by one, some repeatedly, are counted as if they were observed at once."""
    ends = sorted(
        (end(seconds, code=code, terminated=asked) for seconds, code, asked in spans), key=lambda each: each.at
    )
    failures, known = ConsecutiveFailures(), None
    for cut in [*sorted(cuts), len(ends)]:
        there = ends[:cut]
        failures = count_failures(failures, there, known=known, committed=None, now=0.0)
        known = {each.container_id for each in there}
    assert failures.count == count(ends)


@given(st.lists(st.tuples(st.integers(0, 60), st.sampled_from([0, 1, 137])), max_size=8, unique_by=lambda x: x[0]))
def test_each_error_is_reported_once(spans):
    ends = [end(seconds, code=code) for seconds, code in spans]
    reported = newly_failed(ConsecutiveFailures(), ends, known=None)
    assert sorted(each.container_id for each in reported) == sorted(
        each.container_id for each in ends if each.code != 137
    )
    assert newly_failed(ConsecutiveFailures(), ends, known={each.container_id for each in ends}) == []


# --- What the run policy decides ---


def decided(*, failures=ConsecutiveFailures(), status=Status(), refusals=(), now=0.0, **policy):  # noqa: B008 - they are frozen
    made = job(runPolicy=policy) if policy else job()
    found = overrun(made, status, failures, refusals, at(now))
    return found.reason if found is not None else ""


def test_the_count_may_reach_the_limit_and_not_pass_it():
    assert decided(failures=ConsecutiveFailures(2, at(1), end(1)), backoffLimit=2) == ""
    said = decided(failures=ConsecutiveFailures(3, at(1), end(1)), backoffLimit=2)
    assert said.startswith("BackoffLimitExceeded: the script failed 3 times in a row (runPolicy.backoffLimit: 2)")
    assert "flights-trainer-0 (exit code 1)" in said
    assert "ValueError: no" in said


def test_one_early_end_of_each_trainer_is_not_too_many():
    early = end(1, code=0)
    assert decided(failures=ConsecutiveFailures(4, at(1), early), backoffLimit=0) == ""
    said = decided(failures=ConsecutiveFailures(5, at(1), early), backoffLimit=0)
    assert said.startswith("BackoffLimitExceeded: the script ended 5 times in a row although the job was not complete;")
    assert said.endswith("ValueError: no")


def test_a_script_that_never_joins_is_known_at_its_second_end():
    early, starting = end(1, code=0), Status(progress=ProgressStatus())
    assert decided(failures=ConsecutiveFailures(1, at(1), early), status=starting) == ""
    assert decided(failures=ConsecutiveFailures(2, at(1), early), status=Status()) == ""
    assert (
        decided(failures=ConsecutiveFailures(2, at(1), early), status=Status(progress=ProgressStatus(epochs=3))) == ""
    )
    said = decided(failures=ConsecutiveFailures(2, at(1), early), status=starting)
    assert said.startswith("ScriptFailed: the script ended without joining the job")


def test_a_refusal_is_final_until_something_is_trained():
    refusals = [end(1, code=REFUSED, message="the dataset is empty")]
    assert decided(refusals=refusals) == "ScriptFailed: the dataset is empty"
    assert decided(refusals=[end(1, code=REFUSED, message="")]) == (
        "ScriptFailed: flights-trainer-0 refused the job; its log says why"
    )
    assert decided(refusals=refusals, status=Status(progress=ProgressStatus(samples=5))) == ""


def test_the_deadline_counts_while_the_job_is_active():
    status = Status(active_seconds=50, active_since=at(100))
    assert decided(status=status, now=109, activeDeadlineSeconds=60) == ""
    assert decided(status=status, now=110, activeDeadlineSeconds=60) == (
        "DeadlineExceeded: runPolicy.activeDeadlineSeconds: 60 s have passed"
    )
    assert decided(status=Status(active_seconds=59), now=10**6, activeDeadlineSeconds=60) == ""
    assert decided(status=status, now=10**6) == ""


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 1000)), max_size=10))
def test_the_clock_stops_while_the_job_does_not_run(spells):
    status, now, ran = Status(start_time=T0), 0, 0
    status = clocked(status, T0, runs=True)
    runs = True
    for should_run, seconds in spells:
        ran += seconds if runs else 0
        now += seconds
        status = clocked(status, at(now), runs=should_run)
        runs = should_run
        assert active_seconds(status, at(now)) == ran


def test_a_clock_set_back_reduces_no_active_time():
    status = Status(active_seconds=7, active_since=at(100))
    assert active_seconds(status, at(50)) == 7
    assert clocked(status, at(50), runs=False) == Status(active_seconds=7)


def test_the_clock_begins_when_the_job_is_accepted_and_not_when_it_first_runs():
    """The deadline's clock starts when the job is accepted, as for a batch Job, so a job that never runs fails at its deadline."""
    assert clocked(Status(), T0, runs=True) == Status(active_since=T0)
    assert clocked(Status(), T0, runs=False) == Status()


# --- After the end ---


def ended(kind: str = "Complete") -> Status:
    made = Condition(type=kind, status="True", reason="AllSamplesCommitted" if kind == "Complete" else "TaskFailed",
                     message="m", last_transition_time=at(5))  # fmt: skip
    return Status(conditions=[made])


def test_the_reported_end_is_kept():
    assert recorded_end(Status()) is None
    found = recorded_end(ended("Failed"))
    assert (found.state, found.reason) == ("Failed", "TaskFailed: m")


def test_a_job_is_removed_so_long_after_its_end():
    assert removal_due(job(runPolicy={"ttlSecondsAfterFinished": 60}), ended()) == at(65)
    assert removal_due(job(runPolicy={"ttlSecondsAfterFinished": 0}), ended("Failed")) == at(5)
    assert removal_due(job(), ended()) is None
    assert removal_due(job(runPolicy={"ttlSecondsAfterFinished": 60}), Status()) is None
    assert removal_due(job(runPolicy={"ttlSecondsAfterFinished": 2**31 - 1}), ended()) is not None


@pytest.mark.parametrize("moment", ["9999-12-31T23:59:59Z", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59"])
def test_a_status_may_have_any_time(moment):
    """A status may contain any time, and every time that is derived from it is valid."""
    condition = {"type": "Complete", "status": "True", "reason": "AllSamplesCommitted", "lastTransitionTime": moment}
    status = Status.from_mapping(
        {
            "conditions": [condition],
            "activeSince": moment,
            "progress": {"lastStepTime": moment},
            "lastFailureTime": moment,
        }
    )
    assert removal_due(job(runPolicy={"ttlSecondsAfterFinished": 2**31 - 1}), status) is not None
    assert status.progress.last_step_time + timedelta(days=36_500)
    assert active_seconds(status, T0) >= 0
    assert clocked(status, T0, runs=False).active_seconds is not None


def test_only_a_new_value_requests_a_retry():
    def requested(value, seen=None):
        notes = {} if value is None else {"annotations": {RETRY: value}}
        return retry_requested({"metadata": notes}, Status(retried=seen))

    assert (requested(None), requested(""), requested("1"), requested("1", "1"), requested("2", "1")) == (
        "",
        "",
        "1",
        "",
        "2",
    )
    assert requested("x" * 1000) == "x" * 100
    assert requested("x" * 1000, "x" * 100) == "", "what counts is what is kept"


def test_a_job_that_is_retried_has_no_end_and_counts_from_zero():
    failed = Condition(type="Failed", status="True", reason="BackoffLimitExceeded", last_transition_time=T0)
    running = Condition(type="Running", status="False", reason="Failed", last_transition_time=T0)
    before = Status(
        conditions=[running, failed], failures=7, last_failure_time=T0, active_seconds=9, restarts=1, start_time=T0
    )
    after = retried(before)
    assert end_of(after) is None
    assert (after.failures, after.last_failure_time, after.active_seconds) == (None, None, None)
    assert (after.restarts, after.start_time, after.conditions) == (1, T0, [running])
