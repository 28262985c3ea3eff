"""Events of a job report changes, in text for users, and never a state that lasts."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from shoal.api.status import (
    AccountStatus,
    Allocation,
    Condition,
    ConditionType,
    Reason,
    State,
    Status,
    TrainersStatus,
)
from shoal.operator.core.run_policy import ContainerEnd
from shoal.operator.status.events import EventNote, failed, lost, notes

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def trainers(wanted: int, ready: int = 0) -> TrainersStatus:
    return TrainersStatus(desired=wanted, ready=ready, min=1, max=9)


def condition(kind: ConditionType, status: str, reason: Reason, message: str = "") -> Condition:
    return Condition(type=kind, status=status, reason=reason, message=message, last_transition_time=NOW)


def events_between(before: Status, after: Status) -> list[tuple[str, str, str]]:
    return [(each.kind, each.reason, each.text) for each in notes(before, after)]


def test_the_beginning():
    after = Status(start_time=NOW, trainers=trainers(2, 2))
    assert events_between(Status(), after) == [("Normal", "Started", "the training begins with 2 trainers")]
    assert events_between(after, after) == []


@pytest.mark.parametrize(
    ("before", "after", "why", "message"),
    [
        (4, 7, "idle capacity", ["scaled 4 -> 7: idle capacity"]),
        (7, 4, None, ["scaled 7 -> 4"]),
        (4, 4, "idle capacity", []),
        (0, 4, None, []),
        (4, 0, None, []),
    ],
)
def test_a_change_of_size(before, after, why, message):
    new = Status(trainers=trainers(after), allocation=Allocation(desired=after, ready=0, message=why))
    assert [text for _, _, text in events_between(Status(trainers=trainers(before)), new)] == message


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (State.RUNNING, State.SUSPENDING, ""),
        (State.SUSPENDING, State.SUSPENDED, "Suspended"),
        (State.SUSPENDED, State.PENDING, "Resumed"),
        (State.SUSPENDING, State.RUNNING, "Resumed"),
        (State.PENDING, State.RUNNING, ""),
        (State.SUSPENDED, State.COMPLETE, "Complete"),
    ],
)
def test_a_change_of_state(before, after, reason):
    assert [each for _, each, _ in events_between(Status(state=before), Status(state=after))] == [reason] * bool(reason)


def test_the_end_has_the_account():
    account = AccountStatus(expected=1000, counted=1000, lost=0, twice=0, skipped=0)
    [(kind, _, text)] = events_between(Status(state=State.RUNNING), Status(state=State.COMPLETE, account=account))
    assert (kind, text) == ("Normal", "1,000 of 1,000 samples counted; lost 0, twice 0")


def test_a_failure_has_its_reason_and_a_bounded_message():
    bad = condition(ConditionType.FAILED, "True", Reason.TASK_FAILED, "x" * 5000)
    [(kind, reason, text)] = events_between(Status(state=State.RUNNING), Status(state=State.FAILED, conditions=[bad]))
    assert (kind, reason, len(text)) == ("Warning", "TaskFailed", 1000)


@pytest.mark.parametrize(
    ("kind", "reason", "is_told"),
    [
        (ConditionType.ACCEPTED, Reason.INVALID_SPEC, True),
        (ConditionType.SCHEDULED, Reason.UNSCHEDULABLE, True),
        (ConditionType.SCHEDULED, Reason.QUOTA_EXCEEDED, True),
        (ConditionType.SCHEDULED, Reason.PODS_PENDING, False),
        (ConditionType.RUNNING, Reason.IMAGE_PULL_FAILED, True),
        (ConditionType.RUNNING, Reason.PODS_STARTING, False),
        (ConditionType.PROGRESSING, Reason.ETCD_UNREACHABLE, True),
        (ConditionType.PROGRESSING, Reason.NOT_BEGUN, False),
        (ConditionType.SUSPENDED, Reason.PODS_LEAVING, False),
    ],
)
def test_a_problem_is_reported_when_it_begins_and_not_again(kind, reason, is_told):
    bad = Status(conditions=[condition(kind, "False", reason, "the words")])
    assert events_between(Status(), bad) == [("Warning", reason, "the words")] * is_told
    assert events_between(bad, bad) == []
    other = Status(conditions=[condition(kind, "False", reason, "other words")])
    assert events_between(bad, other) == [], "the same problem with another message"


def test_a_recovery_is_not_reported():
    bad = Status(conditions=[condition(ConditionType.RUNNING, "False", Reason.CRASH_LOOP)])
    good = Status(conditions=[condition(ConditionType.RUNNING, "True", Reason.TRAINERS_READY)])
    assert events_between(bad, good) == []
    assert events_between(good, bad) == [("Warning", "CrashLoop", "Running is False")]


def test_a_lost_pod():
    assert lost("a-trainer-3") == EventNote(
        "Warning", "Lost", "a-trainer-3 lost: its node is deleted or unreachable; it is replaced"
    )


def ended(code: int, message: str = "") -> ContainerEnd:
    return ContainerEnd(
        pod="a-trainer-3", role="trainer", index=3, container_id="c", seconds=1, at=NOW, code=code, message=message
    )


def test_a_failed_script_has_its_last_line():
    assert failed(ended(1, "Traceback\n  File\nValueError: no\n")).text == (
        "a-trainer-3: the script failed (exit code 1: ValueError: no)"
    )
    assert failed(ended(1)).text == "a-trainer-3: the script failed (exit code 1)"
    assert failed(ended(0)).reason == "ScriptEnded"
    assert len(failed(ended(1, "x" * 5000)).text) == 1000


@pytest.mark.parametrize("reason", [Reason.SERVERS_AWAY, Reason.MASTER_AWAY, Reason.NO_NEWS])
def test_a_job_that_starts_or_resumes_causes_no_warning(reason):
    kind = ConditionType.PROGRESSING if reason is Reason.NO_NEWS else ConditionType.RUNNING
    away = Status(conditions=[condition(kind, "Unknown", reason, "not there")])
    paused = Status(conditions=[condition(kind, "False", Reason.NOTHING_TO_DO)])
    well = Status(conditions=[condition(kind, "True", Reason.SAMPLES_COMMITTED)])
    assert events_between(Status(), away) == events_between(paused, away) == events_between(away, away) == []
    assert events_between(well, away) == [("Warning", reason, "not there")]
