"""How pod problems are reported."""

from shoal.operator.status.pod_problems import problems_of_pod


def test_a_pod_problem_is_reported_with_its_own_message():
    pod = {
        "metadata": {"name": "j-trainer-0", "labels": {"shoal.dev/role": "trainer"}},
        "status": {
            "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}],
            "containerStatuses": [
                {"name": "trainer", "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
                 "lastState": {"terminated": {"reason": "OOMKilled"}}},
                {"name": "log", "state": {"waiting": {"reason": "ContainerCreating"}}},
            ],
        },
    }  # fmt: skip
    assert [(each.reason, each.message) for each in problems_of_pod(pod)] == [
        ("Unschedulable", "0/3 nodes"),
        ("OOMKilled", "container trainer used more memory than its limit"),
    ]
    assert list(problems_of_pod({"metadata": {"name": "x"}})) == []
