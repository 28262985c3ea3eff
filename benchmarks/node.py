"""Measures, on a real Kubernetes node, the time from `kubectl apply`, and from a kill of a trainer, to a committed task.

A job of two trainers and two parameter servers is applied five times, and then each of its trainers is killed (SIGKILL)
once: the kubelet restarts a container at once the first time, and after 10 s, 20 s, 40 s and so on later. That delay is a
setting of Kubernetes and not part of these figures. Before each kill a plain process imports torch and creates an optimizer
while the job runs, as the reference for a new Python process on this machine. (The first optimizer of a process imports
another large part of torch; Shoal imports that part itself.)

Requires root and the programs that `make cluster` requires. Control plane, kubelet and containerd share the cores with the
pods.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import Row, interval, main, plain
from benchmarks.jobs import until
from benchmarks.scripts.stamper import began
from benchmarks.watching import Containers, Pods, Records
from shoal.api.crd import crd
from tests.cluster import binaries
from tests.cluster.image import IMAGE
from tests.cluster.node import NodeCluster
from tests.node.jobs import processes_with, template
from tests.node.world import World

ROUNDS, TRAINERS, SERVERS = 5, 2, 2
ENOUGH_SECONDS = 240.0
"""Seconds after which no further round starts; at least one round runs."""
KILL_PARTS = {
    "the container has ended": "exit",
    "the kubelet has noticed, and asks for a new one": "create",
    "its first process runs": "container",
    "Python runs the script's first line": "script",
    "torch is imported": "torch",
    "Shoal is imported, and what an optimizer needs": "shoal",
    "the script has made its model and optimizer": "made",
    "the trainer has joined and is prepared": "prepared",
    "its first task is committed": "commit",
}
APPLY_PARTS = {
    "kubectl apply returned": "returned",
    "the operator's first pod is there": "created",
    "all pods are there": "all created",
    "all are scheduled": "scheduled",
    "all containers' first processes run": "containers",
    "the master's record is in etcd": "master",
    "torch is imported by all trainers": "torch",
    "Shoal too, and all scripts have made model and optimizer": "made",
    "the parameter servers are ready: tasks can be handed out": "begun",
    "all trainers are prepared": "prepared",
    "the first task is committed": "commit",
}


@dataclass(frozen=True)
class Bench:
    """The cluster, and the observers that all measurements use."""

    world: World
    pods: Pods
    containers: Containers
    records: Records


@contextmanager
def _bench() -> Iterator[Bench]:
    """Start a cluster with a real node and an operator."""
    binaries.node()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-node-")))
        # Pods run as another user.
        folder.chmod(0o755)
        cluster = stack.enter_context(NodeCluster(folder / "cluster"))
        cluster.kubectl("apply", "-f", "-", input=json.dumps(crd()))
        cluster.kubectl("wait", "--for=condition=Established", "crd/trainingjobs.shoal.dev", "--timeout=60s")
        cluster.kubectl("create", "namespace", "bench")
        cluster.kubectl("wait", "-n", "bench", "--for=create", "serviceaccount/default", "--timeout=60s")
        (folder / "world").mkdir()
        world = stack.enter_context(World(cluster, "bench", folder / "world"))
        records = stack.enter_context(Records(world))
        yield Bench(world, Pods(world), stack.enter_context(Containers(world)), records)


def _plain_process() -> dict[str, float]:
    """Run a process without Shoal; return the seconds until torch is imported and until an optimizer is created."""
    called = time.time()
    script = "import time, torch; a = time.time(); torch.optim.SGD([torch.zeros(1)], lr=1.0); print(a, time.time())"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, env=environment)
    imported, made = map(float, done.stdout.split())
    return {"plain import": imported - called, "plain optimizer": made - called}


def _spec() -> dict[str, Any]:
    asked = {"requests": {"cpu": "250m", "memory": "256Mi"}}
    return {
        "image": IMAGE,
        "command": ["python", "-m", "benchmarks.scripts.stamper"],
        "trainer": {"minReplicas": TRAINERS, "resources": asked, "template": template("trainer")},
        "parameterServer": {"replicas": SERVERS, "resources": asked, "emptyDir": {}, "template": template("pserver")},
        "master": {"resources": asked, "template": template("master")},
        "checkpoint": {"interval": "1s"},
    }


def _stamps(bench: Bench, job: str, index: int) -> dict[str, float]:
    """Return the time stamps that the trainer in the running container has logged."""
    stamps: dict[str, float] = json.loads(bench.world.kubectl("logs", f"{job}-trainer-{index}").splitlines()[0])
    return stamps


def _apply(bench: Bench) -> tuple[str, dict[str, float]]:
    """Apply a job; return its name, and the time of each stage in seconds since the call of ``kubectl apply``."""
    job = f"job-{secrets.token_hex(3)}"
    called = time.time()
    bench.world.apply(job, **_spec())
    returned = time.time()
    uid = bench.world.get("trainingjob", job)["metadata"]["uid"]
    until(lambda: all(bench.records.of(uid, index) for index in range(TRAINERS)), "tasks of all trainers", seconds=120)
    stamps = [_stamps(bench, job, index) for index in range(TRAINERS)]
    created = bench.pods.first(uid, lambda _: True)
    scheduled = bench.pods.first(uid, lambda pod: bool(pod["spec"].get("nodeName")))
    assert len(scheduled) == TRAINERS + SERVERS + 1, f"some pod was not seen: {scheduled}"
    found = {
        "returned": returned,
        "created": min(created.values()),
        "all created": max(created.values()),
        "scheduled": max(scheduled.values()),
        "containers": max(min(map(began, processes)) for processes in _processes(uid)),
        "master": bench.records.first[uid, "master"],
        "torch": max(each["torch"] for each in stamps),
        "made": max(each["made"] for each in stamps),
        "begun": bench.records.first[uid, "begun"],
        "prepared": max(each["prepared"] for each in stamps),
        "commit": min(bench.records.of(uid, index)[0].when for index in range(TRAINERS)),
    }
    return job, {name: when - called for name, when in found.items()}


def _processes(uid: str) -> Iterator[list[int]]:
    """Yield the process ids of each of a job's containers."""
    for role, count in (("master", 1), ("pserver", SERVERS), ("trainer", TRAINERS)):
        for index in range(count):
            named = {} if role == "master" else {"SHOAL_INDEX": str(index)}
            yield processes_with(SHOAL_UID=uid, SHOAL_ROLE=role, **named)


def _kill(bench: Bench, job: str, index: int) -> dict[str, float]:
    """Kill a trainer; return the time of each stage in seconds since the kill, and the times of a plain process."""
    world = bench.world
    reference = _plain_process()
    pod = world.get("pod", f"{job}-trainer-{index}")
    uid, old = pod["metadata"]["labels"]["shoal.dev/uid"], pod["status"]["containerStatuses"][0]["containerID"]
    lives = {each.life for each in bench.records.of(uid, index)}
    [process] = world.processes(job, "trainer", index)
    killed = time.time()
    os.kill(process, signal.SIGKILL)

    def again() -> bool:
        return any(each.life not in lives for each in bench.records.of(uid, index))

    until(again, f"a task of the killed trainer {index}", seconds=60)
    commit = next(each.when for each in bench.records.of(uid, index) if each.life not in lives)
    ended = bench.containers.after(killed, "/tasks/exit", old.rpartition("/")[2]).when
    found = {
        **_stamps(bench, job, index),
        "exit": ended,
        "create": bench.containers.after(ended, "/containers/create").when,
        "commit": commit,
    }
    pod = world.get("pod", f"{job}-trainer-{index}")
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 1, "only the first restart has no delay"
    return {name: when - killed for name, when in found.items()} | reference


def _round(bench: Bench) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Apply a job, kill each of its trainers, and delete it."""
    job, applied = _apply(bench)
    kills = [_kill(bench, job, index) for index in range(TRAINERS)]
    bench.world.kubectl("delete", "tj", job)
    until(lambda: not bench.world.pods(job), "the job's pods to go", seconds=120)
    return applied, kills


def measure() -> tuple[list[Row], Any]:
    """Run all rounds."""
    begun, applies, kills = time.monotonic(), [], []
    with _bench() as bench:
        for number in range(ROUNDS):
            if number and time.monotonic() - begun > ENOUGH_SECONDS:
                break
            print(f"round {number + 1} of {ROUNDS}", flush=True)
            applied, killed = _round(bench)
            applies.append(applied)
            kills += killed
    rows = [
        _against("node_kill: SIGKILL to the next committed task; against import torch", kills, "plain import"),
        _against("  the same, against import torch and a first optimizer", kills, "plain optimizer"),
    ]
    before = [0.0] * len(kills)
    for text, name in KILL_PARTS.items():
        reached = [each[name] for each in kills]
        rows.append(plain(f"  until {text}", [r - b for r, b in zip(reached, before, strict=True)], "s"))
        before = reached
    rows.append(
        plain("node_apply: kubectl apply to the first committed task", [each["commit"] for each in applies], "s")
    )
    rows += [plain(f"  when {text}", [each[name] for each in applies], "s") for text, name in APPLY_PARTS.items()]
    return rows, {"kills": kills, "applies": applies}


def _against(metric: str, kills: list[dict[str, float]], reference: str) -> Row:
    ratios = [each["commit"] / each[reference] for each in kills]
    return Row(
        metric=metric,
        value=statistics.median(each["commit"] for each in kills),
        unit="s",
        reference=statistics.median(each[reference] for each in kills),
        ratio=statistics.median(ratios),
        interval=interval(ratios),
        count=len(kills),
    )


if __name__ == "__main__":
    main("node", measure)
