"""The kubelet restarts a master and a parameter server that hang, and the job continues."""

from __future__ import annotations

import os
import signal

import pytest

from tests.node.jobs import template
from tests.node.test_life import check

pytestmark = [pytest.mark.cluster, pytest.mark.node, pytest.mark.timeout(1200)]

SECONDS = 300.0
SOONER = {"periodSeconds": 2}
"""Of the user's template: a test has less time than a job."""


def test_hung_processes_are_restarted_by_their_kubelet(world):
    world.pace(0.5)
    folder = world.claim("model")
    output = {"path": "held.safetensors", "volumeClaimName": "model"}
    world.apply(
        "held",
        **world.counting(
            trainer={"minReplicas": 2},
            parameterServer={"replicas": 2, "emptyDir": {}, "template": template("pserver", livenessProbe=SOONER)},
            master={"template": template("master", livenessProbe=SOONER)},
            output=output,
        ),
    )
    world.progresses("held", trainers=[0, 1], seconds=SECONDS)
    [master] = world.ready("held", "master")
    pods = {"held-pserver-0": ("pserver", 0), master: ("master", 0)}
    for role, index in pods.values():
        [pid] = world.processes("held", role, index)
        os.kill(pid, signal.SIGSTOP)
    for name in pods:
        world.until(lambda name=name: restarts(world, name) > 0, f"a restart of {name}", seconds=SECONDS)
    world.progresses("held", trainers=[0, 1], seconds=SECONDS)
    for name in pods:
        said = [each["message"] for each in world.get("events")["items"] if each["involvedObject"]["name"] == name]
        assert any("failed liveness probe, will be restarted" in text for text in said), said
    world.pace(0)
    world.until(lambda: world.status("held").get("state") == "Complete", "its end", seconds=SECONDS)
    check(world, "held", folder / "held.safetensors", epochs=2)


def restarts(world, name: str) -> int:
    return world.get("pod", name)["status"]["containerStatuses"][0]["restartCount"]
