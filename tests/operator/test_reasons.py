"""Each reason that Kubernetes reports is mapped to a documented reason."""

from __future__ import annotations

import pytest

from shoal.api.status import ConditionType
from shoal.operator.status.reasons import PodProblem, in_order, message_of, reason_of


@pytest.mark.parametrize(
    ("of", "words", "reason", "message"),
    [
        ("Failed", "no server has a good snapshot of slot 3 left", "SnapshotsLost", "no server has a good snapshot of slot 3 left"),
        ("Failed", "the script failed 3 times on task 7", "TaskFailed", "the script failed 3 times on task 7"),
        ("Failed", "BackoffLimitExceeded: 7 errors", "BackoffLimitExceeded", "7 errors"),
        ("Failed", "CannotChange: no reason of an end", "ScriptFailed", "CannotChange: no reason of an end"),
        ("Accepted", "CannotChange: spec.seed", "CannotChange", "spec.seed"),
    ],
)  # fmt: skip
def test_texts_become_documented_reasons(of, words, reason, message):
    assert reason_of(ConditionType(of), words) == (reason, message)


@pytest.mark.parametrize(
    ("own", "words", "reason", "before_node"),
    [
        ("Unschedulable", "", "Unschedulable", True),
        ("FailedCreate", "admission webhook denied", "PodsRefused", True),
        ("FailedCreate", "is forbidden: exceeded quota: cpu", "QuotaExceeded", True),
        ("OOMKilled", "", "OutOfMemory", False),
        ("TrainersReady", "no pod's word", None, False),
    ],
)
def test_a_pods_own_reason_is_known_by_a_table(own, words, reason, before_node):
    problem = PodProblem("trainer", "a", own, words)
    assert (problem.known, problem.before_node) == (reason, before_node)


def test_messages_are_one_line_and_bounded():
    assert message_of([PodProblem("trainer", "a", "Error", "one\n\ttwo")]) == "a: Error: one two"
    assert len(message_of([PodProblem("trainer", "a", "Error", "x" * 10_000)])) == 500
    assert len(reason_of(ConditionType.FAILED, "x" * 10_000)[1]) == 4000


def test_pods_are_in_the_order_of_roles_and_numbers():
    pods = [
        ("trainer", "t-10"),
        ("pserver", "p-2"),
        ("?", "a"),
        ("trainer", "t-9"),
        ("master", "master"),
        ("trainer", "t-9"),
    ]
    found = in_order(PodProblem(role, pod, "Error") for role, pod in pods)
    assert [each.pod for each in found] == ["master", "p-2", "t-9", "t-10", "a"]
