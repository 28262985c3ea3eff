"""The local runner's status, processes and record as the SDK's values."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from shoal.local.state.job_record import RecordedEvent, TrainerChange
from shoal.local.state.jobs import KILLED
from shoal.local.view.formatting import NEVER_JOINED
from shoal.local.view.status import ProcessStatus, account_of
from shoal.sdk import Account, Event, Member, Replicas, SizeChange, State
from shoal.sdk.local.conversion import Times, event, is_same, job_status, member, size_change
from tests.local.test_formatting import PROGRESS, STATUS, changed

NOW = datetime(2026, 1, 2, 3, 4, 5, 600000, tzinfo=UTC)
TIMES = Times(now=NOW, created=NOW - timedelta(hours=1), started=NOW - timedelta(minutes=1), ended=NOW)


def converted(found=STATUS, **more):
    return job_status(msgspec.structs.replace(found, **more), servers=2, uid="abc", times=TIMES)


def ended(state, reason="", **more):
    account = account_of(state, PROGRESS, seconds=1.5)
    return converted(state=state, reason=reason, runner=0, members=[], account=account, **more)


def test_a_running_job():
    status = converted()
    assert (status.name, status.uid, status.state, status.reason) == (
        "digits",
        "abc",
        State.RUNNING,
        "SamplesCommitted",
    )
    assert type(status.reason) is str
    assert status.trainers == Replicas(ready=1, desired=3, min=1, max=4)
    assert status.parameter_servers == Replicas(ready=0, desired=2, min=2, max=2)
    progress = status.progress
    assert (progress.samples, progress.expected, progress.epoch, progress.epochs) == (410, 3000, 1, 3)
    assert (progress.percent, progress.rate) == (13.6, 12300.0)
    assert progress.estimated_end == datetime(2026, 1, 2, 3, 4, 17, tzinfo=UTC)
    assert (status.created, status.started, status.ended) == (TIMES.created, TIMES.started, None)
    assert not status.is_ended


def test_a_stalled_job_has_the_masters_reason():
    status = job_status(
        changed(stall_reason="no trainer is connected", rate=0.0, left_seconds=-1.0), servers=1, uid="", times=TIMES
    )
    assert (status.state, status.reason, status.message) == (State.RUNNING, "Stalled", "no trainer is connected")
    assert status.progress.message == "no trainer is connected"
    assert (status.progress.rate, status.progress.estimated_end) == (None, None)


def test_a_job_before_its_first_report():
    status = converted(state="Starting", progress=None)
    assert (status.state, status.reason, status.message) == (State.STARTING, "PodsStarting", "the master is starting")
    assert status.progress.expected is None
    assert status.progress.percent is None


def test_a_model_that_is_being_saved_is_of_a_running_job():
    status = job_status(
        msgspec.structs.replace(changed(state="Saving"), state="Saving"), servers=1, uid="", times=TIMES
    )
    assert (status.state, status.reason) == (State.RUNNING, "Saving")


def test_a_complete_job_has_its_account_and_no_rate():
    status = ended("Complete")
    assert (status.state, status.reason, status.ended) == (State.COMPLETE, "AllSamplesCommitted", NOW)
    assert status.is_complete
    assert status.account == Account(
        epochs=3, expected=3000, counted=410, lost=0, twice=0, skipped=2, replayed=0, joins=2, leaves=0, deaths=1, seconds=1.5
    )  # fmt: skip
    assert (status.progress.rate, status.progress.estimated_end) == (None, None)
    assert status.trainers.ready == 0


def test_a_job_whose_scripts_still_end_is_not_complete_yet():
    status = converted(state="Complete", account=account_of("Complete", PROGRESS, seconds=1.0))
    assert (status.state, status.reason, status.account, status.ended) == (State.RUNNING, "Saving", None, None)


def test_an_early_end_has_the_scripts_reason():
    assert ended("Complete", "good enough").message == "good enough"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("the script failed 7 times in a row (runPolicy.backoffLimit: 6)", "BackoffLimitExceeded"),
        ("the script ended 8 times in a row although the job was not complete", "BackoffLimitExceeded"),
        ("runPolicy.activeDeadlineSeconds: 5 s have passed", "DeadlineExceeded"),
        ("the script failed three times on task 3 of epoch 1", "TaskFailed"),
        ("no server has a good snapshot of slots 1 to 3", "SnapshotsLost"),
        ("trainer-0 refused the job; see its log", "ScriptFailed"),
        (NEVER_JOINED, "ScriptFailed"),
    ],
)
def test_a_failure_has_its_reason_in_one_word(text, reason):
    status = ended("Failed", f"{text}; its last output:\nTraceback\nValueError: runPolicy.activeDeadlineSeconds")
    assert (status.state, status.reason, status.message) == (State.FAILED, reason, text)
    assert status.account is not None


def test_a_stopped_job_is_suspended_and_a_killed_run_says_so():
    assert (ended("Stopped").state, ended("Stopped").reason) == (State.SUSPENDED, "SuspendRequested")
    killed = converted(state="Stopped", reason=KILLED, runner=0, members=[])
    assert (killed.state, killed.reason) == (State.SUSPENDED, "RunKilled")
    assert "resume()" in killed.message
    assert not killed.is_ended
    assert ended("Stopped").account is None


def test_processes_that_end_are_of_a_suspending_job_unless_it_fails():
    assert converted(state="Stopping").state is State.SUSPENDING
    failing = converted(state="Stopping", reason="the script failed once; its last output:\nboom")
    assert (failing.state, failing.message) == (State.RUNNING, "processes end: the script failed once")


def test_a_later_estimate_alone_is_no_change():
    later = job_status(
        STATUS,
        servers=2,
        uid="abc",
        times=Times(now=NOW + timedelta(seconds=9), created=TIMES.created, started=TIMES.started),
    )
    assert later != converted()
    assert is_same(later, converted())
    assert not is_same(converted(trainers=2), converted())


def row(state, *, pid=7, task="", seconds=1.0, restarts=0):
    return ProcessStatus("trainer", 1, pid, "", state, task, seconds, restarts)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (row("training", task="task 3 of epoch 1", restarts=2), Member("trainer-1", "Ready", "", 2, "training task 3 of epoch 1")),
        (row("starting"), Member("trainer-1", "Starting")),
        (row("running"), Member("trainer-1", "Ready")),
        (row("waits", pid=0, seconds=4.0), Member("trainer-1", "Waiting", message="starts again in 4 s")),
        (row("leaving"), Member("trainer-1", "Leaving")),
        (row("draining"), Member("trainer-1", "Leaving", message="draining")),
    ],
)  # fmt: skip
def test_processes(found, expected):
    assert member(found) == expected


def test_events_and_changes_of_size():
    assert event(RecordedEvent(0.0, "warning", "trainer-0 was ended", 2)) == Event(
        datetime(1970, 1, 1, tzinfo=UTC), "Warning", "Warning", "trainer-0 was ended", 2
    )
    assert event(RecordedEvent(0.0, "info", "trainer-0 joined")).kind == "Normal"
    assert size_change(TrainerChange(0.0, 1, 3, "pinned by a user", "shoal-sdk")) == SizeChange(
        datetime(1970, 1, 1, tzinfo=UTC), 1, 3, "pinned by a user", "shoal-sdk"
    )
