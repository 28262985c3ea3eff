"""Pod problems, from what the kubelet and the scheduler wrote into the pod's status."""

from __future__ import annotations

import pytest

from shoal.operator.status.pod_problems import problems_of_pod

BACK_OFF = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}


def problems_of(**container):
    """Return reason and message of each problem of a trainer with this container."""
    metadata = {"name": "j-trainer-0", "labels": {"shoal.dev/role": "trainer"}}
    pod = {"metadata": metadata, "status": {"containerStatuses": [{"name": "trainer", **container}]}}
    return [(each.reason, each.message) for each in problems_of_pod(pod)]


def last(code=1, reason="Error", message=""):
    return {"terminated": {"exitCode": code, "reason": reason, "message": message}}


CASES = {
    "it runs": ({"state": {"running": {}}, "ready": True}, []),
    "it is being made": ({"state": {"waiting": {"reason": "ContainerCreating"}}}, []),
    "no image": ({"state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}}, [("ErrImagePull", "not found")]),
    "its exit code": ({"state": BACK_OFF, "lastState": last(3)}, [("CrashLoopBackOff", "exit code 3; back-off 10s")]),
    "its last line": (
        {"state": BACK_OFF, "lastState": last(1, message="Traceback\n  x\nValueError: no\n")},
        [("CrashLoopBackOff", "exit code 1: ValueError: no; back-off 10s")],
    ),
    "before its first end": ({"state": BACK_OFF}, [("CrashLoopBackOff", "back-off 10s")]),
    "memory": (
        {"state": BACK_OFF, "lastState": last(137, "OOMKilled")},
        [("OOMKilled", "container trainer used more memory than its limit")],
    ),
    "memory, and it runs again": ({"state": {"running": {}}, "ready": True, "lastState": last(137, "OOMKilled")}, []),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_container(case):
    container, problems = CASES[case]
    assert problems_of(**container) == problems
